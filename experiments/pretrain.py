"""`python -m experiments.pretrain --out=DIR [--config=configs/ladder.py:base]`: the base model that runs of a study begin from.

Trains the config in DIR/run and exports it to DIR/model, an ordinary HF folder for `--config.model.path`. The recipe is
deterministic on one kind of processor: there the same config and code give the same weights on one core (--cores=1, the default).
XLA and the libraries behind its products cut their sums by the number of threads, the instructions and the caches they find, so
that another kind of processor makes other weights of it (docs/study.md has three). Run again, it goes on, or says it is done.
Exit codes as of experiments.train.
"""

from __future__ import annotations

import os
import pathlib

from absl import flags
from ml_collections import config_flags

from bridge_jax.rundir import logbook
from bridge_jax.training import loop
from configs import base
from experiments.cli import (
    define_path,
    fail,
    fail_by,
    keep_freed_memory,
    leave,
    log_to_stderr,
    run_command,
    use_compilation_cache,
)
from experiments.export import export


def pretrain(config, out: pathlib.Path, devices=None) -> dict:
    """The last line of metrics of the base, which stands in out/model when this returns."""
    if loop.train(config, str(out / "run"), defaults=base.get_config(), devices=devices)["stopped"]:
        leave()  # by a signal; the same command goes on
    if not (out / "model").exists():
        export(str(out / "run"), str(out / "model"))
    return logbook.read(str(out / "run"))[-1]


def use_cores(count: int) -> None:
    """Keep this process, from before XLA counts its threads, to `count` of the cores it may use; 0: all. Linux alone."""
    if count and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def main(argv: list[str]) -> None:
    """Train, export, say how good it is."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; settings are given as --config.a.b=value")
    log_to_stderr()
    use_cores(flags.FLAGS.cores)
    use_compilation_cache()
    keep_freed_memory()
    out = pathlib.Path(flags.FLAGS.out)
    try:
        last = pretrain(flags.FLAGS.config, out)
    except (ValueError, OSError) as error:
        fail_by(error)
    except RuntimeError as error:
        fail_by(error, code=3)
    scores = "  ".join(
        f"{key} {value:.3f}"
        for key, value in last.items()
        if key.endswith(("_accuracy", "_stderr"))
    )
    print(f"{out / 'model'}: step {last['step']}  {scores}")


def define_flags() -> None:
    """The flags of this command."""
    config_flags.DEFINE_config_file(
        "config", "configs/ladder.py:base", "the recipe of the base model", lock_config=True
    )
    define_path("out", "runs/base", "where run/ and model/ go")
    flags.DEFINE_integer(
        "cores",
        1,
        "processor cores to use; other than 1, other weights may come out. 0: all",
        lower_bound=0,
    )


if __name__ == "__main__":
    define_flags()
    run_command(main)
