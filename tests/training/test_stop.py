"""Stop strings hold in training, in evaluation and after a kill."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from bridge_jax.data import tokenizers
from bridge_jax.evaluation.options import Options
from bridge_jax.rundir import logbook
from bridge_jax.tasks import arithmetic
from bridge_jax.training import build, settings, trainer
from configs import base
from experiments.evaluate import evaluate_model
from tests import errors, tiny_runs
from tests.tiny_runs import go, quick  # noqa: F401 (fixtures)

MARK = ";"
ID = arithmetic.ALPHABET.index(MARK) + 1
GIVEN = dict(steps=3, rollout__stop=(MARK,), eval__every=3)
# the last bits of the sampler's log-probabilities depend on how many rows are decoded together
OTHERWISE = ("rollout/unread_tokens", "rollout/logp_error", "rollout/logp_error_max")


@pytest.mark.slow
def test_a_run_is_that_of_a_sampler_which_ends_a_row_there(quick, tmp_path, monkeypatch):
    """Every number, sample and parameter equals those of a run for which the mark is an
    end-of-sequence token.
    """
    go(tmp_path / "stop", "grpo", **GIVEN)
    free = dict(GIVEN, rollout__stop=())
    # the sampler's ids of ends are traced, but their number is part of a program's shape
    monkeypatch.setattr(trainer, "compile_programs", tiny_runs.compile_programs)
    monkeypatch.setattr(tokenizers.CharTokenizer, "eos_ids", property(lambda self: (0, ID)))
    decode = tokenizers.CharTokenizer.decode
    monkeypatch.setattr(
        tokenizers.CharTokenizer,
        "decode",
        lambda self, ids: decode(self, [id for id in ids if id != ID]),
    )
    go(tmp_path / "eos", "grpo", **free)
    stop, eos = (tiny_runs.lines(tmp_path / name) for name in ("stop", "eos"))
    assert sum(line.get("rollout/unread_tokens", 0) for line in stop) > 0
    strip = lambda line: {k: v for k, v in line.items() if k not in OTHERWISE}
    assert [strip(line) for line in stop] == [strip(line) for line in eos]
    for step in range(1, 4):
        mine, theirs = (
            tiny_runs.rows(tmp_path / name / "rollouts" / f"step_{step:06d}.jsonl")
            for name in ("stop", "eos")
        )
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a.pop("logp"), b.pop("logp"), atol=1e-5)
            assert a == b
    assert any(row["ids"][-1] == ID and row["stopped"] for row in mine)
    one, other = (tiny_runs.state(tmp_path / name, "grpo", **free) for name in ("stop", "eos"))
    assert [key for key in one if one[key].tobytes() != other[key].tobytes()] == []


@pytest.mark.slow
def test_a_run_with_stop_strings_resumes_bit_for_bit_and_is_judged_as_in_its_training(
    quick, tmp_path
):
    """Stop strings hold in resumed runs, in evaluations and in the budget alike."""
    given = dict(GIVEN, eval__every=1)
    go(tmp_path / "whole", "grpo", **given)
    for stop_at in (1, 2, None):
        go(tmp_path / "parts", "grpo", stop_at=stop_at, **given)
    assert tiny_runs.lines(tmp_path / "parts") == tiny_runs.lines(tmp_path / "whole")
    one, other = (tiny_runs.state(tmp_path / name, "grpo", **given) for name in ("parts", "whole"))
    assert [key for key in one if one[key].tobytes() != other[key].tobytes()] == []
    logged = tiny_runs.lines(tmp_path / "whole")[-1]
    report = evaluate_model(str(tmp_path / "whole"), str(tmp_path / "out"), Options())
    part = report["benchmarks"]["arithmetic"]
    assert part["scores"]["strict"]["greedy pass@1"].value == logged["eval/held_out_accuracy"]
    assert part["lengths_and_outcomes"]["greedy"]["tokens"] == logged["eval/held_out_tokens"]
    rows = tiny_runs.rows(tmp_path / "out" / "arithmetic.jsonl")
    assert rows and not any(MARK in row["text"] for row in rows)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["task arithmetic"]["stop"] == [MARK]
    # on tasks by name, too, unless others are asked for
    for name, stop, found in (("as", (), [MARK]), ("other", ("#",), ["#"])):
        asked = Options(tasks=("arithmetic",), limit=2, max_new=4, buckets=(8,), stop=stop)
        evaluate_model(str(tmp_path / "whole"), str(tmp_path / name), asked)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["task arithmetic"]["stop"] == found
    # the budget counts what was read
    lines = logbook.read(str(tmp_path / "whole"))
    assert lines[-1]["budget/generated_tokens"] == sum(line["rollout/tokens"] for line in lines[1:])
    # other stop strings would make another run of it
    with pytest.raises(ValueError, match="rollout.stop"):
        go(tmp_path / "whole", "grpo", **dict(given, rollout__stop=("#",)))


def test_the_tasks_own_stop_strings_are_facts_of_a_run(quick, tmp_path, monkeypatch):
    """A run that was begun before its task had them does not go on as if nothing had changed."""
    make = arithmetic.make
    data = lambda **given: build.build(tiny_runs.config("grpo", **given), jax.devices()[:1])[1]
    assert "stop" not in build.fingerprints(data())
    monkeypatch.setattr(
        arithmetic, "make", lambda cfg: dataclasses.replace(make(cfg), stop=("##",))
    )
    assert build.fingerprints(data())["stop"] == ["##"]
    assert build.fingerprints(data(rollout__stop=(MARK,)))["stop"] == ["##", MARK]
    assert build.fingerprints(data(rollout__stop=(MARK,), rollout__task_stop=False))["stop"] == [
        MARK
    ]
    assert "stop" not in build.fingerprints(data(rollout__task_stop=False))


def test_an_empty_stop_string_is_refused():
    """An empty text is refused as a stop string; the base config has none."""
    config = tiny_runs.config("grpo", rollout__stop=("#", ""))
    with errors.raises(ValueError, "rollout.stop=('#', '')"):
        settings.read(config, 1)
    assert base.get_config().rollout.stop == ()


def test_demonstrations_are_cut_nowhere(caplog):
    """One that holds a stop string is left out: its second half could never be sampled."""
    given = dict(rollout__stop=("=3",), task__demo_size=24)
    _, data = build.build(tiny_runs.config("sft", **given), jax.devices()[:1])
    kept = [problem.solution for problem in data.demos.problems]
    dropped = {p.id for p in data.task.demos} - {p.id for p in data.demos.problems}
    assert kept and not any("=3" in text for text in kept)
    assert dropped and all("=3" in p.solution for p in data.task.demos if p.id in dropped)
    assert all(isinstance(row, np.ndarray) for row in data.demos.completions)
