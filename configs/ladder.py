"""The study's model and task: a character model with 0.15 million parameters on sums.

    python -m experiments.train --config=configs/ladder.py:bridge --workdir=runs/one

A run takes one to two minutes on one CPU core. `base` is the recipe of the common base model
(experiments.pretrain), which the repository ships in configs/ladder_base: supervised, from random
weights, with a learning rate that falls to 0, on sums of two two-digit terms, of three one-digit
terms and, one in nine, of the target level (three two-digit terms). Six in ten of its
demonstrations state the answer without the steps. The base model solves 32% of the target level
greedily: it mostly answers at once, and its steps, where it writes them, often fail. The methods
then train on problems and demonstrations of another seed, 256 samples and 32 demonstrations per
step, out of `task.demo_size`, which all have steps.
"""

from ml_collections import ConfigDict

from configs import base

# the base model that the repository ships, made by `base` (its README.md says how)
BASE = "configs/ladder_base"
ARCH = dict(
    model_type="qwen3",
    vocab_size=16,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=192,
    max_position_embeddings=64,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    eos_token_id=0,
)


def get_config(method: str = "bridge") -> ConfigDict:
    """Two-digit sums of three terms, character by character.

    Method "base" is the recipe of the base model.
    """
    config = base.get_config("sft" if method == "base" else method)
    path = "" if method == "base" else BASE
    config.model.update(dict(path=path, arch=ConfigDict(ARCH), remat="none"))
    config.task.update(
        dict(levels=(4,), train_size=2000, demo_size=200, eval_size=500, dev_size=300, seed=1)
    )
    config.data.update(dict(tokenizer="chars", buckets=(9,)))
    config.rollout.max_new = 28
    config.batch.update(
        dict(prompts_per_step=32, samples_per_prompt=8, demos_per_step=32, microbatch_rows=32)
    )
    config.eval.update(dict(every=25, rows=250, samples=2))
    config.checkpoint.every = 1000
    config.log.rollouts_every = 0
    config.steps = 100
    config.optim.base.update(
        dict(learning_rate=1e-4, schedule="cosine", warmup_steps=10, decay_steps=90)
    )
    config.optim.lora.update(
        dict(learning_rate=1e-3, schedule="cosine", warmup_steps=10, decay_steps=90)
    )
    if method == "dapo":
        # the longest solution has 26 of 28 tokens: none is penalised for its length
        config.method.dapo.overlong_buffer = 0.07
    if method == "base":
        config.steps = 2000
        config.task.update(
            dict(levels=(2, 3, 4), weights=(6.0, 2.0, 1.0), demo_size=60000, direct=0.6, seed=0)
        )
        config.batch.update(dict(demos_per_step=128, microbatch_rows=128))
        config.optim.base.update(dict(learning_rate=3e-3, warmup_steps=20, decay_steps=1980))
        config.eval.every = 500
    return config
