"""One new file is a new family, with a block of its own: trained and sampled from where it is
found.

The toy differs from every family that ships: norms before and after attention and mlp, a sliding
window on every other layer, a scaled embedding, gelu. Its logits are compared with a model in numpy
that shares no code with it: one row at a time, one position after the other, in float64.
"""

from __future__ import annotations

import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import models
from bridge_jax.distributed import sharding
from bridge_jax.distributed.sharding import MeshConfig
from bridge_jax.models import layers, params
from bridge_jax.sampling import decode_plan, sampler
from bridge_jax.sampling.decode_plan import DecodePlan
from bridge_jax.sampling.draw import Sampling, row_keys
from tests import tiny_runs
from tests.models import tiny
from tests.tiny_runs import quick  # noqa: F401

FILE = pathlib.Path(__file__).parents[1] / "dropin" / "sandwich.py"
HF = tiny.TINY | dict(model_type="sandwich", hidden_act="gelu_pytorch_tanh", sliding_window=3)


@pytest.fixture
def dropped_in(tmp_path, monkeypatch):
    """The file, in a folder where families are looked for."""
    shutil.copy(FILE, tmp_path)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "bridge_jax.models.sandwich", raising=False)
    yield
    sys.modules.pop("bridge_jax.models.sandwich", None)


@pytest.fixture
def toy(dropped_in, tmp_path):
    """(cfg, phi) as read from an HF folder."""
    folder = tiny.write_folder(tmp_path / "model", HF)
    cfg = params.read_config(params.hf_json(folder))
    return cfg, params.load(cfg, folder)


def by_hand(hf: dict, ids) -> np.ndarray:
    """Logits [len(ids), V] in numpy, from the weights by their HF names."""
    N, K, H = hf["num_attention_heads"], hf["num_key_value_heads"], hf["head_dim"]
    weights = {name: array.astype(np.float64) for name, array in tiny.hf_weights(hf).items()}

    def normed(x, name):
        scale = weights[name + ".weight"]
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + hf["rms_norm_eps"]) * scale

    def turned(x, position):
        """[heads, H] at one position: channels i and i + H/2 as a complex number."""
        angle = position * hf["rope_theta"] ** (-np.arange(H // 2) / (H // 2))
        z = (x[:, : H // 2] + 1j * x[:, H // 2 :]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], axis=1)

    x = weights["model.embed_tokens.weight"][ids] * np.sqrt(hf["hidden_size"])
    for layer in range(hf["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        of = lambda h, name: h @ weights[at + name + ".weight"].T
        h = normed(x, at + "input_layernorm")
        q, k, v = (of(h, f"self_attn.{name}_proj").reshape(len(ids), -1, H) for name in "qkv")
        attended = np.zeros((len(ids), N, H))
        for t in range(len(ids)):
            first = 0 if layer % 2 else max(0, t + 1 - hf["sliding_window"])
            for n in range(N):
                own = lambda heads, s: turned(heads[s], s)[n * K // N]
                keys = np.array([own(k, s) for s in range(first, t + 1)])
                scores = keys @ turned(q[t], t)[n] / np.sqrt(H)
                share = np.exp(scores - scores.max())
                attended[t, n] = share / share.sum() @ v[first : t + 1, n * K // N]
        h = of(attended.reshape(len(ids), -1), "self_attn.o_proj")
        x = x + normed(h, at + "attention_output_norm")
        h = normed(x, at + "post_attention_layernorm")
        gate = of(h, "mlp.gate_proj")
        gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        x = x + normed(of(gelu * of(h, "mlp.up_proj"), "mlp.down_proj"), at + "mlp_output_norm")
    return normed(x, "model.norm") @ weights["lm_head.weight"].T


def expected_logits(seqs) -> np.ndarray:
    """by_hand for every completion token of the rows, [B,T,V]; 0 beyond a row's length."""
    B, T = seqs.tokens_BT.shape
    M = B // len(seqs.prompt_len_P)
    logits = np.zeros((B, T, HF["vocab_size"]))
    for b in range(B):
        prompt = seqs.prompt_PS[b // M, : seqs.prompt_len_P[b // M]]
        row = by_hand(HF, np.concatenate([prompt, seqs.tokens_BT[b, : seqs.length_B[b]]]))
        logits[b, : seqs.length_B[b]] = row[len(prompt) - 1 : -1]
    return logits


def test_its_logits_are_those_of_the_reference(toy):
    """By the training pass, and by prefill and decoding."""
    cfg, phi = toy
    assert "sandwich" in params.families() and cfg.family == "sandwich"
    seqs = tiny.rows()
    mask, expected = tiny.inside(seqs), expected_logits(seqs)
    assert mask.sum() > 12 and np.abs(expected[mask]).std() > 0.5
    close = dict(rtol=0, atol=2e-4)
    np.testing.assert_allclose(tiny.logits(cfg, phi, seqs)[mask], expected[mask], **close)
    decoded_BTV = np.asarray(tiny.decoded(cfg, phi, seqs) @ layers.head_weights(cfg, phi).T)
    np.testing.assert_allclose(decoded_BTV[mask], expected[mask], **close)


@pytest.mark.slow
def test_it_is_sampled_from_by_every_plan(toy):
    """The same tokens by the plain plan, one CPU device's and a mesh's; scored by the reference."""
    cfg, phi = toy
    seqs, T = tiny.rows(P=8), 10
    given = seqs.prompt_PS, seqs.prompt_len_P, row_keys(jax.random.key(0), 0, jnp.arange(8), 2)
    sampling = Sampling(jnp.float32(1.0), jnp.asarray([2, 5]), jnp.int32(T))
    one = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    mesh = sharding.make_decode_mesh(MeshConfig(fsdp=8, decode_tensor=2))
    plans = DecodePlan(T, loops=((2, 4), (10,)), compactions=2), decode_plan.choose(mesh, T)
    run = lambda plan: jax.jit(lambda *given: sampler.sample(cfg, *given, sampling, plan))(
        phi, *given
    )
    plain = run(DecodePlan(T))
    for plan in (*plans, decode_plan.choose(one, T)):
        fast = run(plan)
        np.testing.assert_array_equal(fast.seqs.tokens_BT, plain.seqs.tokens_BT)
        np.testing.assert_allclose(fast.logp_BT, plain.logp_BT, atol=1e-4)
    seqs = jax.tree.map(np.asarray, plain.seqs)
    mask, logits = tiny.inside(seqs), expected_logits(seqs)
    logp_BT = np.take_along_axis(
        logits - np.log(np.exp(logits).sum(-1, keepdims=True)), seqs.tokens_BT[..., None], axis=-1
    )[..., 0]
    np.testing.assert_allclose(np.asarray(plain.logp_BT)[mask], logp_BT[mask], atol=2e-4)


@pytest.mark.slow
def test_it_is_trained(dropped_in, quick, tmp_path):
    """BRIDGE, whole runs: its parameters move, and the sampler's log-probabilities are the
    trainer's.
    """
    keys = dict(model_type="sandwich", hidden_act="gelu_pytorch_tanh", sliding_window=3)
    given = {f"model__arch__{key}": value for key, value in keys.items()}
    assert tiny_runs.go(tmp_path / "run", steps=3, **given)["step"] == 3
    lines = tiny_runs.lines(tmp_path / "run")
    assert max(line["rollout/logp_error"] for line in lines if "rollout/logp_error" in line) < 1e-4
    moved = tiny_runs.state(tmp_path / "run", steps=3, **given)
    theta = {key: x for key, x in moved.items() if key.startswith(".params.theta[")}
    norms = [key for key in theta if "out_norm" in key]
    assert len(norms) == 2 and all(np.abs(theta[key] - 1).max() > 1e-4 for key in norms)
