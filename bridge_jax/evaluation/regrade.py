"""Stored rollouts of a run, graded again as the run's task does it now."""

from __future__ import annotations

import collections
import contextlib
import json
from pathlib import Path

from ml_collections import ConfigDict

from bridge_jax import tasks
from bridge_jax.config import renamed, schema
from bridge_jax.data import datasets
from bridge_jax.evaluation import reading
from bridge_jax.filesystem import textfile
from bridge_jax.grading import selftest
from bridge_jax.grading.outcome import Rule
from bridge_jax.grading.pool import Pool
from bridge_jax.types import Problem

# examples of each change
SHOWN = 5


def task_of(run: Path):
    """(task of a run, whether it defers comparisons); ValueError where there is no run."""
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
    task, defers = task_of(run)
    files = sorted((run / "rollouts").glob("step_*.jsonl"))
    if not files:
        raise ValueError(
            f"{run} has no rollouts; a run keeps them with log.rollouts_every above 0, sft makes "
            "none"
        )
    rules, graded = {problem.id: problem.rule for problem in task.train}, []
    with Pool() if defers else contextlib.nullcontext() as pool:
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
