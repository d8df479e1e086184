"""Check your own devices before a long run: `python -m experiments.preflight
--config=configs/NAME.py[:METHOD] --workdir=DIR [--config.KEY=VALUE]`.

Takes the flags of experiments.train, on as many hosts, and prints a line for each check: ok, note
or FAIL, what was found, and the way out. Checked are packages, memory, rates beside the chip's
peaks, fp32, attention, sampler and trainer, an update on all devices beside one of them and the
CPU, a checkpoint's round trip in DIR, the grader, and hosts. A tiny model of the config's family
stands for the model. docs/preflight.md explains the lines.

    --real     also compile the config itself, decode 64 tokens, take an update: memory and seconds
               beside the plan, hours of the run

Nothing is left in DIR. Exit codes: 0 no check FAILs; 2 the request cannot be fulfilled; 3 a check
FAILs; 4 another host is gone; 5 the disk is full; 130 Ctrl-C.
"""

from __future__ import annotations

import time

from absl import flags
from ml_collections import config_flags

from experiments.cli import (
    check_output,
    define_path,
    fail,
    fail_by,
    leave,
    log_to_stderr,
    prepare_memory,
    run_command,
    use_compilation_cache,
)

EXAMPLE = "python -m experiments.preflight --config=configs/quickstart.py:bridge --workdir=runs/one"
# as of a run that diverged: the same command would end the same way
FAILED = 3


def define_flags() -> None:
    """The flags of this command."""
    config_flags.DEFINE_config_file(
        "config", None, "a file of configs/, with :METHOD behind it", lock_config=True
    )
    define_path("workdir", None, "the run directory, whose file system is tried")
    flags.DEFINE_bool("real", False, "also run the config's own programs once")
    flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Run the checks; turn errors into one line and an exit code."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; settings are given as --config.a.b=value")
    log_to_stderr()
    use_compilation_cache()
    prepare_memory()
    from bridge_jax.distributed import multihost

    try:
        with multihost.joined(flags.FLAGS.config):
            failed = report(flags.FLAGS.config, flags.FLAGS.workdir, flags.FLAGS.real)
    except (ValueError, OSError) as error:
        fail_by(error, at_once=multihost.started())
    except multihost.Lost as error:
        fail(str(error), code=multihost.LOST, at_once=True)
    check_output()
    # without Python's shutdown, in which jax may wait for other hosts
    leave(FAILED if failed else 0)


def report(config, workdir: str, real: bool) -> int:
    """Print a line for each check; the number of those that FAIL."""
    from bridge_jax.distributed import multihost
    from bridge_jax.preflight import checks, record, storage, subject

    began, failed = time.monotonic(), 0
    folder = storage.folder_in(workdir)
    try:
        for found in checks.run(subject.make(config, folder), real):
            failed += found.grade == record.FAIL
            multihost.print_on_main(found.line())
    finally:
        storage.remove(folder, workdir)
    end = f"{failed} of the checks FAIL" if failed else "no check FAILs"
    multihost.print_on_main(f"{end}; {time.monotonic() - began:.0f} s")
    return failed


def start() -> None:
    """The command, with its flags."""
    define_flags()
    run_command(main, EXAMPLE)
