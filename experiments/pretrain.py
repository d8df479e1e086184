"""Pretrain the base model of a study: `python -m experiments.pretrain --out=DIR [--config=FILE]`.

Trains the config (configs/ladder.py:base) in DIR/run and exports it to DIR/model, an ordinary HF
folder for `--config.model.path`. On one kind of processor the recipe is deterministic: the same
config and code give the same weights on one core (--cores=1, the default). XLA and its libraries
split their sums by the number of threads, the instructions and the caches of the processor; so
another kind of processor gives other weights (docs/study_appendix.md has three). Running the
command again goes on, or does nothing when it is done. Exit codes: those of experiments.train.
"""

from __future__ import annotations

import os
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from bridge_jax.rundir import logbook
from bridge_jax.training import trainer
from bridge_jax.training.export import export
from configs import base
from experiments import mistakes
from experiments.cli import (
    define_path,
    fail,
    fail_by,
    file_config,
    leave,
    log_to_stderr,
    prepare_memory,
    run_command,
    use_compilation_cache,
)

RECIPE = "configs/ladder.py:base"


def pretrain(config, out: pathlib.Path, devices=None, file_config=None) -> dict:
    """Train the base model and export it to out/model; its last line of metrics.

    file_config: the config as its file gives it (trainer.train).
    """
    end = trainer.train(
        config,
        str(out / "run"),
        defaults=base.get_config(),
        devices=devices,
        file_config=file_config,
    )
    if end["stopped"]:
        # a signal came; the same command goes on
        leave()
    if not (out / "model").exists():
        export(str(out / "run"), str(out / "model"))
    return logbook.read(str(out / "run"))[-1]


def use_cores(count: int) -> None:
    """Limit this process to `count` of its cores, before XLA counts its threads; 0: all.

    It has an effect on Linux only.
    """
    if count and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def main(argv: list[str]) -> None:
    """Train, export, say how good it is."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; settings are given as --config.a.b=value")
    log_to_stderr()
    use_cores(flags.FLAGS.cores)
    use_compilation_cache()
    prepare_memory()
    out = pathlib.Path(flags.FLAGS.out)
    try:
        last = pretrain(flags.FLAGS.config, out, file_config=file_config())
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
        "config", None, f"the recipe of the base model; default: {RECIPE}", lock_config=True
    )
    define_path("out", "runs/base", "where run/ and model/ go")
    flags.DEFINE_integer(
        "cores",
        1,
        "processor cores to use; other than 1, other weights may come out. 0: all",
        lower_bound=0,
    )


def with_default_config(argv: list[str]) -> list[str]:
    """The command line with a --config.

    A default of the flag would be read before the flags are parsed, and a wrong key in it be a
    traceback.
    """
    return argv if mistakes.config_of(argv) else [argv[0], f"--config={RECIPE}", *argv[1:]]


if __name__ == "__main__":
    define_flags()
    sys.argv = with_default_config(sys.argv)
    run_command(main)
