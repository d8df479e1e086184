"""The page of a reproduction: DIR/page with page.md, page.html, table.csv, table.tex,
dynamics.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bridge_jax.evaluation import markdown
from bridge_jax.evaluation.options import Options
from bridge_jax.filesystem import files
from experiments.reproduce import (
    demonstrations,
    estimate,
    jobs,
    pictures,
    results,
    side_tables,
    tables,
)
from experiments.reproduce.render import Section, as_html, as_markdown
from experiments.reproduce.request import Request
from experiments.reproduce.results import Entry

PICTURE = "dynamics.png"
REHEARSAL = (
    "This is a rehearsal: every stage ran, with {model}, a few steps of a few samples, and a few "
    "problems of each benchmark. It proves that the parts fit together, and nothing else: no "
    "figure of it says anything about a method."
)
BESIDE = " Published figures stand beside ours to show where they stand in the real page."


def write(request: Request) -> str:
    """Write the page from what there is; returns the path and the main table."""
    entries = results.entries(request, jobs.all_variants(request), kinds_of(request))
    if not any(entry.greedy for entry in entries):
        raise ValueError(
            f"{request.out} holds no complete evaluation yet, so that there is no page; run the "
            "stages before"
        )
    folder = request.folder / "page"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures.draw(entries, folder / PICTURE)
    sections, title = sections_of(request, entries, drawn), title_of(request)
    notice = notice_of(request)
    caption = " ".join([notice, f"{title}: greedy pass@1.", main_text(request, entries)]).strip()
    texts = {
        "page.md": as_markdown(title, notice, sections),
        "page.html": as_html(title, notice, sections, folder),
        "table.csv": tables.as_csv(request, entries),
        "table.tex": tables.as_latex(tables.main_table(request, entries), caption),
    }
    for name, text in texts.items():
        files.replace(folder / name, text)
    main = tables.main_table(request, entries)
    return f"{folder / 'page.md'}, and as HTML, CSV, LaTeX\n\n{markdown.grid(*main)}"


def kinds_of(request: Request) -> list[str]:
    """The kinds of sampled evaluations that are asked for."""
    kinds = [f"avg@{request.sizes.avg_at}"] * (jobs.AVG_TASK in request.tasks)
    return kinds + [f"pass@{request.pass_at}"] * bool(request.pass_at)


def title_of(request: Request) -> str:
    """The first line."""
    name = estimate.published(request).get("name", request.model)
    return f"{'Rehearsal of the' if request.rehearse else 'The'} paper's table, {name}"


def notice_of(request: Request) -> str:
    """What a reader must know first."""
    if not request.rehearse:
        return ""
    tiny = request.model != "smollm2" and not request.model_path
    model = "a tiny random model of its family" if tiny else f"the weights in {request.base_model}"
    return REHEARSAL.format(model=model) + (BESIDE if estimate.published(request) else "")


def sections_of(request: Request, entries: Sequence[Entry], drawn: bool) -> list[Section]:
    """All parts that have something to show."""
    pass_at = f"; pass@{request.pass_at} is unbiased" if request.pass_at else ""
    found = [
        Section("Greedy pass@1", main_text(request, entries), tables.main_table(request, entries)),
        Section(
            "Paired tests",
            "Points by which BRIDGE is above the line, paired over problems (and over seeds from "
            "three on). p is of the exact two-sided sign test on the problems that only one of the "
            "two solved, all benchmarks together, by the models of the seed in the last "
            "column, the first that both have. Not corrected for the number of tests.",
            side_tables.paired_table(request, entries),
        ),
        Section(
            "Paired tests, tuned",
            "The same for BRIDGE at its best learning rate, less every other method at its own "
            "best one, which may be the published.",
            side_tables.tuned_paired_table(request, entries),
        ),
        Section(
            "Sampled answers",
            f"At temperature {temperature_of(request)}, which is ours{pass_at}. With several seeds "
            "their mean.",
            side_tables.sampled_table(entries, kinds_of(request)),
        ),
        Section(
            "Training",
            "Each method as published; the mean over seeds. Alternating and SFT sample in half of "
            "the steps and in none; a cold start does not sample at first, while it is SFT. "
            "Where lines meet, the narrower one lies above.",
            picture=PICTURE if drawn else "",
        ),
        Section(
            "Cost",
            "Hours are of training without evaluation and saving, memory the peak of the fullest "
            "device and of the process. The paper's are of its own machine; its averages here are "
            "those of its table of costs.",
            side_tables.cost_table(request, entries),
        ),
        Section(
            "Learning rates",
            "Greedy pass@1 on the validation problems (MATH's training set, not LIMR's), first "
            "seed; in bold the chosen rate, the lowest of equals.",
            side_tables.tuning_table(request),
        ),
        Section("Ablations", "The averages.", side_tables.ablation_table(request, entries)),
        Section(
            "Greedy answers", "Over all benchmarks and seeds.", side_tables.answers_table(entries)
        ),
        Section("What this is", "\n".join(f"- {note}" for note in notes(request, entries))),
    ]
    bare = ("What this is",)
    return [one for one in found if one.title in bare or one.table is not None or one.picture]


def temperature_of(request: Request) -> str:
    """The temperature of sampled answers: evaluate's own, unless --evaluate_flags has another."""
    name = "--temperature="
    given = [flag.removeprefix(name) for flag in request.evaluate_flags if flag.startswith(name)]
    return given[-1] if given else f"{Options().temperature:g}"


def main_text(request: Request, entries: Sequence[Entry]) -> str:
    """What the brackets are, and whose the published rows are."""
    seeds = max(len(entry.greedy) for entry in entries)
    over = "seeds and problems" if seeds > 1 else "problems, for these very models: one seed"
    text = f"In brackets the 95% interval over {over}."
    if estimate.published(request):
        text += f" Rows marked published are those of {estimate.source()}, not ours."
    return text


def notes(request: Request, entries: Sequence[Entry]) -> list[str]:
    """Settings, demonstrations, and what is missing."""
    sizes = request.sizes
    found = [
        f"trainings: {request.config}, seeds {', '.join(map(str, request.seeds))}"
        + (f", {' '.join(request.train_flags)}" if request.train_flags else ""),
        f"evaluation: at most {sizes.max_new} new tokens"
        + (f", the first {sizes.limit} problems of each benchmark" if sizes.limit else "")
        + (f", {' '.join(request.evaluate_flags)}" if request.evaluate_flags else ""),
        demos_note(request),
    ]
    if not request.rehearse:
        found.append(
            "not published, so ours: AdamW, clip 1, no KL term, 64 demonstrations a step, the "
            "share of SFT steps in a cold start, mu of the hybrid (configs/paper.py)"
        )
    for entry in entries:
        wanted = 1 if entry.variant.method == "base" else len(request.seeds)
        if len(entry.greedy) < wanted:
            found.append(
                f"missing: {entry.variant.label} has {len(entry.greedy)} of {wanted} evaluations"
            )
    return found


def demos_note(request: Request) -> str:
    """Where the demonstrations are from."""
    if request.traces:
        return f"demonstrations: {request.traces}"
    manifest = demonstrations.manifest_of(request.traces_file)
    if not manifest:
        return "demonstrations: none were made"
    sources = [
        f"{one['used']} of the {one['rows']} rows read of {origin(one['source'])}"
        for one in manifest["sources"].values()
    ]
    tokens = manifest["tokens"]
    return (
        f"demonstrations of {manifest['used']} of the {manifest['problems']} problems: "
        f"{', '.join(sources)}; median {tokens['median']} tokens, at most {tokens['max']}"
    )


def origin(source: dict) -> str:
    """The repository of a source, or the names of its files."""
    paths = [Path(one.get("path", one.get("name", "?"))).name for one in source.get("files", [])]
    return source.get("hub") or ", ".join(paths[:3]) or "?"
