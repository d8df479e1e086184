"""What a checkpoint holds of a training state: all of it, or all but a frozen base.

With method.train='w' no step changes theta, which model.path (or the seed) gives again. A
checkpoint then holds w, its moments and, in its metadata, the fingerprint of theta's checksums; so
it is as small as the adapter. A run whose model folder has other numbers by now is refused.
"""

from __future__ import annotations

from bridge_jax.config import schema
from bridge_jax.rundir.state_arrays import checksums
from bridge_jax.training import build
from bridge_jax.training.build import Setup
from bridge_jax.types import Params, TrainState, Tree

# key of a checkpoint's metadata
BASE = "frozen_base"


def to_save(setup: Setup, state: TrainState, meta: dict) -> tuple[TrainState, dict]:
    """The state and the metadata as a checkpoint has them."""
    if setup.settings.train != "w":
        return state, meta
    identity = {BASE: fingerprint(state.params.theta)}
    return state.replace(params=without_theta(state.params)), meta | identity


def abstract(setup: Setup) -> Tree:
    """Shapes, dtypes and shardings of the arrays of a checkpoint."""
    state = build.abstract_state(setup)
    if setup.settings.train != "w":
        return state
    return state.replace(params=without_theta(state.params))


def with_base(setup: Setup, params: Params, meta: dict) -> Params:
    """Restored parameters, with theta loaded again where the checkpoint does not hold it.

    ValueError where the base is not the one that w was trained over.
    """
    if setup.settings.train != "w":
        return params
    theta = build.initial_theta(setup)
    if fingerprint(theta) != meta[BASE]:
        path = setup.settings.model.path
        source = (
            f"model.path={path!r} holds" if path else "the seed gives, with this version of jax,"
        )
        raise ValueError(
            f"the adapter was trained over a frozen base, but {source} other weights than at the "
            "start of the run; bring the weights back that it began with, or take another --workdir"
        )
    return params.replace(theta=theta)


def without_theta(params: Params) -> Params:
    """The parameters without the base."""
    return params.replace(theta=None)


def fingerprint(theta: Tree) -> str:
    """A hash of the numbers of the base weights, whatever their sharding."""
    return schema.fingerprint(checksums(theta))
