"""Grade a run's stored rollouts again: `python -m experiments.regrade RUN [--out=changed.jsonl]`.

It serves to test a grader that was changed, or is in doubt. The texts of RUN/rollouts are read and
compared as the run's task does it now, on this machine, without model or accelerator. The command
prints which outcomes change, and the mean reward before and after; it writes the changed rows to
--out. Nothing in RUN changes. Data that the task reads must be where the run found them.

Exit codes: 0 done, whatever changed; 2 it cannot be done; 3 the grader fails.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from bridge_jax.config import schema
from bridge_jax.filesystem.files import replace
from experiments.cli import check_output, define_path, fail, fail_by, log_to_stderr, run_command


def main(argv: list[str]) -> None:
    """Regrade, and turn errors into one line and an exit code."""
    if len(argv) != 2:
        fail(f"expected one run directory, got {argv[1:]}: python -m experiments.regrade RUN")
    log_to_stderr()
    # slow to import
    from bridge_jax.evaluation import regrade

    try:
        rows = regrade.regrade(Path(schema.expand_user(argv[1])))
        print(regrade.summary(rows))
        if flags.FLAGS.out:
            changed = [
                json.dumps(row) + "\n" for row in rows if row["outcome"] != row["outcome_now"]
            ]
            replace(flags.FLAGS.out, "".join(changed))
            print(f"{len(changed)} changed rows in {flags.FLAGS.out}")
    except (ValueError, OSError) as error:
        fail_by(error)
    except RuntimeError as error:
        # of the grader: its self-test, or workers that cannot be started
        fail_by(error, code=3)
    check_output()


def define_flags() -> None:
    """The flags of this command."""
    define_path("out", "", "a JSONL file for the rows that change")


if __name__ == "__main__":
    define_flags()
    run_command(main)
