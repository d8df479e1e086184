"""Plans of whole steps, and the search for the largest micro-batch that fits."""

from __future__ import annotations

import importlib.util
import json
import re

import jax
import pytest

from bridge_jax.planner import chips, flops, hlo, phases, table
from bridge_jax.planner import plan as planner_plan
from bridge_jax.planner.plan import fit, make, microbatch_candidates
from bridge_jax.training import build
from tests.planner.setups import CHIP, config, sketch


@pytest.mark.slow
def test_arguments_of_an_update_are_the_state_and_the_batch_over_the_devices():
    """What the compiler says of the arguments is what the shardings say, to the byte; the state is
    written in place.
    """
    topology = chips.parse("cpu:8")
    made = make(
        config("grpo"), topology, chips.devices(topology), only=lambda name: name == "update"
    )
    run, (update,) = sketch("grpo"), made["phases"]
    state, T, S = flops.chip_bytes(build.abstract_state(run)), 15, 6
    # prompts and their lengths; tokens, log-probabilities, lengths, rewards; the temperature
    batch = 16 // 8 * (S + 1) * 4 + 32 // 8 * (2 * T + 1 + 1) * 4 + 4
    assert (
        0 <= state + batch - update["memory"]["argument"] <= 64
    )  # scalars and arguments that the method never reads
    assert update["memory"]["alias"] == state
    assert update["peak"] >= update["memory"]["argument"] and made["state_by_chips"]["16"] < state
    text = table.text(made)
    assert "step: no estimate" in text and "alive at the peak" in text and "all-gather" in text


@pytest.mark.slow
def test_what_fits_is_found_by_compiling_everything(monkeypatch):
    """On chips between the peaks of 1 and of 2 rows at a time; then on chips too small for the
    sampler, whatever the update.
    """
    topology, devices = chips.parse("cpu:8"), chips.devices(chips.parse("cpu:8"))
    known, given = {}, config("grpo")
    given.rollout.max_new = 64
    given.batch.microbatch_rows = 1
    one = make(given, topology, devices, cache=known)
    chip = CHIP._replace(hbm=one["peak"] + 1)
    compiled, of_program = [], phases.compile_program
    monkeypatch.setattr(
        phases, "compile_program", lambda *given: compiled.append(1) or of_program(*given)
    )
    monkeypatch.setattr(chips, "chip_of", lambda *given: chip)
    assert fit(given, topology, devices, lambda line: None, known) == 1
    assert len(compiled) == 2  # logp and update of 2 rows a device; all else is known
    chip = chip._replace(hbm=1.0)
    assert fit(given, topology, devices, lambda line: None, known) is None


def test_a_known_program_is_not_compiled_again(monkeypatch):
    """From the JSON of an earlier plan; another program, or another compiler, is."""
    topology, devices = chips.parse("cpu:8"), chips.devices(chips.parse("cpu:8"))
    merge = lambda known: make(
        config("grpo"), topology, devices, only=lambda name: name == "merge", cache=known
    )
    made = json.loads(json.dumps(merge(None)))
    monkeypatch.setattr(phases, "compile_program", lambda *given: pytest.fail("compiled"))
    again = merge(phases.compiled_programs([made]))
    drop = lambda plan: (
        plan | {"planned_s": 0, "phases": [phase | {"trace_s": 0} for phase in plan["phases"]]}
    )
    assert drop(json.loads(json.dumps(again))) == drop(made)
    monkeypatch.setattr(planner_plan, "compiler_of", lambda topology: "another")
    with pytest.raises(pytest.fail.Exception, match="compiled"):
        merge(phases.compiled_programs([made]))


@pytest.mark.slow
def test_counted_and_not_compiled(monkeypatch):
    """FLOPs, bytes and their roofline, as of a compiled plan; no memory, and no program."""
    monkeypatch.setattr(phases, "compile_program", lambda *given: pytest.fail("compiled"))
    monkeypatch.setattr(chips, "chip_of", lambda *given: CHIP)
    topology, plans = chips.parse("cpu:8"), []
    for changed in ("", "method.bridge.shadow.every=4"):
        given = config("bridge")
        given.method.bridge.shadow.every = 4 if changed else 1
        made = make(given, topology, chips.devices(topology), compile=False)
        plans.append({"name": "m", "changed": changed} | json.loads(json.dumps(made)))
    assert all(not plan["compiled"] and plan["peak"] is None for plan in plans)
    for phase in plans[0]["phases"]:
        assert phase["seconds"] == max(phase["compute_s"], phase["memory_s"])
    assert "not compiled" in table.text(plans[0])
    assert plans[1]["step"]["update"] < plans[0]["step"]["update"]
    grpo = plans[0] | {"method": "grpo", "step": {"update": 1.0, "rollout": 0.5, "grading": 0.0}}
    drawn = table.markdown([*plans, grpo])
    assert drawn["ratios"].count("\n") == 3 and "cpu:8" not in drawn["plans"]


def test_candidates_come_out_even():
    """32 rows of groups of 2 over 8 devices: micro-batches of 8, 16 and 32 rows; three parts of 24
    demonstrations do not go with 2 rows a device, where they are filled up to 32.
    """
    assert microbatch_candidates(config("grpo"), jax.devices()[:8]) == [1, 2, 4]
    parts = config("bridge")
    parts.batch.demos_per_step, parts.method.bridge.sft_microbatches = 24, 3
    parts.batch.microbatch_rows = 1
    assert microbatch_candidates(parts, jax.devices()[:8]) == [1, 4]


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_every_phase_compiles_for_a_slice(monkeypatch):
    """A tiny model on v5e:2x4, the splash kernel in it: everything fits, the arguments are alive,
    seconds at the peaks.

    The kernel: not in merge, its forward pass in the sampler's two programs and logp, all three of
    its passes in the update.

    The walk is held against the compiler's peak elsewhere: in programs as small as this one fixed
    buffers are most of it.
    """
    topology = chips.parse("v5e:2x4")
    given = config("bridge")
    given.model.arch.head_dim = 128
    texts, parse = [], hlo.parse
    monkeypatch.setattr(hlo, "parse", lambda text: texts.append(text) or parse(text))
    made = make(given, topology, chips.devices(topology), grading=1.0)
    calls = lambda text: " ".join(
        re.findall(r"^.*custom_call_target=\"tpu_custom_call\".*$", text, re.MULTILINE)
    )
    kernels = sorted(
        sorted(set(re.findall("splash_mha_(fwd|dq|dkv)", calls(text)))) for text in texts
    )
    assert kernels == [[], ["dkv", "dq", "fwd"], ["fwd"], ["fwd"], ["fwd"]]
    assert all(phase["fits"] and 0 < phase["seconds"] < 1 for phase in made["phases"])
    for phase in made["phases"]:
        assert phase["memory"]["walked"] > 0 and phase["memory"]["largest"]
    assert made["step"]["update"] > 1.0
