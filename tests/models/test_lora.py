"""The adapter as a pytree: nothing at the start, its pull is autodiff's, and PEFT's file says the
same matrices.
"""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from bridge_jax.models import layers, llama, lora, params
from bridge_jax.sampling import draw, sampler
from bridge_jax.sampling.decode_plan import DecodePlan
from bridge_jax.training import policy
from tests import errors, toys

TARGETS = (
    "layers/q",
    "layers/k",
    "layers/v",
    "layers/o",
    "layers/gate",
    "layers/up",
    "layers/down",
)


@pytest.fixture(scope="module")
def theta():
    """Base weights."""
    return toys.transformer_theta()


@pytest.fixture(scope="module")
def w():
    """An adapter in the middle of training: B is not 0."""
    start = lora.init(toys.CFG, toys.ADAPTER, jax.random.key(1))
    return toys.add(start, toys.noise_like(start, 2, 0.1))


def test_shapes_and_start():
    """Every attention and mlp matrix; A within +-1/sqrt(fan-in), spread over it; B = 0; keys differ
    by path.
    """
    w = lora.init(toys.CFG, toys.ADAPTER, jax.random.key(0))
    assert set(w) == set(TARGETS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), w) == jax.tree.map(
        lambda x: (x.shape, x.dtype), lora.abstract(toys.CFG, toys.ADAPTER)
    )
    assert w["layers/q"]["A"].shape == (2, 16, 2) and w["layers/q"]["B"].shape == (2, 2, 32)
    assert w["layers/o"]["A"].shape == (2, 32, 2) and w["layers/o"]["B"].shape == (2, 2, 16)
    for path, pair in w.items():
        bound = {"layers/o": 32, "layers/down": 24}.get(path, 16) ** -0.5
        assert not pair["B"].any() and 0.8 * bound < jnp.abs(pair["A"]).max() <= bound
        axes = lora.logical_axes(toys.CFG, toys.ADAPTER)[path]
        assert {name: len(axes[name]) for name in "AB"} == {name: pair[name].ndim for name in "AB"}
    assert not np.array_equal(w["layers/q"]["A"], w["layers/k"]["A"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_merge_with_B_zero_is_the_base(theta, dtype):
    """Bit for bit, and bit for bit without w."""
    w = lora.init(toys.CFG, toys.ADAPTER, jax.random.key(0))
    cast = jax.tree.map(lambda x: x.astype(dtype), theta)
    assert toys.same_bits(lora.merge(toys.ADAPTER, theta, w, dtype), cast)
    assert toys.same_bits(lora.merge(toys.ADAPTER, theta, None, dtype), cast)


def test_merge_adds_before_it_rounds(theta, w):
    """W + (alpha / r) A B by numpy, every layer; other tensors untouched; bf16 is one rounding of
    the fp32 sum.
    """
    phi = lora.merge(toys.ADAPTER, theta, w)
    for path in TARGETS:
        name = path.split("/")[1]
        for layer in range(toys.CFG.layers):
            A, B = (np.asarray(w[path][key][layer]) for key in "AB")
            expected = np.asarray(theta["layers"][name][layer]) + 4 / 2 * (A @ B).reshape(
                theta["layers"][name].shape[1:]
            )
            np.testing.assert_allclose(phi["layers"][name][layer], expected, rtol=1e-5, atol=1e-6)
    assert toys.same_bits(
        (phi["embed"], phi["layers"]["attn_norm"]), (theta["embed"], theta["layers"]["attn_norm"])
    )
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), phi)
    assert toys.same_bits(lora.merge(toys.ADAPTER, theta, w, jnp.bfloat16), rounded)


def test_pull_is_the_transpose_of_merge(theta, w):
    """Equal to jax.grad through merge for a random gradient in phi; fp32 even from bf16; theta's
    leaves do not leak in.
    """
    G = toys.noise_like(theta, 3, 1.0)

    def paired(w):
        phi = lora.merge(toys.ADAPTER, theta, w)
        return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(G), jax.tree.leaves(phi)))

    pulled = lora.pull(toys.ADAPTER, w, G)
    assert toys.change(pulled, jax.jit(jax.grad(paired))(w)) < 1e-5
    half = lora.pull(toys.ADAPTER, w, jax.tree.map(lambda x: x.astype(jnp.bfloat16), G))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.float32)}
    assert toys.change(half, pulled) < 0.02


def test_pull_at_the_start_moves_B_alone(theta):
    """With B = 0 the gradient in A is exactly 0, that in B is not."""
    w = lora.init(toys.CFG, toys.ADAPTER, jax.random.key(0))
    pulled = lora.pull(toys.ADAPTER, w, toys.noise_like(theta, 3, 1.0))
    assert all(not pair["A"].any() and pair["B"].any() for pair in pulled.values())


def test_bad_targets():
    """No match, a tensor that is no matrix of a layer, and a rank of 0 are refused; the message
    lists what may be named.
    """
    wrong = lambda **fields: lora.targets(toys.CFG, lora.Lora(**fields))
    with errors.raises(ValueError, "model.lora_targets='q_proj'", "layers/q, layers/k"):
        wrong(targets="q_proj")
    for pattern, culprit in (("layers/(q|q_norm)", "layers/q_norm"), ("embed|layers/q", "embed")):
        with errors.raises(ValueError, f"model.lora_targets={pattern!r}", culprit):
            wrong(targets=pattern)
    with errors.raises(ValueError, "model.lora_rank=0", "1 or more"):
        wrong(rank=0)
    assert list(lora.targets(toys.CFG, lora.Lora(targets="layers/[qv]"))) == [
        "layers/q",
        "layers/v",
    ]


def hf_matrix(path: str, x) -> np.ndarray:
    """One layer's matrix in HF's layout [out, in]."""
    return params.to_hf(toys.CFG.tensors()[path], np.asarray(x))


def test_peft_file(w, theta, tmp_path):
    """PEFT's names and shapes; HF's W + (alpha / r) B A from the file is the merged matrix."""
    lora.save_peft(toys.CFG, toys.ADAPTER, w, str(tmp_path / "adapter"), "base/model")
    arrays = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(arrays) == 2 * 7 * toys.CFG.layers
    merged = lora.merge(toys.ADAPTER, theta, w)
    for path in TARGETS:
        name = path.split("/")[1]
        module = ("self_attn." if name in "qkvo" else "mlp.") + f"{name}_proj"
        for layer in range(toys.CFG.layers):
            stem = f"base_model.model.model.layers.{layer}.{module}"
            A, B = arrays[f"{stem}.lora_A.weight"], arrays[f"{stem}.lora_B.weight"]
            base = hf_matrix(path, theta["layers"][name][layer])
            assert (
                A.shape == (2, base.shape[1])
                and B.shape == (base.shape[0], 2)
                and A.dtype == np.float32
            )
            np.testing.assert_allclose(
                base + 4 / 2 * B @ A,
                hf_matrix(path, merged["layers"][name][layer]),
                rtol=1e-5,
                atol=1e-6,
            )
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["r"] == 2 and written["lora_alpha"] == 4.0 and written["peft_type"] == "LORA"
    assert written["base_model_name_or_path"] == "base/model"
    assert written["target_modules"] == sorted(
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    )


@pytest.mark.parity
def test_peft_loads_the_adapter(tmp_path):
    """transformers + PEFT, base and adapter from our files: the logits of the merged model."""
    torch = pytest.importorskip("torch", reason="PEFT's own forward pass needs torch")
    peft = pytest.importorskip("peft", reason="the adapter is loaded by PEFT itself")
    import transformers

    from tests.models import tiny

    hf = tiny.TINY | dict(model_type="llama")
    cfg = llama.Config.from_hf(hf)
    theta = params.load(cfg, tiny.write_folder(tmp_path / "base", hf))
    w = lora.init(cfg, toys.ADAPTER, jax.random.key(1))
    w = toys.add(w, toys.noise_like(w, 2, 0.1))
    lora.save_peft(cfg, toys.ADAPTER, w, str(tmp_path / "adapter"), str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    seqs = tiny.rows(0)
    expected = tiny.torch_logits(model, seqs)
    ours = tiny.logits(cfg, lora.merge(toys.ADAPTER, theta, w), seqs)
    inside = tiny.inside(seqs)
    np.testing.assert_allclose(ours[inside], expected[inside], atol=2e-4)
    assert (
        np.abs(tiny.logits(cfg, theta, seqs) - expected)[inside].max() > 0.1
    )  # the adapter matters
    assert layers.head_weights(cfg, theta).shape[0] == hf["vocab_size"]


@pytest.mark.slow
def test_fp32_is_fp32_on_every_machine():
    """An accelerator rounds what fp32 matmuls are given unless told otherwise. merge, pull and all
    passes of an fp32 model tell it, those of a bf16 model need not, but for the fp32 sums of its
    five norms' gradients.
    """
    batch, theta, w = (
        toys.model_batch(0),
        toys.transformer_theta(),
        lora.init(toys.CFG, toys.ADAPTER, jax.random.key(0)),
    )
    seqs, G = batch.demos, jax.tree.map(jnp.ones_like, theta)
    said = lambda f, *given: re.findall(
        r"dot_general\[\s+dimension.*?\n\s+\]", str(jax.make_jaxpr(f)(*given)), re.S
    )
    exact = lambda dots: len(dots) > 3 and all("HIGHEST" in dot for dot in dots)
    assert exact(said(lambda w: lora.merge(toys.ADAPTER, theta, w, jnp.bfloat16), w)) and exact(
        said(lambda w: lora.pull(toys.ADAPTER, w, G), w)
    )
    sampling = draw.Sampling(jnp.float32(1.0), jnp.asarray([0]), jnp.int32(4))
    sample = lambda phi: sampler.sample(
        toys.CFG,
        phi,
        seqs.prompt_PS,
        seqs.prompt_len_P,
        jax.random.split(jax.random.key(0), len(seqs.prompt_len_P)),
        sampling,
        DecodePlan(4),
    )
    for dtype in (jnp.float32, jnp.bfloat16):
        phi, on = (
            jax.tree.map(lambda x: x.astype(dtype), theta),
            policy.make(toys.CFG, toys.ADAPTER, dtype),
        )
        passed = said(jax.grad(lambda phi: on.logp(phi, seqs, jnp.float32(1.0))[0].sum()), phi)
        drawn = [dot for dot in said(sample, phi) if dtype == jnp.float32]
        precise = sum(exact([dot] * 4) for dot in passed + drawn)
        assert len(passed) > 20 and precise == (len(passed + drawn) if dtype == jnp.float32 else 5)
