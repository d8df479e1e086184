"""Samples of a report on groups of runs: a few problems across steps and groups."""

from __future__ import annotations

import itertools
import json
import pathlib
import re

from bridge_jax.config import renamed
from bridge_jax.evaluation.comparison import Run
from bridge_jax.filesystem import textfile

# shown in the viewer: problems, samples of each problem and step, steps of each group
PROBLEMS, SAMPLES, STEPS = 12, 4, 8
# of all samples shown; beyond it, fewer problems are shown
LETTERS = 4 * 10**6
# bytes of a run's samples that are searched for problems that recur, but at least STEPS files
SEARCHED = 64 * 2**20


def spread(items: list, count: int) -> list:
    """At most `count` of the items, evenly spaced, the first and the last among them."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def samples(groups: dict[str, list[Run]]) -> list[dict]:
    """Problems for the viewer, with samples of each (of first seeds).

    They are the problems that most groups, and then most steps, sampled: above all the held-out
    problems whose answers every evaluation keeps (log.eval_problems), then those of training.
    """
    # problem -> group -> files
    places: dict[str, dict[str, list]] = {}
    for name, group in groups.items():
        paths = sorted(
            pathlib.Path(group[0].folder, "rollouts").glob("*_*.jsonl"),
            key=lambda path: path.stem[-6:],
        )
        largest = max((path.stat().st_size for path in paths), default=0)
        for path in spread(paths, max(STEPS, SEARCHED // (largest + 1))):
            for problem in set(re.findall(r'"id": (-?\d+)', textfile.read(path))):
                places.setdefault(problem, {}).setdefault(name, []).append(path)
    often = sorted(
        places,
        key=lambda problem: (-len(places[problem]), -sum(map(len, places[problem].values()))),
    )[:PROBLEMS]
    wanted: dict[tuple, set[int]] = {}
    for problem in often:
        for name, paths in places[problem].items():
            for path in spread(paths, STEPS):
                wanted.setdefault((name, path), set()).add(int(problem))
    found = {int(problem): {"rows": []} for problem in often}
    for name, path in sorted(
        wanted, key=lambda place: (list(groups).index(place[0]), place[1].stem[-6:])
    ):
        for stored in map(json.loads, textfile.read(path).rstrip("\n").split("\n")):
            row = renamed.transcript(stored)
            if row["id"] in wanted[name, path] and row["sample"] < SAMPLES:
                found[row["id"]] |= {"question": row["question"], "answer": row["answer"]}
                found[row["id"]]["rows"].append(
                    [name, int(path.stem[-6:]), row["policy"], row["outcome"], row["text"][:2000]]
                )
    sizes = itertools.accumulate(sum(len(row[-1]) for row in one["rows"]) for one in found.values())
    return [one for one, size in zip(found.values(), sizes) if size <= LETTERS]
