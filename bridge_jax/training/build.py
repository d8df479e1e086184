"""Assembly of a run from its ConfigDict: settings, task, tokenizer, encoded data, model, method.

All later code sees frozen dataclasses instead of the ConfigDict. All commands call the same
`build`, so that a run is assembled in one place. Only `initial_theta` allocates parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bridge_jax import methods, optim, tasks
from bridge_jax.config import schema
from bridge_jax.data import batches, tokenizers, traces
from bridge_jax.distributed import platforms, sharding
from bridge_jax.filesystem import hf_folder
from bridge_jax.methods import frozen_base
from bridge_jax.models import attention, layers, params
from bridge_jax.models import lora as models_lora
from bridge_jax.models.lora import Lora, logical_axes, targets
from bridge_jax.optim import MatrixTable
from bridge_jax.training.advice import (
    warn_other_methods,
    warn_overlong,
    warn_schedules,
    warn_unread,
)
from bridge_jax.training.policy import make
from bridge_jax.training.settings import (
    Data,
    Model,
    Settings,
    dtype_of,
    read,
)
from bridge_jax.types import Method, Policy, Task, Tree


class Setup(NamedTuple):
    """Settings, model, method and devices of a run, without data."""

    settings: Settings
    cfg: layers.Config
    hf: dict  # HF's config.json of the model
    lora: Lora
    policy: Policy
    method: Method
    mesh: jax.sharding.Mesh
    decode_mesh: jax.sharding.Mesh  # the same devices, arranged for sampling and evaluation
    buckets: tuple[int, ...]  # padded prompt lengths of the compiled programs
    eos_ids: tuple[int, ...]
    # dtype of theta between steps: fp32, or the compute dtype where it is frozen (method.train='w')
    theta_dtype: Any = jnp.float32


class RunData(NamedTuple):
    """The tokenised data of a run."""

    task: Task
    tokenizer: Any
    prompts: batches.Prompts
    demos: batches.Demos  # empty where the method reads none
    splits: dict[str, batches.Prompts]
    held_out_demos: batches.Demos  # of held-out problems, for eval.measured_gain; otherwise empty
    demo_counts: dict[str, int]  # how the rows of the traces were used (traces.count_rows)


def read_model(model: Model) -> tuple[layers.Config, dict]:
    """Architecture and HF's config.json; model.path and model.arch, if both are set, must agree."""
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
        # fields that do not change the shape
        stated, numbers = (
            params.read_config(model.arch),
            ("eos_ids", "init_std"),
        )
        pairs = {
            f.name: (getattr(cfg, f.name), getattr(stated, f.name, None))
            for f in dataclasses.fields(cfg)
        }
        differ = [
            f"{name} ({of_path} there, {of_arch} in model.arch)"
            for name, (of_path, of_arch) in pairs.items()
            if name not in numbers and of_path != of_arch
        ]
        if differ:
            raise ValueError(
                f"model.path={model.path!r} is not the model that model.arch describes: "
                f"{', '.join(differ)}"
            )
    return cfg, hf


def make_policy(
    cfg: layers.Config, model: Model, adapter: Lora, mesh: jax.sharding.Mesh | None = None
) -> Policy:
    """The Policy of the model, on the training mesh."""
    dtype = dtype_of("model.dtype", model.dtype)
    return make(cfg, adapter, dtype, model.remat, model.logp_chunk, model.attention, mesh)


def make_tokenizer(model: Model, chosen: Data, task_name: str):
    """The tokenizer that data.tokenizer names."""
    if chosen.tokenizer == "chars":
        alphabet = getattr(tasks.load(task_name), "ALPHABET", None)
        if alphabet is None:
            raise ValueError(
                f"data.tokenizer='chars', but task {task_name!r} has no ALPHABET; "
                "take a config of a model with a tokenizer: configs/quickstart.py:METHOD,"
                f"{task_name} for texts of 0123456789+-=;# alone, "
                f"configs/smollm2_arithmetic.py:METHOD,{task_name} for others; or set "
                "data.tokenizer to a folder"
            )
        return tokenizers.CharTokenizer(alphabet)
    source = chosen.tokenizer or model.path
    if not source:
        raise ValueError(
            "data.tokenizer is empty and there is no model.path to take it from; set it to 'chars' "
            "or a folder"
        )
    return tokenizers.HFTokenizer(
        str(source if Path(source).is_dir() else hf_folder.locate(source))
    )


def read_architecture(model: Model) -> tuple[layers.Config, dict]:
    """read_model from model.arch or a local folder, without access to the hub."""
    if model.arch:
        return read_model(dataclasses.replace(model, path=""))
    if model.path and not Path(model.path).is_dir():
        raise ValueError(
            f"model.path={model.path!r} is not a folder here and model.arch is empty; set "
            "model.arch to the keys of its config.json, or model.path to a folder"
        )
    return read_model(model)


def make_setup(config: ConfigDict, devices=None, read_model=read_architecture) -> Setup:
    """The Setup with all of data.buckets; needs no data, and suffices for abstract programs."""
    devices = platforms.devices() if devices is None else devices
    s = read(config, len(devices))
    optim.check_recipe(s.recipes.base, "optim.base")
    optim.check_recipe(s.recipes.lora, "optim.lora")
    cfg, hf = read_model(s.model)
    adapter = Lora(s.model.lora_rank, s.model.lora_alpha, s.model.lora_targets)
    targets(cfg, adapter)
    longest = max(s.data.buckets, default=0) + max(s.rollout.max_new, s.max_demo)
    if longest > cfg.max_positions:
        key = "data.max_demo" if s.max_demo > s.rollout.max_new else "rollout.max_new"
        raise ValueError(
            f"data.buckets={s.data.buckets} and {key}={max(s.rollout.max_new, s.max_demo)} make up "
            f"to {longest} positions, the model has {cfg.max_positions}; lower one of the two"
        )
    mesh = sharding.make_mesh(s.mesh, devices)
    decode_mesh = sharding.make_decode_mesh(decode_mesh_config(s, cfg, devices), devices)
    check_mesh(s, cfg, mesh, decode_mesh)
    dtype, windows = dtype_of("model.dtype", s.model.dtype), layers.has_windows(cfg)
    attention.check(s.model.attention, dtype, cfg.head_dim, mesh, windows)
    policy = make_policy(cfg, s.model, adapter, mesh)
    recipes = dataclasses.replace(s.recipes, matrices=matrices(cfg, adapter))
    method = make_method(s, policy, recipes)
    method.check_batch(s.batch)
    theta_dtype = dtype if s.train == "w" else jnp.float32
    buckets, eos_ids = tuple(sorted(s.data.buckets)), cfg.eos_ids or (0,)
    return Setup(
        s, cfg, hf, adapter, policy, method, mesh, decode_mesh, buckets, eos_ids, theta_dtype
    )


def decode_mesh_config(s: Settings, cfg: layers.Config, devices) -> sharding.MeshConfig:
    """The run's mesh, with decode_tensor chosen for the devices where it is 0."""
    if s.mesh.decode_tensor:
        return s.mesh
    prompts = s.batch.prompts_per_step // s.rollout.calls if s.batch.samples else 0
    evaluated = s.eval.rows if s.eval.every else 0
    count = len(devices)
    allowed = [
        n
        for n in sharding.divisors(count)
        if sharding.heads_fit(n, cfg.heads, cfg.kv_heads)
        and prompts % (count // n) == evaluated % (count // n) == 0
    ]
    weights = sum(math.prod(params.full_shape(cfg, path, t)) for path, t in cfg.tensors().items())
    itemsize = dtype_of("model.dtype", s.model.dtype).dtype.itemsize
    chosen = sharding.choose_decode_tensor(devices[0], float(weights * itemsize), allowed)
    return dataclasses.replace(s.mesh, decode_tensor=chosen)


def make_method(s: Settings, policy: Policy, recipes: optim.Recipes) -> Method:
    """The chosen method, over a frozen base where method.train='w'."""
    make = methods.load(s.method_name).make
    if s.train == "w":
        make = frozen_base.adapter_alone(make, s.method_name)
    return make(s.method, policy, recipes, s.batch.microbatch)


def build(
    config: ConfigDict, devices=None, given: Collection[str] | None = None
) -> tuple[Setup, RunData]:
    """Assembles a run from its config and tokenises all data; loads no weights.

    given: keys that are warned about if nothing reads them; None: all. A ValueError names the
    invalid key.
    """
    setup = make_setup(config, devices, read_model)
    s, cfg, method = setup.settings, setup.cfg, setup.method
    task = tasks.load(s.task_name).make(s.task)
    for name, rows in {"train": task.train, "demos": task.demos, **task.splits}.items():
        tasks.check_rows(rows, f"task {s.task_name!r}, {name}", demos=name == "demos")
    state = jax.eval_shape(
        lambda theta: method.init(theta, jax.random.key(0)), params.abstract(cfg)
    )
    warn_other_methods(config.method, given)
    warn_unread(s, method, state.params.w is not None, given)
    warn_schedules(s, method, adapter=state.params.w is not None)
    tokenizer = make_tokenizer(s.model, s.data, s.task_name)
    tokenizers.check_vocabulary(tokenizer, cfg.vocab)
    if method.demos and not task.demos:
        raise ValueError(no_demos(s, task))
    warn_overlong(s, task, tokenizer)
    task = tasks.with_stop(task, s.rollout.stop, s.rollout.task_stop)
    data = read_data(s, method, task, tokenizer)
    lengths = [
        len(row)
        for part in (data.prompts, data.demos, *data.splits.values())
        for row in part.tokens
    ]
    needed = tuple(sorted({min(b for b in s.data.buckets if b >= n) for n in lengths}))
    return setup._replace(buckets=needed, eos_ids=tuple(tokenizer.eos_ids)), data


def given_demos(s: Settings) -> str:
    """The setting that names files of demonstrations; "" where none does."""
    given = [(key, getattr(s.task, key, "")) for key in ("traces", "demos")]
    return "".join(f"task.{key}={value}" for key, value in given if value)


def no_demos(s: Settings, task: Task) -> str:
    """The message for a method that reads demonstrations and a task without any."""
    rows = given_demos(s) or ("its own solutions" if task.demo_counts.get("rows") else "")
    why = f" ({rows}: no row can be used; {traces.summary(task.demo_counts)})" if rows else ""
    way = (
        "give task.traces=FILE or task.demos=FILE, JSONL of problem, solution, answer"
        if hasattr(s.task, "traces")
        else "raise task.demo_size"
    )
    return (
        f"method {s.method_name!r} learns from demonstrations, task {s.task_name!r} has none{why}; "
        f"{way} or choose another method"
    )


def own_solutions(s: Settings) -> str:
    """The key and value of a run's own file of solutions; "" for published data."""
    if given := given_demos(s):
        return given
    return f"the solutions of task.train={s.task.train}" if s.task_name == "custom" else ""


def read_data(s: Settings, method: Method, task: Task, tokenizer) -> RunData:
    """Prompts, demonstrations and held-out splits of the task, tokenised."""
    encode = lambda problems: batches.encode_prompts(
        tokenizer, problems, task.messages, s.data.buckets
    )[0]
    encode_demos = lambda rows: batches.encode_demos(
        tokenizer,
        rows,
        task.messages,
        s.data.buckets,
        s.max_demo,
        task.other_solutions,
        task.stop,
    )
    demos, counts = batches.NO_DEMOS, {}
    if method.demos:
        demos, dropped = encode_demos(task.demos)
        counts = traces.update_counts(
            task.demo_counts,
            dropped=[row.part for row in dropped],
            rejected=[row.part for row in demos.rejected],
        )
        if (source := own_solutions(s)) and not s.task.allow_dropped:
            traces.check_dropped(counts, source)
        if not method.paired:
            demos = batches.repeat_demos(demos, task.demo_weights)
    prompts = encode(task.train)
    if method.paired:
        prompts, demos = batches.pair_with_demos(s, prompts, demos)
    splits = {name: encode(rows[: s.eval.limit or None]) for name, rows in task.splits.items()}
    held_out_demos = batches.NO_DEMOS
    if s.eval.measured_gain:
        splits |= {name: encode(rows) for name, rows in split_by_demos(task, s.eval.rows).items()}
        solved = [problem for problem in next(iter(task.splits.values())) if problem.solution]
        if solved:
            held_out_demos = encode_demos(solved[: s.eval.rows])[0]
    return RunData(task, tokenizer, prompts, demos, splits, held_out_demos, counts)


def check_mesh(
    s: Settings, cfg: layers.Config, mesh: jax.sharding.Mesh, decode_mesh: jax.sharding.Mesh
) -> None:
    """ValueError where width, heads, mlp or rows of sampling do not divide over the devices."""
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
            f"batch.prompts_per_step={prompts} in rollout.calls={calls} parts makes "
            f"{prompts // calls} prompts a part, which do not divide over the {spread} groups of "
            "devices that sample; nearest that do: "
            f"{' or '.join([*ways, f'batch.prompts_per_step={more}'])}"
        )
    if s.eval.every and s.eval.rows % spread:
        raise ValueError(
            f"eval.rows={s.eval.rows} does not divide over the {spread} groups of devices that "
            f"sample; nearest: {sharding.multiples(s.eval.rows, spread)}"
        )


def split_by_demos(task: Task, count: int) -> dict[str, tuple]:
    """Training prompts with ("touched") and without a demonstration, at most `count` each.

    Empty lists are left out.
    """
    with_demo = {problem.id for problem in task.demos}
    groups = {
        "touched": [p for p in task.train if p.id in with_demo],
        "untouched": [p for p in task.train if p.id not in with_demo],
    }
    return {name: tuple(rows[:count]) for name, rows in groups.items() if rows}


def fingerprints(data: RunData) -> dict[str, Any]:
    """Data that determines a run in addition to its config, as JSON.

    Fingerprints of the rendered prompts and of every list of problems, stop strings, the code of a
    reward function, and the counts of the demonstrations' rows.
    """
    lists = {
        "train": data.prompts.problems,
        "demos": data.demos.problems,
        **data.task.splits,
    }
    rows = {
        name: schema.fingerprint({"rows": [row[:4] for row in rows]})
        for name, rows in lists.items()
    }
    found = {"template": batches.template_hash(data.tokenizer, data.task.messages), "rows": rows}
    if data.task.stop:
        found["stop"] = list(data.task.stop)
    if data.task.reward_code:
        found["reward_code"] = data.task.reward_code
    if data.demo_counts:
        found["demonstrations"] = data.demo_counts
    return found


def theta_shardings(setup: Setup, mesh: jax.sharding.Mesh | None = None) -> Tree:
    """Shardings of the base weights on a mesh (default: the training mesh)."""
    return sharding.of_tree(
        mesh or setup.mesh, params.logical_axes(setup.cfg), params.abstract(setup.cfg)
    )


def initial_theta(setup: Setup) -> Tree:
    """The base weights, in setup.theta_dtype, sharded over the mesh: from model.path, or random
    from the seed.
    """
    layout, dtype = theta_shardings(setup), setup.theta_dtype
    if setup.settings.model.path:
        return params.load(setup.cfg, hf_folder.locate(setup.settings.model.path), layout, dtype)
    return jax.jit(lambda key: params.init(setup.cfg, key, dtype), out_shardings=layout)(
        jax.random.key(setup.settings.seed)
    )


def matrices(cfg: layers.Config, adapter: Lora) -> MatrixTable:
    """The matrix axes of all parameters, for the optimizer; None for those that are no matrix."""
    table = {f"theta/{path}": matrix for path, matrix in params.matrices(cfg).items()}
    table |= {f"w/{path}": matrix for path, matrix in models_lora.matrices(cfg, adapter).items()}
    return tuple(table.items())


def abstract_state(
    setup: Setup, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None
) -> Tree:
    """Shapes, dtypes and shardings of the training state, on the run's mesh or another one."""
    theta = params.abstract(setup.cfg, setup.theta_dtype)
    state = jax.eval_shape(lambda theta: setup.method.init(theta, jax.random.key(0)), theta)
    layout = sharding.of_state(
        mesh or setup.mesh,
        state,
        params.logical_axes(setup.cfg),
        logical_axes(setup.cfg, setup.lora),
        setup.method.on_host,
        matrices(setup.cfg, setup.lora),
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        layout,
    )
