"""What the commands share: flags that are paths, settings on the command line, notes, the compilation
cache, errors as one line and an exit code, output that may be lost.

A shell leaves the ~ of --workdir=~/run alone, since the word does not begin with it: read as it is, it
would name a folder called "~" in the current one. Path-valued keys of the config have the type
schema.LocalPath for the same reason.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from bridge_jax.config import renamed, schema
from bridge_jax.filesystem import files, streams
from experiments import INTERRUPTED

# exit code of every command: it may be tried again once there is room
DISK_FULL = 5


class PathParser(flags.ArgumentParser):
    """One path, or several (globs too) with commas between them."""

    def __init__(self, several: bool = False):
        self.several = several

    def parse(self, argument: str) -> str:
        """The path or paths with home directories filled in."""
        parts = argument.split(",") if self.several else [argument]
        return ",".join(schema.expand_user(part) for part in parts)


def define_path(
    name: str, default: str | None, about: str, required: bool = False, several: bool = False
) -> None:
    """A flag that is a path: every one of every command is defined with this."""
    flags.DEFINE(
        PathParser(several),
        name,
        default,
        about,
        serializer=flags.ArgumentSerializer(),
        required=required,
    )


def expand_config(argv: list[str]) -> list[str]:
    """The command line with the home directory of --config=~/NAME.py filled in: that flag is ml_collections' own."""
    home = lambda found: found[1] + schema.expand_user(found[2])
    return [re.sub(r"^(--?config=)(~.*)", home, argument) for argument in argv]


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


def leave(code: int = 0) -> None:
    """Ends the process without Python's own shutdown, which crashes while XLA's threads are still compiling."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def fail(message: str, code: int = 2, at_once: bool = False) -> None:
    """Ends the program with a line "error: ..."; at once: as one of several hosts, for which jax would wait at the exit."""
    streams.write_line(f"error: {message}", descriptor=2)
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
    app.run(functools.partial(interruptible, main), flags_parser=parse_flags)


def interruptible(main: Callable, argv: list[str]) -> None:
    """main(argv); a KeyboardInterrupt that main has asked for, to clear up, ends the program with one line."""
    try:
        main(argv)
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C", INTERRUPTED, at_once=True)


def interrupt_by_signals() -> None:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, for commands that have something to clear up.

    So does SIGHUP, of a terminal that is closed, unless nohup has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def check_output() -> None:
    """Ends the program with an error if something on standard output was lost: for commands whose result it is."""
    error = streams.output_error()
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
                if path.startswith(("config.method.", "config.rollout.")) and (
                    hint := renamed.hint(config.method.name, key)
                ):
                    return f"unknown key {path}: {hint}"
                return f"unknown key {path}: {schema.did_you_mean(key, allowed)}"
            group = group[key]
    return ""
