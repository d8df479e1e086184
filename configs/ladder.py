"""The study's model and task: a character model of 0.16 million parameters on the arithmetic ladder, a minute a run on one core.

    python -m experiments.pretrain --out=runs/study/base
    python -m experiments.train --config=configs/ladder.py:bridge --workdir=runs/one --config.model.path=runs/study/base/model

CPU. `base` is the recipe of the common base model (experiments.pretrain): supervised, from random weights, on problems of one
seed, stopped while it solves 10 to 40% of the target level (three two-digit terms). The methods then train on problems and
experts of another seed: 128 samples a step, 16 experts beside them, out of `task.demo_size`.
"""
from ml_collections import ConfigDict

from configs import base

ARCH = dict(model_type="qwen3", vocab_size=16, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, intermediate_size=192, max_position_embeddings=64, rope_theta=10000.0,
            rms_norm_eps=1e-6, tie_word_embeddings=True, eos_token_id=0)


def get_config(method: str = "bridge") -> ConfigDict:
    """Two-digit sums of three terms, character by character; method "base" is the recipe of the base model."""
    config = base.get_config("sft" if method == "base" else method)
    config.model.update(dict(arch=ConfigDict(ARCH), remat="none"))
    config.task.update(dict(levels=(4,), train_size=2000, demo_size=200, eval_size=500, dev_size=300, seed=1))
    config.data.update(dict(tokenizer="chars", buckets=(9,)))
    config.rollout.max_new = 28
    config.batch.update(dict(prompts_per_step=16, samples_per_prompt=8, demos_per_step=16, microbatch_rows=128))
    config.eval.update(dict(every=50, rows=250))
    config.checkpoint.every = 1000
    config.log.rollouts_every = 0
    config.steps = 150
    config.optim.base.learning_rate = 3e-4
    config.optim.lora.learning_rate = 1e-3
    if method == "base":
        config.steps = 460
        config.task.update(dict(demo_size=20000, seed=0))
        config.batch.demos_per_step = 128
        config.optim.base.update(dict(learning_rate=3e-3, schedule="cosine", warmup_steps=20, decay_steps=580, end_ratio=0.1))
        config.eval.every = 115
    return config
