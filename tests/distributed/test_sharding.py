"""The mesh, the layout of states and batches, and an update on eight devices that equals one
device's.
"""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from bridge_jax import optim
from bridge_jax.distributed import sharding
from bridge_jax.distributed.sharding import MeshConfig
from bridge_jax.methods import bridge, frozen_base, grpo
from bridge_jax.models import lora, params
from bridge_jax.training import build, settings
from bridge_jax.types import Matrix
from tests import errors, toys

THETA_AXES, W_AXES = params.logical_axes(toys.CFG), lora.logical_axes(toys.CFG, toys.ADAPTER)


def mesh_of(**sizes):
    """Over all devices."""
    return sharding.make_mesh(MeshConfig(**sizes))


def test_eight_devices():
    """tests/conftest.py did its work."""
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, (1, 8, 1)),
        (dict(data=-1, fsdp=2), (4, 2, 1)),
        (dict(data=2, fsdp=2, tensor=2), (2, 2, 2)),
        (dict(tensor=-1, fsdp=1), (1, 1, 8)),
    ],
)
def test_mesh_sizes(given, expected):
    """-1 takes all devices that remain."""
    mesh = mesh_of(**given)
    assert tuple(mesh.shape[axis] for axis in ("data", "fsdp", "tensor")) == expected


def test_mesh_errors():
    """Sizes that do not make 8, two -1, and zeros; what was given and the nearest that do are
    named, and those are taken.
    """
    cases = (
        (
            dict(data=3, fsdp=2),
            ("'data': 3, 'fsdp': 2, 'tensor': 1", "6 devices", 8),
            dict(data=4, fsdp=2),
        ),
        (
            dict(data=3),
            ("'data': 3, 'fsdp': -1, 'tensor': 1", "multiple of 3", 8),
            dict(data=4),
        ),
        (
            dict(data=16),
            ("'data': 16, 'fsdp': -1, 'tensor': 1", "multiple of 16", 8),
            dict(data=8),
        ),
        (dict(fsdp=2, data=2), ("4 devices", 8), dict(data=2, fsdp=4)),
        (dict(data=3, fsdp=3), ("9 devices", 8), dict(data=2, fsdp=4)),
    )
    for given, words, nearest in cases:
        nearest = dict(dict(data=1, fsdp=-1, tensor=1), **nearest)
        with pytest.raises(ValueError) as refused:
            mesh_of(**given)
        errors.assert_names(str(refused.value), words, str(nearest), "1, 2, 4, 8, or -1")
        assert mesh_of(**nearest).size == 8
    for given, words in (
        (dict(data=0), ("mesh", "positive")),
        (dict(data=-1, fsdp=-1), ("mesh", "-1")),
        (dict(data=-2), ("mesh", "positive")),
    ):
        with errors.raises(ValueError, words):
            mesh_of(**given)
    assert mesh_of(data=2, fsdp=2, tensor=2).devices.size == 8
    assert sharding.make_mesh(MeshConfig(), jax.devices()[:2]).shape["fsdp"] == 2


@pytest.mark.parametrize(
    "sizes, model, wrong, nearest",
    [
        (
            (1, 12, 1),
            dict(width=2048),
            ("mesh.fsdp=12", "width 2048"),
            (3, 4, 1),
        ),
        ((2, 5, 1), dict(), ("mesh.fsdp=5", "width 576"), (5, 2, 1)),
        ((1, 7, 1), dict(), ("mesh.fsdp=7", "width 576"), (7, 1, 1)),
        (
            (1, 1, 8),
            dict(heads=2, kv_heads=1),
            ("mesh.tensor=8", "2 heads", "1 kv heads"),
            (1, 4, 2),
        ),
        (
            (1, 2, 4),
            dict(mlp=66),
            ("mesh.tensor=4", "mlp width 66"),
            (1, 4, 2),
        ),
        (
            (1, 5, 3),
            dict(kv_heads=4),
            ("mesh.fsdp=5", "576", "mesh.tensor=3", "12 heads", "4 kv heads"),
            (5, 3, 1),
        ),
        ((2, 6, 1), dict(), None, None),
        ((1, 1, 12), dict(), None, None),
    ],
)
def test_a_model_that_the_mesh_does_not_divide(sizes, model, wrong, nearest):
    """Refused: weights would be whole. The nearest sizes that divide it take all devices too, and
    are taken.
    """
    model = dict(width=576, heads=12, kv_heads=12, mlp=1536) | model
    check = lambda sizes: sharding.check_model(AbstractMesh(sizes, sharding.AXES), **model)
    if wrong is None:
        return check(sizes)
    data, fsdp, tensor = nearest
    with errors.raises(
        ValueError, wrong, f"mesh.data={data}, mesh.fsdp={fsdp}, mesh.tensor={tensor}"
    ):
        check(sizes)
    check(nearest)


def test_layout_of_one_array():
    """By the table; an axis that its mesh axis does not divide stays whole."""
    mesh = mesh_of(fsdp=4, tensor=2)
    spec = lambda axes, shape: sharding.of_axes(mesh, axes, shape).spec
    assert spec(("layers", "embed", "heads", "head_dim"), (2, 16, 4, 8)) == PartitionSpec(
        None, "fsdp", "tensor", None
    )
    assert spec(("vocab", "embed"), (31, 16)) == PartitionSpec(None, "fsdp")
    assert spec(("layers", "rank", "mlp"), (2, 2, 24)) == PartitionSpec(None, None, "tensor")


def test_layout_of_a_state():
    """Every part, and the moments of every part, as its parameter; scalars whole; ref where there
    is one.
    """
    mesh = mesh_of(fsdp=4, tensor=2)
    method = bridge.make(
        toys.method_config("bridge", kl_coef=0.1), toys.transformer(), toys.recipes()
    )
    state = jax.eval_shape(method.init, params.abstract(toys.CFG), jax.random.key(0))
    layout = sharding.of_state(mesh, state, THETA_AXES, W_AXES)
    q, A = PartitionSpec(None, "fsdp", "tensor", None), PartitionSpec(None, "fsdp", None)
    for tree in (layout.params.theta, layout.params.theta_hat, layout.ref):
        assert tree["layers"]["q"].spec == q and tree["embed"].spec == PartitionSpec(
            "tensor", "fsdp"
        )
    assert layout.params.w["layers/q"]["A"].spec == A and layout.step.spec == PartitionSpec()
    found = {
        "/".join(str(getattr(key, "name", getattr(key, "key", ""))) for key in path): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(layout.opt_state)
    }
    for suffix, spec in (
        ("mu/theta/layers/q", q),
        ("nu/theta_hat/layers/q", q),
        ("nu/w/layers/q/A", A),
    ):
        assert [found[path] for path in found if path.endswith(suffix)] == [spec], suffix


def test_layout_of_a_state_over_a_frozen_base():
    """The reference and the moments are those of w, and laid out as w is."""
    make = frozen_base.adapter_alone(grpo.make, "grpo")
    method = make(toys.method_config("grpo", kl_coef=0.1), toys.transformer(), toys.recipes())
    state = jax.eval_shape(method.init, params.abstract(toys.CFG), jax.random.key(0))
    layout = sharding.of_state(mesh_of(fsdp=4, tensor=2), state, THETA_AXES, W_AXES)
    assert layout.ref == layout.params.w
    A = layout.params.w["layers/q"]["A"]
    assert A.spec == PartitionSpec(None, "fsdp", None)
    moments = jax.tree_util.tree_leaves_with_path(layout.opt_state.inner_states["lora"])
    of_A = [leaf for path, leaf in moments if jax.tree_util.keystr(path).endswith("q']['A']")]
    assert of_A == [A, A]


@pytest.mark.parametrize(
    "tensor, kv_heads, copies", [(1, 8, 1), (8, 8, 1), (2, 8, 1), (8, 2, 4), (8, 1, 8)]
)
def test_a_kv_head_is_held_once_for_each_device_that_shares_it(tensor, kv_heads, copies):
    """So that the copies lie evenly: no device without a kv head, none with one that it does not
    attend with.
    """
    assert sharding.kv_copies(tensor, kv_heads) == copies and kv_heads * copies % tensor == 0
    mesh = mesh_of(fsdp=8 // tensor, tensor=tensor)
    cache = jax.eval_shape(
        lambda x: sharding.constrain_cache(mesh, x), jnp.zeros((2, 8, kv_heads, 3, 4))
    )
    assert cache.shape == (2, 8, kv_heads * copies, 3, 4)


def test_layout_of_factored_moments():
    """Means over columns lie as layers and rows, means over rows as layers and columns, whichever
    side the heads are on.
    """
    mesh = mesh_of(fsdp=4, tensor=2)
    table = {
        "q": ((2, 128, 4, 64), ("layers", "embed", "heads", "head_dim"), Matrix((1,), (2, 3))),
        "o": ((2, 4, 64, 128), ("layers", "heads", "head_dim", "embed"), Matrix((1, 2), (3,))),
        "norm": ((2, 128), ("layers", "embed"), None),
    }
    matrices = tuple((f"theta/layers/{name}", matrix) for name, (_, _, matrix) in table.items())
    g = {"theta_hat": {"layers": {name: jnp.zeros(shape) for name, (shape, _, _) in table.items()}}}
    moments = optim.scale_by_factored_adam(0.9, 0.999, 1e-8, matrices).init(g)
    axes = {"layers": {name: names for name, (_, names, _) in table.items()}}
    layout = sharding.of_state(mesh, moments, axes, {}, matrices=matrices)
    nu, mu = layout.nu["theta_hat"]["layers"], layout.mu["theta_hat"]["layers"]
    assert nu["q"]["row"].spec == nu["o"]["col"].spec == PartitionSpec(None, "fsdp")
    assert nu["q"]["col"].spec == nu["o"]["row"].spec == PartitionSpec(None, "tensor", None)
    assert nu["norm"].spec == mu["norm"].spec == PartitionSpec(None, "fsdp")
    assert mu["q"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert mu["o"].spec == PartitionSpec(None, "tensor", None, "fsdp")


def test_decoding_has_a_mesh_of_its_own():
    """The same devices in the same order; width is whole, heads lie over decode_tensor devices,
    rows over the others.
    """
    cfg = MeshConfig(data=1, fsdp=4, tensor=2, decode_tensor=4)
    mesh = sharding.make_decode_mesh(cfg)
    assert dict(mesh.shape) == dict(data=2, fsdp=1, tensor=4)
    assert list(mesh.devices.flat) == list(mesh_of(fsdp=4, tensor=2).devices.flat)
    assert dict(sharding.make_decode_mesh(MeshConfig(fsdp=4, tensor=2)).shape) == dict(
        data=4, fsdp=1, tensor=2
    )
    q = sharding.of_axes(mesh, ("layers", "embed", "heads", "head_dim"), (2, 16, 4, 8))
    assert q.shard_shape((2, 16, 4, 8)) == (2, 16, 1, 8)
    cache = jax.ShapeDtypeStruct((2, 8, 4, 6, 8), jnp.float32)
    assert sharding.of_cache(mesh, cache).shard_shape(cache.shape) == (2, 4, 1, 6, 8)
    assert sharding.of_cache(
        mesh, jax.ShapeDtypeStruct((2, 7, 2, 6, 8), jnp.float32)
    ).is_fully_replicated
    with errors.raises(ValueError, "mesh.decode_tensor=3", "8 devices", ": 2.", "1, 2, 4, 8, or 0"):
        sharding.make_decode_mesh(MeshConfig(decode_tensor=3))


@pytest.mark.parametrize(
    "platform, kind, gigabytes, allowed, chosen",
    [
        ("gpu", "NVIDIA H100 80GB HBM3", 16.0, [1, 2, 4], 1),
        ("gpu", "NVIDIA H100 80GB HBM3", 16.1, [1, 2, 4], 2),
        ("gpu", "NVIDIA A100-SXM4-40GB", 16.1, [1, 2, 4], 4),
        ("gpu", "NVIDIA A100-SXM4-40GB", 99.0, [1, 2], 2),
        ("tpu", "TPU v5 lite", 6.2, [1, 2, 4], 2),
        ("tpu", "TPU v5p", 6.2, [1, 2, 4], 2),
        # as mesh.tensor: no room is known, or no number divides
        ("cpu", "cpu", 6.2, [1, 2, 4], 0),
        ("gpu", "a new one", 6.2, [1, 2, 4], 0),
        ("gpu", "NVIDIA H100 80GB HBM3", 6.2, [], 0),
    ],
)
def test_the_layout_of_decoding_is_chosen_for_the_chip(platform, kind, gigabytes, allowed, chosen):
    """By memory on a GPU, by what a token reads on a TPU."""
    device = types.SimpleNamespace(platform=platform, device_kind=kind)
    assert sharding.choose_decode_tensor(device, gigabytes * 1e9, allowed) == chosen


@pytest.mark.parametrize(
    "tensor, heads, kv_heads, nearest, devices",
    [(8, 12, 4, 4, 8), (3, 16, 2, 2, 6), (6, 24, 8, 4, 24), (16, 8, 8, 8, 16), (4, 9, 3, 1, 8)],
)
def test_heads_that_tensor_does_not_divide(tensor, heads, kv_heads, nearest, devices):
    """Refused with the nearest number that does, of those that divide the devices too; devices may
    share one kv head.
    """
    words = (f"mesh.decode_tensor={tensor}", f"{heads} heads", kv_heads, f": {nearest}")
    with errors.raises(ValueError, words):
        sharding.check_heads("mesh.decode_tensor", tensor, heads, kv_heads, devices)
    for fine in (1, 2, 4, 8):
        sharding.check_heads("mesh.decode_tensor", fine, 16, 2, 8)


def test_layout_of_rows():
    """Leading axis over data and fsdp where they divide it; scalars and other leading axes
    whole.
    """
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    layout = sharding.of_rows(
        mesh, {"rows": np.zeros((8, 3)), "odd": np.zeros((6, 3)), "scalar": jnp.float32(1)}
    )
    assert {name: leaf.spec for name, leaf in layout.items()} == {
        "rows": PartitionSpec(("data", "fsdp")),
        "odd": PartitionSpec(),
        "scalar": PartitionSpec(),
    }


@pytest.fixture(scope="module")
def one_device():
    """Method, start, batch, and what one device makes of them."""
    method, update = toys.transformer_bridge()
    state = jax.jit(method.init)(toys.transformer_theta(), jax.random.key(0))
    state = state.replace(
        params=toys.add(state.params, toys.noise_like(state.params, 1, 0.05))
    )  # theta_hat and B elsewhere
    batch = toys.model_batch(0)
    return method, state, batch, update(state, batch)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(dict(fsdp=8), marks=pytest.mark.slow),
        pytest.param(dict(data=8, fsdp=1), marks=pytest.mark.slow),
        dict(data=2, fsdp=2, tensor=2),
    ],
    ids=["fsdp", "data", "all three"],
)
def test_eight_devices_update_as_one(one_device, sizes):
    """State, moments and metrics to 1e-5; the new state is laid out as the old one."""
    _, state, batch, (expected, expected_metrics) = one_device
    mesh = mesh_of(**sizes)
    # the policy of a run, which keeps rows spread over the mesh
    policy = build.make_policy(toys.CFG, settings.Model(), toys.ADAPTER, mesh)
    method = bridge.make(toys.method_config("bridge", **toys.LAM_BY_STEP), policy, toys.linear())
    layout = sharding.of_state(mesh, state, THETA_AXES, W_AXES)
    placed = jax.device_put(state, layout), jax.device_put(batch, sharding.of_rows(mesh, batch))
    after, metrics = jax.jit(method.update, out_shardings=(layout, None))(*placed)
    assert len(placed[1].demos.tokens_BT.addressable_shards) == 8
    if sizes == dict(fsdp=8):
        assert after.params.theta["embed"].addressable_shards[0].data.shape == (32, 2)
    assert (
        toys.change((after.params, after.opt_state), (expected.params, expected.opt_state)) < 1e-5
    )
    for key in expected_metrics:
        np.testing.assert_allclose(
            metrics[key], expected_metrics[key], rtol=1e-4, atol=1e-5, err_msg=key
        )
    assert toys.change(after.params, state.params) > 1e-4
