"""Grade a run's stored rollouts again: `python -m experiments.regrade RUN [--out=changed.jsonl]`.

It serves to test a grader that was changed, or is in doubt. The texts of RUN/rollouts are read and
compared as the run's task does it now, on this machine, without model or accelerator. The command
prints which outcomes change, and the mean reward before and after; it writes the changed rows to
--out. Nothing in RUN changes. Data that the task reads must be where the run found them.

Exit codes: 0 done, whatever changed; 2 it cannot be done; 3 the grader fails.
"""

from __future__ import annotations

import collections
import contextlib
import json
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from bridge_jax.config import renamed, schema
from bridge_jax.filesystem.files import replace
from experiments.cli import check_output, define_path, fail, fail_by, log_to_stderr, run_command

# examples of each change
SHOWN = 5


def task_of(run: Path):
    """The task of a run, made from its config; ValueError where there is no run."""
    from bridge_jax import tasks
    from bridge_jax.filesystem import textfile

    try:
        record = renamed.record(json.loads(textfile.read(run / "config.json")))
        config = ConfigDict(record["config"])
        module = tasks.load(config.task.name)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{run} is not a run directory: its config.json cannot be read ({error!r})"
        ) from None
    return module.make(schema.section(config, "task", module.Config, ("name",))), getattr(
        module, "DEFERS_COMPARISONS", False
    )


def regrade(run: Path) -> list[dict]:
    """All stored rows with "step" and "outcome_now"; ValueError without readable rollouts."""
    from bridge_jax.data import datasets
    from bridge_jax.evaluation import reading
    from bridge_jax.grading import selftest
    from bridge_jax.grading.outcome import Rule
    from bridge_jax.grading.pool import Pool
    from bridge_jax.types import Problem

    task, claims = task_of(run)
    files = sorted((run / "rollouts").glob("step_*.jsonl"))
    if not files:
        raise ValueError(
            f"{run} has no rollouts; a run keeps them with log.rollouts_every above 0, sft makes "
            "none"
        )
    rules, graded = {problem.id: problem.rule for problem in task.train}, []
    with Pool() if claims else contextlib.nullcontext() as pool:
        if pool:
            selftest.check(pool)
        for file in files:
            rows = [renamed.transcript(row) for row in datasets.jsonl(file)]
            try:
                asked = [
                    Problem(
                        row["id"],
                        row["question"],
                        row["answer"],
                        "",
                        row["level"],
                        rules.get(row["id"], Rule()),
                    )
                    for row in rows
                ]
                texts, before = [row["text"] for row in rows], [row["outcome"] for row in rows]
            except KeyError as error:
                raise ValueError(
                    f"{file}: a row has no {error}; is it a file of rollouts?"
                ) from None
            (found,) = reading.readings(task, asked, texts, (task.extract,), pool)
            graded += [
                row
                | {
                    "step": int(file.stem.rpartition("_")[2]),
                    "outcome": old,
                    "outcome_now": str(new.outcome),
                }
                for row, old, new in zip(rows, before, found)
            ]
    return graded


def summary(rows: list[dict]) -> str:
    """The changes of outcomes, with examples."""
    changes = collections.defaultdict(list)
    for row in rows:
        if row["outcome"] != row["outcome_now"]:
            changes[row["outcome"], row["outcome_now"]].append(row)
    mean = lambda key: sum(row[key] == "correct" for row in rows) / len(rows)
    steps = {row["step"] for row in rows}
    lines = [
        f"{len(rows)} rollouts of {len(steps)} steps graded again; "
        f"{sum(map(len, changes.values()))} outcomes change; "
        f"mean reward {mean('outcome'):.4f} -> {mean('outcome_now'):.4f}"
    ]
    for (old, new), found in sorted(changes.items(), key=lambda item: -len(item[1])):
        lines.append(f"{old} -> {new}: {len(found)}")
        for row in found[:SHOWN]:
            lines.append(
                f"  step {row['step']}, problem {row['id']}, sample {row['sample']}: "
                f"answer {row['answer']!r}, text ends {row['text'][-80:]!r}"
            )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Regrade, and turn errors into one line and an exit code."""
    if len(argv) != 2:
        fail(f"expected one run directory, got {argv[1:]}: python -m experiments.regrade RUN")
    log_to_stderr()
    try:
        rows = regrade(Path(schema.expand_user(argv[1])))
        print(summary(rows))
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
