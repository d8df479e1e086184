"""From a ConfigDict to everything a run is made of: settings, task, tokenizer, encoded data, model, method.

The ConfigDict ends here: what goes on is frozen dataclasses. `experiments.train` and `experiments.export` call the same
`build`, so that a run is put together in one place only. Nothing here allocates parameters: `initial_theta` does.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bridge_jax import (
    data,
    hosts,
    logbook,
    lora,
    methods,
    platforms,
    policy,
    problems,
    settings,
    sharding,
    tasks,
)
from bridge_jax.models import attention, hf_folder, layers, params
from bridge_jax.optim import Declared, Recipe, Recipes, learning_rate, misfits
from bridge_jax.types import Method, Policy, Task, Tree

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
LAM_KEYS = ("end", "steps", "boundaries", "values", "gain")  # method.lam_*
READ_BY_LAM = {  # method.lam_schedule -> those of them that it reads
    "constant": (),
    "linear": ("end", "steps"),
    "cosine": ("end", "steps"),
    "step": ("boundaries", "values"),
    "gain": ("end", "gain"),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Model:
    """Where the base weights come from and in what precision they compute; masters are always fp32."""

    path: settings.LocalPath = ""  # HF folder or hub name; "" draws random weights of shape `arch`
    arch: dict = dataclasses.field(
        default_factory=dict
    )  # keys of HF's config.json; beside a path it must agree
    dtype: str = "float32"  # compute dtype: float32 or bfloat16
    attention: str = "auto"  # how training and prefill compute it: a key of attention.KINDS; auto: what the devices can
    remat: str = "full"  # what a layer keeps for the backward pass: a key of layers.REMAT
    logp_chunk: int = 512  # as many logits are in memory at once as so many positions have
    lora_rank: int = 16
    lora_alpha: float = 16.0
    lora_targets: str = lora.Lora.targets


@dataclasses.dataclass(frozen=True)
class Data:
    """Tokenizer and lengths."""

    tokenizer: settings.LocalPath = (
        ""  # "": the model's own; "chars": the task's alphabet; else a folder or hub name
    )
    buckets: tuple[int, ...] = (64,)  # prompt lengths that programs are compiled for


@dataclasses.dataclass(frozen=True)
class Rollout:
    """How training samples are drawn. Temperature alone: training could not mirror top-k and top-p."""

    temperature: float = 1.0
    # texts at which a completion is cut when it is read, in evaluations too, beside the task's own:
    # those that mark a next question in its template
    stop: tuple[str, ...] = ()
    task_stop: bool = True  # whether the task's own apply
    max_new: int = 64  # tokens, end-of-sequence counted; also the longest expert trace
    cache_dtype: str = "float32"
    reward_noise: float = (
        0.0  # probability with which a reward is flipped: for studies of a grader that errs
    )
    calls: int = 1  # parts of a step's prompts: one is graded while the next is generated
    halvings: int = (
        -1
    )  # how often the sampler goes on with the half of its rows that is not done; -1: where it pays
    stretches: int = (
        -1
    )  # into how many max_new is cut, each reading of the cache what it can have filled; -1: four


@dataclasses.dataclass(frozen=True)
class Batch:
    """The three batch words; the rest is derived and printed (settings.BatchTable)."""

    prompts_per_step: int = 64
    samples_per_prompt: int = 5
    demos_per_step: int = 64
    microbatch_rows: int = 8  # per device
    pack: int = (
        0  # most samples in one row of a forward pass (packing.py); 0: each has a row of its own
    )


@dataclasses.dataclass(frozen=True)
class Eval:
    """Held-out greedy evaluation during training."""

    every: int = 10  # steps; also before the first and after the last. 0: never
    rows: int = 64  # prompts generated at once
    limit: int = 0  # problems of each split; 0: all
    samples: int = (
        0  # of each held-out problem at the training temperature, beside the greedy one; at most 9
    )
    cooperation: bool = False  # whether what cooperation does is measured too (cooperation.py), on `rows` problems of each kind


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
    ungraded_limit: float = (
        0.1  # share of a step's samples ended by the grader's timeout or error that stops it
    )


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
    batch: settings.BatchTable
    mesh: sharding.MeshConfig
    eval: Eval
    checkpoint: Checkpoint
    log: Log
    hosts: hosts.Hosts


class Unread(NamedTuple):
    """Stands for a tokenizer where no text is read."""

    eos_ids: tuple[int, ...]


class Run(NamedTuple):
    """What `build` puts together; `sketch` leaves out what is read from data."""

    settings: Settings
    cfg: layers.Config
    hf: dict  # HF's config.json of the model
    lora: lora.Lora
    policy: Policy
    method: Method
    task: Task
    tokenizer: Any
    prompts: data.Prompts
    demos: data.Demos | None
    splits: dict[str, data.Prompts]
    mesh: jax.sharding.Mesh
    decode_mesh: jax.sharding.Mesh  # the same devices, as sampling and evaluation use them
    buckets: tuple[int, ...]  # those of data.buckets that some prompt needs
    held_out_demos: data.Demos | None = None  # experts on held-out problems, for eval.cooperation
    demo_counts: dict[str, int] = {}  # what became of the demonstrations' rows (problems.told)
    pool: Any = None  # grading.pool.Pool, for a task that makes Claims


def read(config: ConfigDict, devices: int) -> Settings:
    """Check and type every group; ValueError for the first key that cannot be meant, warnings for keys nobody reads."""
    for key in config:
        if key not in KEYS:
            raise ValueError(f"unknown key config.{key}: {settings.did_you_mean(key, KEYS)}")
        if key in GROUPS and not isinstance(config[key], ConfigDict):
            raise ValueError(f"config.{key} must be a group of keys, got {config[key]!r}")
    optim = config.get("optim", ConfigDict())
    for key in optim:
        if key not in ("base", "lora"):
            raise ValueError(
                f"unknown key config.optim.{key}: {settings.did_you_mean(key, ('base', 'lora'))}"
            )
    method_name, task_name = (
        config.get(key, ConfigDict()).get("name", "") for key in ("method", "task")
    )
    method_module, task_module = methods.load(method_name), tasks.load(task_name)
    known = {
        field.name: field.default
        for name in methods.names()
        for field in dataclasses.fields(methods.load(name).Config)
    }
    method = settings.section(config, "method", method_module.Config, ("name", *known))
    given = {key: value for key, value in config.method.items() if key != "name"}
    defaults = {key: value for key, value in known.items() if key in given}
    for key in settings.unread(given, defaults, method_module.Config):
        logger.warning(
            "method.%s=%r is set, but method %r never reads it", key, given[key], method_name
        )
    group = lambda name, cls: settings.section(config, name, cls)
    mesh, batch, rollout = (
        group("mesh", sharding.MeshConfig),
        group("batch", Batch),
        group("rollout", Rollout),
    )
    axes, steps, seed = sharding.sizes_of(mesh, devices), config.get("steps"), config.get("seed", 0)
    for key, value, least in (("steps", steps, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"config.{key}={value!r}; allowed: a whole number of at least {least}")
    recipe = lambda label: settings.section(
        {f"optim.{label}": optim.get(label, {})}, f"optim.{label}", Recipe
    )
    recipes = Recipes(recipe("base"), recipe("lora"))
    samples = methods.samples(method_name, method, recipes)
    table = settings.BatchTable(
        devices=axes["data"] * axes["fsdp"], samples=samples, **dataclasses.asdict(batch)
    )
    s = Settings(
        seed,
        steps,
        method_name,
        method,
        recipes,
        task_name,
        settings.section(config, "task", task_module.Config, ("name",)),
        group("model", Model),
        group("data", Data),
        rollout,
        table,
        mesh,
        group("eval", Eval),
        group("checkpoint", Checkpoint),
        group("log", Log),
        group("hosts", hosts.Hosts),
    )
    check(s)
    return s


def check(s: Settings) -> None:
    """ValueError for numbers and names that have the right type and cannot be meant."""
    for key, least in LEAST.items():
        section, name = key.split(".")
        if (value := getattr(getattr(s, section), name)) < least:
            raise ValueError(f"{key}={value}; allowed: a whole number of at least {least}")
    if s.rollout.temperature <= 0 or s.rollout.max_new < 1:
        raise ValueError(
            f"rollout.temperature={s.rollout.temperature}, rollout.max_new={s.rollout.max_new}; allowed: "
            "above 0, and at least 1"
        )
    if s.rollout.halvings < -1:
        raise ValueError(
            f"rollout.halvings={s.rollout.halvings}; allowed: 0, 1, ..., or -1: 2 on one CPU, 0 elsewhere"
        )
    if s.rollout.stretches < 1 and s.rollout.stretches != -1:
        raise ValueError(
            f"rollout.stretches={s.rollout.stretches}; allowed: 1, 2, ..., or -1, which is 4"
        )
    if "" in s.rollout.stop:
        raise ValueError(
            f"rollout.stop={s.rollout.stop}: an empty text stands everywhere; leave it out, allowed are "
            "texts such as '\\nQuestion:'"
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
            f"eval.samples={s.eval.samples}; allowed: up to 9. For more of them: experiments.evaluate --samples"
        )
    for name in s.log.mirrors:
        if name not in logbook.MIRRORS:
            raise ValueError(
                f"unknown mirror log.mirrors={name!r}: {settings.did_you_mean(name, logbook.MIRRORS)}"
            )
    if s.model.remat not in layers.REMAT:
        raise ValueError(f"model.remat={s.model.remat!r}; allowed: {', '.join(layers.REMAT)}")
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


def read_model(model: Model) -> tuple[layers.Config, dict]:
    """Architecture and HF's config.json; a folder and model.arch, both given, must tell of the same model."""
    if not model.path and not model.arch:
        raise ValueError(
            "neither model.path nor model.arch is set; give a model folder, a hub name, or an "
            "architecture"
        )
    if not model.path:
        return params.read_config(model.arch), model.arch
    hf = hf_folder.hf_json(hf_folder.locate(model.path))
    cfg = params.read_config(hf)
    if model.arch:
        stated, numbers = (
            params.read_config(model.arch),
            ("eos_ids", "init_std"),
        )  # these do not change the shape
        pairs = {
            f.name: (getattr(cfg, f.name), getattr(stated, f.name, None))
            for f in dataclasses.fields(cfg)
        }
        differ = [
            f"{name} ({there} there, {here} in model.arch)"
            for name, (there, here) in pairs.items()
            if name not in numbers and there != here
        ]
        if differ:
            raise ValueError(
                f"model.path={model.path!r} is not the model that model.arch describes: "
                f"{', '.join(differ)}"
            )
    return cfg, hf


def make_policy(
    cfg: layers.Config, model: Model, adapter: lora.Lora, mesh: jax.sharding.Mesh | None = None
) -> Policy:
    """The four functions that a method may know of the model, on the mesh that trains."""
    dtype = dtype_of("model.dtype", model.dtype)
    return policy.make(cfg, adapter, dtype, model.remat, model.logp_chunk, model.attention, mesh)


def make_tokenizer(model: Model, chosen: Data, task_name: str):
    """The tokenizer that data.tokenizer names."""
    if chosen.tokenizer == "chars":
        alphabet = getattr(tasks.load(task_name), "ALPHABET", None)
        if alphabet is None:
            raise ValueError(
                f"data.tokenizer='chars', but task {task_name!r} has no ALPHABET; set a tokenizer folder"
            )
        return data.CharTokenizer(alphabet)
    source = chosen.tokenizer or model.path
    if not source:
        raise ValueError(
            "data.tokenizer is empty and there is no model.path to take it from; set it to 'chars' or a "
            "folder"
        )
    return data.HFTokenizer(str(source if Path(source).is_dir() else hf_folder.locate(source)))


def shape_of_model(model: Model) -> tuple[layers.Config, dict]:
    """As read_model, from model.arch alone or a local folder: no hub is asked."""
    if model.arch:
        return read_model(dataclasses.replace(model, path=""))
    if model.path and not Path(model.path).is_dir():
        raise ValueError(
            f"model.path={model.path!r} is no folder here and model.arch is empty; set model.arch to the keys of "
            "its config.json, or model.path to a folder"
        )
    return read_model(model)


def sketch(config: ConfigDict, devices=None, read_model=shape_of_model) -> Run:
    """The part of a run that needs no data: settings, model, method, mesh, all of data.buckets; enough for abstract programs."""
    devices = platforms.devices() if devices is None else devices
    s = read(config, len(devices))
    for recipe in (s.recipes.base, s.recipes.lora):
        learning_rate(recipe)  # refuses what cannot be meant
    cfg, hf = read_model(s.model)
    adapter = lora.Lora(s.model.lora_rank, s.model.lora_alpha, s.model.lora_targets)
    lora.targets(cfg, adapter)
    longest = max(s.data.buckets, default=0) + s.rollout.max_new
    if longest > cfg.max_positions:
        raise ValueError(
            f"data.buckets={s.data.buckets} and rollout.max_new={s.rollout.max_new} make up to {longest} "
            f"positions, the model has {cfg.max_positions}; lower one of the two"
        )
    mesh, decode_mesh = (
        sharding.make_mesh(s.mesh, devices),
        sharding.make_decode_mesh(s.mesh, devices),
    )
    check_mesh(s, cfg, mesh, decode_mesh)
    s.batch.check_demo_parts("method.sft_microbatches", getattr(s.method, "sft_microbatches", 0))
    attention.check(s.model.attention, dtype_of("model.dtype", s.model.dtype), cfg.head_dim, mesh)
    policy = make_policy(cfg, s.model, adapter, mesh)
    recipes = dataclasses.replace(s.recipes, matrices=matrices(cfg, adapter))
    method = methods.load(s.method_name).make(s.method, policy, recipes, s.batch.microbatch)
    return Run(
        s,
        cfg,
        hf,
        adapter,
        policy,
        method,
        task=None,
        tokenizer=Unread(cfg.eos_ids or (0,)),
        prompts=None,
        demos=None,
        splits={},
        mesh=mesh,
        decode_mesh=decode_mesh,
        buckets=tuple(sorted(s.data.buckets)),
    )


def build(config: ConfigDict, devices=None) -> Run:
    """Put a run together from its config; ValueErrors name the key at fault. Tokenises all data; loads no weights."""
    run = sketch(config, devices, read_model)
    s, cfg, method = run.settings, run.cfg, run.method
    task = tasks.load(s.task_name).make(s.task)
    for name, rows in {"train": task.train, "demos": task.demos, **task.splits}.items():
        tasks.check_rows(rows, f"task {s.task_name!r}, {name}", demos=name == "demos")
    state = jax.eval_shape(
        lambda theta: method.init(theta, jax.random.key(0)), params.abstract(cfg)
    )
    warn_unread(s, method, adapter=state.params.w is not None)
    warn_schedules(s, method, adapter=state.params.w is not None)
    tokenizer = make_tokenizer(s.model, s.data, s.task_name)
    data.check_vocabulary(tokenizer, cfg.vocab)
    encode = lambda problems: data.encode_prompts(
        tokenizer, problems, task.messages, s.data.buckets
    )[0]
    if method.demos and not task.demos:
        way = (
            "give task.traces=FILE, JSONL of problem, solution, answer"
            if hasattr(s.task, "traces")
            else "raise task.demo_size"
        )
        raise ValueError(
            f"method {s.method_name!r} learns from demonstrations, task {s.task_name!r} has none; {way} "
            "or choose another method"
        )
    task = tasks.with_stop(task, s.rollout.stop, s.rollout.task_stop)
    encode_demos = lambda rows: data.encode_demos(
        tokenizer,
        rows,
        task.messages,
        s.data.buckets,
        s.rollout.max_new,
        task.other_solutions,
        task.stop,
    )
    demos, counts = None, {}
    if method.demos:
        demos, dropped = encode_demos(task.demos)
        counts = problems.recount(task.demo_counts, [row.part for row in dropped])
    prompts = encode(task.train)
    if method.paired:
        prompts, demos = data.pair(s, prompts, demos)
    splits = {name: encode(rows[: s.eval.limit or None]) for name, rows in task.splits.items()}
    experts = None
    if s.eval.cooperation:
        splits |= {name: encode(rows) for name, rows in touched_and_not(task, s.eval.rows).items()}
        solved = [problem for problem in next(iter(task.splits.values())) if problem.solution][
            : s.eval.rows
        ]
        experts = encode_demos(solved)[0] if solved else None
    lengths = [
        len(row) for part in (prompts, demos, *splits.values()) if part for row in part.tokens
    ]
    buckets = tuple(sorted({min(b for b in s.data.buckets if b >= n) for n in lengths}))
    return run._replace(
        task=task,
        tokenizer=tokenizer,
        prompts=prompts,
        demos=demos,
        splits=splits,
        buckets=buckets,
        held_out_demos=experts,
        demo_counts=counts,
    )


def check_mesh(
    s: Settings, cfg: layers.Config, mesh: jax.sharding.Mesh, decode_mesh: jax.sharding.Mesh
) -> None:
    """ValueError where width, heads, mlp, or the rows that are sampled together, do not divide over the devices."""
    sharding.check_model(mesh, cfg.width, cfg.heads, cfg.kv_heads, cfg.mlp)
    sharding.check_heads(
        "mesh.decode_tensor", decode_mesh.shape["tensor"], cfg.heads, cfg.kv_heads, mesh.size
    )
    spread, prompts, calls = decode_mesh.shape["data"], s.batch.prompts_per_step, s.rollout.calls
    if s.batch.samples and prompts // calls % spread:
        ways = [
            f"rollout.calls={n}" for n in sharding.divisors(prompts) if prompts // n % spread == 0
        ][-1:]
        ways += [
            f"mesh.decode_tensor={n}"
            for n in sharding.divisors(mesh.size)
            if prompts // calls % (mesh.size // n) == 0
            and sharding.heads_fit(n, cfg.heads, cfg.kv_heads)
        ][:1]
        more = sharding.multiples(prompts, math.lcm(calls * spread, s.batch.prompts_unit))
        raise ValueError(
            f"batch.prompts_per_step={prompts} in rollout.calls={calls} parts makes {prompts // calls} prompts a "
            f"part, which do not divide over the {spread} groups of devices that sample; nearest that do: "
            f"{' or '.join([*ways, f'batch.prompts_per_step={more}'])}"
        )
    if s.eval.every and s.eval.rows % spread:
        raise ValueError(
            f"eval.rows={s.eval.rows} does not divide over the {spread} groups of devices that sample; nearest: "
            f"{sharding.multiples(s.eval.rows, spread)}"
        )


def touched_and_not(task: Task, count: int) -> dict[str, tuple]:
    """Training prompts that have a demonstration, and such that have none, at most `count` each; without the empty ones."""
    shown = {problem.id for problem in task.demos}
    groups = {
        "touched": [p for p in task.train if p.id in shown],
        "untouched": [p for p in task.train if p.id not in shown],
    }
    return {name: tuple(rows[:count]) for name, rows in groups.items() if rows}


def facts(run: Run) -> dict[str, Any]:
    """What decides a run beside its config: fingerprints of the rendered prompts and of every list of problems.

    Also where samples are cut, and what became of the demonstrations' rows.
    """
    lists = {
        "train": run.prompts.problems,
        "demos": run.demos.problems if run.demos else (),
        **run.task.splits,
    }
    rows = {
        name: settings.fingerprint({"rows": [row[:4] for row in rows]})
        for name, rows in lists.items()
    }
    found = {"template": data.template_hash(run.tokenizer, run.task.messages), "rows": rows}
    if run.task.stop:
        found["stop"] = list(run.task.stop)
    if run.demo_counts:
        found["demonstrations"] = run.demo_counts
    return found


def warn_unread(s: Settings, method: Method, adapter: bool) -> None:
    """Name the keys that are away from their defaults although nobody has a use for them: this method, or the chosen schedule.

    adapter: whether the method trains one.
    """
    idle = []  # (group, values, defaults, keys that nobody reads)
    for label in ("base", "lora")[: 1 + adapter]:
        recipe = getattr(s.recipes, label)
        if recipe.schedule == "constant":
            idle.append((f"optim.{label}", recipe, Recipe(), ["end_ratio", "decay_steps"]))
    if kind := getattr(s.method, "lam_schedule", ""):
        unread = [f"lam_{name}" for name in LAM_KEYS if name not in READ_BY_LAM[kind]]
        there = [key for key in unread if hasattr(s.method, key)]
        idle.append(("method", s.method, type(s.method)(), there))
    if not adapter:
        idle += [
            (
                "optim.lora",
                s.recipes.lora,
                Recipe(),
                [field.name for field in dataclasses.fields(Recipe)],
            ),
            ("model", s.model, Model(), ["lora_rank", "lora_alpha", "lora_targets"]),
        ]
    if not method.actors:
        idle += [
            ("rollout", s.rollout, Rollout(), ["temperature", "reward_noise", "calls"]),
            ("batch", s.batch, Batch(), ["prompts_per_step", "samples_per_prompt"]),
        ]
    if not method.demos:
        idle += [("batch", s.batch, Batch(), ["demos_per_step"])]
    unread = [
        f"{group}.{key}={getattr(values, key)!r}"
        for group, values, defaults, keys in idle
        for key in keys
        if getattr(values, key) != getattr(defaults, key)
    ]
    if unread:
        logger.warning(
            "set, but method %r never reads with these settings: %s",
            s.method_name,
            ", ".join(unread),
        )


def warn_schedules(s: Settings, method: Method, adapter: bool) -> None:
    """Name what ends before the run does and leaves a learning rate of 0, and what would take longer than the run.

    A run that is lengthened behind the end of its schedule would else spend its further steps without a change.
    """
    begun = sorted({0, *(step for step in method.restarts if step < s.steps), s.steps})
    longest = max(end - start for start, end in zip(begun, begun[1:]))
    for label in ("base", "lora")[: 1 + adapter]:
        for sentence in misfits(getattr(s.recipes, label), longest):
            logger.warning("optim.%s: %s", label, sentence)
    for key, step in method.milestones.items():
        if step > s.steps:
            logger.warning(
                "%s: takes until step %d, and the run ends with step %d", key, step, s.steps
            )


def theta_shardings(run: Run, mesh: jax.sharding.Mesh | None = None) -> Tree:
    """Layout of the base weights on the mesh (default: the one they train on)."""
    return sharding.of_tree(
        mesh or run.mesh, params.logical_axes(run.cfg), params.abstract(run.cfg)
    )


def initial_theta(run: Run) -> Tree:
    """The base weights, fp32, laid out on the mesh: read from model.path, or drawn from the seed."""
    layout = theta_shardings(run)
    if run.settings.model.path:
        return params.load(run.cfg, hf_folder.locate(run.settings.model.path), layout)
    return jax.jit(lambda key: params.init(run.cfg, key), out_shardings=layout)(
        jax.random.key(run.settings.seed)
    )


def matrices(cfg: layers.Config, adapter: lora.Lora) -> Declared:
    """What the tensor table and the adapter declare, for the optimizer: the sides of each matrix, by its path in Params."""
    table = {f"theta/{path}": matrix for path, matrix in params.matrices(cfg).items()}
    table |= {f"w/{path}": matrix for path, matrix in lora.matrices(cfg, adapter).items()}
    return tuple(table.items())


def abstract_state(
    run: Run, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None
) -> Tree:
    """Shapes, dtypes and layout of the whole training state, nothing allocated; on the run's mesh or another one."""
    theta = params.abstract(run.cfg)
    state = jax.eval_shape(lambda theta: run.method.init(theta, jax.random.key(0)), theta)
    layout = sharding.of_state(
        mesh or run.mesh,
        state,
        params.logical_axes(run.cfg),
        lora.logical_axes(run.cfg, run.lora),
        run.method.on_host,
        matrices(run.cfg, run.lora),
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        layout,
    )
