"""The phases of a step, their estimated seconds, and the search for what fits."""

from __future__ import annotations

import importlib.util

import jax
import pytest

from bridge_jax import methods
from bridge_jax.planner import buffers, chips, flops, hlo, phases
from bridge_jax.training import build, programs
from tests import errors
from tests.planner.setups import CHIP, config, sketch


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
    """Where theta_hat draws samples of its own, the weights of both are handed out before the first
    has sampled.
    """
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
    with errors.raises(ValueError, "someone/some-model", "model.arch"):
        build.make_setup(given, jax.devices()[:8])


def test_a_mesh_that_does_not_divide_is_refused():
    """A mesh that does not divide the devices is refused."""
    given = config("sft")
    given.mesh.fsdp = 3
    with errors.raises(ValueError, "3 devices", "8"):
        build.make_setup(given, jax.devices()[:8])


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


def test_roofline_and_step_by_hand():
    """The longest of three; a step is both calls of the sampler for each policy, grading, and the
    update.
    """
    gathered = {
        "all-gather": {"instructions": 1, "times": 1, "bytes": 30.0},
        "unknown_loops": {"instructions": 1},
    }
    target = lambda dtype: phases.Target(CHIP, 2.0, 1, dtype, "")
    phase = {"flops": 500.0, "bytes": 70.0, "collectives": gathered}
    found = phases.roofline(phase, target("bfloat16"))
    assert found == {"compute_s": 5.0, "memory_s": 7.0, "network_s": 15.0, "seconds": 15.0}
    # fp32 against its own peak
    found = phases.roofline(phase, target("float32"))
    assert found == {"compute_s": 20.0, "memory_s": 7.0, "network_s": 15.0, "seconds": 20.0}
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
    typical = phases.typical_seconds(step)
    assert typical["update demos"] == pytest.approx((3.0 / 0.6, 3.0 / 0.4))
    assert typical["update samples"] == pytest.approx(
        (1.7 * rollout + 0.5 + 4.0 / 0.6, 2 * rollout + 0.5 + 4.0 / 0.4)
    )


def test_what_the_compiler_says_of_a_program_that_is_too_large():
    """The memory asked and available is read from the compiler's error."""
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (20.53G) exceeds available HBM (15.75G). HLO module: jit_update."
    )
    found = phases.compile_error(message)
    assert (found["asked"], found["available"]) == (20.53 * 2**30, 15.75 * 2**30)


class WithText:
    """A compiled program as jaxlib reads it."""

    def as_text(self):
        return "HloModule short"


def test_the_compilers_own_file_comes_before_what_jaxlib_reads(tmp_path):
    """jaxlib fails, with a stack trace on stderr, at the asynchronous instructions of a newer
    libtpu.
    """
    (tmp_path / "module_0001.jit_update.cpu_after_optimizations.txt").write_text(
        "HloModule of the CPU, unscheduled"
    )
    assert phases.text_of(WithText(), tmp_path) == "HloModule short"
    (tmp_path / "module_0001.jit_update.cl_1.after_optimizations.txt").write_text(
        "HloModule optimized, and longer"
    )
    assert phases.text_of(WithText(), tmp_path) == "HloModule optimized, and longer"
    (tmp_path / "module_0001.jit_update.cl_1.after_codegen.txt").write_text("HloModule last")
    assert phases.text_of(WithText(), tmp_path) == "HloModule last"


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_compilers_own_file_says_the_same(tmp_path):
    """The compiler's dump gives the same collectives and peak as the module's text."""
    run = build.make_setup(config("grpo"), chips.devices(chips.parse("v5e:2x4")))
    traced = programs.trace_update(
        run, build.abstract_state(run), run.buckets[-1], run.method.batch_spec(0)
    )
    compiled = traced.lower().compile(compiler_options={"xla_dump_to": str(tmp_path)})
    parsed, written = hlo.parse(compiled.as_text()), hlo.parse(phases.text_of(WithText(), tmp_path))
    assert hlo.collectives(parsed) == hlo.collectives(written) != []
    assert buffers.peak(parsed).bytes == buffers.peak(written).bytes
