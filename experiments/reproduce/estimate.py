"""Hours and memory before anything starts: from the planner's plans, and the paper's own figures.

Plans are those of docs/plans and of the folder's own plans.jsonl, which the stage "plan" writes.
Their seconds are bounds from below. Left out: evaluation, of which there is no plan.
"""

from __future__ import annotations

import collections
import json
from pathlib import Path

from bridge_jax import methods
from bridge_jax.filesystem import files, project
from bridge_jax.planner.table import aligned
from bridge_jax.training import settings
from experiments.reproduce.request import METHODS, Request

GB, HOUR = 1e9, 3600
PUBLISHED = Path(__file__).parents[1] / "paper" / "models.json"
HEAD = ("training", "GB per device", "fits", "s per step", "hours", "the paper's hours", "and GB")


def own_plans(request: Request) -> Path:
    """The file of this folder's plans."""
    return request.folder / "plans.jsonl"


def published(request: Request) -> dict:
    """The paper's figures of the model; {} where it has none."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8")).get(request.model, {})


def source() -> str:
    """The paper, for the marks of its figures."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))["source"]


def plan_of(request: Request, method: str) -> dict | None:
    """The newest plan of the method on --topology with the config as it is; None without one."""
    paths = [own_plans(request)]
    if not request.rehearse and not request.train_flags and not request.model_path:
        paths = [*sorted((project.ROOT / "docs" / "plans").glob("*.jsonl")), *paths]
    wanted = (Path(request.config).stem, request.topology, method)
    found = None
    for path in paths:
        for _, plan in files.rows(path) if path.exists() else ():
            same = (plan["name"], plan["topology"], plan["method"]) == wanted
            if same and (path == own_plans(request) or not plan["changed"]):
                found = plan
    return found


def training_seconds(request: Request, method: str, plan: dict) -> float | None:
    """Seconds of all steps by the plan; None where it has no seconds."""
    if not plan["step"]:
        return None
    read = settings.read(request.config_of(method), devices=1)
    made = methods.load(method).make(read.method, None, read.recipes)
    kinds = collections.Counter(bool(made.batch_spec(i).sampled_by) for i in range(read.steps))
    single = plan["step"].get("update")
    seconds = {True: plan["step"].get("update samples"), False: plan["step"].get("update demos")}
    return sum(n * (single or seconds[sampled]) for sampled, n in kinds.items())


def row(request: Request, method: str) -> tuple[str, ...]:
    """The cells of one method."""
    plan, cost = plan_of(request, method), published(request).get("cost", {}).get(method, {})
    theirs = [f"{cost[key]:g}" if cost else "-" for key in ("hours", "gigabytes")]
    label = METHODS.get(method, method)
    if plan is None:
        return (label, "no plan", "?", "?", "?", *theirs)
    peaks = [phase.get("peak", 0) for phase in plan["phases"]]
    fits = {phase.get("fits") for phase in plan["phases"]}
    verdict = "NO" if False in fits else "yes" if fits == {True} else "?"
    seconds = training_seconds(request, method, plan)
    steps = request.config_of(method).steps
    times = ["?", "?"] if seconds is None else [f"{seconds / steps:.1f}", f"{seconds / HOUR:.1f}"]
    return (label, f"{max(peaks) / GB:.1f}", verdict, *times, *theirs)


def text(request: Request) -> str:
    """The table, and what the planner cannot say."""
    trained = [method for method in request.methods if method != "base"]
    lines = [aligned([HEAD, *(row(request, method) for method in trained)])]
    if not request.topology:
        lines.append(
            "no --topology, so the planner was not asked: give --topology=v5e:4x4 or another slice, "
            "or gpu for the GPUs of this machine"
        )
    else:
        lines.append(
            f"on {request.topology}, of one training; a bound from below, every sample at full "
            "length (docs/plan.md)"
        )
        if any(plan_of(request, method) is None for method in trained):
            lines.append(f"no plan of some methods on {request.topology}: --stages=plan makes them")
    lines.append("evaluation: the planner has no plan of it")
    return "\n".join(lines)
