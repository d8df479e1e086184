"""Write docs/methods.md: `python -m experiments.methods [--out=docs/methods.md]`.

The page shows what each method samples, trains and costs; table.py finds it out.

Exit codes: 0 done; 2 the file cannot be written; 5 the disk is full.
"""

from __future__ import annotations

from absl import flags

from bridge_jax import methods
from bridge_jax.distributed import platforms
from bridge_jax.filesystem import files
from experiments.cli import define_path, fail, fail_by, run_command
from experiments.methods import table


def main(argv: list[str]) -> None:
    """Write the file."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}")
    try:
        platforms.devices()
        files.replace(flags.FLAGS.out, table.document(methods.names()))
    except (ValueError, OSError) as error:
        fail_by(error)


def define_flags() -> None:
    """The flags of this command."""
    define_path("out", "docs/methods.md", "the file")


def start() -> None:
    """The command, with its flags."""
    define_flags()
    run_command(main)
