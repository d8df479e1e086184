"""What the paper's three models share (arXiv 2509.06948 v3); not an experiment itself.

One learning rate of 5e-7 for everything, lam 0.5, LoRA rank = alpha = 16, 64 prompts x 5 samples and one update per batch,
temperature 1, at most 3000 new tokens in training. Ours where the paper is silent: AdamW, clip 1, bf16 compute over fp32
masters, no KL term, prompts up to 1024 tokens, one group of 5 samples per device at a time, 64 demonstrations a
step. The paper trains on LIMR or MATH with DeepSeek-R1 traces; set task and data to yours. Here they
point at the built-in arithmetic, so that the command runs as it stands.
"""
from ml_collections import ConfigDict

from configs import base


def get_config(method: str, hub_name: str, arch: dict) -> ConfigDict:
    """The paper's settings for one model."""
    config = base.get_config(method)
    config.steps = 500
    config.model.update(dict(path=hub_name, arch=ConfigDict(arch), dtype="bfloat16", remat="full"))
    config.task.update(dict(levels=(4, 5, 6), hard_levels=(7, 8), style="chat", system="You are a helpful assistant.",
                            train_size=8000, demo_size=8000, eval_size=500))
    config.data.buckets = (256, 1024)
    config.rollout.update(dict(max_new=3000, cache_dtype="bfloat16", calls=2))
    config.batch.update(dict(prompts_per_step=64, samples_per_prompt=5, demos_per_step=64, microbatch_rows=5))
    config.eval.update(dict(every=50, rows=64))
    config.checkpoint.every = 50
    return config
