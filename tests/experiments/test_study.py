"""The study's tables from made-up results with known answers, and the committed page from the committed results."""
from __future__ import annotations

import json

import numpy as np
import pytest

from configs.sweeps import ladder
from experiments import study

PROBLEMS = 200


def line(variant: str, seed: int, share: float, rng, **point) -> dict:
    """A finished run that solves about this share of the problems, greedily, and half of that when it samples."""
    bits = (rng.random(PROBLEMS) < share).astype(int)
    sampled = (rng.random((2, PROBLEMS)) < share / 2).sum(axis=0)
    scores = {study.GREEDY: bits.mean(), study.SAMPLED: sampled.mean() / 2, "eval/dev_accuracy": share,
              "eval/dev_sampled_accuracy": share / 2}
    return {"name": f"{variant}__seed={seed}", "variant": variant, "seed": seed, "settings": {"optim.base.learning_rate": 1e-4},
            "curve": [{"step": 0, study.GREEDY: 0.2, study.SAMPLED: 0.1}, {"step": 100, **scores, **point}],
            "solved": {"held_out": f"{int('1' + ''.join(map(str, bits)), 2):x}", "held_out_sampled": "".join(map(str, sampled))}}


def rows_of(tmp_path, shares: dict[str, float], seeds: int = 4) -> study.Rows:
    """The results file of these variants, read back."""
    rng = np.random.default_rng(0)
    made = [json.dumps(line(name, seed, share, rng)) + "\n" for name, share in shares.items() for seed in range(seeds)]
    (tmp_path / "tune.jsonl").write_text("".join(made[::2]))
    (tmp_path / "main.jsonl").write_text("".join(made[1::2]))
    return study.read(tmp_path)


def test_the_rate_is_the_best_on_dev_and_only_where_the_grid_is_complete(tmp_path):
    shares = {f"sft@{rate:g}": 0.3 + 0.1 * (rate == 3e-4) for rate in ladder.RATES}
    shares |= {setting: 0.3 + 0.1 * (rates == (1e-4, 1)) for setting, rates in ladder.grid("joint").items()}
    rows = rows_of(tmp_path, shares | {"grpo@0.0001": 0.9, "sft@0.5": 0.99, "nobody@0.0001": 0.9})
    assert study.choose(rows) == {"sft": (3e-4, 10), "joint": (1e-4, 1)}
    table = study.tuning_table(rows)
    assert "| `sft` |  | 30.0 / 15.0 | **40.0 / 20.0** | 30.0 / 15.0 |" in table
    assert "| `grpo` |  | 90.0 / 45.0 | - | - |" in table
    assert "| `joint` | 1 | **40.0 / 20.0** | 30.0 / 15.0 | 30.0 / 15.0 |" in table


def test_what_was_solved_is_read_back(tmp_path):
    """Leading zeros kept; the mean over problems is the accuracy that the run reported."""
    rows = rows_of(tmp_path, {"sft": 0.03})
    for metric in (study.GREEDY, study.SAMPLED):
        found = study.solved(rows["sft"], metric)
        assert found.shape == (4, PROBLEMS)
        assert np.allclose(found.mean(axis=1), study.final(rows["sft"], metric))


def test_verdicts(tmp_path):
    """A clear difference is called one, either way; none is called none; a missing metric is refused by the run's name."""
    rows = rows_of(tmp_path, {"bridge": 0.6, "alternate": 0.6, "cold_start": 0.3, "grpo": 0.5})
    table = study.order_table(rows).splitlines()
    assert table[2].startswith("| `bridge` > `alternate`") and "no difference seen" in table[2]
    assert "higher" in table[3] and "lower" in table[4] and len(table) == 5
    assert "hybrid" not in study.controls_table(rows)
    del rows["grpo"][2]["curve"][-1][study.GREEDY]
    with pytest.raises(ValueError, match="missing in grpo__seed=2"):
        study.main_table(rows)


def test_conditions_stand_beside_the_clean_run(tmp_path):
    rows = rows_of(tmp_path, {"bridge": 0.6, "bridge+noise 0.2": 0.4, "grpo": 0.5, "grpo+equal time": 0.5})
    table = study.conditions_table(rows, study.GREEDY).splitlines()
    assert table[0] == "| variant | clean | noise 0.2 |"
    bridge = next(row for row in table if "`bridge`" in row).split("|")
    assert float(bridge[2].split("±")[0]) > float(bridge[3].split("±")[0]) > 0
    assert next(row for row in table if "`grpo`" in row).split("|")[3].strip() == "-"


def test_the_page_is_filled_between_its_marks(tmp_path):
    """Twice the same; the words around stay; a mark of no table is refused."""
    rows = rows_of(tmp_path, {"bridge": 0.6, "sft": 0.4})
    page = "before\n<!-- table main -->\nold\n<!-- end -->\nafter\n"
    filled = study.fill(page, rows)
    assert filled.startswith("before\n<!-- table main -->\n| variant") and filled.endswith("<!-- end -->\nafter\n")
    assert "old" not in filled and study.fill(filled, rows) == filled
    with pytest.raises(ValueError, match="did you mean 'main'"):
        study.fill(page.replace("main", "mains"), rows)


def test_pictures_are_drawn(tmp_path):
    rows = rows_of(tmp_path, {"bridge": 0.6, "sft": 0.4, "luffy": 0.5})
    study.pictures(rows, tmp_path)
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("dynamics.png", "methods.png"))


def test_the_committed_page_is_drawn_from_the_committed_results():
    """docs/study.md is what `python -m experiments.study --stages=` makes of docs/study/results."""
    page = (study.ROOT / "docs" / "study.md").read_text()
    rows = study.read(study.ROOT / "docs" / "study" / "results")
    assert study.fill(page, rows) == page and page.count("<!-- table") == len(study.TABLES)


def test_results_begin_from_one_base_model():
    """All runs of the study on the same weights, or the page says from how many."""
    rows = study.read(study.ROOT / "docs" / "study" / "results")
    weights = {row["weights"] for runs in rows.values() for row in runs.values()}
    page = (study.ROOT / "docs" / "study.md").read_text()
    assert len(weights) == 1 or f"{len(weights)} base models" in page
