"""theta_hat: how it is stored, in which steps it learns, and from how many of the samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bridge_jax.config import checks
from bridge_jax.optim.moments import MOMENTS, to_bfloat16
from bridge_jax.types import Params, TrainState, Tree


class Storage(NamedTuple):
    """The stored form of parameters between steps.

    It differs in the parts `stored_relative` alone.
    """

    read: Callable[[Params], Params] = lambda params: params
    # the key is for stochastic rounding
    write: Callable[[Params, jax.Array], Params] = lambda params, key: params
    # parts that are stored relative to theta, and so are written again when theta changes
    stored_relative: tuple[str, ...] = ()


def from_difference(params: Params) -> Params:
    """Params with theta_hat in full, from the bfloat16 difference theta_hat - theta."""
    theta_hat = jax.tree.map(lambda t, d: t + d.astype(t.dtype), params.theta, params.theta_hat)
    return params.replace(theta_hat=theta_hat)


def to_difference(params: Params, key: jax.Array) -> Params:
    """Params with the difference theta_hat - theta in bfloat16, by stochastic rounding."""
    difference = jax.tree.map(jnp.subtract, params.theta_hat, params.theta)
    return params.replace(theta_hat=to_bfloat16(difference, key))


STORAGE = {
    "full": Storage(),
    "difference": Storage(from_difference, to_difference, stored_relative=("theta_hat",)),
}


@dataclasses.dataclass(frozen=True)
class Shadow:
    """Settings that make theta_hat cheaper; the defaults are exact."""

    storage: str = "full"  # "full", or "difference": theta_hat - theta in bfloat16
    moments: str = ""  # Adam moments: float32, bfloat16 or factored; "": as optim.base.moments
    offload: bool = False  # whether it and its moments are in host memory between steps
    # share of the groups of a step that theta_hat learns from, 1 / a whole number; the part rotates
    share: float = 1.0
    every: int = 1  # theta_hat learns, and w ascends the gain, in every n-th step

    @property
    def parts(self) -> int:
        """The number of parts that the groups of a step are cut into."""
        return round(1 / self.share)

    @property
    def whole(self) -> bool:
        """Whether theta_hat learns from all samples of all steps."""
        return self.parts == 1 and self.every == 1

    def check(self, key: str) -> None:
        """ValueError for invalid settings."""
        for name, allowed in (("storage", tuple(STORAGE)), ("moments", ("", *MOMENTS))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{key}.{name}={getattr(self, name)!r}; allowed: "
                    f"{', '.join(map(repr, allowed))}"
                )
        if not 0 < self.share <= 1 or abs(self.share * self.parts - 1) > 1e-2:
            raise ValueError(
                f"{key}.share={self.share}; allowed: 1 divided by a whole number of parts, such as "
                "1.0, 0.5, 0.25, 0.125"
            )
        checks.check_range(f"{key}.every", self.every, 1)


def on_device(tree: Tree) -> Tree:
    """Transfers traced arrays in host memory to the device; other leaves stay unchanged."""
    in_host_memory = lambda x: (
        isinstance(x, jax.core.Tracer) and jax.typeof(x).memory_space == jax.memory.Space.Host
    )
    transfer = lambda x: jax.device_put(x, jax.memory.Space.Device) if in_host_memory(x) else x
    return jax.tree.map(transfer, tree)


def read_shadow(storage: Storage, params: Params) -> Tree:
    """theta_hat in full, from stored Params."""
    return storage.read(on_device(params)).theta_hat


def read_again_after(state: TrainState, G: Tree) -> tuple[TrainState, Tree]:
    """(state, G) unchanged, but what is read from the state afterwards waits for the gradient G.

    theta_hat is unpacked twice: for its pass, and for its update. Without this XLA computes the
    full theta_hat once and holds it in memory throughout the pass; with it the update unpacks
    theta_hat again. The plain form is the identity, which gives the same up to rounding. XLA's CPU
    backend plans the same memory for both.
    """
    return jax.lax.optimization_barrier((state, G))
