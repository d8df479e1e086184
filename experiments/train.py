"""Train a model, or resume a run: `python -m experiments.train
--config=configs/NAME.py[:METHOD] --workdir=DIR [--config.KEY=VALUE]`.

Running the same command again resumes the run in DIR. --stop_at=K ends after step K. SIGTERM,
Ctrl-C, or a closed terminal (SIGHUP, unless nohup has it ignored): the run finishes and saves the
step under way. A second Ctrl-C ends at once; the run then resumes from its last checkpoint. Output
that cannot be written is dropped. docs/launch.md describes how several hosts are started.

--preflight first runs experiments.preflight with the same flags, in a process of its own, whose
memory is free again when the run begins. A check that FAILs ends the command.

Exit codes: 0 done, or saved after a signal; 2 the request cannot be fulfilled; 3 the run diverged,
its grader failed, or a check of --preflight FAILs; 4 another host of the run is gone, has stopped,
or did not arrive in time (hosts.timeout_s): start all of them again, and the run resumes from its
last checkpoint (134 where that host was host 0 (main), and jax ended this one); 5 the disk is full:
make room, and the same command resumes the run; 130 a second Ctrl-C.
"""

from __future__ import annotations

import logging
import subprocess
import sys

from absl import flags
from ml_collections import config_flags

from bridge_jax.filesystem import files
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

EXAMPLE = "python -m experiments.train --config=configs/quickstart.py:bridge --workdir=runs/one"


def define_flags() -> None:
    """The flags of this command. Defined at import, they would clash with other commands'."""
    config_flags.DEFINE_config_file(
        "config", None, "a file of configs/, with :METHOD behind it", lock_config=True
    )
    define_path("workdir", None, "the run directory, made if need be")
    flags.DEFINE_integer("stop_at", None, "end cleanly after this step", lower_bound=1)
    flags.DEFINE_bool(
        "force_config", False, "go on with a run directory although its config differs"
    )
    flags.DEFINE_bool("preflight", False, "check the devices first; end where a check FAILs")
    flags.mark_flags_as_required(["config", "workdir"])


def preflight_command(argv: list[str]) -> list[str]:
    """The command of the checks, from this command's line: without the flags of training alone."""
    kept, arguments = [], iter(argv[1:])
    for argument in arguments:
        name, equals, _ = argument.lstrip("-").partition("=")
        if name == "stop_at" and not equals:
            # its value stands behind it
            next(arguments, None)
        elif name.removeprefix("no") not in ("preflight", "force_config", "stop_at"):
            kept.append(argument)
    return [sys.executable, "-m", "experiments.preflight", *kept]


def main(argv: list[str]) -> None:
    """Train; turn errors into one line and an exit code."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; settings are given as --config.a.b=value")
    log_to_stderr()
    if flags.FLAGS.preflight:
        # it prints what failed, and the way out; a signal's number is negative
        if code := subprocess.run(preflight_command(sys.argv)).returncode:
            leave(code if code > 0 else 128 - code)
    use_compilation_cache()
    prepare_memory()
    from bridge_jax.distributed import multihost
    from bridge_jax.grading import pool, selftest
    from bridge_jax.training import divergence, loop, trainer
    from configs.base import get_config

    given = flags.FLAGS
    try:
        end = trainer.train(
            given.config,
            given.workdir,
            given.stop_at,
            given.force_config,
            defaults=get_config(),
            file_config=file_config(),
        )
    except (ValueError, OSError) as error:
        logging.getLogger(__name__).debug("where it came from", exc_info=True)
        fail_by(error, at_once=multihost.started())
    except (divergence.Diverged, loop.GraderFailed, selftest.GraderBroken, pool.PoolError) as error:
        fail(str(error), code=3, at_once=multihost.started())
    except multihost.Lost as error:
        fail(str(error), code=multihost.LOST, at_once=True)
    except Exception as error:
        if files.is_full(error):
            fail_by(error, at_once=multihost.started())
        if not multihost.started():
            raise
        logging.getLogger(__name__).exception("a fault of the program")
        leave(1)
    if "step" not in end:
        # a signal came while programs were compiled
        leave()
    shown = (
        "step",
        "reward/mean",
        "eval/held_out_accuracy",
        "eval/held_out_stderr",
        "time/train_s",
    )
    multihost.print_on_main(
        "  ".join(f"{key} {value:.4g}" for key, value in end.items() if key in shown)
    )


if __name__ == "__main__":
    define_flags()
    run_command(main, EXAMPLE)
