"""Typed settings of a run, read from a ConfigDict and checked."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from bridge_jax import methods, tasks
from bridge_jax.config import batch_table, renamed, schema
from bridge_jax.distributed import multihost, sharding
from bridge_jax.models import attention, remat
from bridge_jax.models.lora import Lora
from bridge_jax.optim import Recipe, Recipes
from bridge_jax.rundir import logbook

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
    "eval.every": 0,
    "eval.rows": 1,
    "eval.limit": 0,
    "eval.samples": 0,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "log.rollouts_every": 0,
    "log.eval_problems": 0,
    "log.skipped_limit": 1,
    "model.logp_chunk": 1,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Model:
    """Where the base weights come from and in what precision they compute.

    Masters are always fp32.
    """

    path: schema.LocalPath = ""  # HF folder or hub name; "" draws random weights of shape `arch`
    # keys of HF's config.json; beside a path it must agree
    arch: dict = dataclasses.field(default_factory=dict)
    dtype: str = "float32"  # compute dtype: float32 or bfloat16
    # how training and prefill compute it: a key of attention.KINDS; auto: what the devices can
    attention: str = "auto"
    remat: str = "full"  # what a layer keeps for the backward pass: a key of remat.REMAT
    logp_chunk: int = 512  # as many logits are in memory at once as so many positions have
    lora_rank: int = 16
    lora_alpha: float = 16.0
    lora_targets: str = Lora.targets


@dataclasses.dataclass(frozen=True)
class Data:
    """Tokenizer and lengths."""

    # "": the model's own; "chars": the task's alphabet; else a folder or hub name
    tokenizer: schema.LocalPath = ""
    buckets: tuple[int, ...] = (64,)  # prompt lengths that programs are compiled for


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How training samples are drawn.

    Temperature alone: training could not mirror top-k and top-p.
    """

    temperature: float = 1.0
    # texts at which a completion is cut when it is read, in evaluations too, beside the task's own:
    # those that mark a next question in its template
    stop: tuple[str, ...] = ()
    task_stop: bool = True  # whether the task's own apply
    max_new: int = 64  # tokens, end-of-sequence counted; also the longest expert trace
    cache_dtype: str = "float32"
    # probability with which a reward is flipped: for studies of a grader that errs
    reward_noise: float = 0.0
    calls: int = 1  # parts of a step's prompts: one is graded while the next is generated
    # how often the sampler goes on with the half of its rows that is not done; -1: where it pays
    compactions: int = -1
    # into how many segments the cache is cut, of which a step reads those it can fill; -1: four
    cache_segments: int = -1


@dataclasses.dataclass(frozen=True)
class Batch:
    """The three batch words; the rest is derived and printed (config/batch_table.py)."""

    prompts_per_step: int = 64
    samples_per_prompt: int = 5
    demos_per_step: int = 64
    microbatch_rows: int = 8  # per device
    # most samples in one row of a forward pass (packing.py); 0: each has a row of its own
    pack: int = 0


@dataclasses.dataclass(frozen=True)
class Eval:
    """Held-out greedy evaluation during training."""

    every: int = 10  # steps; also before the first and after the last. 0: never
    rows: int = 64  # prompts generated at once
    limit: int = 0  # problems of each split; 0: all
    # of each held-out problem at the training temperature, beside the greedy one; at most 9
    samples: int = 0
    # whether what cooperation does is measured too (measured_gain.py), on `rows` problems of each
    # kind
    cooperation: bool = False


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the state is saved; also at the end and on SIGTERM."""

    every: int = 50
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class Log:
    """What is written beside metrics.jsonl."""

    rollouts_every: int = 1  # steps between rollout files; 0: none
    eval_problems: int = 8  # of each held-out split whose answers are kept at every evaluation
    mirrors: tuple[str, ...] = ()  # tensorboard, wandb
    skipped_limit: int = 5  # non-finite updates in a row after which the run stops
    # share of a step's samples ended by the grader's timeout or error that stops it
    ungraded_limit: float = 0.1


class Settings(NamedTuple):
    """All of a config, typed."""

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
    hosts: multihost.Hosts


def read(config: ConfigDict, devices: int) -> Settings:
    """Check and type every group.

    ValueError for the first key that is invalid, warnings for keys nobody reads.
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
        group("hosts", multihost.Hosts),
    )
    check(s)
    return s


def method_settings(group: ConfigDict, name: str, cls: type) -> Any:
    """The settings of the chosen method, config.method.<name>.

    A warning for those of others that are set.
    """
    for key in group:
        if key not in ("name", *methods.names()):
            raise ValueError(
                f"unknown key config.method.{key}: "
                + (renamed.hint(name, key) or schema.did_you_mean(key, ("name", *methods.names())))
            )
    for other in sorted(set(group) - {"name", name}):
        usual = methods.defaults(other)
        if group[other].to_dict() == usual:
            continue
        for key, (value, _) in schema.diff(group[other], usual).items():
            if value != schema.NOT_SET:
                logger.warning(
                    "method.%s.%s=%r is set, but the method is %r", other, key, value, name
                )
    return schema.section({f"method.{name}": group.get(name, {})}, f"method.{name}", cls)


def check(s: Settings) -> None:
    """ValueError for numbers and names of the right type that are invalid."""
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
    if "" in s.rollout.stop:
        raise ValueError(
            f"rollout.stop={s.rollout.stop}: an empty text stands everywhere; leave it out, "
            "allowed are texts such as '\\n"
            "Question:'"
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
        if name not in logbook.MIRRORS:
            raise ValueError(
                f"unknown mirror log.mirrors={name!r}: {schema.did_you_mean(name, logbook.MIRRORS)}"
            )
    if s.model.remat not in remat.REMAT:
        raise ValueError(f"model.remat={s.model.remat!r}; allowed: {', '.join(remat.REMAT)}")
    if s.model.attention not in attention.KINDS:
        raise ValueError(
            f"model.attention={s.model.attention!r}; allowed: {', '.join(attention.KINDS)}"
        )
    dtype_of("model.dtype", s.model.dtype)
    dtype_of("rollout.cache_dtype", s.rollout.cache_dtype)


def dtype_of(key: str, name: str):
    """The dtype of a config value; ValueError lists what is allowed."""
    if name not in DTYPES:
        raise ValueError(f"{key}={name!r}; allowed: {', '.join(DTYPES)}")
    return DTYPES[name]
