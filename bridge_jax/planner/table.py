"""A plan as text for a terminal, and the tables of many plans (docs/plan.md)."""

from __future__ import annotations

import re
from typing import Any

from bridge_jax.evaluation import markdown as markdown_tables
from bridge_jax.planner.plan import CHIP_COUNTS, GB

ASSUMED = (
    "Assumed: prompts and completions of full length, every sample to max_new tokens, and "
    "rooflines: the longest of FLOPs, memory and interconnect at the makers' peaks. A bound from "
    "below, not a forecast."
)


NOT_COMPILED = (
    "not compiled (--no_compile): work is counted; memory is unknown, and rooflines are without "
    "the interconnect"
)
FORMULA = (
    ",\n  and cuDNN's workspace, which no compiler shows: by formula (planner/cudnn_workspace.py)"
)


def aligned(rows: list[tuple]) -> str:
    """A table with aligned columns, the first one flush left."""
    texts = [[cell if isinstance(cell, str) else f"{cell:,.3g}" for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))]
    pad = lambda i, cell: cell.rjust(widths[i]) if i else cell.ljust(widths[i])
    line = lambda row: "  ".join(pad(i, cell) for i, cell in enumerate(row))
    return "\n".join(f"  {line(row)}".rstrip() for row in texts)


def text(plan: dict[str, Any]) -> str:
    """A whole plan as text."""
    mesh = (
        " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
        or "one device"
    )
    chip = plan["chip"]
    lines = [
        f"{plan['method']}, {plan['model']} of {plan['parameters']:,} parameters on "
        f"{plan['topology']}: {plan['devices']} device(s) ({plan['device_kind']}), {mesh}; "
        f"decoding with tensor {plan['decode_mesh']['tensor']}",
        f"{plan['prompts']} prompts x {plan['samples']} samples, {plan['bucket']} + "
        f"{plan['max_new']} tokens, {plan['microbatch_rows']} row(s) per device at a time, "
        f"{plan['dtype']}, remat {plan['remat']}",
        f"per device: {chip['flops'] / 1e12:.0f} TFLOP/s, {chip['hbm'] / GB:.0f} GB at "
        f"{chip['memory'] / GB:.0f} GB/s, interconnect {chip['interconnect'] / GB:.0f} GB/s "
        f"({chip['source']})"
        if chip
        else "no peaks are known of this device: neither seconds nor what fits",
        "",
        memory_table(plan["phases"], chip) if compiled(plan) else NOT_COMPILED,
    ]
    lines += ["", work_table(plan["phases"])]
    for phase in plan["phases"] if compiled(plan) else ():
        lines += ["", detail(phase)]
    typical = typical_line(plan)
    lines += ["", step_lines(plan), *[typical] * bool(typical), f"  {ASSUMED}"]
    lines[-1] += " Memory and collectives are the compiler's." if compiled(plan) else ""
    return "\n".join(lines)


def compiled(plan: dict[str, Any]) -> bool:
    """Whether the programs of a plan were compiled."""
    return plan.get("compiled", True)


def memory_table(phases: list[dict], chip: dict | None) -> str:
    """The table of every phase's memory, in gigabytes per device."""
    rows = [
        (
            "GB per device",
            "arguments",
            "outputs",
            "aliased",
            "temporaries",
            "program",
            "resident",
            "cuDNN",
            "peak",
            "fits",
            "compiled s",
        )
    ]
    for phase in phases:
        fits = {True: "yes", False: "NO"}[phase["fits"]] if "fits" in phase else "?"
        if "memory" not in phase:
            asked = f"{phase['refused']['asked'] / GB:.2f}" if "asked" in phase["refused"] else "?"
            rows.append(
                (
                    phase["phase"],
                    "",
                    "",
                    "",
                    asked,
                    "refused",
                    f"{phase['resident'] / GB:.2f}",
                    workspace(phase),
                    "",
                    "NO",
                    f"{phase['compile_s']:.0f}",
                )
            )
            continue
        memory = phase["memory"]
        size = lambda key: f"{memory[key] / GB:.3f}"
        rows.append(
            (
                phase["phase"],
                size("argument"),
                size("output"),
                size("alias"),
                size("temp"),
                size("peak"),
                f"{phase['resident'] / GB:.3f}",
                workspace(phase),
                f"{phase['peak'] / GB:.3f}",
                fits,
                f"{phase['compile_s']:.0f}",
            )
        )
    limit = f" of {chip['hbm'] / GB:.0f} GB" if chip else ""
    return (
        f"{aligned(rows)}\n  peak{limit}: of the program and of the training state that is resident"
        + (FORMULA if any(phase.get("workspace") for phase in phases) else "")
    )


def workspace(phase: dict) -> str:
    """The cell of cuDNN's workspace, empty where there is none."""
    return f"{phase['workspace'] / GB:.3f}" if phase.get("workspace") else ""


def work_table(phases: list[dict]) -> str:
    """The table of every phase's counted work and roofline."""
    rows = [
        (
            "per device",
            "TFLOP",
            "GB moved",
            "GB received",
            "compute s",
            "memory s",
            "network s",
            "roofline s",
        )
    ]
    for phase in phases:
        received = sum(row.get("bytes", 0.0) for row in phase.get("collectives", {}).values())
        seconds = [phase.get(f"{key}_s", "") for key in ("compute", "memory", "network")] + [
            phase.get("seconds", "")
        ]
        rows.append(
            (phase["phase"], phase["flops"] / 1e12, phase["bytes"] / GB, received / GB, *seconds)
        )
    return aligned(rows)


def detail(phase: dict) -> str:
    """Collectives and the largest buffers of one phase."""
    if "memory" not in phase:
        return f"{phase['phase']}: refused by the compiler: {phase['refused']['message']}"
    lines = [
        f"{phase['phase']}: the compiler counts "
        + ", ".join(f"{key} {value:.3g}" for key, value in phase["compiler"].items())
        + " (a loop's body once; its optimal_seconds is no measurement)"
    ]
    for kind, row in sorted(
        phase["collectives"].items(), key=lambda item: -item[1].get("bytes", 0.0)
    ):
        cost = (
            f"run {row['times']:,} times, {row['bytes'] / GB:.3f} GB received"
            if "bytes" in row
            else "in loops of unknown length: these are counted once"
        )
        lines.append(f"  {kind.replace('_', ' ')}: {row['instructions']} instruction(s), {cost}")
    memory = phase["memory"]
    lines.append(
        f"  alive at the peak (a walk through the schedule: {memory['walked'] / GB:.3f} GB):"
    )
    lines += [
        f"    {one['bytes'] / GB:8.3f} GB  {one['what']}  {one['name']}  {one['origin'][-90:]}"
        for one in memory["largest"]
    ]
    return "\n".join(lines)


def typical_line(plan: dict) -> str:
    """What a step usually takes beside its roofline."""
    spans = "; ".join(
        f"{name} {low:.0f} to {high:.0f} s" if high >= 10 else f"{name} {low:.2g} to {high:.2g} s"
        for name, (low, high) in plan.get("typical", {}).items()
    )
    if not spans:
        return ""
    return (
        f"  Typical: {spans} a step. Measured engines decode in 1.7 to 2 times the bound of "
        "memory, and updates reach 40 to 60% of the peak."
    )


def step_lines(plan: dict) -> str:
    """The lines about the seconds of a whole step."""
    step = dict(plan["step"])
    if not step:
        return (
            "step: no estimate (a phase does not fit, was left out, or the device's peaks are "
            "unknown)"
        )
    rollout, grading = step.pop("rollout"), step.pop("grading")
    lines = [
        f"step ({name}): {seconds:.2f} s, of it rollout {rollout:.2f} s and grading {grading:.2f} "
        "s (given)"
        for name, seconds in step.items()
    ]
    if plan["host_bytes"]:
        lines.append(
            f"  Not in these seconds: {plan['host_bytes'] / GB:.2f} GB per device are in host "
            "memory between steps; each update transfers them in both directions."
        )
    return "\n".join(lines)


def ratios(plan: dict, against: dict) -> dict[str, float]:
    """Ratios of two plans: peak memory of the largest update, seconds of the longest step.

    Unknown ones are left out.
    """

    def most(one: dict) -> tuple[float, float]:
        updates = [
            phase.get("peak", 0.0) for phase in one["phases"] if phase["phase"].startswith("update")
        ]
        steps = [seconds for name, seconds in one["step"].items() if name.startswith("update")]
        return (max(updates) if all(updates) else 0.0), max(steps, default=0.0)

    pairs = zip(("update peak", "step seconds"), most(plan), most(against))
    return {name: mine / theirs for name, mine, theirs in pairs if mine and theirs}


def compare(plan: dict, against: dict) -> str:
    """The ratios of two plans in one line."""
    found = ratios(plan, against)
    summary = (
        ", ".join(f"{name} {ratio:.2f}x" for name, ratio in found.items())
        or "nothing that can be compared"
    )
    return f"{plan['method']} against {against['method']}: {summary}"


def markdown(plans: list[dict]) -> dict[str, str]:
    """The tables of docs/plan.md, from docs/plans/*.jsonl.

    Plans that were not compiled are in the table "ratios" alone. Of two plans with the same
    settings the later one counts. Plans with other shared settings come last. "x grpo" is the ratio
    to the plan of grpo with the same shared settings.
    """
    last = {
        (plan["name"], plan["topology"], plan["method"], plan["changed"]): plan for plan in plans
    }
    counted = [plan for plan in last.values() if not compiled(plan)]
    plans = sorted(
        filter(compiled, last.values()),
        key=lambda plan: (plan["name"], plan["topology"], bool(shared(plan["changed"]))),
    )
    key = lambda plan: (plan["name"], plan["topology"], shared(plan["changed"]))
    grpo = {key(plan): plan for plan in plans if plan["method"] == "grpo"}
    head = (
        "model",
        "slice",
        "method",
        "settings away from the config",
        "state GB",
        "on host GB",
        "update peak GB",
        "x grpo",
        "rollout peak GB",
        "fits",
        "rollout s",
        "update s",
        "step s",
        "x grpo",
        "typical step s",
        "code",
    )
    sizes = {
        (plan["name"], plan["method"], plan["changed"], *plan["state_by_chips"].values())
        for plan in plans
        if not shared(plan["changed"])
    }
    states = [
        [*names, *(f"{size / GB:.3f}" for size in of)]
        for *names, of in ((*one[:3], one[3:]) for one in sorted(sizes))
    ]
    return {
        "plans": markdown_tables.grid(head, [row(plan, grpo.get(key(plan))) for plan in plans]),
        "ratios": ratio_table(counted),
        "states": markdown_tables.grid(
            ("model", "method", head[3], *(f"{n} chips" for n in CHIP_COUNTS)), states
        ),
    }


def ratio_table(plans: list[dict]) -> str:
    """Seconds of a whole step beside grpo's, of plans that were counted and not compiled."""
    key = lambda plan: (plan["name"], plan["topology"], shared(plan["changed"]))
    grpo = {key(plan): plan for plan in plans if plan["method"] == "grpo"}
    seconds = lambda plan: plan["step"]["update"]
    order = lambda plan: (*key(plan), -seconds(plan))
    head = ("model", "slice", "settings", "rollout s", "update s", "step s", "grpo's", "x grpo")
    rows = []
    for plan in sorted(plans, key=order):
        if plan["method"] == "grpo" or key(plan) not in grpo:
            continue
        rollout, theirs = plan["step"]["rollout"], seconds(grpo[key(plan)])
        numbers = (rollout, seconds(plan) - rollout, seconds(plan), theirs)
        ratio = f"{seconds(plan) / theirs:.2f}"
        rows.append([*key(plan)[:2], plan["changed"], *(f"{x:.1f}" for x in numbers), ratio])
    return markdown_tables.grid(head, rows)


def shared(changed: str) -> str:
    """The changed settings of a plan, without those of a single method."""
    single = lambda one: one.startswith("method.") and not one.startswith("method.train=")
    return ", ".join(one for one in re.split(r", (?=[\w.]+=)", changed) if not single(one))


def row(plan: dict, grpo: dict | None) -> list[str]:
    """The cells of one plan's row."""
    phases = {phase["phase"]: phase for phase in plan["phases"]}
    size = lambda names: (
        "refused"
        if any("peak" not in phases[name] for name in names)
        else (f"{max(phases[name]['peak'] for name in names) / GB:.2f}" if names else "")
    )
    updates = [name for name in phases if name.startswith("update")]
    found = ratios(plan, grpo) if grpo else {}
    times = lambda key: f"{found[key]:.2f}" if key in found and plan is not grpo else ""
    step = {name: seconds for name, seconds in plan["step"].items() if name.startswith("update")}
    fits = all(phase.get("fits", False) for phase in phases.values())
    devices = str(plan["devices"])
    state, on_host = (
        plan.get(key, {}).get(devices) for key in ("state_by_chips", "host_state_by_chips")
    )
    held = (f"{amount / GB:.2f}" if amount else "" for amount in (state, on_host))
    return [
        plan["name"],
        plan["topology"],
        plan["method"],
        plan["changed"],
        *held,
        size(updates),
        times("update peak"),
        size([name for name in ("merge", "prefill", "decode") if name in phases]),
        "yes" if fits else "NO",
        f"{plan['step']['rollout']:.1f}" if step else "",
        " / ".join(f"{phases[name].get('seconds', 0):.1f}" for name in updates),
        " / ".join(f"{seconds:.1f}" for seconds in step.values()),
        times("step seconds"),
        " / ".join(f"{low:.0f}-{high:.0f}" for low, high in plan.get("typical", {}).values()),
        plan.get("code", "older")[:6],
    ]
