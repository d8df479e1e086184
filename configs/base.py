"""Every key there is, with its default; other configs start from here. Not an experiment itself.

The groups mirror the dataclasses of bridge_jax (a test compares them key by key). config.method has
a group for each method, read from the method's file: bridge's lam is --config.method.bridge.lam.
What is set in the group of another method than the chosen one is warned about.
"""

from ml_collections import ConfigDict

from bridge_jax import methods
from configs import tasks


def recipe(learning_rate: float) -> ConfigDict:
    """AdamW for one label (bridge_jax/optim/recipes.py Recipe)."""
    return ConfigDict(
        dict(
            learning_rate=learning_rate,
            schedule="constant",
            end_ratio=0.0,
            warmup_steps=0,
            decay_steps=0,
            clip_norm=1.0,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            moments="float32",
        )
    )


def method_groups() -> dict:
    """{name: its settings with their defaults} of every method; each stands in its own file."""
    return {name: methods.defaults(name) for name in methods.names()}


def get_config(method: str = "bridge") -> ConfigDict:
    """Defaults with the method's name set; ValueError for METHOD,TASK."""
    tasks.refuse(method)
    return ConfigDict(
        dict(
            seed=0,
            steps=100,
            model=dict(
                path="",
                arch=ConfigDict(),
                dtype="float32",
                attention="auto",
                remat="full",
                logp_chunk=512,
                lora_rank=16,
                lora_alpha=16.0,
                lora_targets="layers/(q|k|v|o|gate|up|down)",
            ),
            method=dict(name=method or "bridge", train="theta", **method_groups()),
            optim=dict(base=recipe(5e-7), lora=recipe(5e-7)),
            task=tasks.group("arithmetic"),
            data=dict(tokenizer="", buckets=(64,), max_demo=0),
            rollout=dict(
                temperature=1.0,
                stop=(),
                task_stop=True,
                max_new=64,
                cache_dtype="float32",
                reward_noise=0.0,
                calls=1,
                compactions=-1,
                cache_segments=-1,
            ),
            batch=dict(
                prompts_per_step=64,
                samples_per_prompt=5,
                demos_per_step=64,
                microbatch_rows=8,
                pack=0,
            ),
            mesh=dict(data=1, fsdp=-1, tensor=1, decode_tensor=0),
            eval=dict(every=10, rows=64, limit=0, samples=0, measured_gain=False),
            checkpoint=dict(every=50, keep=2),
            log=dict(
                rollouts_every=1,
                eval_problems=8,
                mirrors=(),
                profile=0,
                skipped_limit=5,
                ungraded_limit=0.1,
            ),
            hosts=dict(coordinator="", count=0, index=-1, timeout_s=600),
        )
    )


def fit_to_steps(config: ConfigDict) -> ConfigDict:
    """The config, with its method's counts of steps fitted to a run as short as config.steps.

    SFT is the first half of a cold start, and CHORD's mu falls over the whole run.
    """
    if config.method.name == "cold_start":
        config.method.cold_start.sft_steps = config.steps // 2
    if config.method.name == "chord":
        config.method.chord.mu_schedule.steps = config.steps
    return config
