"""Mirrors of the metrics: TensorBoard and W&B. They may fail, lag or be absent; the run goes on."""

from __future__ import annotations

import importlib.util
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import NamedTuple

from bridge_jax.filesystem import files
from bridge_jax.rundir import layout


class Mirror(NamedTuple):
    """A second place that metrics are written to."""

    # (step, {key: number}) -> None
    write: Callable
    # () -> None
    close: Callable


def tensorboard(workdir: str, start_step: int) -> Mirror:
    """Event files in tensorboard/; points of steps after start_step are purged."""
    try:
        import tensorboardX
    except ImportError as error:
        raise ValueError(f"{missing_package('tensorboard')} ({error})") from None
    writer = tensorboardX.SummaryWriter(
        os.path.join(workdir, "tensorboard"), purge_step=start_step + 1
    )

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)

    return Mirror(write, writer.close)


def wandb(workdir: str, start_step: int) -> Mirror:
    """One W&B run for each directory, resumed by the id in its file wandb_id.

    Project and mode come from WANDB_* variables. The step is a metric of its own: W&B's own counter
    refuses a step twice, and a resumed run takes some steps again.
    """
    try:
        import wandb as client
    except ImportError as error:
        raise ValueError(f"{missing_package('wandb')} ({error})") from None
    path, name = os.path.join(workdir, "wandb_id"), os.path.basename(os.path.abspath(workdir))
    if not os.path.exists(path):
        files.replace(path, uuid.uuid4().hex)
    with open(path) as file:
        run_id = file.read().strip()
    known = os.path.exists(os.path.join(workdir, "config.json"))
    config = layout.read_config(workdir)["config"] if known else {}
    run = client.init(id=run_id, name=name, dir=workdir, config=config, resume="allow")
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return Mirror(lambda step, metrics: run.log({"step": step, **metrics}), run.finish)


MIRRORS = {"tensorboard": tensorboard, "wandb": wandb}
# the package of each
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def check_installed(config: Mapping) -> None:
    """ValueError for a mirror in log.mirrors of the config whose package is not installed.

    Called before a run reads its model and data. Unknown names are for settings.py.
    """
    for name in config.get("log", {}).get("mirrors", ()):
        if name in PACKAGES and not is_installed(PACKAGES[name]):
            raise ValueError(missing_package(name))


def is_installed(package: str) -> bool:
    """Whether `import package` would find it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        # a module that was put into sys.modules without a spec
        return sys.modules.get(package) is not None


def missing_package(name: str) -> str:
    """The message for a mirror whose package is not installed."""
    return (
        f"log.mirrors has {name!r}, which needs the package {PACKAGES[name]}: "
        f'pip install -e ".[logs]" (or pip install {PACKAGES[name]})'
    )
