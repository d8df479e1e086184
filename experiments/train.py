"""Train: `python -m experiments.train --config=configs/NAME.py[:METHOD] --workdir=DIR [--config.a.b=value ...]`.

Running the same command again goes on where the run directory stands. --stop_at=K ends cleanly after step K.
SIGTERM or Ctrl-C: the step under way is finished and saved; Ctrl-C after that ends at once, and the last checkpoint stands.
Exit codes: 0 done (or saved, after a signal), 2 what was asked for cannot be done, 3 the run diverged or its grader failed, 4
another host of the run is gone, has stopped, or did not come to where this one waited (hosts.timeout_s): start all of them
again, and the run goes on from its last checkpoint, 5 the disk is full: make room, and the same command goes on from there,
130 a second Ctrl-C.
Output that cannot be written is dropped. How several hosts are started: docs/launch.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from bridge_jax import files, settings, streams
from experiments.cli import define_path, expand_config

DISK_FULL = 5  # exit code of every command: it may be tried again once there is room


def define_flags() -> None:
    """The flags of this command; not at import, where they would clash with those of other commands."""
    config_flags.DEFINE_config_file(
        "config", None, "a file of configs/, with :METHOD behind it", lock_config=True
    )
    define_path("workdir", None, "the run directory, made if need be")
    flags.DEFINE_integer("stop_at", None, "end cleanly after this step", lower_bound=1)
    flags.DEFINE_bool(
        "force_config", False, "go on with a run directory although its config differs"
    )
    flags.mark_flags_as_required(["config", "workdir"])


def use_compilation_cache() -> None:
    """Keep compiled programs between runs; JAX_COMPILATION_CACHE_DIR says where else, or, empty, that they are not."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update(
            "jax_compilation_cache_dir", os.path.expanduser("~/.cache/bridge_jax/xla")
        )
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next allocation; on other systems nothing happens.

    XLA's CPU backend allocates its temporaries anew for each execution, and glibc maps large ones from the kernel each time. Page
    faults were a third of the ladder's grpo update on an AMD EPYC (0.20 s with, 0.13 s without), nothing of it on an Intel Xeon,
    and there 1 of 17 s of a SmolLM2 update. Threads have arenas of their own: with one for all, sampling took 1.3 times as long.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mmap_max, trim_threshold, top_pad = -4, -1, -2  # malloc.h
        mallopt(mmap_max, 0), mallopt(trim_threshold, -1), mallopt(top_pad, 64 << 20)


def log_to_stderr() -> None:
    """Our notes and everybody's warnings, without what libraries say of machines and packages that are absent."""
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", force=True
    )
    logging.getLogger("jax").setLevel(
        logging.WARNING
    )  # at INFO it tells of each backend that it did not find
    os.environ.setdefault(
        "TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"
    )  # read at import: that there is no torch


def main(argv: list[str]) -> None:
    """Train, and turn user errors into one line and exit code 2; a run that had to stop itself exits with 3."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; settings are given as --config.a.b=value")
    log_to_stderr()
    use_compilation_cache()
    keep_freed_memory()
    from bridge_jax import hosts, train
    from bridge_jax.grading import pool, selftest
    from configs.base import get_config

    given = flags.FLAGS
    try:
        end = train.train(
            given.config, given.workdir, given.stop_at, given.force_config, defaults=get_config()
        )
    except (ValueError, OSError) as error:
        logging.getLogger(__name__).debug("where it came from", exc_info=True)
        fail_by(error, at_once=hosts.started())
    except (train.Diverged, train.GraderFailed, selftest.GraderBroken, pool.PoolError) as error:
        fail(str(error), code=3, at_once=hosts.started())
    except hosts.Lost as error:
        fail(str(error), code=hosts.LOST, at_once=True)
    except Exception as error:
        if files.is_full(error):
            fail_by(error, at_once=hosts.started())
        if not hosts.started():
            raise
        logging.getLogger(__name__).exception("a fault of the program")
        leave(1)
    if "step" not in end:
        leave()  # a signal, while programs were compiled
    shown = (
        "step",
        "reward/mean",
        "eval/held_out_accuracy",
        "eval/held_out_stderr",
        "time/train_s",
    )
    hosts.say("  ".join(f"{key} {value:.4g}" for key, value in end.items() if key in shown))


def leave(code: int = 0) -> None:
    """Ends the process without Python's own shutdown, which crashes while XLA's threads are still compiling."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def fail(message: str, code: int = 2, at_once: bool = False) -> None:
    """Ends the program with a line "error: ..."; at once: as one of several hosts, for which jax would wait at the exit."""
    streams.say(f"error: {message}", descriptor=2)
    if at_once:
        leave(code)
    sys.exit(code)


def fail_by(error: Exception, code: int = 2, at_once: bool = False) -> None:
    """Ends the program by an error of settings or files; one that a full disk has caused has an exit code of its own."""
    fail(files.explain(error), DISK_FULL if files.is_full(error) else code, at_once)


def run_command(main: Callable) -> None:
    """What every command begins with: main(argv) behind the flags, and output that cannot end it."""
    streams.install()
    # absl took its stream when it was imported; it may be None, which it could not close
    absl_logging.get_absl_handler().python_handler.stream = sys.stderr
    app.run(main, flags_parser=parse_flags)


def check_output() -> None:
    """Ends the program with an error if something on standard output was lost: for commands whose result it is."""
    error = streams.lost()
    if error is not None:
        fail_by(OSError(error.errno, error.strerror, "standard output"))


def parse_flags(argv: list[str]) -> list[str]:
    """The command line into the flags; what cannot be read ends the program with one line instead of a traceback."""
    try:
        argv = expand_config(argv)
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            list(flags.FLAGS.config)  # raises what kept the file from being read
        return rest
    except flags.Error as error:
        fail(str(error))
    except (
        AttributeError,
        KeyError,
        TypeError,
    ) as error:  # ml_collections: a key that the config does not have
        if message := unknown_key(argv):
            fail(message)
        raise error
    except (
        ValueError,
        OSError,
    ) as error:  # of the config file: no such file, or it refuses its argument
        fail(" ".join(str(error).split()))


def unknown_key(argv: list[str]) -> str:
    """The message for the first --config.a.b that the config file does not have; "" if there is none."""
    line = " ".join(argv[1:])
    file = re.search(r"(?:^| )--?config[= ](\S+)", line)
    config = flags.FLAGS["config"].parser.parse(file[1] if file else "")
    for path in re.findall(r"(?:^| )--?(?:no)?(config\.[\w.]+)", line):
        group = config
        for key in path.split(".")[1:]:
            if not isinstance(group, ConfigDict) or key not in group:
                allowed = group if isinstance(group, ConfigDict) else ()
                return f"unknown key {path}: {settings.did_you_mean(key, allowed)}"
            group = group[key]
    return ""


if __name__ == "__main__":
    define_flags()
    run_command(main)
