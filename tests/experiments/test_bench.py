"""The cases of experiments.bench on a tiny model: they run training's programs, and count what they
say they count.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.bench import command, evaluation_cases, model_cases
from tests.models import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A llama of toy size as a HF folder."""
    hf = tiny.TINY | {"model_type": "llama", "max_position_embeddings": 1024, "vocab_size": 9000}
    return str(tiny.write_folder(tmp_path_factory.mktemp("bench") / "model", hf))


@pytest.fixture
def small(monkeypatch):
    """2 prompts x 4 samples of 6 tokens."""
    for name, value in dict(PROMPTS=2, SAMPLES=4, DEMOS=8, BUCKET=16, NEW=6, FEWER=2).items():
        monkeypatch.setattr(model_cases, name, value)


@pytest.mark.slow
def test_sampling(folder, small):
    """Even rows all reach the limit; uneven ones may end; the rate is tokens by seconds."""
    lines = model_cases.sampling(2, folder, "", "float32", uneven=False)
    assert len(lines) == 2 and all(line["tokens"] == 2 * 4 * 6 for line in lines)
    assert (
        lines[0]["tokens_per_s"] == pytest.approx(48 / lines[0]["seconds"])
        and lines[0]["compile_s"] > 0
    )
    assert model_cases.sampling(1, folder, "", "float32", uneven=True)[0]["longest"] <= 12


@pytest.mark.slow
def test_an_evaluation_draws_the_same_rows_either_way(folder, monkeypatch):
    """As many tokens in batches as in slots; fewer steps in slots, at least tokens / slots."""
    for name, value in dict(SAMPLES=4, BUCKET=16, NEW=24, FEW=4, MANY=32).items():
        monkeypatch.setattr(evaluation_cases, name, value)
    case = evaluation_cases.make(folder, "float32", 16)
    slots, batches = (
        way(case, 32)(16) for way in (evaluation_cases.refilled, evaluation_cases.fixed)
    )
    assert slots.tokens == batches.tokens and slots.tokens / 32 <= slots.steps < batches.steps
    (line,) = evaluation_cases.evaluation(1, folder, "", "float32", 8)
    assert line["times_fixed_32"] == pytest.approx(
        line["tokens_per_s_refilled_32"] / line["tokens_per_s_fixed_32"]
    )
    assert line["steps_equal_32"] == line["mean_tokens"]


@pytest.mark.slow
def test_updates_compute_the_same_gradient_with_a_prompt_shared_or_repeated(folder, small):
    """The gradient is the same with a shared or a repeated prompt."""
    shared, repeated = (
        model_cases.update(1, folder, "", "float32", shared)[0]["grad_norm"]
        for shared in (True, False)
    )
    assert shared > 0 and np.isclose(shared, repeated, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_bridge_beside_grpo(folder, small, shared, monkeypatch):
    """bridge holds two policies and reads one demo for every five samples; its times are over
    grpo's in the same line.
    """
    made, make = [], model_cases.make
    monkeypatch.setattr(
        model_cases, "make", lambda *given, **how: made.append(make(*given, **how)) or made[-1]
    )
    (line,) = model_cases.bridge_beside_grpo(1, folder, "", "float32", shared)
    assert line["bridge_state_gb"] > 1.9 * line["grpo_state_gb"] and line["grpo_above_gb"] > 0
    assert all(
        run.settings.batch.rollout_rows // 5 == run.settings.batch.demos_per_step == 1
        for run in made
    )
    assert line["times_seconds"] == line["bridge_seconds"] / line["grpo_seconds"] > 0
    assert line["times_above_gb"] == line["bridge_above_gb"] / line["grpo_above_gb"]


def test_the_command_prints_a_line_a_repeat_and_the_medians(capsys, monkeypatch):
    """The command prints each repeat and then the medians."""
    values = iter([{"x": 1.0}, {"x": 5.0}, {"x": 3.0}])
    monkeypatch.setitem(
        command.CASES, "reference", lambda repeats: [next(values) for _ in range(repeats)]
    )
    monkeypatch.setattr(command.flags, "FLAGS", type("Flags", (), {"repeats": 3})())
    monkeypatch.setattr(
        command, "prepare_memory", lambda: None
    )  # for the process, which here is pytest's
    command.main(["bench", "reference"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["x"] for line in lines] == [1.0, 5.0, 3.0, 3.0] and lines[-1]["median_of"] == 3
    assert set(lines[0]["versions"]) >= {"jax", "jaxlib"} and lines[-1]["peak_mb"]["self"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "bridge"])
def test_a_step_is_the_sum_of_its_phases(folder, small, method):
    """Each phase has a limit by its counted work, except grading; prefill and decode make up the
    rollout.
    """
    (line,) = model_cases.step(1, folder, "", "float32", method)
    spent = [line[f"{name}_s"] for name in ("merge", "prefill", "decode", "grade", "update")]
    assert line["seconds"] == pytest.approx(sum(spent))
    assert line["compile_s"] > 0 and line["tokens_per_s"] > 0
    for name in ("merge", "prefill", "decode", "update"):
        assert (
            line[f"{name}_share"] == pytest.approx(line[f"{name}_limit_s"] / line[f"{name}_s"])
            and line[f"{name}_limit_s"] > 0
        )


@pytest.mark.slow
def test_the_reference_measures_both():
    """The reference measures plausible rates of matmul and memory."""
    line = model_cases.reference(1, "", "", "float32")[0]
    assert (
        1 < line["matmul_gflops"] < 1e5 and 0.5 < line["read_gb_s"] < 2000
    )  # beyond: computed by the compiler, not read
