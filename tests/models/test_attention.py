"""Attention by each of its forms: against a loop in numpy, their gradients, on a mesh of eight
devices.
"""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax.distributed import sharding
from bridge_jax.distributed.sharding import MeshConfig
from bridge_jax.models import attention
from bridge_jax.models.attention import cudnn, over_mesh, reference, splash
from bridge_jax.training import build
from tests import errors, tiny_runs

SPLASH = functools.partial(splash.causal, interpret=True)
FORMS = {
    "reference": reference.causal,
    "xla": attention.causal,
    "cudnn's call": functools.partial(cudnn.causal, implementation="xla"),
    "splash": SPLASH,
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
FAST = {name: form for name, form in FORMS.items() if name != "reference"}
# the kernel of TPUs is interpreted here, which takes longest
fast_forms = pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=pytest.mark.slow if name == "splash" else ())
        for name, form in FAST.items()
    ],
    ids=FAST,
)
P, M, S, T, K, G, H = 2, 2, 4, 3, 2, 3, 5
LENGTHS = np.array([4, 2])


def draw(P=P, M=M, S=S, T=T, K=K, G=G, H=H, seed=0):
    """q [B,T,N,H], k and v [B,K,T,H], prompt (k, v [P,K,S,H], mask [P,S]); unlike scores, so that a
    wrong scale shows.
    """
    rng, B = np.random.RandomState(seed), P * M
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    lengths = rng.randint(1, S + 1, P) if P != len(LENGTHS) else LENGTHS * S // 4
    prompt = normal(P, K, S, H), normal(P, K, S, H), np.arange(S) < lengths[:, None]
    return 2 * normal(B, T, K * G, H), normal(B, K, T, H), normal(B, K, T, H), prompt


def by_loop(q, k, v, prompt=None, window=None):
    """Head by head, over the valid keys alone, the last `window` of them."""
    B, T, N, H = q.shape
    out, G = np.zeros((B, T, N, H)), N // k.shape[1]
    for b in range(B):
        for n in range(N):
            for t in range(T):
                keys, values = k[b, n // G, : t + 1], v[b, n // G, : t + 1]
                if prompt is not None:
                    p, length = (
                        b // (B // len(prompt[2])),
                        prompt[2][b // (B // len(prompt[2]))].sum(),
                    )
                    keys = np.concatenate([prompt[0][p, n // G, :length], keys])
                    values = np.concatenate([prompt[1][p, n // G, :length], values])
                if window is not None:
                    keys, values = keys[-window:], values[-window:]
                weights = np.exp(keys @ q[b, t, n] / np.sqrt(H))
                out[b, t, n] = weights / weights.sum() @ values
    return out


@forms
@pytest.mark.parametrize("with_prompt", [True, False])
def test_against_a_loop(form, with_prompt):
    """G = 3 query heads per kv head; one prompt is shorter than the other."""
    q, k, v, prompt = draw()
    given = (q, k, v, prompt) if with_prompt else (q, k, v)
    np.testing.assert_allclose(
        form(*(jax.tree.map(jnp.asarray, x) for x in given)),
        by_loop(*given),
        rtol=1e-4,
        atol=1e-5,
    )


WINDOWED = {name: form for name, form in FORMS.items() if name != "splash"}
windowed_forms = pytest.mark.parametrize("form", WINDOWED.values(), ids=WINDOWED)


@windowed_forms
@pytest.mark.parametrize("window", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("with_prompt", [True, False])
def test_a_sliding_window(form, window, with_prompt):
    """A traced number of positions, the query's own among them, over the border to the prompt."""
    q, k, v, prompt = draw(S=4, T=5)
    given = (q, k, v, prompt if with_prompt else None)
    found = jax.jit(lambda window, *given: form(*given, window=window))(window, *given)
    np.testing.assert_allclose(found, by_loop(*given, window), rtol=1e-4, atol=1e-5)


@windowed_forms
def test_a_sliding_window_within_segments(form):
    """A window never reaches into the segment before its own."""
    q, k, v, _ = draw(P=1, M=1, T=6, seed=4)
    segment_BT = jnp.asarray([[1, 1, 2, 2, 2, 2]], jnp.int32)
    out = np.asarray(form(*map(jnp.asarray, (q, k, v)), segment_BT=segment_BT, window=2))
    for part in (slice(0, 2), slice(2, 6)):
        alone = by_loop(q[:, part], k[:, :, part], v[:, :, part], window=2)
        np.testing.assert_allclose(out[:, part], alone, rtol=1e-4, atol=1e-5)


def test_windows_are_not_for_the_splash_kernel():
    """On a TPU a model with windows gets the XLA form; splash by name is refused."""
    tpu = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="tpu")], object))
    assert attention.form_of("auto", tpu) == "splash"
    assert attention.form_of("auto", tpu, windows=True) == "xla"
    with errors.raises(ValueError, "'splash'", "windows"):
        attention.check("splash", jnp.bfloat16, 64, tpu, windows=True)


@forms
def test_segments(form):
    """Two sequences in a row, and a tail of nobody: each as if alone."""
    q, k, v, _ = draw(P=2, M=1, T=6, seed=4)
    segment_BT = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 2, 2]], np.int32)
    out = np.asarray(
        form(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), segment_BT=jnp.asarray(segment_BT))
    )
    for b, start, stop in ((0, 0, 2), (0, 2, 5), (1, 0, 4), (1, 4, 6)):
        alone = by_loop(
            q[b : b + 1, start:stop], k[b : b + 1, :, start:stop], v[b : b + 1, :, start:stop]
        )
        np.testing.assert_allclose(out[b : b + 1, start:stop], alone, rtol=1e-4, atol=1e-5)
    assert np.isfinite(out).all()


@fast_forms
def test_gradients_equal_those_of_the_reference(form):
    """In queries, keys and values of both parts, over several tiles of the kernel."""
    q, k, v, prompt = draw(P=2, M=2, S=136, T=260, K=2, G=2, H=8, seed=1)
    weight = np.random.RandomState(2).standard_normal(q.shape).astype(np.float32)

    def gradients(form):
        value = lambda q, k, v, pk, pv: jnp.sum(weight * form(q, k, v, (pk, pv, prompt[2])))
        return jax.jit(jax.grad(value, argnums=(0, 1, 2, 3, 4)))(q, k, v, *prompt[:2])

    for name, mine, theirs in zip(
        ("q", "k", "v", "prompt k", "prompt v"), gradients(form), gradients(reference.causal)
    ):
        assert np.abs(theirs).max() > 0.1, name
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
@fast_forms
def test_gradients_of_several_sequences_in_a_row(form):
    """Packed rows over several tiles: no key is pulled by a query of another sequence."""
    q, k, v, _ = draw(P=2, M=1, S=1, T=260, K=2, G=2, H=8, seed=1)
    segment_BT = np.array(
        [np.repeat([1, 2, 0], [130, 120, 10]), np.repeat([1, 2, 3], [20, 200, 40])], np.int32
    )
    weight = (
        np.random.RandomState(2).standard_normal(q.shape).astype(np.float32)
        * (segment_BT > 0)[:, :, None, None]
    )

    def gradients(form):
        value = lambda q, k, v: jnp.sum(weight * form(q, k, v, segment_BT=jnp.asarray(segment_BT)))
        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))(q, k, v)

    for name, mine, theirs in zip("qkv", gradients(form), gradients(reference.causal)):
        assert np.abs(theirs).max() > 0.1, name
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=2, tensor=4), dict(data=8, fsdp=1)]
)
@pytest.mark.parametrize("kernel", ["splash", "cudnn's, by einsums"])
def test_the_kernel_over_a_mesh(kernel, sizes):
    """Rows and heads on eight devices; with tensor=4 two devices share each of the two kv heads; 2
    prompts do not divide by 8.
    """
    mesh = sharding.make_mesh(MeshConfig(**sizes))
    q, k, v, prompt = draw(P=4 if "tensor" in sizes else 2, M=2, K=2, G=4, seed=3)
    form = (
        over_mesh.causal_over_mesh(SPLASH, mesh)
        if kernel == "splash"
        else attention.choose("cudnn", mesh)
    )
    np.testing.assert_allclose(
        jax.jit(form)(q, k, v, prompt), by_loop(q, k, v, prompt), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(jax.jit(form)(q, k, v), by_loop(q, k, v), rtol=1e-4, atol=1e-5)
    if kernel != "splash":
        found = jax.jit(form)(q, k, v, prompt, window=2)
        np.testing.assert_allclose(found, by_loop(q, k, v, prompt, 2), rtol=1e-4, atol=1e-5)
    B, T = q.shape[:2]
    segment_BT = 1 + (jnp.arange(T) >= 1 + jnp.arange(B)[:, None] % (T - 1)).astype(
        jnp.int32
    )  # cut elsewhere in each row
    apart = attention.causal(q, k, v, segment_BT=segment_BT)
    assert np.abs(apart - by_loop(q, k, v)).max() > 0.1
    np.testing.assert_allclose(
        jax.jit(form)(q, k, v, segment_BT=segment_BT), apart, rtol=1e-4, atol=1e-5
    )


def test_choice():
    """auto on a CPU is the einsums; an unknown form is refused."""
    mesh = sharding.make_mesh(MeshConfig())
    assert attention.choose("auto", mesh) is attention.causal
    with errors.raises(ValueError, "model.attention='flash'", "auto, xla, splash, cudnn"):
        attention.choose("flash", mesh)


def test_a_kernel_for_other_devices_is_told(caplog):
    """A kernel by name on a CPU is warned of; what auto chooses is not."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    attention.check("auto", jnp.bfloat16, 64, mesh)
    assert not caplog.messages
    attention.check("splash", jnp.bfloat16, 64, mesh)
    attention.check("cudnn", jnp.bfloat16, 64, mesh)
    assert [
        words in said
        for words, said in zip(
            ("not for a cpu: Pallas interprets", "made of einsums"), caplog.messages
        )
    ] == [True] * 2


def gpu(capability: str = "9.0"):
    """As much of a mesh of one GPU as the choice of attention asks for."""
    device = types.SimpleNamespace(platform="gpu", compute_capability=capability)
    return types.SimpleNamespace(devices=np.array([device], object), size=1)


BF16, FP32 = jnp.bfloat16, jnp.float32


@pytest.mark.parametrize(
    "capability, dtype, head_dim, form",
    [
        ("9.0", BF16, 128, "cudnn"),
        ("8.0", BF16, 64, "cudnn"),
        ("9.0", BF16, 256, "cudnn"),
        ("9.0", FP32, 128, "xla"),
        ("8.0", BF16, 256, "xla"),
        ("9.0", BF16, 264, "xla"),
        ("9.0", BF16, 60, "xla"),
        ("7.5", BF16, 64, "xla"),
    ],
)
def test_auto_on_a_gpu_is_cudnn_where_it_can(capability, dtype, head_dim, form):
    """cuDNN's kernel is chosen where the GPU, the dtype and the head's width allow it."""
    assert attention.form_of("auto", gpu(capability), dtype, head_dim) == form


@pytest.mark.parametrize(
    "dtype, head_dim, kernel", [(BF16, 64, True), (FP32, 64, False), (BF16, 60, False)]
)
@pytest.mark.parametrize("S, T", [(4, 6), (5, 6), (4, 5), (5, 5), (0, 5)])
def test_what_auto_gives_to_cudnn_passes_jaxs_own_checks(
    monkeypatch, dtype, head_dim, kernel, S, T
):
    """Forward and backward pass as traced for a GPU: jax refuses there what cuDNN does not take; S
    = 0: no prompt.
    """
    stablehlo = pytest.importorskip(
        "jax._src.cudnn.fused_attention_stablehlo", reason="jax has moved its checks"
    )
    monkeypatch.setattr(
        stablehlo, "check_cudnn_version", lambda: 91200
    )  # all else it asks is about the arrays
    attend = attention.choose("auto", gpu())
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, dtype)
    own = shape(4, T, 6, head_dim), shape(4, 2, T, head_dim), shape(4, 2, T, head_dim)
    prompt = (shape(2, 2, S, head_dim), shape(2, 2, S, head_dim)) if S else ()
    mask, segment_BT = jnp.ones((2, S), bool), None if S else jnp.ones((4, T), jnp.int32)
    value = lambda q, k, v, *seen: attend(
        q, k, v, (*seen, mask) if seen else None, segment_BT=segment_BT
    ).sum()
    traced = jax.make_jaxpr(jax.grad(value, argnums=range(3 + len(prompt))))(*own, *prompt)
    assert ("dot_product_attention_bwd" in str(traced)) == kernel
    assert [x.shape for x in traced.out_avals] == [x.shape for x in (*own, *prompt)]


@pytest.mark.parametrize(
    "given, message",
    [
        (
            dict(model__dtype="float32"),
            ("model.dtype=float32", "bfloat16", "model.attention=auto"),
        ),
        (
            dict(model__dtype="bfloat16", model__arch__head_dim=12),
            ("width 12", "multiples of 8", "256"),
        ),
    ],
)
def test_cudnn_by_name_is_refused_where_it_cannot(given, message):
    """Before anything is compiled, on whatever machine; auto takes the same config, and cudnn what
    it can.
    """
    sketch = lambda kind, **given: build.make_setup(
        tiny_runs.config("grpo", model__attention=kind, **given), jax.devices()[:1]
    )
    with errors.raises(ValueError, "model.attention='cudnn'", message):
        sketch("cudnn", **given)
    sketch("auto", **given), sketch("cudnn", model__dtype="bfloat16")
