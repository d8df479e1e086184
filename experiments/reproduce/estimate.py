"""Hours and memory before anything starts: from the planner's plans, and the paper's own figures.

Plans are those of docs/plans and of the folder's own plans.jsonl, which the stage "plan" writes.
Their seconds are bounds from below. A method without a plan is bounded by the nearest that has one.
Left out: a plan of evaluation, which is estimated by a plan's rollout.
"""

from __future__ import annotations

import collections
import functools
import json
from pathlib import Path

from bridge_jax import methods
from bridge_jax.filesystem import files, project
from bridge_jax.planner.table import aligned
from bridge_jax.training import settings
from experiments.reproduce.request import LABELS, Request

GB, MINUTE, HOUR = 1e9, 60, 3600
PUBLISHED = Path(__file__).parents[1] / "paper" / "models.json"
HEAD = ("training", "GB per device", "fits", "s per step", "hours", "the paper's hours", "and GB")
# columns of the head with the paper's figures, of which a rehearsal has none
THEIRS = 2
# methods that a rehearsal plans, since a plan takes as long as a training of it
REHEARSED = ("grpo", "bridge")
# what is shown first of a model's plans where no topology is asked for
PREFERRED = ("h100:8", "v5e")
# method -> one whose step has all parts of its own and more
BOUNDS = {
    "sft": "grpo",
    "cold_start": "grpo",
    "alternate": "grpo",
    "hybrid": "bridge",
    "chord": "bridge",
    "joint": "bridge",
}
AT_MOST = "<="
# problems of the paper's benchmarks
PROBLEMS = {"math500": 500, "minerva_math": 272, "olympiadbench": 675, "aime24": 30, "amc23": 40}
SAMPLED_MORE = "aime24"


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
    found, own = [], own_plans(request)
    if not request.rehearse and not request.train_flags and not request.model_path:
        found += [plan for plan in committed() if not plan["changed"]]
    if own.exists():
        found += [plan for _, plan in files.rows(own)]
    return [plan for plan in found if plan["name"] == Path(request.config).stem]


@functools.cache
def committed() -> tuple[dict, ...]:
    """The plans of docs/plans."""
    paths = sorted((project.ROOT / "docs" / "plans").glob("*.jsonl"))
    return tuple(plan for path in paths for _, plan in files.rows(path))


def plan_of(request: Request, method: str, topology: str) -> dict | None:
    """The newest plan of the method on the topology; None without one."""
    wanted = (topology, method)
    found = [one for one in plans(request) if (one["topology"], one["method"]) == wanted]
    return found[-1] if found else None


def nearest(request: Request, method: str, topology: str) -> tuple[str, dict | None]:
    """(method of the plan, plan): its own, or that of the method that bounds it."""
    for name in (method, BOUNDS.get(method, method)):
        if plan := plan_of(request, name, topology):
            return name, plan
    return method, None


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
    of, plan = nearest(request, method, topology)
    cost = published(request).get("cost", {}).get(method, {})
    theirs = [f"{cost[key]:g}" if cost else "-" for key in ("hours", "gigabytes")]
    label = LABELS.get(method, method)
    if plan is None:
        return (label, "no plan", "?", "?", "?", *theirs)
    mark = "" if of == method else AT_MOST
    peaks = [phase.get("peak", 0) for phase in plan["phases"]]
    seconds, steps = training_seconds(request, of, plan), request.config_of(method).steps
    times = ["?", "?"]
    if seconds is not None:
        times = [f"{mark}{seconds / steps:.1f}", f"{mark}{seconds / HOUR:.1f}"]
    return (label, f"{mark}{max(peaks) / GB:.1f}", verdict(plan, bool(mark)), *times, *theirs)


def verdict(plan: dict, bound: bool) -> str:
    """Whether the step fits; a bound that does not says nothing."""
    fits = {phase.get("fits") for phase in plan["phases"]}
    if False in fits:
        return "?" if bound else "NO"
    return "yes" if fits == {True} else "?"


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
    lines += bounded(request, topology)
    lines.append(evaluation(request, topology))
    return "\n".join(lines)


def bounded(request: Request, topology: str) -> list[str]:
    """Whose plans the figures behind AT_MOST are: a line for each of them."""
    by_plan: dict[str, list[str]] = {}
    for method in request.methods:
        of, _ = nearest(request, method, topology)
        if of != method:
            by_plan.setdefault(of, []).append(LABELS.get(method, method))
    return [
        f"{AT_MOST} at most, from the plan of {LABELS.get(of, of)}: {', '.join(names)}"
        for of, names in by_plan.items()
    ]


def evaluation(request: Request, topology: str) -> str:
    """Minutes for one model's answers, all of full length, at the rate of a plan's rollout."""
    plans_of = (nearest(request, method, topology)[1] for method in request.methods)
    seconds = [(plan, plan["step"].get("rollout")) for plan in plans_of if plan]
    plan, rollout = next((one for one in seconds if one[1]), (None, None))
    if plan is None or request.sizes.limit or not set(request.tasks) <= set(PROBLEMS):
        return "evaluation: the planner has no plan of it"
    sampled = request.sizes.avg_at * PROBLEMS[SAMPLED_MORE] * (SAMPLED_MORE in request.tasks)
    answers = sum(PROBLEMS[task] for task in request.tasks) * (1 + request.pass_at) + sampled
    tokens = answers * request.sizes.max_new
    per_token = rollout / (plan["prompts"] * plan["samples"] * plan["max_new"])
    return (
        f"evaluation: the planner has no plan of it; at the rate of a rollout, {answers:,} answers "
        f"of {request.sizes.max_new} tokens take {tokens * per_token / MINUTE:.1f} minutes a model"
    )


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
