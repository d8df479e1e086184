"""The adapter alone over a frozen base, by any method that trains theta. Not a method itself.

    w += beta dJ/dw(merge(theta, w)),   theta as it was loaded

The method is unchanged. It is given w in the place of its theta, a policy whose phi is w, and the
lora recipe in the place of the base recipe. So each copy that it makes, such as the reference of a
KL term, is one of w, and all gradients are those of w: a backward pass leaves no fp32 gradient as
large as the model. theta has no gradient, no moments and no weight decay, and may be in any dtype.
A reference policy is the base itself where it is taken at the start, since w begins at B = 0.

Left out: methods that train an adapter or a shadow of their own (bridge, joint), which are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from bridge_jax.optim import Recipes
from bridge_jax.types import Batch, Method, Params, Policy, TrainState, Tree

# parts that method.train may name: theta is what each method trains by itself
TRAINED = ("theta", "w")
# label of an optimizer, and metric, of theta as the method has it -> that of w
LABELS = {"base": "lora", "lora": "base"}
METRICS = {"grad/norm_theta": "grad/norm_w", "lr/base": "lr/lora"}


def adapter_alone(make: Callable, name: str) -> Callable:
    """The `make` of a method, for training w alone; state: Params(theta, w).

    name: of the method, for the message. The result raises ValueError for a method that trains w or
    theta_hat itself.
    """

    def make_over_base(cfg, policy: Policy, recipes: Recipes, microbatch_rows: int = 0) -> Method:
        def over(theta: Tree) -> Method:
            own_policy = policy_of_w(policy, theta, name)
            return make(cfg, own_policy, exchange_recipes(recipes), microbatch_rows)

        def init(theta, key) -> TrainState:
            return with_base(over(theta).init(policy.init_w(key), key), theta)

        def update(state: TrainState, batch: Batch):
            theta = state.params.theta
            new, metrics = over(theta).update(without_base(state), batch)
            metrics = {METRICS.get(key, key): value for key, value in metrics.items()}
            return with_base(new, theta), metrics

        def policy_of(params: Params, name: str = "theta") -> Tree:
            return policy.merge(params.theta, params.w)

        method = over(None)
        check_parts(method, policy, name)
        return dataclasses.replace(method, init=init, update=update, policy=policy_of)

    return make_over_base


def policy_of_w(policy: Policy, theta: Tree, name: str) -> Policy:
    """The policy as a function of w: phi is w; log-probabilities merge it with constant theta.

    A method of theta alone needs no adapter; the first request for one is a ValueError.
    """

    def init_w(key):
        raise ValueError(refusal(name))

    return Policy(
        logp=lambda w, seqs, temperature: policy.logp(policy.merge(theta, w), seqs, temperature),
        merge=lambda w, _: w,
        pull=policy.pull,
        init_w=init_w,
    )


def check_parts(method: Method, policy: Policy, name: str) -> None:
    """ValueError for a method whose state has another trained part than theta."""
    key = jax.random.key(0)
    params = jax.eval_shape(lambda key: method.init(policy.init_w(key), key), key).params
    if params.w is not None or params.theta_hat is not None:
        raise ValueError(refusal(name))


def refusal(name: str) -> str:
    """The message for a method that has more to train than theta."""
    return (
        f"method.train='w' freezes theta, but method {name!r} trains it together with parts of its "
        "own, and is another method without; take method.train='theta', or a method of theta "
        "alone, such as hybrid, grpo or sft"
    )


def exchange_recipes(recipes: Recipes) -> Recipes:
    """The recipes with base and lora exchanged, and with the matrices of theta and w."""
    other = {"theta": "w", "w": "theta"}

    def renamed(path: str) -> str:
        part, _, rest = path.partition("/")
        return f"{other[part]}/{rest}"

    matrices = recipes.matrices and tuple((renamed(path), m) for path, m in recipes.matrices)
    return dataclasses.replace(recipes, base=recipes.lora, lora=recipes.base, matrices=matrices)


def without_base(state: TrainState) -> TrainState:
    """The state as the method has it, with w in the place of theta."""
    return state.replace(
        params=Params(theta=state.params.w), opt_state=exchange_parts(state.opt_state)
    )


def with_base(state: TrainState, theta: Tree) -> TrainState:
    """The method's state with theta and w in their own places."""
    return state.replace(
        params=Params(theta=theta, w=state.params.theta), opt_state=exchange_parts(state.opt_state)
    )


def exchange_parts(opt_state: Tree) -> Tree:
    """The optimizer state with the moments, and the labels, of theta and w exchanged."""
    is_params = lambda node: isinstance(node, Params)

    def exchanged(node):
        return node.replace(theta=node.w, w=node.theta) if is_params(node) else node

    states = {
        LABELS.get(label, label): jax.tree.map(exchanged, inner, is_leaf=is_params)
        for label, inner in opt_state.inner_states.items()
    }
    # in the order of a state that was never exchanged
    ordered = {label: states[label] for label in opt_state.inner_states}
    return opt_state._replace(inner_states=ordered)
