"""What the commands share: path flags, config keys, logging, the compilation cache, exit codes.

A shell expands ~ only at the beginning of a word, so not in --workdir=~/run; taken literally, it
would name a folder "~" in the current one. So `define_path` expands it. Path-valued keys of the
config have the type schema.LocalPath for the same reason.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import re
import signal
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

import bridge_jax
from bridge_jax.config import renamed, schema
from bridge_jax.filesystem import files, streams
from experiments import INTERRUPTED

# exit code of every command: the same command can go on once there is room
DISK_FULL = 5


# flags defined here belong to the module that asks for them, so that its --help shows them
flags.disclaim_key_flags()


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


class VersionFlag(flags.BooleanFlag):
    """--version: while the command line is read, print `version` and end the command."""

    def __init__(self):
        super().__init__("version", False, "print the versions of bridge_jax and jax, and end")

    def parse(self, argument) -> None:
        """End the command here, before absl asks for flags that are required."""
        super().parse(argument)
        if self.value:
            print(version())
            check_output()
            sys.exit(0)


def version() -> str:
    """The line that a report of a bug begins with; jax is not imported for it."""
    return f"bridge_jax {bridge_jax.__version__}, jax {importlib.metadata.version('jax')}"


def expand_config(argv: list[str]) -> list[str]:
    """The command line with the home directory of --config=~/NAME.py filled in.

    That flag is defined by ml_collections, not by `define_path`.
    """
    home = lambda found: found[1] + schema.expand_user(found[2])
    return [re.sub(r"^(--?config=)(~.*)", home, argument) for argument in argv]


def use_compilation_cache() -> None:
    """Keep compiled programs between runs.

    JAX_COMPILATION_CACHE_DIR names another folder; where it is empty, programs are not kept.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update(
            "jax_compilation_cache_dir", os.path.expanduser("~/.cache/bridge_jax/xla")
        )
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next allocation; on other systems nothing happens.

    XLA's CPU backend allocates its temporaries anew for each execution, and glibc maps large ones
    from the kernel each time. On some processors page faults are a third of an update's time.
    Threads keep arenas of their own: with one arena for all of them sampling is slower.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        # of malloc.h
        mmap_max, trim_threshold, top_pad = -4, -1, -2
        mallopt(mmap_max, 0), mallopt(trim_threshold, -1), mallopt(top_pad, 64 << 20)


def log_to_stderr() -> None:
    """Log our notes and all warnings, without libraries' notes on absent devices and packages."""
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", force=True
    )
    # at INFO jax names each backend that it did not find
    logging.getLogger("jax").setLevel(logging.WARNING)
    # transformers reads it when it is imported, and warns that there is no torch
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def leave(code: int = 0) -> None:
    """End the process without Python's own shutdown.

    That shutdown can crash while XLA's threads are compiling.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def fail(message: str, code: int = 2, at_once: bool = False) -> None:
    """End the program with a line "error: ...".

    at_once: without Python's shutdown, where jax would wait for the other hosts of a run.
    """
    streams.write_line(f"error: {message}", descriptor=2)
    if at_once:
        leave(code)
    sys.exit(code)


def fail_by(error: Exception, code: int = 2, at_once: bool = False) -> None:
    """End the program by an error of settings or files; a full disk has its own exit code."""
    fail(files.explain(error), DISK_FULL if files.is_full(error) else code, at_once)


def run_command(main: Callable) -> None:
    """Parse the flags and call main(argv), as every command does; lost output does not end it."""
    streams.install()
    flags.DEFINE_flag(VersionFlag())
    # absl took its stream when it was imported; it may be None, which absl could not close
    absl_logging.get_absl_handler().python_handler.stream = sys.stderr
    app.run(functools.partial(interruptible, main), flags_parser=parse_flags)


def interruptible(main: Callable, argv: list[str]) -> None:
    """Call main(argv); a KeyboardInterrupt out of it ends the program with one line."""
    try:
        main(argv)
    except KeyboardInterrupt:
        fail("stopped by Ctrl-C", INTERRUPTED, at_once=True)


def interrupt_by_signals() -> None:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, for commands that have something to clear up.

    So does SIGHUP, of a closed terminal, unless nohup made the process ignore it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def check_output() -> None:
    """End the program with an error if output was lost, for commands that print their result."""
    error = streams.output_error()
    if error is not None:
        fail_by(OSError(error.errno, error.strerror, "standard output"))


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line into the flags; a mistake in it ends the program with one line."""
    try:
        argv = expand_config(argv)
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            # raises the error that kept the file from being read
            list(flags.FLAGS.config)
        return rest
    except flags.Error as error:
        fail(without_traceback(str(error)))
    except (AttributeError, KeyError, TypeError) as error:
        # of ml_collections, for a key that the config does not have
        if message := unknown_key(argv):
            fail(message)
        raise error
    except (ValueError, OSError) as error:
        # of the config file: it does not exist, or it refuses its argument
        fail(" ".join(str(error).split()))


def without_traceback(text: str) -> str:
    """An error of a config file on one line where the file refused its argument, else as it is.

    ml_collections puts the traceback into the message; a mistake in the file's code keeps it.
    """
    last = text.strip().splitlines()[-1]
    if "Traceback (most recent call last)" not in text or not last.startswith("ValueError: "):
        return text
    flag = text.split(": Error whilst parsing config file", 1)[0]
    return f"{flag}: {last.removeprefix('ValueError: ')}"


def unknown_key(argv: list[str]) -> str:
    """A message for the first --config.a.b that the config file does not have; else ""."""
    line = " ".join(argv[1:])
    file = re.search(r"(?:^| )--?config[= ](\S+)", line)
    config = flags.FLAGS["config"].parser.parse(file[1] if file else "")
    for path in re.findall(r"(?:^| )--?(?:no)?(config\.[\w.]+)", line):
        group = config
        for key in path.split(".")[1:]:
            if not isinstance(group, ConfigDict) or key not in group:
                allowed = group if isinstance(group, ConfigDict) else ()
                if path.startswith(
                    ("config.method.", *(f"config.{name}." for name in renamed.GROUPS))
                ) and (hint := renamed.hint(config.method.name, key)):
                    return f"unknown key {path}: {hint}"
                return f"unknown key {path}: {schema.did_you_mean(key, allowed)}"
            group = group[key]
    return ""
