"""What commands share on their command lines: flags that are paths, with ~ read as a shell reads it.

A shell leaves the ~ of --workdir=~/run alone, since the word does not begin with it: read as it is, it would name a folder
called "~" in the current one. Path-valued keys of the config have the type settings.LocalPath for the same reason.
"""

from __future__ import annotations

import re

from absl import flags

from bridge_jax import settings


class PathParser(flags.ArgumentParser):
    """One path, or several (globs too) with commas between them."""

    def __init__(self, several: bool = False):
        self.several = several

    def parse(self, argument: str) -> str:
        """The path or paths with home directories filled in."""
        parts = argument.split(",") if self.several else [argument]
        return ",".join(settings.expand_user(part) for part in parts)


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
    home = lambda found: found[1] + settings.expand_user(found[2])
    return [re.sub(r"^(--?config=)(~.*)", home, argument) for argument in argv]
