"""Whatever the mesh: the same update of every method, the same samples, and a run that goes on
where another mesh left it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import methods
from bridge_jax.distributed import sharding
from bridge_jax.distributed.sharding import MeshConfig
from bridge_jax.methods import bridge
from bridge_jax.models import params
from bridge_jax.optim import moments as optim_moments
from bridge_jax.planner import hlo
from bridge_jax.sampling import draw, sampler
from bridge_jax.sampling.decode_plan import DecodePlan
from tests import tiny_runs, toys
from tests.distributed.one_device import (
    MESHES,
    THETA_AXES,
    W_AXES,
    made,
    mesh_of,
    on_one_device,
)
from tests.tiny_runs import quick  # noqa: F401 (a fixture)


def assert_same_update(
    name: str, sizes: dict, arrange=lambda batch: batch, changed_metrics=frozenset(), **chosen
) -> None:
    """Parameters, moments (1e-5 relative) and metrics of every kind of step; what is kept in
    bfloat16 is rounded the same way.

    arrange: the batch of one device -> the same batch as the mesh gets it. changed_metrics: those
    that differ by it.
    """
    mesh = mesh_of(sizes)
    method = made(name, mesh, **chosen)
    for state, batch, expected, expected_metrics in on_one_device(name, **chosen):
        layout = sharding.of_state(mesh, state, THETA_AXES, W_AXES, matrices=toys.MATRICES)
        given = arrange(batch)
        placed = jax.device_put(state, layout), jax.device_put(given, sharding.of_rows(mesh, given))
        after, metrics = jax.jit(method.update, out_shardings=(layout, None))(*placed)
        new, old = (
            jax.tree.leaves((after.params, after.opt_state)),
            jax.tree.leaves((expected.params, expected.opt_state)),
        )
        halves = [
            (np.asarray(a), np.asarray(b))
            for a, b in zip(new, old, strict=True)
            if a.dtype == jnp.bfloat16
        ]
        assert (
            toys.change(*[[x for x in leaves if x.dtype != jnp.bfloat16] for leaves in (new, old)])
            < 1e-5
        )
        # a number whose last bits differ may fall on the other side of what it is rounded at
        assert sum((a != b).sum() for a, b in halves) <= 0.01 * sum(a.size for a, _ in halves)
        assert not chosen or len(halves) > 10
        assert toys.change(after.params, state.params) > 1e-4  # something happened
        for key in set(expected_metrics) - changed_metrics:
            np.testing.assert_allclose(
                metrics[key], expected_metrics[key], rtol=1e-4, atol=1e-5, err_msg=key
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "bridge"])
def test_the_same_update_on_all_three_axes(name):
    """data, fsdp and tensor at once."""
    assert_same_update(name, MESHES["2x2x2"])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("name", methods.names())
def test_the_same_update_of_every_method(name, sizes):
    """Each method gives on each mesh what one device gives."""
    assert_same_update(name, sizes)


on_both = pytest.mark.parametrize(
    "sizes",
    [MESHES["2x2x2"], pytest.param(MESHES["1x8x1"], marks=pytest.mark.slow)],
    ids=["2x2x2", "1x8x1"],
)


@pytest.mark.slow
@on_both
@pytest.mark.parametrize("places", [1, 3])
def test_the_same_update_packed(sizes, places):
    """One or three samples in a row on the mesh, each in its own row on one device. Of one, the
    completion alone is scored.
    """
    from tests.data.packed import packed

    assert_same_update(
        "bridge",
        sizes,
        lambda batch: packed(batch, places),
        frozenset({"budget/gradient_prompt_tokens", "budget/forward_tokens"}),
    )


@pytest.mark.slow
@on_both
@pytest.mark.parametrize(
    "chosen",
    [dict(moments="factored"), dict(shadow__storage="difference")],
    ids=["factored", "difference"],
)
def test_the_same_update_in_less_memory(monkeypatch, sizes, chosen):
    """Means over rows and columns are taken over devices; rounding at random does not know where an
    array lies.
    """
    monkeypatch.setattr(optim_moments, "FACTORED_FROM", 8)  # of this model's small matrices too
    assert_same_update("bridge", sizes, **chosen)


@pytest.mark.slow
def test_a_shadow_in_the_hosts_memory():
    """Two steps give the very numbers of a shadow on the device, and end where they began:
    parameters and moments on the host.
    """
    mesh, ends = mesh_of(MESHES["2x2x2"]), []
    for offload in (False, True):
        method = bridge.make(
            toys.method_config("bridge", shadow__offload=offload), toys.transformer(), toys.linear()
        )
        state = jax.jit(method.init)(toys.transformer_theta(), jax.random.key(0))
        layout = sharding.of_state(mesh, state, THETA_AXES, W_AXES, method.on_host)
        state, given = jax.device_put(state, layout), toys.model_batch(0)
        given = jax.device_put(given, sharding.of_rows(mesh, given))
        update = jax.jit(method.update, out_shardings=(layout, None), donate_argnums=0)
        for _ in range(2):
            state, _ = update(state, given)
        ends.append(state)
    assert toys.same_bits(*ends)
    kinds = lambda tree: {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim}
    shadow = ends[1].params.theta_hat, ends[1].opt_state.inner_states["shadow"]
    assert kinds(shadow) == {"pinned_host"} and kinds(
        (ends[1].params.theta, ends[0].params.theta_hat)
    ) == {"device"}


def sampled(mesh, *ends: int):
    """4 samples of 8 prompts, temperature 1, sharded as programs.py does; None: on one device.

    ends: of its cache segments.
    """
    phi = toys.transformer_theta()
    seqs, key_B = toys.sequences(3, 8, 4), draw.row_keys(jax.random.key(5), 7, jnp.arange(8), 4)
    sampling = draw.Sampling(jnp.float32(1.0), jnp.asarray([0], jnp.int32), jnp.int32(12))
    given = phi, seqs.prompt_PS, seqs.prompt_len_P, key_B
    if mesh is not None:
        rows = jax.device_put(given[1:], sharding.of_rows(mesh, given[1:]))
        given = (
            jax.device_put(phi, sharding.of_tree(mesh, THETA_AXES, params.abstract(toys.CFG))),
            *rows,
        )
    plan = DecodePlan(12, loops=tuple((end,) for end in ends), as_bits=mesh is not None, mesh=mesh)
    sample = jax.jit(lambda *given: sampler.sample(toys.CFG, *given, sampling, plan))
    compiled = sample.lower(*given).compile()
    return compiled(*given), compiled.as_text()


@functools.cache
def sampled_on_one_device():
    return sampled(None)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "decode_tensor",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)],
)
def test_the_same_samples_whatever_the_mesh(decode_tensor):
    """Tokens and lengths to the bit, log-probabilities to 1e-5; rows on the devices that heads
    leave.

    On the mesh in four cache segments, each reading a longer part of the cache, as programs.py
    samples there; on one device in one.
    """
    expected = sampled_on_one_device()
    assert (np.asarray(expected.seqs.length_B) > 10).any()
    mesh = sharding.make_decode_mesh(MeshConfig(fsdp=8, decode_tensor=decode_tensor))
    samples, compiled = sampled(mesh, 4, 6, 10, 12)
    assert len({tuple(row) for row in np.asarray(expected.seqs.tokens_BT)}) > 16
    np.testing.assert_array_equal(samples.seqs.tokens_BT, expected.seqs.tokens_BT)
    np.testing.assert_array_equal(samples.seqs.length_B, expected.seqs.length_B)
    np.testing.assert_allclose(samples.logp_BT, expected.logp_BT, atol=1e-5)
    assert not samples.logp_BT.sharding.is_fully_replicated
    # the prefill and four segments. In a layer two sums, of what attention and the mlp give; a
    # token is drawn with five more
    # messages; where heads are not split nothing but the end of all rows is talked about
    moves = hlo.collectives(hlo.parse(compiled))
    of_layers = [move.kind for move in moves if move.times == toys.CFG.layers]
    assert of_layers == ["all-reduce"] * 2 * (1 + 4) * (decode_tensor > 1)
    assert len(moves) - len(of_layers) <= (1 + 5 * 4 if decode_tensor > 1 else 4)


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(quick, tmp_path):
    """Two steps on 1x8x1, the rest on 2x2x2: samples as in the run on one device, numbers to
    1e-5.
    """
    from bridge_jax.training import trainer
    from configs import base

    shape = dict(
        batch__prompts_per_step=8,
        batch__samples_per_prompt=2,
        batch__demos_per_step=8,
        batch__microbatch_rows=2,
        rollout__calls=1,
        optim__base__eps=10.0,
        optim__lora__eps=10.0,
        steps=4,
        eval__every=2,
    )

    def go(where: str, sizes: dict, stop_at, devices: int):
        given = shape | {f"mesh__{axis}": size for axis, size in sizes.items()}
        trainer.train(
            tiny_runs.config("bridge", **given),
            str(tmp_path / where),
            stop_at,
            where == "moved",
            base.get_config(),
            jax.devices()[:devices],
        )

    go("one", {}, None, 1)
    go("moved", MESHES["1x8x1"], 2, 8)
    go("moved", MESHES["2x2x2"], None, 8)
    mine, theirs = tiny_runs.lines(tmp_path / "moved"), tiny_runs.lines(tmp_path / "one")
    assert [line["step"] for line in mine] == [0, 1, 2, 3, 4]
    for one, other in zip(mine, theirs, strict=True):
        for key in other:
            np.testing.assert_allclose(
                one[key], other[key], rtol=1e-5, atol=1e-5, err_msg=f"step {other['step']} {key}"
            )
    ids = lambda where: [
        row["ids"]
        for step in (1, 4)
        for row in tiny_runs.rows(tmp_path / where / "rollouts" / f"step_{step:06d}.jsonl")
    ]
    assert ids("moved") == ids("one")
