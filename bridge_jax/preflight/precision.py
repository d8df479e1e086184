"""fp32 that is fp32: TF32 has 10 bits of mantissa and bfloat16 has 7, fp32 has 23."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bridge_jax.models.precision import matmul_precision
from bridge_jax.preflight.record import Record, graded
from bridge_jax.preflight.subject import Subject

SIZE = 256
# relative: fp32 gives about 3e-7, TF32 3e-4, bfloat16 3e-3
TOLERANCE = 1e-5
WAY_OUT = (
    "unset NVIDIA_TF32_OVERRIDE, and in XLA_FLAGS what allows less precision (--xla_gpu_enable_"
    "cublaslt, --xla_allow_excess_precision, fast-math flags)"
)


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product as the model computes it in fp32."""
    return jnp.matmul(a, b, precision=matmul_precision(jnp.float32))


def check(subject: Subject) -> Record:
    """The product on the first local device."""
    return judge(multiply, subject.setup.mesh.local_devices[0])


def judge(multiply: Callable[[jax.Array, jax.Array], jax.Array], device) -> Record:
    """A product and its gradient in fp32 beside float64 on the host."""
    rng = np.random.default_rng(0)
    a, b, weight = rng.standard_normal((3, SIZE, SIZE)).astype(np.float32)
    total = lambda a, b, weight: jnp.sum(multiply(a, b) * weight)
    placed = jax.device_put((a, b, weight), device)
    product, gradient = jax.jit(multiply)(*placed[:2]), jax.jit(jax.grad(total))(*placed)
    double = lambda x: np.asarray(x, np.float64)
    error = max(
        relative(product, double(a) @ double(b)), relative(gradient, double(weight) @ double(b).T)
    )
    text = f"a matmul and its gradient are within {error:.1e} of float64"
    return graded("fp32", text, error < TOLERANCE, WAY_OUT)


def relative(found, expected) -> float:
    """|found - expected| / |expected|, Euclidean, in float64."""
    expected = np.asarray(expected, np.float64)
    difference = np.linalg.norm(np.asarray(found, np.float64) - expected)
    return float(difference / max(np.linalg.norm(expected), 1e-30))
