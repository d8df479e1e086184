"""The sampler: prefill; while not all rows are done: draw a token per row, decode it.

Each prompt is prefilled once for its M samples. All speed-ups are in one argument, the DecodePlan.
Under the plain plan, `DecodePlan()`, `while_not_done` is a while loop over all rows and the whole
cache. A plan changes no token, and log-probabilities only by rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bridge_jax.data.batches import PromptBatch
from bridge_jax.models import layers
from bridge_jax.models.logprobs import logits_of
from bridge_jax.models.precision import matmul_precision
from bridge_jax.sampling.decode_plan import DecodePlan
from bridge_jax.sampling.draw import Sampling, draw, ends, row_keys
from bridge_jax.sampling.loops import DecodeInputs, Outputs, State, while_not_done
from bridge_jax.types import Sequences, Tree


class Samples(NamedTuple):
    """Completions, their log-probabilities, and whether they ended with an eos id."""

    seqs: Sequences
    logp_BT: jax.Array  # float32
    stopped_B: jax.Array  # bool: ended by an eos id, not by the limit


def sample(
    cfg: layers.Config,
    phi: Tree,
    prompt_PS: jax.Array,
    prompt_len_P: jax.Array,
    key_B: jax.Array,
    sampling: Sampling,
    plan: DecodePlan = DecodePlan(),
) -> Samples:
    """B / P completions of every prompt, of at most sampling.limit tokens; the caller compiles it.

    phi: merged weights in the compute dtype. key_B: from row_keys. cfg and plan are static.
    """
    precise = jax.default_matmul_precision(matmul_precision(phi["embed"].dtype))
    head_VD, phi = layers.head_weights(cfg, phi), plan.to_storage(phi)
    prefill = precise(functools.partial(layers.prefill, attend=plan.prefill_attention))
    first_PD, cache = prefill(cfg, phi, prompt_PS, prompt_len_P, plan.storage_dtype)
    rows = DecodeInputs(key_B, prompt_len_P, plan.place_cache(cache))

    def step(rows: DecodeInputs, state: State, attend) -> State:
        """Draws token t of every row and decodes it."""
        t, outputs = state.t, state.outputs
        logits_BV = logits_of(state.hidden_BD, head_VD)
        token_B, logp_B = draw(logits_BV, rows.key_B, t, sampling.temperature)
        outputs, token_B = outputs.append(t, token_B, logp_B, ends(token_B, sampling.eos_E))
        hidden_BD, cache = precise(layers.decode)(
            cfg, phi, token_B, t, rows.prompt_len_P, rows.prompt_cache, state.cache, attend
        )
        return State(t + 1, hidden_BD, cache, outputs)

    B, P, T = key_B.shape[0], prompt_len_P.shape[0], plan.max_new
    cache = plan.place_cache(layers.empty_cache(cfg, B, T, plan.storage_dtype))
    start = State(jnp.int32(0), jnp.repeat(first_PD, B // P, axis=0), cache, Outputs.empty(B, T))
    limit = jnp.minimum(sampling.limit, T)
    outputs = while_not_done(plan, step, rows, start, limit)
    seqs = Sequences(prompt_PS, prompt_len_P, outputs.tokens_BT, outputs.length_B)
    return Samples(seqs, outputs.logp_BT, outputs.done_B)


def make(cfg: layers.Config, eos_ids: Sequence[int], max_new: int) -> Callable:
    """sample(phi, prompts, key, M=1, temperature=1.0) -> Samples on the host, for interactive use.

    prompts: a PromptBatch; M samples of each; temperature 0 is greedy. A prompt's samples depend on
    the key and on the problem's id, not on the batch. The plain plan on one device; compiles once
    for each shape. Training and evaluation compile programs of their own, with faster plans.
    """
    compiled = jax.jit(functools.partial(sample, cfg, plan=DecodePlan(max_new)))
    eos_E, limit = jnp.asarray(eos_ids, jnp.int32), jnp.int32(max_new)

    def sample_prompts(
        phi: Tree, prompts: PromptBatch, key: jax.Array, M: int = 1, temperature: float = 1.0
    ) -> Samples:
        key_B = row_keys(key, 0, jnp.asarray(prompts.ids_P), M)
        settings = Sampling(jnp.float32(temperature), eos_E, limit)
        return jax.device_get(
            compiled(phi, prompts.prompt_PS, prompts.prompt_len_P, key_B, settings)
        )

    return sample_prompts
