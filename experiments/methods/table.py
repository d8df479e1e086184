"""The table of docs/methods.md, found by running the methods on a toy. Nothing in it is by hand.

Samples and rows come from the method's kinds of steps, copies from its state. Passes are counted
while its update is traced, by a policy that counts how often it is differentiated. To find what a
part learns from, the demos, the samples, or theta_hat are changed, and the part's step is compared.
This is done after a few steps: at the first one theta_hat is theta, and their terms in w cancel.
The description of a method is the first line of its file.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bridge_jax import methods
from bridge_jax.config import schema
from bridge_jax.optim import Recipe, Recipes
from bridge_jax.types import Batch, BatchSpec, Method, Policy, Rollouts, Sequences, TrainState, Tree

# of the toy that is traced: tokens, prompts, samples of a prompt, positions
V, P, M, T = 4, 2, 2, 2
PARTS = ("theta", "theta_hat", "w")
# steps that are taken before the rows of one are changed
BEFORE = 3
# share of a step by which it must change if the part learns from the changed rows
FELT = 1e-3
VARIANTS = (
    ("chord", {"weighting": "phi"}),
    ("bridge", {"variant.w_learns": "gain"}),
    ("bridge", {"variant.shadow_rollouts": "own"}),
    ("bridge", {"variant.inner_steps": 2}),
    ("bridge", {"variant.resync_every": 10}),
    ("grpo", {"kl_coef": 0.1}),
)
HEAD = """# The methods

Written by `python -m experiments.methods`, which also adds the line of a new method. A test fails
when a line is out of date. Each line is one step of a method with its default settings, or with
those that are named. BRIDGE with a frozen w is `bridge` with `optim.lora.learning_rate=0`, or
`hybrid`; a hybrid whose learning rate is matched to BRIDGE's is `hybrid` at that rate.

"What learns from what" names the rows that change a part's step: those of SFT (demos), those of RL
(samples), and for w, where it is in the gain, theta_hat, whose RL gradient is subtracted from
theta's.

A backward pass costs about three forward passes of the model over the same rows. A method with
several kinds of steps has them one after the other. Copies are trees as large as the base weights,
without the optimizer's moments (two for each copy that is trained) and without the adapter w, which
is small. Sources, formulas and settings are described at the head of each file in
`bridge_jax/methods`.
"""
COLUMNS = (
    "method",
    "what it does",
    "who samples",
    "demos",
    "what learns from what",
    "passes of an update",
    "copies",
    "settings of its own",
)


def counting(counts: collections.Counter) -> Policy:
    """A table of logits as a policy that counts its passes while it is traced.

    counts: (direction, number of rows) -> passes.
    """

    def bigram(table, tokens_BT):
        logp_BTV = jax.nn.log_softmax(table[jnp.roll(tokens_BT, 1, axis=1)])
        return jnp.take_along_axis(logp_BTV, tokens_BT[..., None], axis=-1)[..., 0]

    @jax.custom_vjp
    def logp(table, tokens_BT):
        counts["forward", len(tokens_BT)] += 1
        return bigram(table, tokens_BT)

    def forward(table, tokens_BT):
        counts["backward", len(tokens_BT)] += 1
        return jax.vjp(lambda table: bigram(table, tokens_BT), table)

    logp.defvjp(forward, lambda pull, g: (*pull(g), None))
    policy = lambda phi, seqs, temperature: (
        logp(phi["table"], seqs.tokens_BT),
        jnp.ones(seqs.tokens_BT.shape),
    )
    merge = lambda theta, w: {
        "table": theta["table"] if w is None else theta["table"] + w["A"] @ w["B"]
    }
    return Policy(
        policy,
        merge,
        pull=lambda w, G: {"A": G["table"] @ w["B"].T, "B": w["A"].T @ G["table"]},
        init_w=lambda key: {"A": jnp.arange(1.0, V + 1)[:, None], "B": jnp.zeros((1, V))},
    )


def batch(spec: BatchSpec, demos: int = 0, samples: int = 0) -> Batch:
    """The rows of a step, with a demo for each prompt. Prompt 0 is solved once, prompt 1 never.

    demos, samples: shifts of their tokens, which make other rows.
    """
    ones = lambda *shape: jnp.ones(shape, jnp.int32)
    rows = lambda B, shift: Sequences(
        ones(P, T),
        ones(P),
        (jnp.arange(B * T, dtype=jnp.int32).reshape(B, T) + shift) % V,
        T * ones(B),
    )
    rolled = Rollouts(
        rows(P * M, samples),
        jnp.zeros((P * M, T)),
        jnp.zeros(P * M).at[0].set(1.0),
        jnp.float32(1.0),
    )
    return Batch(rows(P, demos) if spec.demos else None, dict.fromkeys(spec.sampled_by, rolled))


def learns_from(method: Method) -> str:
    """For each part, the rows that its step depends on, in any kind of step, and theta_hat."""
    state = method.init({"table": jnp.zeros((V, V)).at[0, 1].set(1.0)}, jax.random.key(0))
    found = {part: [] for part in PARTS if getattr(state.params, part) is not None}
    update = jax.jit(method.update)
    for i in range(BEFORE):
        state = update(state, batch(method.batch_spec(i), i, i))[0]
    for spec in method.step_kinds:
        step = lambda state, **shifts: steps_of(state, update(state, batch(spec, **shifts))[0])
        base = step(state)
        others = {
            "demos": step(state, demos=1) if spec.demos else base,
            "samples": step(state, samples=1) if spec.sampled_by else base,
        }
        if "theta_hat" in found:
            other = jax.tree.map(
                lambda x: x + jnp.arange(x.size).reshape(x.shape) / x.size, state.params.theta_hat
            )
            others["theta_hat"] = step(state.replace(params=state.params.replace(theta_hat=other)))
        for rows, after in others.items():
            for part, seen in found.items():
                if rows not in (part, *seen) and changed(base[part], after[part]):
                    seen.append(rows)
    return "; ".join(f"{part}: {' and '.join(seen)}" for part, seen in found.items())


def steps_of(before: TrainState, after: TrainState) -> dict[str, Tree]:
    """The change of each part."""
    parts = [part for part in PARTS if getattr(before.params, part) is not None]
    return {
        part: jax.tree.map(jnp.subtract, getattr(after.params, part), getattr(before.params, part))
        for part in parts
    }


def changed(one: Tree, other: Tree) -> bool:
    """Whether two steps differ by more than rounding."""
    norm = lambda tree: float(
        jnp.sqrt(sum(jnp.sum(jnp.float32(x) ** 2) for x in jax.tree.leaves(tree)))
    )
    return norm(jax.tree.map(jnp.subtract, one, other)) > FELT * max(norm(one), norm(other))


def passes(method: Method, counts: collections.Counter) -> str:
    """The passes of each kind of step, as text."""
    theta = {"table": jax.ShapeDtypeStruct((V, V), jnp.float32)}
    state, kinds = jax.eval_shape(method.init, theta, jax.random.key(0)), []
    for spec in method.step_kinds:
        counts.clear()
        # a new function each time, since traces are cached
        jax.eval_shape(lambda *given: method.update(*given), state, batch(spec))
        names = {P * M: "samples", P: "demos"}
        kinds.append(
            ", ".join(
                f"{counts[way, rows]} {way} on {names[rows]}"
                for way in ("backward", "forward")
                for rows in (P * M, P)
                if counts[way, rows]
            )
        )
    return "; then ".join(kinds)


def line(name: str, given: dict | None = None) -> list[str]:
    """The cells of a method; given: other settings, of a variant of it."""
    module, counts = methods.load(name), collections.Counter()
    # with a large eps, a step shows the size of its gradient
    recipes = Recipes(*[Recipe(learning_rate=0.1, eps=1.0)] * 2)
    config = ConfigDict(methods.defaults(name))
    config.update_from_flattened_dict(given or {})
    cfg = schema.section({f"method.{name}": config}, f"method.{name}", module.Config)
    method = module.make(cfg, counting(counts), recipes)
    theta = {"table": jax.ShapeDtypeStruct((V, V), jnp.float32)}
    state = jax.eval_shape(method.init, theta, jax.random.key(0))
    copies = sum(
        tree is not None for tree in (state.params.theta, state.params.theta_hat, state.ref)
    )
    kinds = lambda cell: "; then ".join(dict.fromkeys(cell(spec) for spec in method.step_kinds))
    demos = kinds(
        lambda spec: (
            ("of the same prompts" if method.paired else "of their own") if spec.demos else "none"
        )
    )
    defaults = schema.flatten(methods.defaults(name))
    settings = ", ".join(f"{key}={value!r}" for key, value in defaults.items())
    settings = settings if given is None else "as above"
    if given is None:
        description = module.__doc__.split("\n")[0].rstrip(":")
    else:
        description = ", ".join(f"method.{name}.{key}={value!r}" for key, value in given.items())
    return [
        f"`{name}`",
        description,
        kinds(lambda spec: " and ".join(spec.sampled_by) or "nobody"),
        demos,
        learns_from(method),
        passes(method, counts),
        str(copies),
        settings or "none",
    ]


def named(page: str) -> list[str]:
    """The methods with a line in a page that this command wrote, sorted."""
    return sorted(set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)))


def document(names: Sequence[str]) -> str:
    """The page, with a line for each of the methods and for the variants."""
    rows = [(name, None) for name in names] + [*VARIANTS]
    cells = [COLUMNS, ["---"] * len(COLUMNS), *(line(*row) for row in rows)]
    return (
        HEAD
        + "\n"
        + "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells
        )
        + "\n"
    )
