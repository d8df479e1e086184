"""What is compiled for a step, what is said of it, and the search for the largest micro-batch."""

from __future__ import annotations

import importlib.util
import json
import re

import jax
import pytest

from bridge_jax import methods
from bridge_jax.planner import buffers, chips, flops, hlo, phases, table
from bridge_jax.planner import plan as planner_plan
from bridge_jax.planner.plan import fit, make, microbatch_candidates
from bridge_jax.training import build, programs
from tests import tiny_runs


def config(method: str):
    """16 prompts x 2 samples over 8 devices."""
    made = tiny_runs.config(method)
    made.mesh.fsdp = 8
    made.batch.update(dict(prompts_per_step=16, samples_per_prompt=2, microbatch_rows=2))
    return made


def sketch(method: str):
    return build.make_setup(config(method), jax.devices()[:8])


@pytest.mark.parametrize("method", methods.names())
def test_every_method_has_its_phases(method):
    """Each method has the sampling phases and updates of its step kinds."""
    run = sketch(method)
    names = [phase.name for phase in phases.phases(run, build.abstract_state(run))]
    kinds = len(run.method.step_kinds)
    sampled = ["merge", "prefill", "decode", "logp"] * bool(run.method.sampling_policies)
    updates = [name for name in names if name.split()[0] == "update"]
    assert sorted(names) == sorted(sampled + updates) and len(set(updates)) == kinds
    if method in ("cold_start", "alternate"):
        assert sorted(updates) == ["update demos", "update samples"]
    if kinds == 1:
        assert updates == ["update"]
    if method == "sft":
        assert not sampled


def test_weights_of_both_policies_are_resident_beside_the_sampler():
    """Where theta_hat draws samples of its own, the weights of both are handed out before the first has sampled."""
    beside = {}
    for own in ("shared", "own"):
        given = config("bridge")
        given.method.bridge.variant.shadow_rollouts = own
        run = build.make_setup(given, jax.devices()[:8])
        state = build.abstract_state(run)
        beside[own] = {phase.name: phase.resident for phase in phases.phases(run, state)}
    phi = flops.chip_bytes(programs.abstract_phi(run, state))
    more = {name: beside["own"][name] - beside["shared"][name] for name in beside["own"]}
    assert more == {"merge": phi, "prefill": phi, "decode": phi, "logp": 0, "update": 0}


def test_a_sketch_reads_no_data(monkeypatch):
    """No task, no tokenizer; what it has is what a whole run has."""
    whole, _ = build.build(config("bridge"), jax.devices()[:8])
    for module, name in (
        (build, "make_tokenizer"),
        (build.tasks, "check_rows"),
        (build.batches, "encode_prompts"),
    ):
        monkeypatch.setattr(module, name, lambda *given: pytest.fail(f"{name} was called"))
    run = sketch("bridge")
    assert run.cfg == whole.cfg and run.settings == whole.settings and run.mesh == whole.mesh
    assert jax.tree.map(str, build.abstract_state(run)) == jax.tree.map(
        str, build.abstract_state(whole)
    )


def test_a_model_of_a_hub_needs_its_shape():
    """A hub model without a given shape is refused."""
    given = config("sft")
    given.model.path, given.model.arch = "someone/some-model", type(given.model.arch)()
    with pytest.raises(ValueError, match="someone/some-model.*model.arch"):
        build.make_setup(given, jax.devices()[:8])


def test_a_mesh_that_does_not_divide_is_refused():
    """A mesh that does not divide the devices is refused."""
    given = config("sft")
    given.mesh.fsdp = 3
    with pytest.raises(ValueError, match="takes 3 devices, there are 8"):
        build.make_setup(given, jax.devices()[:8])


def test_arguments_of_an_update_are_the_state_and_the_batch_over_the_devices():
    """What the compiler says of the arguments is what the shardings say, to the byte; the state is written in place."""
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
    told = table.text(made)
    assert "step: no estimate" in told and "alive at the peak" in told and "all-gather" in told


@pytest.mark.parametrize("largest", (0, 1, 4, 5, 20, 32))
def test_the_search_for_what_fits(largest):
    """Whatever fits up to `largest`: the same as trying all, with few compilations."""
    candidates, tried = [1, 2, 4, 5, 10, 20, 32], []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows <= largest

    expected = max((rows for rows in candidates if rows <= largest), default=None)
    assert phases.largest_that_fits(candidates, fits) == expected
    assert len(tried) <= 3


@pytest.mark.slow
def test_what_fits_is_found_by_compiling_everything(monkeypatch):
    """On chips between the peaks of 1 and of 2 rows at a time; then on chips too small for the sampler, whatever the update."""
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


def test_candidates_come_out_even():
    """32 rows of groups of 2 over 8 devices: micro-batches of 8, 16 and 32 rows; three parts of 24 demonstrations
    do not go with 2 rows a device, where they are filled up to 32."""
    assert microbatch_candidates(config("grpo"), jax.devices()[:8]) == [1, 2, 4]
    parts = config("bridge")
    parts.batch.demos_per_step, parts.method.bridge.sft_microbatches = 24, 3
    parts.batch.microbatch_rows = 1
    assert microbatch_candidates(parts, jax.devices()[:8]) == [1, 4]


CHIP = chips.Chip(
    flops=100.0, hbm=1000.0, memory=10.0, link=1.0, links=2, torus=1, source="made up"
)


def test_roofline_and_step_by_hand():
    """The longest of three; a step is both calls of the sampler for each actor, grading, and the update."""
    gathered = {
        "all-gather": {"instructions": 1, "times": 1, "bytes": 30.0},
        "unknown_loops": {"instructions": 1},
    }
    found = phases.roofline({"flops": 500.0, "bytes": 70.0, "collectives": gathered}, CHIP, 2.0)
    assert found == {"compute_s": 5.0, "memory_s": 7.0, "network_s": 15.0, "seconds": 15.0}
    made = [
        {"phase": name, "seconds": s}
        for name, s in (
            ("merge", 1.0),
            ("prefill", 2.0),
            ("decode", 10.0),
            ("logp", 5.0),
            ("update demos", 3.0),
            ("update samples", 4.0),
        )
    ]
    step = phases.step_seconds(made, calls=2, policies=2, grading=0.5)
    rollout = 2 * (1.0 + 2 * 12.0)
    assert (
        phases.step_seconds(made[:1] + made[2:], calls=2, policies=2, grading=0.5) == {}
    )  # no prefill: no estimate
    assert step == {
        "update demos": 3.0,
        "update samples": 4.0 + rollout + 0.5,
        "rollout": rollout,
        "grading": 0.5,
    }


def test_what_the_compiler_says_of_a_program_that_is_too_large():
    """The memory asked and available is read from the compiler's error."""
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (20.53G) exceeds available HBM (15.75G). HLO module: jit_update."
    )
    found = phases.compile_error(message)
    assert (found["asked"], found["available"]) == (20.53 * 2**30, 15.75 * 2**30)


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_every_phase_compiles_for_a_slice(monkeypatch):
    """A tiny model on v5e:2x4, the splash kernel in it: everything fits, the arguments are alive, seconds at the peaks.

    The kernel: not in merge, its forward pass in the sampler's two programs and logp, all three of its passes in the update.

    The walk is held against the compiler's peak elsewhere: in programs as small as this one fixed buffers are most of it.
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


def test_what_the_seconds_leave_out_is_told():
    """What lies in the host's memory between steps is moved in each."""
    plan_of = {"step": {"update": 3.0, "rollout": 2.0, "grading": 0.0}, "host_bytes": 0}
    assert (
        table.step_lines(plan_of)
        == "step (update): 3.00 s, of it rollout 2.00 s and grading 0.00 s (given)"
    )
    assert "5.25 GB per device are in host memory" in table.step_lines(
        plan_of | {"host_bytes": 5.25e9}
    )


class Told:
    """A compiled program as jaxlib reads it."""

    def as_text(self):
        return "HloModule told"


def test_the_compilers_own_file_comes_before_what_jaxlib_reads(tmp_path):
    """jaxlib fails, with a stack trace on stderr, at the asynchronous instructions of a newer libtpu."""
    (tmp_path / "module_0001.jit_update.cpu_after_optimizations.txt").write_text(
        "HloModule of the CPU, unscheduled"
    )
    assert phases.text_of(Told(), tmp_path) == "HloModule told"
    (tmp_path / "module_0001.jit_update.cl_1.after_optimizations.txt").write_text(
        "HloModule optimized, and longer"
    )
    assert phases.text_of(Told(), tmp_path) == "HloModule optimized, and longer"
    (tmp_path / "module_0001.jit_update.cl_1.after_codegen.txt").write_text("HloModule last")
    assert phases.text_of(Told(), tmp_path) == "HloModule last"


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_compilers_own_file_says_the_same(tmp_path):
    """The compiler's dump gives the same collectives and peak as the module's text."""
    run = build.make_setup(config("grpo"), chips.devices(chips.parse("v5e:2x4")))
    traced = programs.trace_update(
        run, build.abstract_state(run), run.buckets[-1], run.method.batch_spec(0)
    )
    compiled = traced.lower().compile(compiler_options={"xla_dump_to": str(tmp_path)})
    told, written = hlo.parse(compiled.as_text()), hlo.parse(phases.text_of(Told(), tmp_path))
    assert hlo.collectives(told) == hlo.collectives(written) != []
    assert buffers.peak(told).bytes == buffers.peak(written).bytes
