"""Open a run directory again to read it: its config, what it was built from, its trained
parameters.

The run may have been on other devices, and may still be alive: nothing in the directory changes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from bridge_jax.config import renamed
from bridge_jax.distributed import platforms, sharding
from bridge_jax.distributed.compiler import compiler_options
from bridge_jax.evaluation import model
from bridge_jax.evaluation.model import EvalModel
from bridge_jax.evaluation.options import OWN_BENCHMARK, Defaults
from bridge_jax.filesystem import textfile
from bridge_jax.models import params
from bridge_jax.models.precision import dtype_of
from bridge_jax.rundir import checkpoint
from bridge_jax.training import build, saved_state
from bridge_jax.training.build import RunData, Setup
from bridge_jax.training.settings import Settings
from bridge_jax.types import Params


def recorded_config(path: str) -> dict:
    """The config that the run directory was started with; {} where the path is no run directory."""
    try:
        text = textfile.read(Path(path).expanduser() / "config.json")
    except OSError:
        return {}
    try:
        record = json.loads(text)
    except ValueError:
        return {}
    # the config.json of a model folder has a model_type
    known = isinstance(record, dict) and "model_type" not in record
    config = record.get("config") if known else None
    return renamed.translated(config) if isinstance(config, dict) else {}


def rebuild(workdir: str) -> tuple[Setup, RunData]:
    """Setup and data of a run, in fp32, on the devices of this machine."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{workdir!r} is not a run directory: it has no config.json; give the --workdir of a "
            "run"
        )
    try:
        config = ConfigDict(renamed.translated(json.loads(textfile.read(path))["config"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no config of a run ({error!r})") from None
    dtype_of_training, config.model.dtype = config.model.dtype, "float32"
    # batch and mesh of training need not fit the devices of this machine, and nothing here trains
    config.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))
    config.batch = ConfigDict(
        dict(
            prompts_per_step=len(platforms.devices()),
            samples_per_prompt=2,
            demos_per_step=1,
            microbatch_rows=2,
        )
    )
    config.rollout.calls = 1
    setup, data = build.build(config, given=())
    if setup.settings.train == "w":
        # the numbers over which w was trained
        setup = setup._replace(theta_dtype=dtype_of("model.dtype", dtype_of_training))
    return setup, data


def restore_params(setup: Setup, workdir: str) -> tuple[Params, int]:
    """(Params, step) of the newest checkpoint, with the base of an adapter that was trained alone.

    theta_hat and the optimizer states are not read: they stay checkpoint.UNREAD.
    """
    wanted = saved_state.abstract(setup)
    unread = lambda part: None if part is None else checkpoint.UNREAD
    wanted = wanted.replace(
        step=checkpoint.UNREAD,
        opt_state=checkpoint.UNREAD,
        ref=unread(wanted.ref),
        params=wanted.params.replace(theta_hat=unread(wanted.params.theta_hat)),
    )
    found = None
    if (Path(workdir) / "checkpoints").is_dir():
        with checkpoint.Checkpoints(workdir, read_only=True) as store:
            found = store.restore(wanted)
    if not found:
        raise ValueError(
            f"the run in {workdir!r} has no checkpoint: bring its checkpoints/ back if it was "
            "moved, or train it for longer, or save more often with --config.checkpoint.every"
        )
    state, meta = found
    return saved_state.with_base(setup, state.params, meta), meta["step"]


def open_model(path: str, own_task: bool) -> EvalModel:
    """A run directory, an HF folder (or hub name) or a PEFT folder; no weights are read yet.

    own_task: as in open_run, for a run directory.
    """
    if recorded_config(path):
        return open_run(path, own_task)
    return model.open_folder(path)


def open_run(path: str, own_task: bool) -> EvalModel:
    """The policy of a run's newest checkpoint as a model to evaluate.

    own_task: on the run's own task, with the settings of its training; else on other tasks.
    """
    # in fp32: merged and cast to `dtype` after the sum, the weights have the bits of training
    setup, data = rebuild(path)
    dtype_of_training = recorded_config(path)["model"]["dtype"]
    settings = setup.settings
    settings = settings._replace(model=dataclasses.replace(settings.model, dtype=dtype_of_training))
    setup = setup._replace(settings=settings)

    def load(mesh, dtype):
        parts, step = restore_params(setup, path)
        layout = sharding.of_tree(mesh, params.logical_axes(setup.cfg), params.abstract(setup.cfg))
        cast = lambda phi: jax.tree.map(lambda x: x.astype(dtype), phi)
        merge = jax.jit(
            lambda parts: cast(setup.method.policy(parts, "theta")),
            compiler_options=compiler_options(),
        )
        return jax.device_put(merge(parts.replace(theta_hat=None)), layout), f", step {step}"

    return EvalModel(
        Path(path).name,
        setup.cfg,
        data.tokenizer,
        load,
        eval_defaults(settings, own_task),
        settings.rollout.cache_dtype,
        (data.task,),
    )


def eval_defaults(settings: Settings, own_task: bool) -> Defaults:
    """Defaults of an evaluation of the run: on its own task, also what its evaluations had.

    A run of the task custom asks and reads other files as its own.
    """
    custom = settings.task_name == "custom"
    defaults = Defaults(
        dtype=settings.model.dtype,
        prompt=getattr(settings.task, "prompt", "boxed"),
        stop=settings.rollout.stop,
        task_stop=settings.rollout.task_stop,
        **(own_benchmark(settings.task) if custom else {}),
    )
    if not own_task:
        return defaults
    return defaults._replace(
        limit=settings.eval.limit,
        buckets=settings.data.buckets,
        max_new=settings.rollout.max_new,
    )


def own_benchmark(task) -> dict[str, str]:
    """How a run of the task custom asks and reads; an evaluation needs no column of solutions."""
    columns = (part for part in task.columns.split(",") if not part.strip().startswith("solution:"))
    return {key: getattr(task, key) for key in OWN_BENCHMARK} | {"columns": ",".join(columns)}
