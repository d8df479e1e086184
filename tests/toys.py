"""Small policies and batches, shared by the tests: a Qwen3-shaped model, and a bigram table that
learns in a few steps.

The bigram policy is pi(token | token before) = softmax(table[before] / temperature); the token
before the first one is the prompt's last. It is exact in any precision, and all of its sequences
can be enumerated.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bridge_jax import methods, objectives
from bridge_jax.config import schema
from bridge_jax.methods import bridge, bridge_variants
from bridge_jax.models import layers, logprobs, lora, params, qwen3
from bridge_jax.optim import Recipe, Recipes
from bridge_jax.training import build
from bridge_jax.types import Batch, Matrix, Params, Policy, Rollouts, Sequences, TrainState

CFG = qwen3.Config(
    family="qwen3",
    vocab=32,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=24,
    rope_theta=1e4,
    rms_eps=1e-6,
    tied=True,
    max_positions=128,
    eos_ids=(0,),
    init_std=0.3,
)
ADAPTER = lora.Lora(rank=2, alpha=4.0)  # on all seven matrices
V = 6  # tokens of the bigram policy; 0 ends a sequence
RANK = 2  # of its adapter
# compiler options that undo the flags of conftest.py: what a user's program is compiled with
AS_USERS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


# what the optimizer is told of both toys: of the model its tensor table, of the bigram policy that
# all of it are matrices
SQUARE = Matrix(rows=(0,), columns=(1,))
MATRICES = (
    *build.matrices(CFG, ADAPTER),
    *((path, SQUARE) for path in ("theta/table", "w/A", "w/B")),
)


def recipes(base: float = 1e-2, lora_rate: float = 1e-2, **fields) -> Recipes:
    """Two recipes that differ in their learning rates alone."""
    return Recipes(
        Recipe(learning_rate=base, **fields),
        Recipe(learning_rate=lora_rate, **fields),
        matrices=MATRICES,
    )


def linear(base: float = 1.0, lora_rate: float = 1.0) -> Recipes:
    """Recipes under which the update is nearly proportional to the gradient, so that rounding is
    not blown up by Adam.
    """
    return recipes(base, lora_rate, eps=10.0, clip_norm=0.0)


def transformer(dtype=jnp.float32) -> Policy:
    """The policy of the Qwen3-shaped model."""

    def logp(phi, seqs: Sequences, temperature):
        hidden_BTD = layers.forward(CFG, phi, seqs)
        return logprobs.token_logp(
            hidden_BTD, layers.head_weights(CFG, phi), seqs.tokens_BT, temperature
        )

    return Policy(
        logp,
        merge=lambda theta, w: lora.merge(ADAPTER, theta, w, dtype),
        pull=lambda w, G: lora.pull(ADAPTER, w, G),
        init_w=lambda key: lora.init(CFG, ADAPTER, key),
    )


def transformer_theta(seed: int = 0):
    """Its base weights; sharp enough that every tensor matters."""
    return jax.jit(lambda key: params.init(CFG, key))(jax.random.key(seed))


# lam of BRIDGE by the step at which a state starts: one program serves all three
LAM = {0.5: 0, 1.0: 1000, 0.0: 2000}
LAM_BY_STEP = dict(
    lam_schedule__kind="step",
    lam_schedule__boundaries=(1000, 2000),
    lam_schedule__values=(1.0, 0.0),
)


@functools.cache
def transformer_bridge():
    """BRIDGE on the Qwen3-shaped model and its compiled update, which costs seconds: for batches of
    `model_batch` alone.
    """
    method = bridge.make(method_config("bridge", **LAM_BY_STEP), transformer(), linear())
    return method, jax.jit(method.update)


def noise_like(tree, seed: int, scale: float):
    """A tree of the same shape with normal entries."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype), tree)


def add(a, b):
    """Sum of two trees."""
    return jax.tree.map(jnp.add, a, b)


def sequences(
    seed: int, P: int, M: int, S: int = 5, T: int = 6, vocab: int = CFG.vocab
) -> Sequences:
    """Ragged random rows; the first prompt and the first completion are full, pads are random
    tokens.
    """
    rng = np.random.default_rng(seed)
    prompt_len, length = rng.integers(1, S + 1, P), rng.integers(1, T + 1, P * M)
    prompt_len[0], length[0] = S, T
    ints = lambda x: jnp.asarray(x, jnp.int32)
    return Sequences(
        ints(rng.integers(0, vocab, (P, S))),
        ints(prompt_len),
        ints(rng.integers(0, vocab, (P * M, T))),
        ints(length),
    )


def rollouts(seed: int, P: int = 4, M: int = 4, temperature: float = 1.0, **shape) -> Rollouts:
    """Random completions with random rewards: enough for every identity that does not care where
    samples come from.
    """
    seqs = sequences(seed, P, M, **shape)
    reward_B = np.random.default_rng(seed + 1).integers(0, 2, P * M)
    logp_BT = jnp.zeros(seqs.tokens_BT.shape, jnp.float32)
    return Rollouts(seqs, logp_BT, jnp.asarray(reward_B, jnp.float32), jnp.float32(temperature))


def batch(seed: int, P: int = 4, M: int = 4, demos: int = 8, **shape) -> Batch:
    """Random demos and rollouts; both policies sampled the same ones."""
    rows = rollouts(seed, P, M, **shape)
    return Batch(sequences(seed + 2, demos, 1, **shape), {"theta": rows, "theta_hat": rows})


def model_batch(seed: int) -> Batch:
    """8 prompts x 2 samples and 8 demos for the model."""
    return batch(seed, P=8, M=2, demos=8)


def change(new, old) -> float:
    """Largest relative distance, in norm, of two leaves of the same tree."""
    size = lambda x: float(np.linalg.norm(np.asarray(x, np.float64)))
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    return max(
        size(np.asarray(a, np.float64) - np.asarray(b, np.float64)) / max(size(b), 1e-30)
        for a, b in pairs
    )


def same_bits(a, b) -> bool:
    """Whether two trees are equal bit for bit."""
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# ---- the bigram policy


def before(seqs: Sequences) -> jax.Array:
    """The token before each completion token [B,T]."""
    P, B = seqs.prompt_len_P.shape[0], seqs.length_B.shape[0]
    last_P = seqs.prompt_PS[jnp.arange(P), seqs.prompt_len_P - 1]
    return jnp.concatenate([jnp.repeat(last_P, B // P)[:, None], seqs.tokens_BT[:, :-1]], axis=1)


def bigram_logp(phi, seqs: Sequences, temperature):
    """Log-probabilities and entropies of the table."""
    logp_BTV = jax.nn.log_softmax(phi["table"][before(seqs)] / temperature)
    entropy_BT = -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1)
    return jnp.take_along_axis(logp_BTV, seqs.tokens_BT[..., None], axis=-1)[..., 0], entropy_BT


def bigram_merge(theta, w):
    """table + A B."""
    return {"table": theta["table"] if w is None else theta["table"] + w["A"] @ w["B"]}


def bigram() -> Policy:
    """The policy of the table."""
    init_w = lambda key: {
        "A": jax.random.normal(key, (V, RANK), jnp.float32),
        "B": jnp.zeros((RANK, V), jnp.float32),
    }
    pull = lambda w, G: {"A": G["table"] @ w["B"].T, "B": w["A"].T @ G["table"]}
    return Policy(bigram_logp, bigram_merge, pull, init_w)


def bigram_theta(seed: int = 0, scale: float = 1.0):
    """A random table."""
    return {
        "table": jnp.asarray(
            scale * np.random.default_rng(seed).standard_normal((V, V)), jnp.float32
        )
    }


def bigram_sample(phi, key, prompt_P, M: int, T: int = 3) -> Sequences:
    """M completions of each one-token prompt; 0 ends a row."""

    def step(last_B, key):
        token_B = jax.random.categorical(key, phi["table"][last_B]).astype(jnp.int32)
        return token_B, token_B

    _, tokens_TB = jax.lax.scan(step, jnp.repeat(prompt_P, M), jax.random.split(key, T))
    ended_BT = tokens_TB.T == 0
    length_B = jnp.where(ended_BT.any(axis=1), ended_BT.argmax(axis=1) + 1, T).astype(jnp.int32)
    return Sequences(prompt_P[:, None], jnp.ones_like(prompt_P), tokens_TB.T, length_B)


def right_answer(prompt_P):
    """The first token that is rewarded, in 1..V-1."""
    return prompt_P % (V - 1) + 1


def bigram_batch(policies: dict, key, P: int = 8, M: int = 8, demos: int = 8) -> Batch:
    """Sampled and graded: reward 1 where the first token is right; demos state it and stop.
    policies: name -> phi.
    """
    prompt_P = jnp.arange(P, dtype=jnp.int32) % V

    def roll(phi):
        seqs = bigram_sample(phi, key, prompt_P, M)
        reward_B = (seqs.tokens_BT[:, 0] == jnp.repeat(right_answer(prompt_P), M)).astype(
            jnp.float32
        )
        return Rollouts(seqs, bigram_logp(phi, seqs, 1.0)[0], reward_B, jnp.float32(1.0))

    asked = jnp.arange(demos, dtype=jnp.int32) % V
    tokens_BT = jnp.stack(
        [right_answer(asked), jnp.zeros_like(asked), jnp.zeros_like(asked)], axis=1
    )
    demo_rows = Sequences(
        asked[:, None], jnp.ones_like(asked), tokens_BT, jnp.full(demos, 2, jnp.int32)
    )
    return Batch(demo_rows, {name: roll(phi) for name, phi in policies.items()})


def bigram_success(phi) -> float:
    """Exact expected reward, averaged over the prompts."""
    prompt_P = jnp.arange(V)
    return float(jax.nn.softmax(phi["table"])[prompt_P, right_answer(prompt_P)].mean())


def method_config(name: str, **given):
    """The Config of a method; keys of its groups with two underscores,
    lam_schedule__kind="linear".
    """
    group = {}
    for key, value in given.items():
        *places, last = key.split("__")
        place = group
        for part in places:
            place = place.setdefault(part, {})
        place[last] = value
    return schema.section(
        {f"method.{name}": ConfigDict(group)}, f"method.{name}", methods.load(name).Config
    )


def directions(rl, sft, hat, lam, params: Params, policy: Policy, **given) -> Params:
    """The directions of bridge.step: nothing moves, so that all are taken at `params`.

    rl, sft, hat: each a function of phi, and of what bridge.step gives beside it -> (G, J, aux).
    """
    found = {}

    def ascend(state, part: str, G, finite):
        found[part] = G
        return state, {}

    as_pass = lambda of: lambda *args, **kwargs: objectives.Pass(*of(*args))
    passes = bridge_variants.Passes(*map(as_pass, (rl, sft, hat)), **given)
    state = TrainState(jnp.int32(0), params, None)
    bridge.step(state, lam, policy, passes, ascend, lambda params: params.theta_hat)
    return Params(**found)


def equations(jaxpr):
    """All equations of a jaxpr, those within others too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from equations(inner)
