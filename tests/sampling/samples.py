"""Samples of a tiny model: its prompts, settings and keys."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from bridge_jax.sampling import sampler
from bridge_jax.sampling.decode_plan import DecodePlan
from bridge_jax.sampling.draw import Sampling, row_keys
from tests import toys

T, M = 8, 3


NEVER = jnp.array([-1], jnp.int32)


PROMPTS = ([3, 9, 4, 1, 5], [7], [30, 2, 2])  # ragged


traces = []


@functools.partial(jax.jit, static_argnums=5)
def sample(phi, prompt_PS, prompt_len_P, key_B, settings, plan) -> sampler.Samples:
    """Counts its own traces."""
    traces.append(prompt_PS.shape)
    return sampler.sample(toys.CFG, phi, prompt_PS, prompt_len_P, key_B, settings, plan)


def pad(prompts, S: int, filler: int = 17):
    """Right-padded int32 [P,S] and lengths."""
    rows = [[*prompt, *[filler] * (S - len(prompt))] for prompt in prompts]
    return jnp.asarray(rows, jnp.int32), jnp.asarray([len(prompt) for prompt in prompts], jnp.int32)


def settings(temperature: float = 1.0, eos=NEVER, limit: int = T) -> Sampling:
    """Traced settings."""
    return Sampling(jnp.float32(temperature), jnp.asarray(eos, jnp.int32), jnp.int32(limit))


def run(
    phi,
    prompts=PROMPTS,
    ids=(11, 12, 13),
    S: int = 5,
    filler: int = 17,
    samples: int = M,
    step: int = 0,
    plan: DecodePlan = DecodePlan(T),
    **chosen,
) -> sampler.Samples:
    """Sample these prompts, whose ids are part of the key."""
    keys = row_keys(jax.random.key(0), step, jnp.asarray(ids), samples)
    return sample(phi, *pad(prompts, S, filler), keys, settings(**chosen), plan)
