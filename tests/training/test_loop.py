"""Tiny runs resume bit for bit; their metrics are those promised; a broken grader stops them."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bridge_jax import methods
from bridge_jax.evaluation import evaluate
from bridge_jax.rundir import logbook
from bridge_jax.training import build, loop
from tests import errors, tiny_runs
from tests.tiny_runs import STEPS, go, quick, unbroken  # noqa: F401 (fixtures)

# no samples, no demos, both; two kinds of steps, paired rows and all others are in `make test-all`
DIFFERENT = ("sft", "grpo", "bridge")
every_method = pytest.mark.parametrize(
    "method",
    [
        name if name in DIFFERENT else pytest.param(name, marks=pytest.mark.slow)
        for name in methods.names()
    ],
)
RATES = {"theta": "base", "theta_hat": "shadow", "w": "lora"}  # what is trained -> its recipe
SFT = {"sft/logp", "sft/entropy", "sft/stop_prob"}
RL = {
    "reward/mean",
    "reward/all_right",
    "reward/all_wrong",
    "rl/J",
    "rl/clip_fraction",
    "time/rollout_tokens_per_s",
    "rollout/tokens",
    "rollout/length",
    "rollout/stopped",
    "rollout/entropy",
    "rollout/logp_error",
    "rollout/logp_error_max",
    "rollout/prob_error",
    *(f"reward/outcome_{kind}" for kind in evaluate.Outcome),
}
BRIDGE = {
    "bridge/gain",
    "bridge/gain_stderr",
    "bridge/kl_hat",
    "bridge/ess",
    "bridge/lam",
    "bridge/J_hat",
    "bridge/clip_fraction",
}
GRADIENT_ALIGNMENT = {
    f"{key}{group}"
    for key in ("grad/cos_sft_rl", "grad/inner_sft_rl", "grad/norm_ratio_sft_rl")
    for group in ("", "_rest", "_middle", "_late")
}  # two layers have no early third
OF_METHOD = {  # what each that ships reports beside the rest; a new one may report what it likes
    "alternate": set(),
    "bridge": BRIDGE,
    "chord": {"chord/mu"},
    "cold_start": set(),
    "dapo": {"rollout/rounds"},
    "dr_grpo": set(),
    "grpo": set(),
    "gspo": set(),
    "hpt": {"hpt/failed"},
    "hybrid": set(),
    "joint": {"bridge/lam"},
    "luffy": set(),
    "sft": set(),
    "srft": set(),
}
EVERY_STEP = {
    "step",
    "update/skipped",
    "time/update_s",
    "time/update_tokens_per_s",
    "time/grade_s",
    "time/rollout_s",
    "time/train_s",
    "time/wall_s",
    "time/cpu_s",
    "time/device_s",
    "memory/host_peak_gib",
    "compile/count",
}
EVALUATED = {
    f"eval/held_out_{key}"
    for key in ("accuracy", "stderr", "n", "tokens", "stopped", "no_answer", "lenient")
}


@every_method
def test_resumed_equals_unbroken(quick, unbroken, tmp_path, method, k=1):
    """k steps, then the rest: the same metrics, transcripts, parameters and optimizer states as
    without a stop.
    """
    assert go(tmp_path, method, stop_at=k)["step"] == k
    assert tiny_runs.lines(tmp_path) == tiny_runs.lines(unbroken(method))[: k + 1]
    go(tmp_path, method)
    tiny_runs.assert_same_run(tmp_path, unbroken(method), method)


@every_method
def test_the_run_moves_what_it_trains(quick, unbroken, method):
    """Rewards vary and every part of the parameters has moved: the equalities above are not those
    of idle runs.
    """
    begun, _ = build.build(tiny_runs.config(method), jax.devices()[:1])
    theta, end = build.initial_theta(begun), tiny_runs.state(unbroken(method), method)
    for part in ("theta", "theta_hat"):
        embed = end.get(f".params.{part}['embed']")
        assert embed is None or not np.array_equal(embed, theta["embed"])
    assert all(array.any() for key, array in end.items() if key.startswith(".params.w"))
    rewards = [
        line["reward/mean"]
        for line in tiny_runs.lines(unbroken(method))[1:]
        if "reward/mean" in line
    ]
    assert any(0 < reward < 1 for reward in rewards) or not begun.method.sampling_policies


@every_method
def test_metrics_contract(quick, unbroken, method):
    """The promised keys, on every line; budgets add up; evaluation when it is due and only then."""
    found = logbook.read(str(unbroken(method)))
    assert set(found[0]) == {"step", "time/eval_s"} | EVALUATED
    setup, _ = build.build(tiny_runs.config(method), jax.devices()[:1])
    made, spent, params = setup.method, set(), build.abstract_state(setup).params
    parts = [part for part in RATES if getattr(params, part) is not None]
    assert parts == {"bridge": ["theta", "theta_hat", "w"], "joint": ["theta", "w"]}.get(
        method, parts
    )
    for line in found[1:]:
        due, spec = line["step"] in (3, STEPS), made.batch_spec(line["step"] - 1)
        spent |= {
            "gradient_tokens",
            "gradient_prompt_tokens",
            "forward_tokens",
            "flops",
            *["demo_tokens"] * spec.demos,
        }
        spent |= {"generated_tokens", "prefilled_tokens"} if spec.sampled_by else set()
        wanted = EVERY_STEP | OF_METHOD.get(method, set()) | {f"budget/{name}" for name in spent}
        wanted |= SFT if spec.demos else set()
        wanted |= RL if spec.sampled_by else set()
        wanted |= {f"grad/norm_{part}" for part in parts} | {f"lr/{RATES[part]}" for part in parts}
        wanted |= EVALUATED | {"time/eval_s"} if due else set()
        if method in OF_METHOD:
            both = spec.demos and spec.sampled_by
            assert set(line) == wanted | (GRADIENT_ALIGNMENT if both else set()), line["step"]
        assert wanted <= set(line), line["step"]
        assert line.get("rollout/logp_error_max", 0) < 1e-4
        assert line["compile/count"] == found[1]["compile/count"]
        outcomes = [value for key, value in line.items() if key.startswith("reward/outcome_")]
        assert not outcomes or sum(outcomes) == pytest.approx(1)
    if method not in OF_METHOD:  # it may pass its rows as often as it likes
        return
    if (
        method == "dapo"
    ):  # what further rounds sampled is generated, and for the most part not learned from
        assert found[-1]["budget/generated_tokens"] >= sum(
            line["rollout/tokens"] for line in found[1:]
        )
        assert found[-1]["budget/gradient_tokens"] <= found[-1]["budget/generated_tokens"]
        return
    passes = lambda b: (
        b.get("budget/demo_tokens", 0)
        + (2 if method == "bridge" else 1) * b.get("budget/generated_tokens", 0)
    )
    assert all(line["budget/gradient_tokens"] == passes(line) for line in found[1:])
    if made.sampling_policies and "budget/generated_tokens" in found[-1]:
        assert found[-1]["budget/generated_tokens"] == sum(
            line.get("rollout/tokens", 0) for line in found[1:]
        )


def test_a_broken_grader_stops_the_run(quick, tmp_path, monkeypatch):
    """A step with too many ungraded samples stops the run; the limit is a setting."""

    def broken(problem, answer):
        raise RuntimeError("out of order")

    monkeypatch.setattr(tiny_runs.arithmetic, "compare", broken)
    with errors.raises(
        loop.GraderFailed,
        "step 1",
        "timeout 0.0%",
        "grader_error 100.0%",
        "10.0%",
        "log.ungraded_limit",
    ):
        go(tmp_path, "grpo", eval__every=0)
    monkeypatch.setattr(tiny_runs.arithmetic, "compare", broken)
    assert (
        go(tmp_path, "grpo", eval__every=0, log__ungraded_limit=1.0, steps=2)[
            "reward/outcome_grader_error"
        ]
        == 1
    )
