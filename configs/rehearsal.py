"""The paper's pipeline at the size of two cores: experiments.reproduce --rehearse trains with this.

    python -m experiments.reproduce --model=qwen25_3b --rehearse --data_dir=DIR --out=runs/rehearsal

The model is the folder that the rehearsal makes or fetches, the data are real. A run takes a few
steps of a few prompts and samples of a few tokens, so that nothing can be learned from it.
"""

from ml_collections import ConfigDict

from configs import base, tasks


def get_config(method: str = "bridge") -> ConfigDict:
    """4 steps of 4 LIMR prompts x 2 samples and 4 demonstrations; model.path must be given."""
    tasks.refuse(method)
    config = base.get_config(method)
    config.steps = 4
    config.model.update(dict(path="models_local/smollm2", remat="dots"))
    config.optim.base.learning_rate = 2e-5
    config.optim.lora.learning_rate = 2e-4
    config.task = tasks.group("limr", held_out=("math500",))
    # prompts up to 256 tokens, samples of 32, demonstrations of 256
    config.data.update(dict(buckets=(256,), max_demo=256))
    config.rollout.max_new = 32
    config.batch.update(
        dict(prompts_per_step=4, samples_per_prompt=2, demos_per_step=4, microbatch_rows=8)
    )
    config.eval.update(dict(every=2, rows=4, limit=4))
    config.checkpoint.every = 4
    return base.fit_to_steps(config)
