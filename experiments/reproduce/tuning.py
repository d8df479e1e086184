"""Tuning of learning rates: the validation problems, and the rate that is best on them.

The paper has 500 validation problems; which they are is not known here. Ours are 500 problems of
MATH's training set, levels 3 to 5, that are not among LIMR's: the same ones on every machine.
"""

from __future__ import annotations

import json
from pathlib import Path

from bridge_jax import tasks
from bridge_jax.data.traces import text_key
from bridge_jax.filesystem import files
from experiments.reproduce import results, variants
from experiments.reproduce.request import Request

COUNT = 500
# of the file, in evaluate's results
TASK = "custom_validation"


def validation_file(request: Request) -> Path:
    """The file of the validation problems."""
    return request.folder / "validation.jsonl"


def write_validation(request: Request) -> Path:
    """Write the validation problems unless they are there; ValueError where there are too few."""
    path = validation_file(request)
    if path.exists():
        return path
    read = lambda name: tasks.load(name).make(tasks.load(name).Config(data_dir=request.data_dir))
    seen = {text_key(problem.question) for problem in read("limr").train}
    # by id, which is a hash of the question
    left = [problem for problem in read("math").train if text_key(problem.question) not in seen]
    if len(left) < COUNT:
        raise ValueError(
            f"--tuned needs {COUNT} problems of MATH that are not LIMR's, and there are {len(left)}"
        )
    rows = [{"problem": problem.question, "answer": problem.answer} for problem in left[:COUNT]]
    files.replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def accuracies(request: Request) -> dict[str, dict[float, float]]:
    """Method -> rate -> share of the validation problems solved greedily, as far as it is known.

    Without rates whose run diverged.
    """
    found: dict[str, dict[float, float]] = {}
    if not request.tuned:
        return found
    lost = diverged(request)
    for variant in variants.grid(request):
        folder = variants.evaluation_folder(request, variant, request.seeds[0], "validation")
        scores = results.greedy_scores(folder, TASK)
        rate = rate_of(request, variant)
        if scores is not None and rate not in lost.get(variant.method, ()):
            found.setdefault(variant.method, {})[rate] = float(scores.mean())
    return found


def diverged(request: Request) -> dict[str, list[float]]:
    """Method -> the rates of the grid at which its run diverged."""
    found: dict[str, list[float]] = {}
    for variant in variants.grid(request) if request.tuned else ():
        if results.diverged(variants.run_folder(request, variant, request.seeds[0])):
            found.setdefault(variant.method, []).append(rate_of(request, variant))
    return found


def rate_of(request: Request, variant: variants.Variant) -> float:
    """The learning rate of a variant of the grid."""
    return dict(variant.settings).get(variants.RATE_KEYS[0], request.published_rate)


def chosen(request: Request) -> dict[str, float]:
    """Method -> its best rate, of methods whose whole grid is validated; of equals the lowest.

    A rate whose run diverged counts as validated, and loses to every other.
    """
    every, lost = variants.rates(request), diverged(request)
    return {
        method: max(sorted(by_rate), key=by_rate.__getitem__)
        for method, by_rate in accuracies(request).items()
        if {*by_rate, *lost.get(method, ())} == set(every)
    }
