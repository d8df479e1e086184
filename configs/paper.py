"""Settings shared by the paper's three models (arXiv 2509.06948 v3); not an experiment itself.

One learning rate of 5e-7 for all parts, lam 0.5, LoRA rank = alpha = 16, 64 prompts x 5 samples and
one update per batch, temperature 1, at most 3000 new tokens in training. Where the paper gives
nothing, these are ours: AdamW, clip 1, bf16 compute with fp32 master weights, no KL term, prompts
up to 1024 tokens, one group of 5 samples per device at a time, 64 demonstrations per step. The
paper trains on LIMR with DeepSeek-R1 traces: give yours with --config.task.traces=FILE (JSONL of
problem, solution, answer). Without traces, MATH's own solutions are used where
--config.task.data_dir has them; the hub's LIMR has none.
"""

from ml_collections import ConfigDict

from configs import base, tasks


def get_config(method: str, hub_name: str, arch: dict) -> ConfigDict:
    """The paper's settings for one model; method: METHOD, or METHOD,TASK for another than LIMR."""
    method, task = tasks.choose(method)
    config = base.get_config(method)
    config.steps = 500
    config.model.update(dict(path=hub_name, arch=ConfigDict(arch), dtype="bfloat16", remat="full"))
    config.task = tasks.group(task or "limr")
    config.data.buckets = (256, 1024)
    config.rollout.update(dict(max_new=3000, cache_dtype="bfloat16"))
    config.batch.update(
        dict(prompts_per_step=64, samples_per_prompt=5, demos_per_step=64, microbatch_rows=5)
    )
    # the published numbers need experiments.evaluate: all problems
    config.eval.update(dict(every=50, rows=64, limit=100))
    config.checkpoint.every = 50
    return config
