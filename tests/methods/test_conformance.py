"""What every method promises, asked of every file in bridge_jax/methods: a new one is picked up by
itself.

Each is tried with its default Config, once more for each of WORDS that its Config has, which mean
the same in every method, and for those of VARIANTS, which are its own. A method that needs more
than demonstrations and rollouts of its sampling policies would need a line in `make_batch`.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge_jax import methods
from bridge_jax.types import Batch, Method, TrainState
from tests import errors, toys

WORDS = {"kl_coef": 0.1, "advantage": "mean", "updates_per_batch": 2}
VARIANTS = {
    "bridge": {
        "variant__shadow_rollouts": "own",
        "variant__ratio_cap": 2.0,
        "variant__w_learns": "gain",
        "variant__resync_every": 3,
        "variant__inner_steps": 2,
        "shadow__storage": "difference",
        "shadow__moments": "bfloat16",
        "shadow__every": 2,
    },
    "chord": {"weighting": "phi"},
    "cold_start": {"sft_steps": 1},
    "dapo": {"overlong_buffer": 0.0},
    "hpt": {"gate": 2},
}
METRIC = re.compile(r"[a-z_]+/[A-Za-z0-9_@]+")
BAD = toys.V - 1  # in no batch but those that are to be skipped
P, M, DEMOS = 8, 8, 16


def cases() -> list:
    """(name, fields of Config) of every method, at its defaults and with each of its variants."""
    found = []
    for name in methods.names():
        fields = {field.name for field in dataclasses.fields(methods.load(name).Config)}
        shared = {key: value for key, value in WORDS.items() if key in fields}
        variants = shared | VARIANTS.get(name, {})
        found += [(name, {})] + [(name, {key: value}) for key, value in variants.items()]
    return [
        pytest.param(name, tuple(fields.items()), id="-".join((name, *fields)))
        for name, fields in found
    ]


# these alone are in `make test`, where each case takes seconds
ALONE = ("sft", "grpo", "hybrid", "bridge")


def variants_slow(cases, alone: tuple[str, ...] = ()) -> list:
    """Of each method its defaults in `make test`, its variants in `make test-all`.

    alone: the methods of which this is so; of the others all is in `make test-all`.
    """
    quick = lambda name, fields: not fields and name in (alone or (name,))
    return [
        pytest.param(
            *case.values, id=case.id, marks=() if quick(*case.values) else pytest.mark.slow
        )
        for case in cases
    ]


every_case = pytest.mark.parametrize("name, fields", variants_slow(cases()))
# for tests that compile programs of their own
some_cases = pytest.mark.parametrize("name, fields", variants_slow(cases(), ALONE))
# what an advantage, a cap or a direction of w is does not touch how rows are summed
summed_cases = pytest.mark.parametrize(
    "name, fields",
    variants_slow(
        (case for case in cases() if not re.search("advantage|cap|w_learns", case.id)), ALONE
    ),
)
every_method = pytest.mark.parametrize("name", methods.names())


def fragile():
    """The bigram policy, in which the token BAD has probability 0."""

    def logp(phi, seqs, temperature):
        logp_BT, entropy_BT = toys.bigram_logp(phi, seqs, temperature)
        return logp_BT + jnp.where(seqs.tokens_BT == BAD, -jnp.inf, 0.0), entropy_BT

    return toys.bigram()._replace(logp=logp)


def make(name: str, fields=(), policy=None, recipes=None, microbatch_rows: int = 0) -> Method:
    """A method on the bigram table."""
    module = methods.load(name)
    return module.make(
        toys.method_config(name, **dict(fields)),
        policy or toys.bigram(),
        recipes or toys.recipes(),
        microbatch_rows,
    )


@functools.cache
def built(name: str, fields=()):
    """The method, its compiled update, and a state two steps in, off every special point of step
    0.
    """
    method = make(name, fields, policy=fragile())
    update = jax.jit(method.update)
    state = jax.jit(method.init)(toys.bigram_theta(), jax.random.key(0))
    for step in range(2):
        state, _ = update(state, make_batch(method, step))
    return method, update, state


def make_batch(method: Method, step: int, seed: int = 0) -> Batch:
    """Random ragged rows for what the method reads in this step: each policy its own, the last demo
    a padding row.
    """
    demos = toys.sequences(100 + seed, DEMOS, 1, vocab=BAD)
    demos = demos.replace(length_B=demos.length_B.at[P if method.paired else -1 :].set(0))
    rolled = {
        policy: toys.rollouts(seed + i, P, M, vocab=BAD)
        for i, policy in enumerate(method.batch_spec(step).sampled_by)
    }
    return Batch(demos if method.batch_spec(step).demos else None, rolled)


def copy(tree):
    """Numpy copies of all leaves."""
    return jax.tree.map(lambda x: np.array(x), tree)


@every_case
def test_contract(name, fields):
    """One step: the same tree of shapes and dtypes, step + 1, scalar metrics named group/name,
    parameters that moved.
    """
    method, update, state = built(name, fields)
    assert (
        isinstance(method, Method)
        and isinstance(state, TrainState)
        and isinstance(method.demos, bool)
    )
    assert set(method.sampling_policies) <= {"theta", "theta_hat"} and (
        not method.sampling_policies or "theta" in method.sampling_policies
    )
    assert methods.samples(name, toys.method_config(name, **dict(fields)), toys.recipes()) == bool(
        method.sampling_policies
    )
    assert method.batch_spec(2) == method.batch_spec(2) and all(
        method.batch_spec(step) in method.step_kinds for step in range(300)
    )
    after, metrics = update(state, make_batch(method, 2, seed=5))
    shape = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shape(after) == shape(state) and state.step == 2 and after.step == 3
    assert metrics["update/skipped"] == 0
    # FLOPs are counted from them (objectives.token_counts)
    assert metrics["budget/gradient_tokens"] > 0 and metrics["budget/gradient_prompt_tokens"] > 0
    assert metrics["budget/forward_tokens"] >= 0
    for key, value in metrics.items():
        assert METRIC.fullmatch(key) and value.shape == () and np.isfinite(value), key
    assert toys.change(after.params.theta, state.params.theta) > 1e-4
    kept = (
        after.params.replace(theta_hat=None) if "shadow__storage" in dict(fields) else after.params
    )
    assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype(jnp.float32)}


@every_case
def test_update_is_pure(name, fields):
    """Twice on the same input: the same bits, and the input as it was."""
    method, update, state = built(name, fields)
    batch = make_batch(method, 2)
    before = copy((state, batch))
    first, second = update(state, batch), update(state, batch)
    assert toys.same_bits(first, second) and toys.same_bits(before, (state, batch))


@every_case
def test_policy(name, fields):
    """Each policy, and "theta" always, gives a phi in which log-probabilities can be computed; at
    step 0 all are theta.
    """
    method, _, state = built(name, fields)
    theta = toys.bigram_theta()
    fresh = method.init(theta, jax.random.key(0))
    for policy in {"theta", *method.sampling_policies}:
        assert toys.same_bits(method.policy(fresh.params, policy), theta)
        logp_BT, _ = toys.bigram_logp(
            method.policy(state.params, policy), toys.sequences(0, 2, 2, vocab=toys.V), 1.0
        )
        assert np.isfinite(logp_BT).all()
    assert toys.same_bits(method.policy(state.params), method.policy(state.params, "theta"))


@some_cases
def test_donation(name, fields):
    """The state is given away from the first step on: no leaf is two others' buffer, and the result
    is the same.
    """
    method, update, _ = built(name, fields)
    start = lambda: method.init(jax.tree.map(jnp.copy, toys.bigram_theta()), jax.random.key(0))
    batch = make_batch(method, 0)
    expected = copy(update(start(), batch))
    donating = jax.jit(method.update, donate_argnums=0)
    assert toys.change(donating(start(), batch), expected) < 1e-6
    from_donated = jax.jit(method.init, donate_argnums=0)(
        jax.tree.map(jnp.copy, toys.bigram_theta()), jax.random.key(0)
    )
    assert toys.change(donating(from_donated, batch), expected) < 1e-6


@every_case
def test_abstract(name, fields):
    """Shapes alone are enough: init and update under eval_shape give what the real ones give."""
    method, _, state = built(name, fields)
    shape = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    abstract = jax.eval_shape(method.init, toys.bigram_theta(), jax.random.key(0))
    assert shape(abstract) == shape(state)
    after, _ = jax.eval_shape(method.update, abstract, make_batch(method, 0))
    assert shape(after) == shape(state)


@functools.cache
def in_micro_batches(name, fields, microbatch_rows: int):
    """Parameters and optimizer states after a step away from step 0, in micro-batches."""
    method = make(name, fields, recipes=toys.linear(), microbatch_rows=microbatch_rows)
    start = method.init(toys.bigram_theta(), jax.random.key(0))
    params = jax.tree.map(lambda x, n: x + n, start.params, toys.noise_like(start.params, 7, 0.1))
    state, _ = jax.jit(method.update)(start.replace(params=params), make_batch(method, 0))
    return state.params, state.opt_state


@pytest.mark.parametrize(
    "rows", [8, pytest.param(16, marks=pytest.mark.slow), pytest.param(32, marks=pytest.mark.slow)]
)
@summed_cases
def test_micro_batches(name, fields, rows):
    """1, 2, 4 and 8 of 64 rows: the same state to 1e-6, by gradients, moments and parameters."""
    assert (
        toys.change(in_micro_batches(name, fields, rows), in_micro_batches(name, fields, 0)) < 1e-6
    )


@every_case
def test_what_lies_beyond_a_length_does_not_matter(name, fields):
    """Other pads in prompts and completions, other numbers behind the sampler's log-probabilities:
    the same bits.
    """
    method, update, state = built(name, fields)
    batch = make_batch(method, 2)

    def repad(seqs):
        other = lambda x, length: jnp.where(
            jnp.arange(x.shape[1]) < length[:, None], x, (x + 1) % BAD
        )
        return seqs.replace(
            prompt_PS=other(seqs.prompt_PS, seqs.prompt_len_P),
            tokens_BT=other(seqs.tokens_BT, seqs.length_B),
        )

    def junk(rolled):
        beyond = jnp.arange(rolled.logp_BT.shape[1]) >= rolled.seqs.length_B[:, None]
        return rolled.replace(
            seqs=repad(rolled.seqs), logp_BT=jnp.where(beyond, -7.0, rolled.logp_BT)
        )

    again = Batch(
        batch.demos and repad(batch.demos),
        {policy: junk(rolled) for policy, rolled in batch.rollouts.items()},
    )
    assert toys.same_bits(update(state, again), update(state, batch))


@every_case
def test_a_non_finite_update_is_skipped(name, fields):
    """A reward or log-probability that is not finite, in any one place: parameters and optimizer
    states stay, step counts.

    Where theta_hat's own samples are to blame, theta has moved before their pass: theta_hat and w
    stay.
    """
    method, update, state = built(name, fields)
    good = make_batch(method, 2)
    spoil = lambda seqs: seqs.replace(tokens_BT=seqs.tokens_BT.at[0, 0].set(BAD))
    broken = [("demos", good.replace(demos=spoil(good.demos)))] if good.demos else []
    for policy, rolled in good.rollouts.items():
        for replaced in (
            rolled.replace(reward_B=rolled.reward_B.at[3].set(np.nan)),
            rolled.replace(seqs=spoil(rolled.seqs)),
        ):
            broken.append((policy, good.replace(rollouts=good.rollouts | {policy: replaced})))
    assert broken
    for spoilt, batch in broken:
        after, metrics = update(state, batch)
        assert metrics["update/skipped"] == 1 and after.step == state.step + 1
        without_theta = lambda state: (
            state.params.replace(theta=None),
            {k: v for k, v in state.opt_state.inner_states.items() if k != "base"},
        )
        kept = without_theta if spoilt == "theta_hat" else lambda s: (s.params, s.opt_state)
        assert toys.same_bits(kept(after), kept(state))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


@some_cases
def test_learns(name, fields):
    """60 steps on freshly sampled answers: expected reward rises from about 1/6 to over a half."""
    method = make(name, fields, recipes=toys.recipes(0.1, 0.1))

    @functools.partial(jax.jit, static_argnums=2)
    def step(state, key, spec):
        batch = toys.bigram_batch(
            {policy: method.policy(state.params, policy) for policy in spec.sampled_by}, key
        )
        return method.update(state, batch if spec.demos else batch.replace(demos=None))

    state = method.init(toys.bigram_theta(scale=0.1), jax.random.key(0))
    before = toys.bigram_success(method.policy(state.params))
    for k in range(60):
        state, _ = step(state, jax.random.key(k), method.batch_spec(k))
    after = toys.bigram_success(method.policy(state.params))
    assert before < 0.25 and after > 0.5, (before, after)


def test_names_and_load():
    """Files are methods; an unknown name is answered with all of them and the nearest."""
    assert {"bridge", "grpo", "sft"} <= set(methods.names())
    with errors.raises(ValueError, "method.name='brigde'", "grpo", "'bridge'"):
        methods.load("brigde")


@every_method
def test_module(name):
    """A docstring, a frozen Config whose defaults can be made, and no import of models."""
    module = methods.load(name)
    assert module.__doc__ and module.Config.__dataclass_params__.frozen
    source = open(module.__file__).read()
    assert "bridge_jax.models" not in source and "bridge_jax import models" not in source
