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
from collections.abc import Callable, Iterator

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import FlagOrderError

import bridge_jax
from bridge_jax.config import schema
from bridge_jax.filesystem import files, streams
from experiments import INTERRUPTED, mistakes

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


def prepare_memory() -> None:
    """Set a GPU's memory pools, and have glibc keep what is freed for the next allocation.

    On systems without glibc the latter is left out. XLA's CPU backend allocates its temporaries
    anew for each execution, and glibc maps large ones from the kernel each time. On some processors
    page faults are a third of an update's time. Threads keep arenas of their own: with one arena
    for all of them sampling is slower.
    """
    import ctypes

    from bridge_jax.distributed import memory_pools

    memory_pools.set_pools()
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


def run_command(main: Callable, example: str = "") -> None:
    """Parse the flags and call main(argv), as every command does; lost output does not end it.

    example: a complete command, shown where a required flag is missing.
    """
    streams.install()
    flags.DEFINE_flag(VersionFlag())
    show_flags_of(main)
    # absl took its stream when it was imported; it may be None, which absl could not close
    absl_logging.get_absl_handler().python_handler.stream = sys.stderr
    parse = functools.partial(parse_flags, example=example)
    app.run(functools.partial(interruptible, main), flags_parser=parse)


def show_flags_of(main: Callable) -> None:
    """--help describes the file of main also where another one, a package's __main__.py, is run."""
    if main.__module__ == "__main__":
        return
    sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__
    for flag in flags.FLAGS.get_key_flags_for_module(main.__module__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


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


@contextlib.contextmanager
def output_for_a_pipe() -> Iterator[None]:
    """Output that may be cut short by its reader, such as head: the process then ends silently."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
        check_output()
    finally:
        # otherwise a child's closed pipe would end this process, too
        signal.signal(signal.SIGPIPE, before)


def check_output() -> None:
    """End the program with an error if output was lost, for commands that print their result."""
    error = streams.output_error()
    if error is not None:
        fail_by(OSError(error.errno, error.strerror, "standard output"))


def parse_flags(argv: list[str], example: str = "") -> list[str]:
    """Parse the command line into the flags; a mistake in it ends the program with one line.

    example: a complete command, shown where a required flag is missing.
    """
    try:
        argv = expand_config(argv)
        if "config" in flags.FLAGS:
            keep_file_config()
            if message := mistakes.chosen_by_key(argv):
                fail(message)
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            # raises the error that kept the file from being read
            list(flags.FLAGS.config)
        return rest
    except flags.UnrecognizedFlagError as error:
        fail(mistakes.config_key_as_flag(argv, error.flagname) or str(error))
    except FlagOrderError:
        fail("--config=FILE must stand before the keys that change it, --config.KEY=VALUE")
    except flags.Error as error:
        text = mistakes.without_traceback(str(error))
        fail(mistakes.missing_flags(text, example) or mistakes.wrong_type(text) or text)
    except (AttributeError, KeyError, TypeError) as error:
        # of ml_collections, for a key that the config does not have
        if message := mistakes.unknown_key(argv):
            fail(message)
        raise error
    except (ValueError, OSError) as error:
        # of the config file: it does not exist, or it refuses its argument
        fail(mistakes.missing_config(argv) or " ".join(str(error).split()))


def keep_file_config() -> None:
    """Has the flag --config keep a copy of what its file gives, before keys are changed in it."""
    flag = flags.FLAGS["config"]
    read = type(flag.parser).parse

    def parse(path: str) -> ConfigDict:
        config = read(flag.parser, path)
        if isinstance(config, ConfigDict):
            flag.file_config = config.copy_and_resolve_references()
        return config

    flag.parser.parse = parse


def file_config() -> ConfigDict | None:
    """The config as its file gives it, without what the command line sets; None without one."""
    flag = flags.FLAGS["config"] if "config" in flags.FLAGS else None
    return getattr(flag, "file_config", None)
