"""The form of attention that the run takes, beside the formula: forward, backward, odd lengths.

The run's heads and widths and compute dtype; a few short rows. The formula is computed in fp32 from
the same numbers. The case "far below zero" is one in which a version of cuDNN gave gradients that
are no numbers (github.com/pytorch/pytorch/issues/196678).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.distributed import arrays, sharding
from bridge_jax.models import attention, layers
from bridge_jax.models.attention import reference
from bridge_jax.preflight.precision import relative
from bridge_jax.preflight.record import FAIL, Record, graded
from bridge_jax.preflight.subject import Subject
from bridge_jax.training.settings import dtype_of

# relative errors, of outputs and of gradients: roundings of the dtype, summed over the keys
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


class Case(NamedTuple):
    """Lengths and segments of the rows."""

    name: str
    queries: int
    prompt: int = 0  # length of the shared prompts, some of which are shorter
    segments: int = 0  # sequences packed into each row
    logit: float = 0.0  # added to every logit


CASES = (
    Case("with a prompt", 131, prompt=77),
    Case("alone", 65),
    Case("packed", 129, segments=3),
    Case("far below zero", 192, logit=-120.0),
)


def check(subject: Subject) -> Record:
    """All cases with the attention that model.attention chooses on the training mesh."""
    setup = subject.setup
    model, windows = setup.settings.model, layers.has_windows(setup.cfg)
    dtype = dtype_of("model.dtype", model.dtype)
    form = attention.form_of(model.attention, setup.mesh, dtype, setup.cfg.head_dim, windows)
    chosen = attention.choose(model.attention, setup.mesh, windows)
    return judge(chosen, form, setup)


def judge(chosen: Callable, form: str, setup) -> Record:
    """`chosen`, a `causal` attention on setup.mesh, beside reference.causal."""
    dtype, name = setup.settings.model.dtype, "attention"
    errors = {case.name: error_of(chosen, case, setup) for case in CASES}
    case = max(errors, key=lambda key: (not np.isfinite(errors[key]), errors[key]))
    text = (
        f"{form}, {setup.cfg.heads} heads of {setup.cfg.head_dim} over {setup.cfg.kv_heads}, "
        f"{dtype}: within {errors[case]:.1e} of the formula, gradients too "
        f"(worst of {len(CASES)}: {case})"
    )
    if not np.isfinite(errors[case]):
        text = f"{form}, {dtype}: no numbers in the output or in a gradient ({case})"
        return Record(name, FAIL, text, "set model.attention=xla, or update cuDNN or libtpu")
    way_out = "set model.attention=xla, and report the versions that experiments.preflight prints"
    return graded(name, text, errors[case] < TOLERANCE[dtype], way_out)


def error_of(chosen: Callable, case: Case, setup) -> float:
    """The largest relative error of output and gradients; nan where one has no number.

    Of a case with a large logit only that there are numbers: its keys are large and their gradients
    cancel, so that a relative error would be one of rounding.
    """
    given = inputs(case, setup)
    dtype = dtype_of("model.dtype", setup.settings.model.dtype)
    # rounded once, so that both have the same numbers
    rounded = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, dtype)), given)
    exact = jax.tree.map(lambda x: x.astype(np.float32), rounded)
    mesh, device = setup.mesh, jax.local_devices()[0]
    placed = arrays.place(rounded, sharding.of_rows(mesh, rounded))
    found = evaluate(chosen, placed, case)
    expected = evaluate(reference.causal, jax.device_put(exact, device), case)
    found = arrays.device_get("attention of the checks", found)
    errors = [relative(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected))]
    return float(0.0 * np.sum(errors) if case.logit else np.max(errors))


def inputs(case: Case, setup) -> tuple:
    """(q, k, v, keys and values of the prompts or None, weights of the outputs), fp32."""
    rng, cfg = np.random.default_rng(case.queries), setup.cfg
    P = setup.mesh.shape["data"] * setup.mesh.shape["fsdp"]
    B, T, N, K, H = 2 * P, case.queries, cfg.heads, cfg.kv_heads, cfg.head_dim
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    q, k, v = draw(B, T, N, H), draw(B, K, T, H), draw(B, K, T, H)
    if case.logit:
        q, k = 0.1 * q, 0.1 * k
        q[..., 0], k[..., 0] = 1.0, case.logit * H**0.5
    prompt = (draw(P, K, case.prompt, H), draw(P, K, case.prompt, H)) if case.prompt else None
    return q, k, v, prompt, draw(B, T, N, H)


def evaluate(causal: Callable, given: tuple, case: Case) -> tuple:
    """The output, and the gradients of its weighted sum in queries, keys, values and prompts."""
    *qkv, weight = given
    P = qkv[0].shape[0] // 2
    length_P = np.maximum(1, case.prompt - 5 * np.arange(P))
    mask_PS = np.arange(case.prompt) < length_P[:, None]
    segment_T = 1 + np.arange(case.queries) * max(1, case.segments) // case.queries
    segment_BT = np.tile(segment_T, (2 * P, 1)).astype(np.int32) if case.segments else None

    @jax.default_matmul_precision("highest")
    def attend(q, k, v, prompt):
        prompt = None if prompt is None else (*prompt, jnp.asarray(mask_PS))
        return causal(q, k, v, prompt, segment_BT)

    def weighted(qkv, weight):
        out = attend(*qkv)
        return jnp.sum(out.astype(jnp.float32) * weight.astype(jnp.float32)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(weighted, has_aux=True))(tuple(qkv), weight)
    return out, gradients
