r"""Scores of an evaluation with their errors, and tables; pure functions of rows of transcripts.

Each problem i gives one value v_i: 1 or 0 (greedy), c_i / n (avg@n) or the unbiased pass@k of Chen et al. 2021,
1 - C(n - c_i, k) / C(n, k), from c_i correct ones of its n samples. A benchmark's score is the mean of v over ALL its
problems; those whose prompt was too long to be asked count as 0. Two errors, never added up: `stderr`, from the choice
of problems (the samples of a problem are one cluster), and `sampling_error`, from the choice of samples, the problems
being given. Tables print the 95% intervals that go with them (intervals.py): they stay within
[0, 1] and so are no multiples of the errors. The average is the mean of the benchmarks' scores.
Left out: files and generation; the spread between runs, since one model is judged.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from bridge_jax.evaluation import intervals
from bridge_jax.grading.outcome import Outcome

READINGS = {"strict": "outcome", "lenient": "outcome_lenient"}  # -> key of a transcript's row
GREEDY = "greedy"  # stands for the sample id of a greedy completion
GREEDY_METRIC = "greedy pass@1"
AVERAGE = "average"


class Score(NamedTuple):
    """A share in [0, 1], its standard errors and 95% intervals; None where there is none."""

    value: float
    stderr: float | None = None
    sampling_error: float | None = None
    interval: tuple[float, float] | None = None  # over problems
    sampling_interval: tuple[float, float] | None = None  # over samples


class Line(NamedTuple):
    """One line of the main table."""

    label: str
    cells: dict[str, Score]  # benchmark, and AVERAGE -> score; what is missing stays empty
    published: bool = False


# ---- scores


def binomial_error(successes: float, n: float) -> float:
    """Standard error of a share of n independent problems, by Agresti and Coull's shrunken share: never 0 at 0 or n."""
    share = (successes + 2) / (n + 4)
    return math.sqrt(share * (1 - share) / (n + 4))


def problems_score(values: Sequence[float]) -> Score:
    """Mean of one value in [0, 1] a problem, with its error and interval over problems."""
    n, mean = len(values), sum(values) / len(values)
    error, interval = spread_of(mean, sum((value - mean) ** 2 for value in values) / n, n)
    return Score(mean, error, interval=interval)


def spread_of(mean: float, variance: float, units: float):
    """Standard error and 95% interval of a mean of independent units in [0, 1].

    The error is binomial_error's, of as many answers of 0 or 1 as tell as much of the mean. A
    single unit has no interval.
    """
    answers = float(intervals.effective_units(mean, variance, units))
    _, low, high = intervals.of_shares(mean, variance, units)
    error = binomial_error(answers * mean, answers)
    return error, (float(low), float(high)) if units > 1 else None


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): chance that k of n samples, drawn without replacement, hold one of the c correct ones."""
    assert 0 <= c <= n and 1 <= k <= n, (n, c, k)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def sampling_variance(n: int, c: int, k: int) -> float | None:
    """Jackknife variance of pass_at_k over the n samples of one problem; None for k = n, which leaves none out.

    (n - 1) / n sum_j (pass without sample j - their mean)^2; for k = 1 it is p (1 - p) / (n - 1), p = c / n.
    """
    if k >= n:
        return None
    without_right = pass_at_k(n - 1, c - 1, k) if c else 0.0
    without_wrong = pass_at_k(n - 1, c, k) if c < n else 0.0
    return (n - 1) / n * (c * (n - c) / n) * (without_right - without_wrong) ** 2


def steps_to(n: int) -> list[int]:
    """1, 2, 4, ... and n: the k of pass@k."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})


def sampled_score(counts: Sequence[int], n: int, k: int) -> Score:
    """pass@k of problems with so many correct ones of n samples.

    Over problems, a unit is a problem; over samples, it is k samples of one.
    """
    score = problems_score([pass_at_k(n, c, k) for c in counts])
    if k >= n:
        return score
    groups = len(counts) * n / k
    variance = groups * sum(sampling_variance(n, c, k) for c in counts) / len(counts) ** 2
    error, interval = spread_of(score.value, variance, groups)
    return score._replace(sampling_error=error, sampling_interval=interval)


def scores(
    ids: Sequence[int], rows: Iterable[Mapping], samples: int = 0, greedy: bool = True
) -> dict[str, dict[str, Score]]:
    """{reading: {metric: Score}} of one benchmark; a problem of `ids` without rows counts as not answered.

    rows: transcripts. greedy, samples: what was asked for; `samples` rows beside the greedy one for each problem, 0: none.
    """
    rows, result = list(rows), {}
    for reading, key in READINGS.items():
        right = {row["id"]: 0 for row in rows} | dict.fromkeys(ids, 0)
        hits = {
            id
            for row in rows
            for id in [row["id"]]
            if row["sample"] == GREEDY and row[key] == Outcome.correct
        }
        for row in rows:
            right[row["id"]] += row["sample"] != GREEDY and row[key] == Outcome.correct
        metrics = {}
        if greedy:
            metrics[GREEDY_METRIC] = problems_score([float(id in hits) for id in ids])
        if samples:
            counts = [right[id] for id in ids]
            metrics[f"avg@{samples}"] = sampled_score(counts, samples, 1)
            metrics |= {f"pass@{k}": sampled_score(counts, samples, k) for k in steps_to(samples)}
        result[reading] = metrics
    return result


def average(of_benchmarks: Sequence[Score]) -> Score:
    """Mean of benchmark scores, whose errors are independent; None where one of them has none.

    Errors: sqrt(sum error^2) / number. Intervals: the distances from score to bound are combined
    in the same way (Zou and Donner 2008, Statistics in Medicine 27, 1693-1702), which keeps the
    average within [0, 1].
    """
    number = len(of_benchmarks)
    mean = sum(score.value for score in of_benchmarks) / number

    def combined(errors):
        return None if None in errors else math.sqrt(sum(error**2 for error in errors)) / number

    def around(found):
        if None in found:
            return None
        below, above = (
            combined([score.value - one[side] for score, one in zip(of_benchmarks, found)])
            for side in (0, 1)
        )
        return mean - below, mean + above

    _, stderrs, samplings, found, of_samples = zip(*of_benchmarks)
    return Score(mean, combined(stderrs), combined(samplings), around(found), around(of_samples))


def facts(rows: Sequence[Mapping], too_long: int, per_problem: int = 1) -> dict:
    """Lengths, truncation and outcomes of rows of one kind; prompts that were too long enter the outcomes alone."""
    made, absent = len(rows), too_long * per_problem
    share = lambda key, kind: sum(row[key] == kind for row in rows) / max(1, made + absent)
    mean = lambda values: sum(values) / max(1, made)
    outcomes = {
        reading: {str(kind): share(key, kind) for kind in Outcome}
        | {"too_long": absent / max(1, made + absent)}
        for reading, key in READINGS.items()
    }
    return {
        "rows": made,
        "tokens": mean([row["tokens"] for row in rows]),
        "truncated": mean([not row["stopped"] for row in rows]),
        "outcomes": outcomes,
    }


# ---- tables


def our_lines(model: str, benchmarks: Mapping[str, Mapping]) -> list[Line]:
    """A line for each metric and reading; benchmarks: name -> {"scores": {reading: {metric: Score}}}."""
    lines, first = [], next(iter(benchmarks.values()))["scores"]
    for metric in [
        name for name in first["strict"] if name != "pass@1"
    ]:  # of samples: equals avg@k
        for reading in READINGS:
            cells = {name: part["scores"][reading][metric] for name, part in benchmarks.items()}
            label = f"{model}, {metric}" + (", lenient" if reading == "lenient" else "")
            lines.append(Line(label, cells | {AVERAGE: average(list(cells.values()))}))
    return lines


def published_lines(published: Mapping, names: Sequence[str]) -> list[Line]:
    """The published rows that have one of these benchmarks; an average only where they have all of them.

    published: {"source", "model", "unit": "percent", "rows": [{"method", "scores": {benchmark: percent}}]}.
    """
    lines = []
    for row in published["rows"]:
        cells = {name: Score(row["scores"][name] / 100) for name in names if name in row["scores"]}
        if len(cells) == len(names):
            cells[AVERAGE] = Score(sum(cell.value for cell in cells.values()) / len(names))
        if cells:
            lines.append(
                Line(f"published: {published['model']} {row['method']}", cells, published=True)
            )
    return lines


def shown(score: Score | None) -> str:
    """Percent; in square brackets the 95% interval over problems, in round ones over samples."""
    if score is None:
        return ""
    text = f"{100 * score.value:.1f}"
    if score.interval is not None:
        text += " [{:.1f}, {:.1f}]".format(*(100 * bound for bound in score.interval))
    if score.sampling_interval is not None:
        text += " ({:.1f}, {:.1f})".format(*(100 * bound for bound in score.sampling_interval))
    return text


def markdown(
    benchmarks: Mapping[str, Mapping], lines: Sequence[Line], source: str, notes: Sequence[str]
) -> str:
    """The main table, what the columns mean, and lengths and outcomes of each benchmark."""
    names = list(benchmarks)
    head = ["%", *(f"{name} (n={part['n']})" for name, part in benchmarks.items()), AVERAGE]
    body = [
        [line.label, *(shown(line.cells.get(name)) for name in [*names, AVERAGE])] for line in lines
    ]
    parts = [
        grid(head, body),
        "In square brackets the 95% interval over problems, in round ones that over samples for "
        "these very problems, where some can be left out; both are of this one model. Strict "
        "reading unless lenient is said; pass@1 of the samples is avg@k.",
    ]
    if any(line.published for line in lines):
        parts.append(
            f"Lines marked published are those of {source}, not ours; an average stands where all the "
            "benchmarks shown were published."
        )
    kinds = [*map(str, Outcome), "too_long"]
    rows = []
    for name, part in benchmarks.items():
        for kind, told in part["facts"].items():
            for reading in READINGS:
                shares = [f"{100 * told['outcomes'][reading][outcome]:.1f}" for outcome in kinds]
                rows.append(
                    [
                        f"{name}, {kind}, {reading}",
                        str(told["rows"]),
                        f"{told['tokens']:.0f}",
                        f"{100 * told['truncated']:.1f}",
                        *shares,
                    ]
                )
    parts.append(grid(["outcomes, % of rows", "rows", "mean tokens", "truncated", *kinds], rows))
    return "\n\n".join([*parts, *notes]) + "\n"


def grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def filled(page: str, drawn: Callable[[str], str]) -> str:
    """The page with drawn(NAME) between every `<!-- table NAME -->` and the `<!-- end -->` that follows it."""
    made = lambda found: f"<!-- table {found[1]} -->\n{drawn(found[1])}\n<!-- end -->"
    return re.sub(r"<!-- table (.+?) -->\n.*?<!-- end -->", made, page, flags=re.DOTALL)


def as_csv(benchmarks: Mapping[str, Mapping], lines: Sequence[Line]) -> str:
    """One record for each cell of the main table: score, standard errors, 95% intervals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["line", "published", "benchmark", "n", "value", "stderr", "sampling_error"]
    writer.writerow([*head, "low", "high", "sampling_low", "sampling_high"])
    for line in lines:
        for name, score in line.cells.items():
            n = benchmarks[name]["n"] if name in benchmarks and not line.published else ""
            bounds = [*(score.interval or (None, None)), *(score.sampling_interval or (None, None))]
            writer.writerow(
                [
                    line.label,
                    int(line.published),
                    name,
                    n,
                    *("" if x is None else repr(x) for x in [*score[:3], *bounds]),
                ]
            )
    return out.getvalue()


def latex(benchmarks: Mapping[str, Mapping], lines: Sequence[Line]) -> str:
    """The main table as a tabular of booktabs, published lines behind a rule."""
    escape = lambda text: "".join(f"\\{c}" if c in "_%&#$" else c for c in text)
    head = [
        r"\%",
        *(escape(f"{name} (n={part['n']})") for name, part in benchmarks.items()),
        AVERAGE,
    ]
    rows = [
        r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}",
        r"\toprule",
        " & ".join(head) + r" \\",
        r"\midrule",
    ]
    for before, line in zip([None, *lines], lines):
        if line.published and before is not None and not before.published:
            rows.append(r"\midrule")
        cells = [shown(line.cells.get(name)) for name in [*benchmarks, AVERAGE]]
        rows.append(" & ".join([escape(line.label), *cells]) + r" \\")
    return "\n".join([*rows, r"\bottomrule", r"\end{tabular}"]) + "\n"


def tables(report: Mapping, published: Mapping) -> dict[str, str]:
    """File name -> text of results.json, table.md, table.csv and table.tex.

    report: {"model", "settings", "benchmarks": {name: {"n", "too_long", "facts", "scores"}}}; published rows are put
    beside ours where they have one of the benchmarks.
    """
    benchmarks, s = report["benchmarks"], report["settings"]
    ours, stated = (
        our_lines(report["model"], benchmarks),
        published_lines(published, list(benchmarks)),
    )
    note = (
        f"{report['model']}: {s['dtype']}, at most {s['max_new']} new tokens, prompt {s['prompt']}"
        + (
            f", samples at temperature {s['temperature']}, seed {s['seed']}"
            if s["samples"] > 1 or not s["greedy"]
            else ""
        )
    )
    named = lambda part: {
        reading: {metric: score._asdict() for metric, score in metrics.items()}
        for reading, metrics in part["scores"].items()
    }
    content = {
        **report,
        "benchmarks": {name: {**part, "scores": named(part)} for name, part in benchmarks.items()},
        "averages": {line.label: line.cells[AVERAGE]._asdict() for line in ours},
    }
    if stated:
        content["published"] = published
    lines = ours + stated
    return {
        "results.json": json.dumps(content, indent=1) + "\n",
        "table.csv": as_csv(benchmarks, lines),
        "table.tex": latex(benchmarks, lines),
        "table.md": markdown(benchmarks, lines, published["source"], [note + "."]),
    }
