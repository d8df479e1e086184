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
from experiments.reproduce.request import LABELS, Request

GB, HOUR = 1e9, 3600
PUBLISHED = Path(__file__).parents[1] / "paper" / "models.json"
HEAD = ("training", "GB per device", "fits", "s per step", "hours", "the paper's hours", "and GB")
# columns of the head with the paper's figures, of which a rehearsal has none
THEIRS = 2
# methods that a rehearsal plans, since a plan takes as long as a training of it
REHEARSED = ("grpo", "bridge")
# what is shown first of a model's plans where no topology is asked for
PREFERRED = ("h100:8", "v5e")


def own_plans(request: Request) -> Path:
    """The file of this folder's plans."""
    return request.folder / "plans.jsonl"


def published(request: Request) -> dict:
    """The paper's figures of the model; {} where it has none."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8")).get(request.model, {})


def source() -> str:
    """The paper, for the marks of its figures."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))["source"]


def planned(request: Request) -> list[str]:
    """The methods that the stage "plan" plans."""
    trained = [method for method in request.methods if method != "base"]
    return [one for one in trained if one in REHEARSED] if request.rehearse else trained


def plans(request: Request) -> list[dict]:
    """The plans of the model with the config as it is, the newest last."""
    paths = [own_plans(request)]
    if not request.rehearse and not request.train_flags and not request.model_path:
        paths = [*sorted((project.ROOT / "docs" / "plans").glob("*.jsonl")), *paths]
    return [
        plan
        for path in paths
        if path.exists()
        for _, plan in files.rows(path)
        if plan["name"] == Path(request.config).stem
        and (path == own_plans(request) or not plan["changed"])
    ]


def plan_of(request: Request, method: str, topology: str) -> dict | None:
    """The newest plan of the method on the topology; None without one."""
    wanted = (topology, method)
    found = [one for one in plans(request) if (one["topology"], one["method"]) == wanted]
    return found[-1] if found else None


def known_topologies(request: Request) -> list[str]:
    """The topologies with plans of the model, the preferred first."""
    found = sorted({plan["topology"] for plan in plans(request)})
    rank = lambda name: [*map(name.startswith, PREFERRED), True].index(True)
    return sorted(found, key=rank)


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


def row(request: Request, method: str, topology: str) -> tuple[str, ...]:
    """The cells of one method."""
    plan = plan_of(request, method, topology)
    cost = published(request).get("cost", {}).get(method, {})
    theirs = [f"{cost[key]:g}" if cost else "-" for key in ("hours", "gigabytes")]
    label = LABELS.get(method, method)
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
    """The table, and what the planner cannot say.

    Without --topology it is of one for which there are plans.
    """
    trained = [method for method in request.methods if method != "base"]
    known = known_topologies(request)
    topology = request.topology or next(iter(known), "")
    rows = [HEAD, *(row(request, method, topology) for method in trained)]
    if request.rehearse:
        rows = [cells[:-THEIRS] for cells in rows]
    lines = [aligned(rows), *remarks(request, topology, known)]
    lines.append("evaluation: the planner has no plan of it")
    return "\n".join(lines)


def remarks(request: Request, topology: str, known: list[str]) -> list[str]:
    """What the figures are of, and the way to those that are missing."""
    bound = "of one training; a bound from below, every sample at full length (docs/plan.md)"
    if not request.topology:
        of = f"{topology}, of which there are plans: {bound}" if topology else "there are no plans"
        return [
            f"no --topology, so on {of}" if topology else f"no --topology, and {of}",
            "for your own devices: --stages=plan with --topology=h100:8, v5e:4x4 or others, which "
            "need no device here, or gpu for the GPUs of this machine",
        ]
    lines = [f"on {topology}, {bound}"]
    if any(plan_of(request, method, topology) is None for method in planned(request)):
        others = [name for name in known if name != topology]
        there = f"; there are plans on {', '.join(others)}" if others else ""
        lines.append(f"no plan of some methods on {topology}: --stages=plan makes them{there}")
    return lines
