"""Typed settings of a run, read from a ConfigDict and checked."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bridge_jax import methods, tasks
from bridge_jax.config import batch_table, renamed, schema
from bridge_jax.distributed import rendezvous, sharding
from bridge_jax.methods import frozen_base
from bridge_jax.models import attention, remat
from bridge_jax.models.lora import Lora
from bridge_jax.models.precision import dtype_of
from bridge_jax.optim import Recipe, Recipes
from bridge_jax.rundir import mirrors

logger = logging.getLogger(__name__)
GROUPS = (
    "model",
    "method",
    "optim",
    "task",
    "data",
    "rollout",
    "batch",
    "mesh",
    "eval",
    "checkpoint",
    "log",
    "hosts",
)
KEYS = ("seed", "steps", *GROUPS)
LEAST = {
    "data.max_demo": 0,
    "eval.every": 0,
    "eval.rows": 1,
    "eval.limit": 0,
    "eval.samples": 0,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "log.rollouts_every": 0,
    "log.eval_problems": 0,
    "log.profile": 0,
    "log.skipped_limit": 1,
    "model.logp_chunk": 1,
}


@dataclasses.dataclass(frozen=True)
class Model:
    """The base weights and their compute precision; master weights are always fp32."""

    path: schema.LocalPath = ""  # HF folder or hub name; "" draws random weights of shape `arch`
    # keys of HF's config.json; must agree with the model in `path` if both are set
    arch: dict = dataclasses.field(default_factory=dict)
    dtype: str = "float32"  # compute dtype: float32 or bfloat16
    # form of attention in training and prefill: a key of attention.KINDS; auto: by the devices
    attention: str = "auto"
    remat: str = "full"  # what a layer stores for the backward pass: a key of remat.REMAT
    logp_chunk: int = 512  # a device holds the logits of so many positions at a time
    lora_rank: int = 16
    lora_alpha: float = 16.0
    lora_targets: str = Lora.targets


@dataclasses.dataclass(frozen=True)
class Data:
    """Tokenizer and lengths."""

    # "": the model's own; "chars": the task's alphabet; else a folder or hub name
    tokenizer: schema.LocalPath = ""
    buckets: tuple[int, ...] = (64,)  # padded prompt lengths, each with its compiled programs
    max_demo: int = 0  # maximum of tokens of a demonstration's solution; 0: rollout.max_new


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Sampling for training; without top-k and top-p, which training could not reproduce."""

    temperature: float = 1.0
    # further stop strings besides the task's own, also in evaluations, such as the mark of a next
    # question: a completion ends with the first of them
    stop: tuple[str, ...] = ()
    task_stop: bool = True  # whether the task's own stop strings apply
    # maximum of tokens, end-of-sequence included; also of a demonstration without data.max_demo
    max_new: int = 64
    cache_dtype: str = "float32"
    # probability of flipping a reward, for studies of an unreliable grader
    reward_noise: float = 0.0
    calls: int = 1  # parts of a step's prompts: one is graded while the next is generated
    # how often the sampler continues with the unfinished half of its rows; -1: by the device
    compactions: int = -1
    # number of segments of the cache, of which a step reads those it can fill; -1: four
    cache_segments: int = -1


@dataclasses.dataclass(frozen=True)
class Batch:
    """Batch sizes; all other sizes are derived and printed (config/batch_table.py)."""

    prompts_per_step: int = 64
    samples_per_prompt: int = 5
    demos_per_step: int = 64
    microbatch_rows: int = 8  # per device
    # maximum of samples packed into one row (packing.py); 0: one sample per row
    pack: int = 0


@dataclasses.dataclass(frozen=True)
class Eval:
    """Held-out greedy evaluation during training."""

    every: int = 10  # steps; also before the first and after the last. 0: never
    rows: int = 64  # prompts generated at a time
    limit: int = 0  # problems of each split; 0: all
    # samples of each held-out problem at the training temperature, besides the greedy one; at most
    # 9
    samples: int = 0
    # whether the cooperative gain is measured too (measured_gain.py), on `rows` problems of each
    # kind
    measured_gain: bool = False


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the state is saved; also at the end and on SIGTERM."""

    every: int = 50
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class Log:
    """Records besides metrics.jsonl, and limits that stop a run."""

    rollouts_every: int = 1  # steps between rollout files; 0: none
    eval_problems: int = 8  # problems of each held-out split whose answers every evaluation writes
    mirrors: tuple[str, ...] = ()  # tensorboard, wandb
    profile: int = 0  # a step that jax's profiler traces into profile/; 0: none
    skipped_limit: int = 5  # non-finite updates in a row after which the run stops
    # share of a step's samples with a timeout or error of the grader above which the run stops
    ungraded_limit: float = 0.1


class Settings(NamedTuple):
    """The typed settings of a run."""

    seed: int
    steps: int
    method_name: str
    method: Any
    recipes: Recipes
    task_name: str
    task: Any
    model: Model
    data: Data
    rollout: Rollout
    batch: batch_table.BatchTable
    mesh: sharding.MeshConfig
    eval: Eval
    checkpoint: Checkpoint
    log: Log
    hosts: rendezvous.Hosts
    train: str = "theta"  # what the method trains: a key of frozen_base.TRAINED

    @property
    def max_demo(self) -> int:
        """The maximum of tokens of a demonstration's solution, end-of-sequence included."""
        return self.data.max_demo or self.rollout.max_new


def read(config: ConfigDict, devices: int) -> Settings:
    """The checked settings of a config for this number of devices.

    ValueError names the first invalid key.
    """
    for key in config:
        if key not in KEYS:
            raise ValueError(f"unknown key config.{key}: {schema.did_you_mean(key, KEYS)}")
        if key in GROUPS and not isinstance(config[key], ConfigDict):
            raise ValueError(f"config.{key} must be a group of keys, got {config[key]!r}")
    optim = config.get("optim", ConfigDict())
    for key in optim:
        if key not in ("base", "lora"):
            raise ValueError(
                f"unknown key config.optim.{key}: {schema.did_you_mean(key, ('base', 'lora'))}"
            )
    method_name, task_name = (
        config.get(key, ConfigDict()).get("name", "") for key in ("method", "task")
    )
    method_module, task_module = methods.load(method_name), tasks.load(task_name)
    method = method_settings(config.method, method_name, method_module.Config)
    group = lambda name, cls: schema.section(config, name, cls)
    mesh, batch, rollout = (
        group("mesh", sharding.MeshConfig),
        group("batch", Batch),
        group("rollout", Rollout),
    )
    axes, steps, seed = sharding.sizes_of(mesh, devices), config.get("steps"), config.get("seed", 0)
    for key, value, least in (("steps", steps, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"config.{key}={value!r}; allowed: a whole number of at least {least}")
    recipe = lambda label: schema.section(
        {f"optim.{label}": optim.get(label, {})}, f"optim.{label}", Recipe
    )
    recipes = Recipes(recipe("base"), recipe("lora"))
    samples = methods.samples(method_name, method, recipes)
    table = batch_table.BatchTable(
        devices=axes["data"] * axes["fsdp"], samples=samples, **dataclasses.asdict(batch)
    )
    s = Settings(
        seed,
        steps,
        method_name,
        method,
        recipes,
        task_name,
        schema.section(config, "task", task_module.Config, ("name",)),
        group("model", Model),
        group("data", Data),
        rollout,
        table,
        mesh,
        group("eval", Eval),
        group("checkpoint", Checkpoint),
        group("log", Log),
        group("hosts", rendezvous.Hosts),
        config.method.get("train", "theta"),
    )
    check(s)
    return s


def method_settings(group: ConfigDict, name: str, cls: type) -> Any:
    """The settings of the chosen method, config.method.<name>."""
    allowed = ("name", "train", *methods.names())
    for key in group:
        if key not in allowed:
            raise ValueError(
                f"unknown key config.method.{key}: "
                + (renamed.hint(name, key) or schema.did_you_mean(key, allowed))
            )
    return schema.section({f"method.{name}": group.get(name, {})}, f"method.{name}", cls)


def check(s: Settings) -> None:
    """ValueError for settings that have the right type but an invalid value."""
    for key, least in LEAST.items():
        section, name = key.split(".")
        if (value := getattr(getattr(s, section), name)) < least:
            raise ValueError(f"{key}={value}; allowed: a whole number of at least {least}")
    if s.rollout.temperature <= 0 or s.rollout.max_new < 1:
        raise ValueError(
            f"rollout.temperature={s.rollout.temperature}, rollout.max_new={s.rollout.max_new}; "
            "allowed: above 0, and at least 1"
        )
    if s.rollout.compactions < -1:
        raise ValueError(
            f"rollout.compactions={s.rollout.compactions}; allowed: 0, 1, ..., or -1: 2 on one "
            "CPU, 0 elsewhere"
        )
    if s.rollout.cache_segments < 1 and s.rollout.cache_segments != -1:
        raise ValueError(
            f"rollout.cache_segments={s.rollout.cache_segments}; allowed: 1, 2, ..., or -1, which "
            "is 4"
        )
    if s.train not in frozen_base.TRAINED:
        raise ValueError(
            f"method.train={s.train!r}; allowed: 'theta' (what the method trains by itself: the "
            "base weights, and with bridge and joint the adapter too), or 'w' (the adapter alone, "
            "over a frozen base)"
        )
    if "" in s.rollout.stop:
        raise ValueError(
            f"rollout.stop={s.rollout.stop}: an empty text is in every text; leave it out, "
            "allowed are texts such as '\\nQuestion:'"
        )
    if not 0 <= s.rollout.reward_noise <= 1:
        raise ValueError(
            f"rollout.reward_noise={s.rollout.reward_noise}; allowed: a probability, from 0 to 1"
        )
    prompts = s.batch.prompts_per_step
    if s.rollout.calls < 1 or s.batch.samples and prompts % s.rollout.calls:
        raise ValueError(
            f"rollout.calls={s.rollout.calls} must divide batch.prompts_per_step={prompts}; "
            f"allowed: {', '.join(str(n) for n in range(1, 9) if prompts % n == 0)}, ..."
        )
    if not 0 <= s.log.ungraded_limit <= 1:
        raise ValueError(
            f"log.ungraded_limit={s.log.ungraded_limit}; allowed: a share, from 0 to 1"
        )
    if s.eval.samples > 9:
        raise ValueError(
            f"eval.samples={s.eval.samples}; allowed: up to 9. For more of them: "
            "experiments.evaluate --samples"
        )
    for name in s.log.mirrors:
        if name not in mirrors.MIRRORS:
            raise ValueError(
                f"unknown mirror log.mirrors={name!r}: {schema.did_you_mean(name, mirrors.MIRRORS)}"
            )
    if s.model.remat not in remat.REMAT:
        raise ValueError(f"model.remat={s.model.remat!r}; allowed: {', '.join(remat.REMAT)}")
    if s.model.attention not in attention.KINDS:
        raise ValueError(
            f"model.attention={s.model.attention!r}; allowed: {', '.join(attention.KINDS)}"
        )
    dtype_of("model.dtype", s.model.dtype)
    dtype_of("rollout.cache_dtype", s.rollout.cache_dtype)
