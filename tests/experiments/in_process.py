"""A command run in the test's own process, whose flags are gone afterwards."""

from __future__ import annotations

from absl import flags


def exit_code(command, *line: str) -> int:
    """The exit code of a command's module; line: its name and its arguments."""
    before, code = set(flags.FLAGS), 0
    try:
        command.define_flags()
        flags.FLAGS(list(line))
        command.main(list(line[:1]))
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        flags.FLAGS.unparse_flags()
    return code
