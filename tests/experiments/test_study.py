"""The study's tables from made-up results, and the committed page from the committed results."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from bridge_jax.rundir import logbook
from configs.sweeps import ladder
from experiments.study import pictures, results, stages, tables
from experiments.study.stages import Study
from tests import errors

PROBLEMS = 200


def line(variant: str, seed: int, share: float, rng, **point) -> dict:
    """A finished run that solves about `share` of the problems greedily, half of it sampled."""
    bits = (rng.random(PROBLEMS) < share).astype(int)
    sampled = (rng.random((2, PROBLEMS)) < share / 2).sum(axis=0)
    scores = {
        results.GREEDY: bits.mean(),
        results.SAMPLED: sampled.mean() / 2,
        "eval/dev_accuracy": share,
        "eval/dev_sampled_accuracy": share / 2,
    }
    return {
        "name": f"{variant}__seed={seed}",
        "variant": variant,
        "seed": seed,
        "weights": "w",
        "settings": {"optim.base.learning_rate": 1e-4},
        "curve": [
            {"step": 0, results.GREEDY: 0.2, results.SAMPLED: 0.1},
            {"step": 100, **scores, **point},
        ],
        "solved": {
            "held_out": f"{int('1' + ''.join(map(str, bits)), 2):x}",
            "held_out_sampled": "".join(map(str, sampled)),
        },
    }


def rows_of(tmp_path, shares: dict[str, float], seeds: int = 4) -> results.Results:
    """The results file of these variants, all from one base, read back."""
    rng = np.random.default_rng(0)
    made = [
        json.dumps(line(name, seed, share, rng)) + "\n"
        for name, share in shares.items()
        for seed in range(seeds)
    ]
    (tmp_path / "tune.jsonl").write_text("".join(made[::2]))
    (tmp_path / "main.jsonl").write_text("".join(made[1::2]))
    return results.read(tmp_path)["w"]


def test_the_rate_is_the_best_on_dev_and_only_where_the_grid_is_complete(tmp_path):
    """The best rate is chosen where the whole grid has results."""
    shares = {f"sft@{rate:g}": 0.3 + 0.1 * (rate == 3e-4) for rate in ladder.RATES}
    shares |= {
        setting: 0.3 + 0.1 * (rates == (1e-4, 1)) for setting, rates in ladder.grid("joint").items()
    }
    rows = rows_of(tmp_path, shares | {"grpo@0.0001": 0.9, "sft@0.5": 0.99, "nobody@0.0001": 0.9})
    assert results.choose(rows) == {"sft": (3e-4, 10), "joint": (1e-4, 1)}
    table = tables.tuning_table(rows)
    assert "| `sft` |  | - | 30.0 / 15.0 | **40.0 / 20.0** | 30.0 / 15.0 |" in table
    assert "| `grpo` |  | - | 90.0 / 45.0 | - | - |" in table and "hybrid" not in table
    assert "| `joint` | 1 | - | **40.0 / 20.0** | 30.0 / 15.0 | 30.0 / 15.0 |" in table


def test_rates_are_chosen_on_the_last_base_with_the_whole_grid(tmp_path):
    """Rates come from the last base whose grid is complete."""
    whole = {
        setting: 0.3 + 0.1 * (rate == 1e-3) for setting, (rate, _) in ladder.grid("sft").items()
    }
    first, second = (
        rows_of(tmp_path, {"sft@0.0001": 0.9, "sft@0.0003": 0.3}),
        rows_of(tmp_path, whole),
    )
    assert results.tuned({"first": second, "second": first}) == {"sft": (1e-3, 10)}
    better = rows_of(
        tmp_path,
        {setting: 0.9 * (rate == 1e-4) for setting, (rate, _) in ladder.grid("sft").items()},
    )
    assert results.tuned({"first": second, "second": better}) == {"sft": (1e-4, 10)}
    assert results.tuned({"first": first}) == {}


def test_runs_of_two_bases_are_kept_apart(tmp_path):
    """Results of different base weights are kept apart."""
    rng = np.random.default_rng(0)
    made = [line("sft", 0, 0.5, rng), line("sft", 0, 0.7, rng) | {"weights": "2ff9e7f2dd4d"}]
    (tmp_path / "main.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    bases = results.read(tmp_path)
    assert {base: rows["sft"][0]["weights"] for base, rows in bases.items()} == {
        "w": "w",
        "A": "2ff9e7f2dd4d",
    }


def test_what_was_solved_is_read_back(tmp_path):
    """Leading zeros kept; the mean over problems is the accuracy that the run reported."""
    rows = rows_of(tmp_path, {"sft": 0.03})
    for metric in (results.GREEDY, results.SAMPLED):
        found = results.solved(rows["sft"], metric)
        assert found.shape == (4, PROBLEMS)
        assert np.allclose(found.mean(axis=1), results.final(rows["sft"], metric))


def test_verdicts(tmp_path):
    """A clear difference is found in either direction; a missing metric names its run."""
    rows = rows_of(tmp_path, {"bridge": 0.6, "alternate": 0.6, "cold_start": 0.3, "grpo": 0.5})
    table = tables.order_table(rows).splitlines()
    assert table[2].startswith("| `bridge` > `alternate`") and "no difference seen" in table[2]
    assert "higher" in table[3] and "lower" in table[4] and len(table) == 5
    assert "hybrid" not in tables.controls_table(rows)
    del rows["grpo"][2]["curve"][-1][results.GREEDY]
    with errors.raises(ValueError, "grpo__seed=2"):
        tables.main_table(rows)


def test_runs_are_compared_seed_by_seed(tmp_path):
    """Whatever the order of the files' lines; one seed has no interval, and no verdict."""
    rows = rows_of(tmp_path, {"bridge": 0.6, "sft": 0.4})
    found = results.difference(rows, "bridge", "sft", results.GREEDY)
    rows["sft"] = dict(reversed(rows["sft"].items()))
    assert results.difference(rows, "bridge", "sft", results.GREEDY) == found
    assert tables.verdict(found) == "higher"
    alone = {"bridge": rows["bridge"], "sft": {3: rows["sft"][3]}}
    found = results.difference(alone, "sft", "bridge", results.GREEDY)
    assert tables.verdict(found) == "one seed"
    assert tables.shown(found, True).endswith(" (one seed)") and tables.shown(found, True)[0] == "-"


def test_committed_accuracies_stay_within_0_and_1():
    """Of every variant of every base, in either measure."""
    bases = results.read(stages.ROOT / "docs" / "study" / "results")
    for rows in bases.values():
        for runs in rows.values():
            for metric in (results.GREEDY, results.SAMPLED):
                found = results.accuracy(runs, metric)
                assert len(runs) == 1 or 0 <= found.low <= found.mean <= found.high <= 1


def test_conditions_are_shown_next_to_the_clean_run(tmp_path):
    """A condition is shown beside the clean run, or a dash without one."""
    rows = rows_of(
        tmp_path, {"bridge": 0.6, "bridge+noise 0.2": 0.4, "grpo": 0.5, "grpo+equal time": 0.5}
    )
    table = tables.conditions_table(rows, results.GREEDY).splitlines()
    assert table[0] == "| variant | clean | noise 0.2 |"
    bridge = next(row for row in table if "`bridge`" in row).split("|")
    assert float(bridge[2].split("[")[0]) > float(bridge[3].split("[")[0]) > 0
    assert next(row for row in table if "`grpo`" in row).split("|")[3].strip() == "-"


def test_missing_seeds_are_counted_in_the_cell(tmp_path):
    """A mean of fewer seeds than the others have says so, in the cell."""
    rows = rows_of(
        tmp_path, {"sft": 0.5, "sft+corrupt 0.5": 0.4, "bridge": 0.6, "bridge+corrupt 0.5": 0.3}
    )
    del rows["bridge+corrupt 0.5"][0], rows["bridge+corrupt 0.5"][1]
    table = tables.conditions_table(rows, results.GREEDY).splitlines()
    sft, bridge = (next(row for row in table if f"`{name}`" in row) for name in ("sft", "bridge"))
    assert bridge.endswith(" (2 seeds) |") and bridge.count("seeds") == 1 and "seeds" not in sft


def test_the_page_is_filled_between_its_marks(tmp_path):
    """Twice the same; the words around stay; a mark of no table is refused."""
    rows = rows_of(tmp_path, {"bridge": 0.6, "sft": 0.4})
    page = "before\n<!-- table main on w -->\nold\n<!-- end -->\nafter\n"
    filled = tables.fill(page, {"w": rows})
    assert filled.startswith("before\n<!-- table main on w -->\n| variant") and filled.endswith(
        "<!-- end -->\nafter\n"
    )
    assert "old" not in filled and tables.fill(filled, {"w": rows}) == filled
    with errors.raises(ValueError, "'main'"):
        tables.fill(page.replace("main", "mains"), {"w": rows})
    with errors.raises(ValueError, "'v'", "w"):
        tables.fill(page.replace("on w", "on v"), {"w": rows})


def test_pictures_are_drawn(tmp_path):
    """Both pictures are written, and that of one run."""
    rows = rows_of(tmp_path, {"bridge": 0.6, "sft": 0.4, "luffy": 0.5})
    pictures.draw(rows, tmp_path, "w")
    assert all(
        (tmp_path / name).stat().st_size > 10_000 for name in ("dynamics_w.png", "methods_w.png")
    )
    pictures.draw_run(logbook.read(str(stages.ROOT / "docs" / "smollm2")), tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_a_picture_of_many_variants_is_legible(tmp_path):
    """19 variants: one measure a panel, the best above, no two names or ticks on each other.

    A difference whose interval contains 0 is grey, and bridge has none from itself.
    """
    names = [*list(ladder.METHODS)[:18], "bridge_ten"]
    rows = rows_of(tmp_path, {name: 0.3 + 0.02 * i for i, name in enumerate(names)})
    pyplot = pictures.import_pyplot()
    with pyplot.rc_context({"font.size": pictures.POINTS, "axes.titlesize": "medium"}):
        figure = pictures.draw_methods(pyplot, rows)
        figure.canvas.draw()
        axes = figure.axes
        shown = [label.get_text() for label in axes[0].get_yticklabels()]
        assert shown == sorted(
            names, key=lambda name: np.mean(results.final(rows[name], results.SAMPLED))
        )
        assert [len(axis.collections) for axis in axes] == [19, 18, 19, 18]
        for axis in axes:
            ticks = [*axis.get_xticklabels()] + [*axis.get_yticklabels()] * (axis is axes[0])
            boxes = [text.get_window_extent() for text in [*ticks, axis.title]]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        for left, right in itertools.pairwise(axes):
            assert not left.title.get_window_extent().overlaps(right.title.get_window_extent())
        for bar in axes[1].collections:
            ((low, _), (high, _)) = bar.get_segments()[0]
            grey = np.ptp(bar.get_color()[0][:3]) == 0
            assert grey == (low <= 0 <= high)
    pyplot.close(figure)


def test_pictures_of_the_docs_load_fast():
    """None is above 200 kB."""
    for picture in (stages.ROOT / "docs").rglob("*.png"):
        assert picture.stat().st_size < 200_000, picture


def test_the_committed_page_is_drawn_from_the_committed_results():
    """docs/study_appendix.md is drawn from docs/study/results, and has every table."""
    page = Study(quick=False).page.read_text()
    bases = results.read(stages.ROOT / "docs" / "study" / "results")
    assert tables.fill(page, bases) == page
    assert all(f"<!-- table {name} on " in page for name in tables.TABLES)
    assert all(f"<!-- table main on {base} -->" in page for base in bases)


def test_the_committed_rates_are_chosen_from_the_committed_results():
    """tuned.json; and every run of a main table has the rates chosen on its base, if any."""
    bases = results.read(stages.ROOT / "docs" / "study" / "results")
    assert results.tuned(bases) == ladder.tuned()
    for rows in (rows for rows in bases.values() if results.choose(rows)):
        chosen = ladder.tuned() | results.choose(rows)
        for name, (alpha, ratio) in (
            (name, chosen[name]) for name in results.plain(rows) if name in chosen
        ):
            for row in rows[name].values():
                given = row["settings"]
                assert given["optim.base.learning_rate"] == alpha
                assert given.get("optim.lora.learning_rate", ratio * alpha) == pytest.approx(
                    ratio * alpha
                )
