"""A small Qwen3-shaped model from random weights on short sums, without any file of weights.

    python -m experiments.train --config=configs/from_scratch.py:sft --workdir=runs/scratch

For tests, for trying devices and plans: at first hardly any sample is right, so that RL has little
to learn from. The quickstart begins from a trained base model instead (configs/quickstart.py).
"""

from ml_collections import ConfigDict

from configs import base

ARCH = dict(
    model_type="qwen3",
    vocab_size=16,
    hidden_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=384,
    max_position_embeddings=256,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    eos_token_id=0,
)


def get_config(method: str = "bridge") -> ConfigDict:
    """One-digit sums of two or three terms, character by character."""
    config = base.get_config(method)
    config.model.update(dict(arch=ConfigDict(ARCH), remat="none"))
    config.task.update(dict(levels=(1, 3), train_size=2000, demo_size=100, eval_size=300))
    config.data.update(dict(tokenizer="chars", buckets=(8,)))
    config.rollout.max_new = 20
    config.batch.update(
        dict(prompts_per_step=32, samples_per_prompt=8, demos_per_step=32, microbatch_rows=256)
    )
    config.eval.update(dict(every=10, rows=200))
    config.checkpoint.every = 1000
    config.log.rollouts_every = 10
    config.steps = 40
    config.optim.base.learning_rate = 1e-4
    config.optim.lora.learning_rate = 1e-3
    return base.fit_to_steps(config)
