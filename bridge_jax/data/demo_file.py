"""A file of demonstrations that grows group by group, survives a kill, and ends with a manifest.

OUT.part holds the demonstrations so far and OUT.state.json how far the source was read; the same
command goes on from there. At the end OUT.part becomes OUT, with OUT.manifest.json beside it: which
data, which arguments, how many rows of each state, the hash of OUT and its lengths in tokens.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bridge_jax.data.demo_schemas import Row, Schema
from bridge_jax.data.demo_selection import (
    GRADED,
    OUTCOMES,
    STATES,
    Criteria,
    Decision,
    describe_failure,
    problem_hash,
    select,
)
from bridge_jax.filesystem import files

# rows that are decided and written together
GROUP = 128
# Rows that were graded without a single right one, after which the grader or a column must be the
# wrong one: no source is that bad.
HOPELESS = 1000


def with_ending(out: str, ending: str) -> Path:
    """The path of a file beside the output."""
    return Path(out + ending)


def read_json(path: Path) -> dict:
    """The object in a file, {} where there is no file; ValueError where it is damaged."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to begin again") from None


def pinned_revision(out: str, hub: str) -> str:
    """The commit of this repository that an output, finished or not, was made from; else ""."""
    for ending in (".state.json", ".manifest.json"):
        source = read_json(with_ending(out, ending)).get("source", {})
        if source.get("hub") == hub:
            return source["revision"]
    return ""


class DemoFile:
    """The output of one command, new or gone on with.

    made_by: groups of what determines the output, such as the arguments and the source. ValueError
    where the files that are there were made by something else.
    """

    def __init__(self, out: str, made_by: dict[str, dict[str, Any]]):
        self.out, self._head = out, made_by
        self.part, self._state = with_ending(out, ".part"), with_ending(out, ".state.json")
        self.manifest = with_ending(out, ".manifest.json")
        self.rows = 0
        self.states = collections.Counter(dict.fromkeys(STATES, 0))
        self.benchmarks: collections.Counter[str] = collections.Counter()
        self.lengths: collections.Counter[int] = collections.Counter()
        # hashes of the problems that have a demonstration
        self.kept: set[int] = set()
        self.complete = self._is_complete()
        if not self.complete:
            self._resume()

    def _is_complete(self) -> bool:
        """Whether OUT is there, by these arguments; ValueError where it is by others."""
        if not os.path.exists(self.out):
            return False
        if os.path.isdir(self.out):
            raise ValueError(f"{self.out} is a folder; give a file in it, such as traces.jsonl")
        done = read_json(self.manifest)
        if not done:
            raise ValueError(f"{self.out} exists and has no manifest; give another --out")
        self._check_same(done, self.out)
        with open(self.out, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != done["sha256"]:
                raise ValueError(
                    f"{self.out} was changed after it was made; give another --out, or delete it"
                )
        self._state.unlink(missing_ok=True)
        self.rows, self.states = done["rows"], collections.Counter(done["states"])
        return True

    def _difference(self, found: dict) -> str:
        """The first setting in which the file on disk differs from this command; "" for none."""
        for group, now in self._head.items():
            was = found.get(group, {})
            now = json.loads(json.dumps(now))
            for key in dict.fromkeys((*was, *now)):
                if was.get(key) != now.get(key):
                    return f"{key} {was.get(key)!r:.200}, now it is {now.get(key)!r:.200}"
        return ""

    def _check_same(self, found: dict, what: str) -> None:
        """ValueError where the file on disk was made with other settings."""
        if difference := self._difference(found):
            raise ValueError(
                f"{what} was made with {difference}; give another --out, or delete {self.out}*"
            )

    def _resume(self) -> None:
        """Reads the state of an interrupted command, and cuts what it had not yet counted."""
        state = read_json(self._state)
        # without a demonstration nothing is lost by beginning again
        if not state or not state["bytes"] and self._difference(state):
            self.part.unlink(missing_ok=True)
            return
        self._check_same(state, f"the unfinished {self.part}")
        self.rows = state["rows"]
        self.states.update(state["states"])
        self.benchmarks.update(state["contaminated_by"])
        if not state["bytes"]:
            self.part.unlink(missing_ok=True)
            return
        if not self.part.exists() or self.part.stat().st_size < state["bytes"]:
            raise ValueError(
                f"{self.part} is missing or shorter than {self._state} says; delete both to begin "
                "again"
            )
        os.truncate(self.part, state["bytes"])
        with open(self.part, encoding="utf-8") as lines:
            for line in lines:
                demo = json.loads(line)
                self.kept.add(problem_hash(demo["problem"]))
                self.lengths[demo["tokens"]] += 1

    def add(self, decisions: list[Decision]) -> None:
        """Writes the demonstrations of the next rows, and how far the source was read."""
        demos = []
        for row, decision in enumerate(decisions, self.rows):
            self.states[decision.state] += 1
            if decision.benchmark:
                self.benchmarks[decision.benchmark] += 1
            if decision.demo:
                self.lengths[decision.demo["tokens"]] += 1
                demos.append(decision.demo | {"row": row})
        self.rows += len(decisions)
        if demos:
            lines = "".join(json.dumps(demo, ensure_ascii=False) + "\n" for demo in demos)
            files.append(self.part, lines, assurance="the rows before are kept")
        size = self.part.stat().st_size if self.part.exists() else 0
        state = {"rows": self.rows, "bytes": size, "states": dict(self.states)}
        files.replace(
            self._state, json.dumps(self._head | state | {"contaminated_by": dict(self.benchmarks)})
        )

    def finish(self, failure: str = "", allow_none: bool = False) -> dict[str, Any]:
        """Writes the manifest and gives the output its name.

        ValueError where nothing was kept, unless allow_none; failure: the first answer that did not
        grade.
        """
        if not self.states["kept"] and not allow_none:
            self._state.unlink(missing_ok=True)
            most = self.states.most_common(1)[0][0]
            raise ValueError(
                f"all {self.rows} rows were dropped: {self.summary()}. The state {most} means: "
                f"{STATES[most]}{such_as(failure)}"
            )
        # without a demonstration it was not made yet
        self.part.touch()
        with open(self.part, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest = {
            **self._head,
            "rows": self.rows,
            "states": dict(self.states),
            "contaminated_by": dict(self.benchmarks),
            "tokens": token_summary(self.lengths),
            "sha256": digest,
        }
        files.replace(self.manifest, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        os.replace(self.part, self.out)
        files.sync_folder(os.path.dirname(self.out) or ".")
        self._state.unlink(missing_ok=True)
        return manifest

    def summary(self) -> str:
        """The states that occurred, in one line."""
        return ", ".join(
            f"{count} {state.replace('_', ' ')}" for state, count in self.states.items() if count
        )


def token_summary(lengths: collections.Counter[int]) -> dict[str, int]:
    """Median, 95th percentile (nearest rank) and maximum of the lengths; 0 without any."""
    ordered, total = sorted(lengths.items()), lengths.total()
    ranks = {"median": (total + 1) // 2, "p95": -(-95 * total // 100), "max": total}
    found = {}
    for name, rank in ranks.items():
        below = itertools.accumulate(count for _, count in ordered)
        lengths_at = (
            length for (length, _), count in zip(ordered, below, strict=True) if count >= rank
        )
        found[name] = next(lengths_at, 0)
    return found


def fill(
    output: DemoFile,
    rows: Iterator[dict],
    schema: Schema,
    criteria: Criteria,
    limit: int,
    show: Callable[[int, str], None],
) -> str:
    """Reads rows into the output until they end, or `limit` demonstrations (0: no limit) are there.

    Returns the first answer that did not grade, beside the problem's own; "" for none. ValueError
    for rows that the schema does not fit, and for an answer that never grades.
    """
    wanted = min(
        limit or float("inf"), float("inf") if criteria.match is None else len(criteria.match)
    )
    failure = ""
    while output.states["kept"] < wanted:
        group = list(itertools.islice(rows, GROUP))
        if not group:
            break
        read = [read_row(schema, row, number) for number, row in enumerate(group, output.rows)]
        decisions = up_to(select(read, criteria, output.kept), wanted - output.states["kept"])
        output.add(decisions)
        show(output.rows, f"{output.states['kept']} kept")
        graded = sum(output.states[state] for state in GRADED)
        right = output.states["kept"] + output.states["too_long"]
        failed = [one for one, fate in zip(read, decisions) if fate.state in OUTCOMES.values()]
        if failed and not failure:
            failure = describe_failure(failed[0], criteria)
        if graded >= HOPELESS and not right and criteria.grader:
            raise ValueError(
                f"no solution of {graded} rows has a right answer ({output.summary()})"
                f"{such_as(failure)}. Check --columns; --grader=math, none, or a task such as "
                "knights_knaves; and --box, where answers stand in <answer> </answer> or nowhere"
            )
    return failure


def such_as(failure: str) -> str:
    """The first answer that did not grade, as the end of a message."""
    return f", such as: {failure}" if failure else ""


def up_to(decisions: list[Decision], kept: float) -> list[Decision]:
    """The decisions up to the one with which so many rows are kept."""
    for place, decision in enumerate(decisions):
        kept -= decision.state == "kept"
        if kept <= 0:
            return decisions[: place + 1]
    return decisions


def read_row(schema: Schema, row: dict, number: int) -> Row:
    """The row by its schema; ValueError where a cell has another form than the schema's."""
    try:
        return schema.read(row)
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        forms = ", ".join(f"{key}: {type(value).__name__}" for key, value in row.items())
        raise ValueError(
            f"row {number} (from 0) does not have the form of the schema {schema.name} ({error}); "
            f"its columns are {forms}. Repair or remove the row, or name the columns with "
            "--columns, which takes what is no text for null"
        ) from None
