"""The study of docs/study.md: `python -m experiments.study [--jobs=2] [--stages=tune,main,...] [--quick]`.

Makes the base model, runs the stages' sweeps one after the other and, after the tuning, chooses each variant's learning rate on
the dev split (docs/study/tuned.json). Every finished run is a line of docs/study/results/STAGE_BASE.jsonl; what stands there is
not run again, unless the base model came out as other weights, as it does on another kind of processor. Then tables and pictures
are drawn from these files alone (`--stages=` draws without running), each of the runs from one base: the parts of docs/study.md
between `<!-- table NAME on BASE -->` and `<!-- end -->`, and docs/study/*_BASE.png.
--quick: two seeds of the main methods, untuned, in about ten minutes, in runs/study_quick; it shows how, it proves nothing.
Exit codes: 0 done, 1 a run failed, 2 what was asked for cannot be done, 5 the disk is full: make room, and the same command
goes on.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from absl import flags

from bridge_jax.config import schema
from bridge_jax.evaluation import intervals, results
from bridge_jax.evaluation.intervals import Interval
from bridge_jax.filesystem import files
from configs.ladder import get_config
from configs.sweeps import ladder, study_conditions
from experiments.cli import DISK_FULL, fail, fail_by, interrupt_by_signals, run_command
from experiments.sweep_plan import weights_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
STAGES = {
    "tune": "study_tune.py",
    "main": "methods.py",
    "conditions": "study_conditions.py",
    "time": "study_time.py",
    "regime": "study_regime.py",
    "again": "study_again.py",
    "paired": "study_paired.py",
}
GREEDY, SAMPLED = "eval/held_out_accuracy", "eval/held_out_sampled_accuracy"
ORDER = (
    "bridge",
    "alternate",
    "cold_start",
    "grpo",
    "sft",
)  # the paper's, best first; the base model comes last
SPENT = {
    "budget/generated_tokens": ("generated tokens", 1e-3, "k"),
    "budget/demo_tokens": ("expert tokens", 1e-3, "k"),
    "budget/flops": ("model TFLOP", 1e-12, ""),
    "time/cpu_s": ("processor s", 1.0, ""),
    "memory/host_peak_gib": ("peak GiB", 1.0, ""),
}
# what docs/study.md calls base models; others go by their hash
BASES = {
    "2ff9e7f2dd4d": "A",
    "278f2a140599": "B",
    "f8d52236e23f": "C",
    "c9f215d034f2": "D",
    "cd340b6fe2c3": "SmolLM2",
}
Rows = dict[str, dict[int, dict]]  # variant -> seed -> its line of the results


def read(folder: pathlib.Path) -> dict[str, Rows]:
    """Base (those of BASES first) -> its finished runs of all stages; of two lines of one variant and seed the later one."""
    found: dict[str, Rows] = {base: {} for base in BASES.values()}
    for path in sorted(folder.glob("*.jsonl")):
        for _, row in files.rows(path):
            rows = found.setdefault(BASES.get(row["weights"], row["weights"]), {})
            rows.setdefault(row["variant"], {})[row["seed"]] = row
    return {base: rows for base, rows in found.items() if rows}


def plain(rows: Rows) -> list[str]:
    """Variants of the main sweep: neither tried in tuning, nor under a condition, nor a setting of the search for a regime."""
    return [name for name in rows if not set(name) & set("@+/")]


def final(runs: dict[int, dict], metric: str) -> list[float]:
    """The metric at the end of each seed's run; ValueError where a seed lacks it."""
    lacking = [row["name"] for row in runs.values() if metric not in row["curve"][-1]]
    if lacking:
        raise ValueError(
            f"{metric} is missing in {', '.join(lacking)}; remove these lines and run their sweep again"
        )
    return [row["curve"][-1][metric] for row in runs.values()]


def solved(runs: dict[int, dict], metric: str) -> np.ndarray:
    """[seeds, problems]: the share of each held-out problem's answers that are right at the end."""
    if metric == GREEDY:
        return np.array(
            [
                [int(bit) for bit in f"{int(row['solved']['held_out'], 16):b}"[1:]]
                for row in runs.values()
            ],
            float,
        )
    counts = np.array(
        [[int(digit) for digit in row["solved"]["held_out_sampled"]] for row in runs.values()],
        float,
    )
    return counts / get_config().eval.samples


def dev(runs: dict[int, dict]) -> list[float]:
    """Greedy and sampled accuracy on the dev split, means over seeds."""
    return [float(np.mean(final(runs, f"eval/dev{kind}_accuracy"))) for kind in ("", "_sampled")]


def choose(rows: Rows) -> dict[str, tuple[float, float]]:
    """(alpha, beta / alpha) of each variant whose whole grid has run: the best mean of greedy and sampled accuracy on dev."""
    grids = {name: ladder.grid(name) for name in ladder.METHODS}
    best = lambda grid: grid[max(grid, key=lambda setting: sum(dev(rows[setting])))]
    return {name: best(grid) for name, grid in grids.items() if set(grid) <= set(rows)}


def tuned(bases: dict[str, Rows]) -> dict[str, tuple[float, float]]:
    """What is chosen for each variant, on the last base (the study goes on there) on which its whole grid has run."""
    chosen = {name: rates for rows in bases.values() for name, rates in choose(rows).items()}
    return {name: chosen[name] for name in ladder.METHODS if name in chosen}


def accuracy(runs: dict[int, dict], metric: str) -> Interval:
    """Of a variant, over seeds and problems; ValueError where a seed lacks the metric."""
    final(runs, metric)
    return intervals.over_runs_and_problems(solved(runs, metric))


def difference(rows: Rows, first: str, second: str, metric: str) -> Interval:
    """first - second, over seeds and problems."""
    sides = [dict(zip(rows[name], solved(rows[name], metric))) for name in (first, second)]
    return intervals.difference(*sides)


def shown(found: Interval, signed: bool = False) -> str:
    """Per cent: mean and 95% interval."""
    number = "{:+.1f}" if signed else "{:.1f}"
    mean, low, high = (number.format(100 * value) for value in found[:3])
    return f"{mean} (one seed)" if np.isnan(found.low) else f"{mean} [{low}, {high}]"


def verdict(found: Interval) -> str:
    """In words."""
    if np.isnan(found.low):
        return "one seed"
    return "higher" if found.low > 0 else "lower" if found.high < 0 else "no difference seen"


def tuning_table(rows: Rows) -> str:
    """Dev accuracy, greedy / sampled, of each variant that was tried at each rate; the one chosen here in bold."""
    chosen, body, rates = choose(rows), [], (ladder.LOWER, *ladder.RATES)
    for name in ladder.METHODS:
        for ratio in ladder.ratios(name):
            runs = [rows.get(ladder.setting(name, rate, ratio)) for rate in rates]
            texts = [
                " / ".join(f"{100 * score:.1f}" for score in dev(found)) if found else "-"
                for found in runs
            ]
            cells = [
                f"**{text}**" if chosen.get(name) == (rate, ratio) else text
                for rate, text in zip(rates, texts)
            ]
            body += (
                [[f"`{name}`", f"{ratio:g}" if name in ladder.WITH_ADAPTER else "", *cells]]
                if any(runs)
                else []
            )
    return results.grid(["variant", "beta / alpha", *(f"alpha {rate:g}" for rate in rates)], body)


def of_base(rows: Rows, metric: str) -> float:
    """The metric before the first step: of the same weights in every run, but a seed draws samples of its own."""
    return float(
        np.mean([row["curve"][0][metric] for runs in rows.values() for row in runs.values()])
    )


def main_table(rows: Rows, suffix: str = "") -> str:
    """Accuracy of each variant over its seeds, best first, its difference from bridge, and what it spent."""
    there = {name: rows[name + suffix] for name in plain(rows) if name + suffix in rows} | (
        {"bridge": rows["bridge"]} if "bridge" in rows else {}
    )
    body = []
    for name, runs in sorted(there.items(), key=lambda item: -np.mean(final(item[1], GREEDY))):
        cells = [shown(accuracy(runs, metric)) for metric in (GREEDY, SAMPLED)]
        compared = name != "bridge" and "bridge" in rows
        gaps = [
            shown(difference(rows, name + suffix, "bridge", metric), signed=True)
            if compared
            else ""
            for metric in (GREEDY, SAMPLED)
        ]
        means = {
            key: np.mean([row["curve"][-1].get(key, 0.0) for row in runs.values()]) for key in SPENT
        }
        number = lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        spent = [
            number(means[key] * scale) + unit if means[key] else "-"
            for key, (_, scale, unit) in SPENT.items()
        ]
        rate = next(iter(runs.values()))["settings"].get("optim.base.learning_rate")
        body.append(
            [f"`{name}`", f"{rate:g}", str(len(runs)), *itertools.chain(*zip(cells, gaps)), *spent]
        )
    before = [f"{100 * of_base(rows, metric):.1f}" for metric in (GREEDY, SAMPLED)]
    body.append(["base model", "", "", before[0], "", before[1], "", *[""] * len(SPENT)])
    return results.grid(
        [
            "variant",
            "alpha",
            "seeds",
            "greedy %",
            "minus bridge",
            "sampled %",
            "minus bridge",
            *(name for name, *_ in SPENT.values()),
        ],
        body,
    )


def order_table(rows: Rows) -> str:
    """The paper's order, pair by pair."""
    body = []
    for first, second in itertools.pairwise(name for name in ORDER if name in rows):
        found = [difference(rows, first, second, metric) for metric in (GREEDY, SAMPLED)]
        body.append(
            [
                f"`{first}` > `{second}`",
                *itertools.chain(*((shown(one, True), verdict(one)) for one in found)),
            ]
        )
    return results.grid(["the paper says", "greedy", "", "sampled", ""], body)


def controls_table(rows: Rows) -> str:
    """bridge minus each control: what each of its parts brings."""
    asks = {
        "hybrid": "everything beside the mixture: adapter, shadow, gain",
        "hybrid_matched": "the same, at bridge's own alpha (left out where hybrid's is the same)",
        "joint": "theta_hat and the gain; the adapter stays",
        "bridge_gain_only": "the SFT term in w",
        "bridge_resync": "a theta_hat that trails for more than 10 steps",
        "bridge_inner": "one rather than two steps of theta_hat",
        "bridge_own": "theta's samples for theta_hat, which samples itself; half the steps",
    }
    body = []
    for name, what in asks.items():
        if name in rows and "bridge" in rows:
            found = [difference(rows, "bridge", name, metric) for metric in (GREEDY, SAMPLED)]
            body.append(
                [f"`{name}`", what, *(f"{shown(one, True)}: {verdict(one)}" for one in found)]
            )
    return results.grid(["bridge minus", "what it lacks", "greedy", "sampled"], body)


def conditions_table(rows: Rows, metric: str) -> str:
    """Accuracy of the main methods in each condition; where seeds are still to run, how many there are."""
    told = dict.fromkeys(name.partition("+")[2] for name in rows)
    conditions = [
        "",
        *(f"+{condition}" for condition in told if condition in study_conditions.CONDITIONS),
    ]
    whole = max(len(runs) for runs in rows.values())

    def cell(variant: str) -> str:
        if variant not in rows:
            return "-"
        seeds = len(rows[variant])
        return shown(accuracy(rows[variant], metric)) + (
            f" ({seeds} seeds)" if 1 < seeds < whole else ""
        )

    body = [
        [f"`{name}`", *(cell(name + condition) for condition in conditions)] for name in ladder.MAIN
    ]
    return results.grid(
        ["variant", "clean", *(condition[1:] for condition in conditions[1:])], body
    )


def paired_table(rows: Rows) -> str:
    """Methods with an expert for every prompt, best first, and their difference from bridge with as many."""
    there = {name: runs for name, runs in rows.items() if "+all experts" in name}
    bridge, body = "bridge+all experts", []
    for name, runs in sorted(there.items(), key=lambda item: -np.mean(final(item[1], GREEDY))):
        cells = [shown(accuracy(runs, metric)) for metric in (GREEDY, SAMPLED)]
        gaps = [
            shown(difference(rows, name, bridge, metric), signed=True)
            if name != bridge and bridge in rows
            else ""
            for metric in (GREEDY, SAMPLED)
        ]
        rate = next(iter(runs.values()))["settings"]["optim.base.learning_rate"]
        body.append(
            [
                f"`{name.partition('+')[0]}`",
                f"{rate:g}",
                str(len(runs)),
                *itertools.chain(*zip(cells, gaps)),
            ]
        )
    return results.grid(
        ["variant", "alpha", "seeds", "greedy %", "minus bridge", "sampled %", "minus bridge"], body
    )


def gain_table(rows: Rows) -> str:
    """What cooperation does over a run: means over seeds at each evaluation."""
    keys = {
        "coop/gain": "measured gain",
        "coop/gain_stderr": "its standard error (one run)",
        "bridge/gain": "gain by weights",
        "bridge/ess": "ESS",
        "bridge/kl_hat": "KL to theta_hat",
        "grad/cos_sft_rl": "cos of gradients",
        "coop/expert_logp": "held-out experts' log p",
        "eval/touched_accuracy": "touched",
        "eval/untouched_accuracy": "untouched",
    }
    body = []
    for name in dict.fromkeys((*ladder.MAIN, *ladder.WITH_ADAPTER)):
        curves = [row["curve"] for row in rows.get(name, {}).values()]
        for points in zip(*curves):
            mean = lambda key: (
                "-"
                if not all(key in point for point in points)
                else f"{np.mean([point[key] for point in points]):.3g}"
            )
            body.append([f"`{name}`", f"{points[0]['step']:g}", *map(mean, keys)])
    return results.grid(["variant", "step", *keys.values()], body)


def regime_table(rows: Rows) -> str:
    """Every setting that was tried for bridge, best first."""
    tried = {name: runs for name, runs in rows.items() if name.startswith("bridge/")}
    if "bridge" in rows and tried:
        tried["bridge"] = {
            seed: row for seed, row in rows["bridge"].items() if seed in next(iter(tried.values()))
        }
    body = []
    for name, runs in sorted(tried.items(), key=lambda item: -np.mean(final(item[1], SAMPLED))):
        last = [row["curve"][-1] for row in runs.values()]
        told = [
            f"{np.mean([point[key] for point in last]):.3f}"
            if all(key in point for point in last)
            else "-"
            for key in ("coop/gain", "bridge/ess")
        ]
        body.append(
            [
                f"`{name.partition('/')[2] or 'as in the main table'}`",
                str(len(runs)),
                *(shown(accuracy(runs, metric)) for metric in (GREEDY, SAMPLED)),
                *told,
            ]
        )
    return results.grid(
        [
            "bridge with",
            "seeds",
            "greedy %",
            "sampled %",
            "measured gain at the end",
            "ESS at the end",
        ],
        body,
    )


TABLES = {
    "tuning": tuning_table,
    "main": main_table,
    "order": order_table,
    "controls": controls_table,
    "conditions greedy": lambda rows: conditions_table(rows, GREEDY),
    "conditions sampled": lambda rows: conditions_table(rows, SAMPLED),
    "time": lambda rows: main_table(rows, "+equal time"),
    "gain": gain_table,
    "regime": regime_table,
    "paired": paired_table,
}


def fill(text: str, bases: dict[str, Rows]) -> str:
    """The page with each table drawn anew between its marks; ValueError for a mark of no table, or of a base without runs."""

    def drawn(mark: str) -> str:
        name, _, base = mark.rpartition(" on ")
        if name not in TABLES:
            raise ValueError(f"no table {name!r}: {schema.did_you_mean(name, TABLES)}")
        if base not in bases:
            raise ValueError(
                f"table {name!r} on base {base!r}: the results hold runs on {', '.join(bases)}"
            )
        return TABLES[name](bases[base])

    return results.filled(text, drawn)


def pictures(rows: Rows, folder: pathlib.Path, base: str) -> None:
    """dynamics_BASE.png: the main methods over training; methods_BASE.png: all at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, figure in (
        ("dynamics", draw_dynamics(pyplot, rows)),
        ("methods", draw_methods(pyplot, rows)),
    ):
        save(figure, folder / f"{name}_{base}.png")
        pyplot.close(figure)


def draw_dynamics(pyplot, rows: Rows):
    """Accuracy over training: mean and interval over seeds, for these very problems.

    Of fewer than three seeds the line of each is drawn instead of an interval.
    """
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharex=True, layout="constrained")
    for axis, metric, title in zip(axes, (GREEDY, SAMPLED), ("greedy", "sampled at temperature 1")):
        for name in (name for name in ladder.MAIN if name in rows):
            curves = [row["curve"] for row in rows[name].values()]
            value_RX = np.array([[point[metric] for point in curve] for curve in curves])
            x = [point["step"] / curves[0][-1]["step"] for point in curves[0]]
            found = intervals.bands(value_RX, shares=True)
            (line,) = axis.plot(x, found.mean, marker="o", markersize=3, label=name)
            if len(curves) < intervals.BAND_RUNS:
                axis.plot(x, value_RX.T, color=line.get_color(), alpha=0.4, linewidth=0.8)
            else:
                axis.fill_between(
                    x, found.low, found.high, alpha=0.15, color=line.get_color(), linewidth=0
                )
        axis.set(
            title=f"held-out accuracy, {title}",
            xlabel="share of the run (cold_start: experts, then samples)",
        )
        axis.grid(alpha=0.3)
    few = any(len(rows[name]) < intervals.BAND_RUNS for name in ladder.MAIN if name in rows)
    axes[0].set(ylabel="mean; thin lines: each seed" if few else "mean, 95% over seeds")
    axes[0].legend(fontsize=8)
    return figure


def draw_methods(pyplot, rows: Rows):
    """All variants at the end: accuracy, and its difference from bridge."""
    names = sorted(plain(rows), key=lambda name: np.mean(final(rows[name], SAMPLED)))
    count = 2 if "bridge" in rows else 1
    figure, axes = pyplot.subplots(
        1,
        count,
        figsize=(5.5 * count, 0.34 * len(names) + 1.8),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    left, right = axes[0][0], axes[0][-1]
    draw_scores(
        left,
        {name: [accuracy(rows[name], metric) for metric in (GREEDY, SAMPLED)] for name in names},
    )
    left.set(xlabel="held-out accuracy", yticks=range(len(names)), yticklabels=names)
    if count > 1:
        gaps = {
            name: [difference(rows, name, "bridge", metric) for metric in (GREEDY, SAMPLED)]
            for name in names
        }
        draw_scores(right, gaps, without="bridge")
        right.axvline(0, color="black", linewidth=0.8)
        right.set(xlabel="minus bridge")
    handles = [
        pyplot.Line2D([], [], color="C0", marker="o", label="greedy"),
        pyplot.Line2D([], [], color="C1", marker="s", label="sampled"),
    ]
    title = "95% intervals over seeds and problems; hollow: one seed, no interval"
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=2)
    return figure


def draw_scores(axis, scores: dict[str, list[Interval]], without: str = "") -> None:
    """A line of the picture for each variant: greedy above, sampled below."""
    for place, (name, pair) in enumerate(scores.items()):
        if name == without:
            continue
        for found, colour, marker, offset in zip(pair, ("C0", "C1"), "os", (0.15, -0.15)):
            one_seed = np.isnan(found.low)
            if not one_seed:
                axis.hlines(place + offset, found.low, found.high, color=colour)
            face = "white" if one_seed else colour
            axis.plot(found.mean, place + offset, marker, color=colour, mfc=face, markersize=4)
    axis.grid(alpha=0.3)


def save(figure, path: pathlib.Path) -> None:
    """Writes a picture whole, or not at all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    files.replace(path, drawn.getvalue())


def run(module: str, *given: str) -> int:
    """A command of this project in a process of its own; its exit code. KeyboardInterrupt: once it has saved and ended."""
    process = subprocess.Popen([sys.executable, "-m", f"experiments.{module}", *given], cwd=ROOT)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # a terminal's Ctrl-C has reached it, a signal to this process alone has not
        process.terminate()
        process.wait()
        raise


def main(argv: list[str]) -> None:
    """Base model, stages, tables."""
    given = flags.FLAGS
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}")
    stages = [stage for stage in (["quick"] if given.quick else given.stages) if stage]
    for stage in stages:
        if stage not in {**STAGES, "quick": ""}:
            fail(f"--stages: unknown {stage!r}: {schema.did_you_mean(stage, STAGES)}")
    work = ROOT / "runs" / ("study_quick" if given.quick else "study")
    docs = work if given.quick else ROOT / "docs" / "study"
    lines, codes = docs / "results", []
    interrupt_by_signals()
    if stages:
        codes.append(run("pretrain", f"--out={work / 'base'}", *["--cores=0"] * given.quick))
        leave_with(codes)
    weights = weights_of(str(work / "base" / "model")) if stages else ""
    base = BASES.get(weights, weights)
    for stage in stages:
        sweep = f"configs/sweeps/{STAGES.get(stage, 'study_quick.py')}"
        code = run(
            "sweep",
            f"--sweep={sweep}",
            f"--workdir={work / stage}",
            f"--results={lines / stage}_{base}.jsonl",
            f"--jobs={given.jobs}",
        )
        codes.append(code)
        if code == DISK_FULL:
            leave_with(codes)
        try:
            if stage == "tune":
                files.replace(ladder.TUNED, json.dumps(tuned(read(lines)), indent=1) + "\n")
        except (ValueError, OSError) as error:
            fail_by(error)
    page = ROOT / "docs" / "study.md"
    try:
        bases = read(lines)
        if not bases:
            raise ValueError(
                f"{lines} holds no finished run; name stages to run: {', '.join(STAGES)}"
            )
        if given.quick:
            text = "\n".join(f"{main_table(rows)}\n{order_table(rows)}" for rows in bases.values())
            files.replace(work / "study.md", text)
            print(text)
        else:
            files.replace(page, fill(page.read_text(), bases))
        for base, rows in bases.items():
            if len(plain(rows)) > 2:  # else a main sweep was not run on it
                pictures(rows, docs, base)
    except (ValueError, OSError) as error:
        fail_by(error)
    leave_with(codes)
    sys.exit(0)


def leave_with(codes: list[int]) -> None:
    """Ends the program if one of the commands failed; a full disk is told apart."""
    if any(codes):
        sys.exit(DISK_FULL if DISK_FULL in codes else 1)


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_list("stages", list(STAGES), f"which of {', '.join(STAGES)}; empty: draw alone")
    flags.DEFINE_bool("quick", False, "two seeds of the main methods, about ten minutes")
    flags.DEFINE_integer("jobs", max(1, (os.cpu_count() or 1)), "runs at a time", lower_bound=1)


def start() -> None:
    """The command, with its flags."""
    define_flags()
    run_command(main)
