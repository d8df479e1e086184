"""Building blocks of the objectives J: likelihood, importance-weighted surrogates, KL, advantages, and their gradient.

Objectives are maximised. Each returns a sum over tokens; the caller divides by a count taken over the GLOBAL batch before
the first micro-batch, so that the number of micro-batches changes nothing. Masks follow from lengths.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from bridge_jax import packing
from bridge_jax.types import Metrics, Policy, Rollouts, Sequences, Tree

LOG_RATIO_BOUND = 20.0  # applied before exp: a bound after it leaves 0 * inf in the gradient


def token_mask(length_B: jax.Array, T: int) -> jax.Array:
    """1.0 where position t < length, [B,T] fp32."""
    return (jnp.arange(T) < length_B[:, None]).astype(jnp.float32)


def ratio(logp: jax.Array, behaviour: jax.Array) -> jax.Array:
    """rho = exp(logp - behaviour), the difference bounded to +-20; no gradient through the behaviour."""
    return jnp.exp(
        jnp.clip(logp - jax.lax.stop_gradient(behaviour), -LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    )


def surrogate(logp_BT, behaviour_BT, A_B, cap: float = 0.0) -> jax.Array:
    """rho_t A per token, [B,T]; its gradient at pi != behaviour is the importance-weighted policy gradient.

    cap > 1 bounds that weight to [1/cap, cap], by both signs of A alike, and every token keeps its gradient; 0 leaves it free.
    """
    rho = ratio(logp_BT, behaviour_BT)
    if cap:  # a clip alone would take the gradient of every token beyond it
        rho *= jax.lax.stop_gradient(jnp.clip(rho, 1.0 / cap, cap) / rho)
    return rho * A_B[:, None]


def clipped_surrogate(logp_BT, behaviour_BT, A_B, low: float, high: float) -> jax.Array:
    """min(rho A, clip(rho, 1 - low, 1 + high) A) per token, [B,T] (PPO, Schulman et al. 2017)."""
    rho, A = ratio(logp_BT, behaviour_BT), A_B[:, None]
    return jnp.minimum(rho * A, jnp.clip(rho, 1.0 - low, 1.0 + high) * A)


def clip_fraction(
    logp_BT, behaviour_BT, A_B, low: float, high: float, seqs: Sequences
) -> jax.Array:
    """Share of the tokens whose gradient `clipped_surrogate` takes: rho > 1 + high at A > 0, or rho < 1 - low at A < 0.

    logp_BT and behaviour_BT may also be [B,1], one ratio for all tokens of a sample.
    """
    rho, A = ratio(logp_BT, behaviour_BT), A_B[:, None]
    clipped = ((rho > 1.0 + high) & (A > 0)) | ((rho < 1.0 - low) & (A < 0))
    return mean_tokens(jnp.broadcast_to(clipped, seqs.tokens_BT.shape).astype(jnp.float32), seqs)


def k3(logp: jax.Array, logp_ref: jax.Array) -> jax.Array:
    """e^d - d - 1 with d = logp_ref - logp bounded to +-20: estimates KL(pi || ref) on samples of pi (Schulman 2020)."""
    d = jnp.clip(logp_ref - logp, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return jnp.exp(d) - d - 1.0


def check_advantage(kind: str) -> None:
    """ValueError for a kind of advantage that there is not."""
    if kind not in ("group", "mean"):
        raise ValueError(f"method.advantage={kind!r}; allowed: 'group', 'mean'")


def check_range(key: str, value: float, low: float, high: float = float("inf")) -> None:
    """ValueError unless low <= value <= high; nan is refused too."""
    if not low <= value <= high:
        raise ValueError(
            f"{key}={value}; allowed: from {low} "
            + (f"to {high}" if high != float("inf") else "upwards")
        )


def group_advantages(reward_B: jax.Array, M: int, kind: str = "group") -> jax.Array:
    """A = (R - mean) / (std + 1e-6) over the M samples of a prompt (GRPO), or R - mean alone (kind "mean", Dr. GRPO).

    std divides by M - 1, as in verl, TRL and Trinity. For RL alone that is a factor which Adam takes out; where SFT is mixed in,
    RL weighs sqrt((M - 1) / M) of what it does with the division by M. A group of one sample has A = 0.
    """
    check_advantage(kind)
    R_PM = reward_B.reshape(-1, M)
    R_PM = (
        R_PM - R_PM[:, :1]
    )  # equal rewards become exact zeros: rounding of their mean, over 1e-6, would be an advantage
    centred = R_PM - R_PM.mean(axis=1, keepdims=True)
    if kind == "group":
        centred = centred / (R_PM.std(axis=1, ddof=min(1, M - 1), keepdims=True) + 1e-6)
    return centred.reshape(-1)


def advantages_with_expert(
    rollouts: Rollouts, demos: Sequences, kind: str
) -> tuple[jax.Array, jax.Array]:
    """A of the samples [B] and of the experts [D], where row p of demos is prompt p's expert, of reward 1, in its group.

    Rows of demos beyond the prompts (padding) get 0.
    """
    M, P = group_size(rollouts), rollouts.seqs.prompt_len_P.shape[0]
    R_PN = jnp.concatenate([rollouts.reward_B.reshape(P, M), jnp.ones((P, 1))], axis=1)
    A_PN = group_advantages(R_PN.reshape(-1), M + 1, kind).reshape(P, M + 1)
    return A_PN[:, :M].reshape(-1), jnp.pad(A_PN[:, M], (0, demos.length_B.shape[0] - P))


def micro_count(B: int, microbatch_rows: int) -> int:
    """How many micro-batches B rows make; microbatch_rows 0, or more than B, means one."""
    return max(1, B // microbatch_rows) if microbatch_rows else 1


def micro_split(seqs: Sequences, rows: Tree, count: int):
    """(seqs, rows) with a leading axis of `count` micro-batches: whole groups each, or an even part of one group.

    rows: pytree of [B, ...] arrays. A group's prompt is repeated when its rows are spread over micro-batches. Micro-batch i
    takes the groups i, i + count, ...: a batch that lies over devices by its leading axis then does so in every micro-batch.
    """
    P, B = seqs.prompt_len_P.shape[0], seqs.length_B.shape[0]
    if B % count or (P % count and count % P):
        raise ValueError(
            f"{B} rows of {P} prompts cannot be cut into {count} micro-batches: the rows of a micro-batch must "
            f"divide, or be a multiple of, the {B // P} samples of a prompt"
        )
    strides = min(count, P)

    def by_row(x):
        x = x.reshape(P // strides, strides, B // P, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(count, B // count, *x.shape[3:])

    def by_prompt(x):
        x = x.reshape(P // strides, strides, *x.shape[1:]).swapaxes(0, 1)
        return jnp.repeat(x, count // strides, axis=0)

    split = Sequences(
        by_prompt(seqs.prompt_PS),
        by_prompt(seqs.prompt_len_P),
        by_row(seqs.tokens_BT),
        by_row(seqs.length_B),
    )
    return split, jax.tree.map(by_row, rows)


def micro_join(x: jax.Array, P: int) -> jax.Array:
    """[count, rows, ...] of micro_split back to [B, ...] in the order of the batch."""
    count, rows = x.shape[:2]
    B, strides = count * rows, min(count, P)
    x = x.reshape(strides, P // strides, B // P, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(B, *x.shape[3:])


def over_micro_batches(step, carry: Tree, seqs: Sequences, rows: Tree, microbatch_rows: int = 0):
    """step(carry, seqs, rows) -> (carry, facts) on one micro-batch after the other; the last carry, and facts [B, ...] of all.

    Packed sequences make as many micro-batches as their rows fill; what is on nobody's row has facts of 0.
    """
    B = seqs.length_B.shape[0]
    if seqs.packing is None:
        split = micro_split(seqs, rows, micro_count(B, microbatch_rows))
        carry, facts = jax.lax.scan(lambda carry, micro: step(carry, *micro), carry, split)
        return carry, jax.tree.map(lambda x: micro_join(x, seqs.prompt_len_P.shape[0]), facts)
    slot_RK = seqs.packing.slot_RK
    R = min(microbatch_rows or B, B)
    slot_RK = jnp.pad(slot_RK, ((0, -B % R), (0, 0)), constant_values=-1)

    def micro(i):
        slots = jax.lax.dynamic_slice_in_dim(slot_RK, i * R, R)
        return (
            slots,
            packing.taken(seqs, slots),
            jax.tree.map(lambda x: x[jnp.maximum(slots, 0).reshape(-1)], rows),
        )

    def body(i, state):
        carry, facts = state
        slots, *given = micro(i)
        carry, new = step(carry, *given)
        place = jnp.where(slots < 0, B, slots).reshape(-1)
        return carry, jax.tree.map(lambda all, x: all.at[place].set(x, mode="drop"), facts, new)

    shapes = jax.eval_shape(lambda carry: step(carry, *micro(0)[1:])[1], carry)
    facts = jax.tree.map(lambda x: jnp.zeros((B, *x.shape[1:]), x.dtype), shapes)
    return jax.lax.fori_loop(0, -(-seqs.packing.used // R), body, (carry, facts))


def gradient(
    J,
    phi: Tree,
    seqs: Sequences,
    rows: Tree,
    microbatch_rows: int = 0,
    done: jax.Array | None = None,
):
    """Gradient of J in phi (fp32), J itself and its facts, accumulated over micro-batches.

    J(phi, seqs, rows) -> (scalar, facts [B, ...]); scalars of the micro-batches add up to the whole, so J divides by the
    global count. microbatch_rows: rows computed at once; 0, or more than there are, means all. done: a scalar that has to be
    known before the pass begins. Where it is not finite the step is lost already: J is NaN then, and nothing is computed.
    """

    def accumulate(carry, seqs, rows):
        G, total = carry
        (value, facts), g = jax.value_and_grad(J, has_aux=True)(phi, seqs, rows)
        return (jax.tree.map(lambda a, b: a + b.astype(a.dtype), G, g), total + value), facts

    def computed():
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), phi)
        (G, value), facts = over_micro_batches(
            accumulate, (zeros, jnp.float32(0)), seqs, rows, microbatch_rows
        )
        return G, value, facts

    G, value, facts = computed() if done is None else unless_lost(done, computed)
    return G, value, jax.lax.stop_gradient(facts)


def unless_lost(done: jax.Array, computed):
    """computed() -> (G, J, facts) where the scalar is finite, else zeros and a J of NaN.

    A branch and no mere order: the memory that a pass takes is the branch's own, not allocated from the beginning of the step.
    """
    traced, shapes = jax.make_jaxpr(computed, return_shape=True)()  # once for both branches
    again = lambda: jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(traced)())

    def lost():
        G, _, facts = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return G, jnp.float32(jnp.nan), facts

    return jax.lax.cond(jnp.isfinite(done), again, lost)


def after(done: jax.Array, tree: Tree) -> Tree:
    """The tree as it is, but nothing can be computed with it before the scalar `done` is known.

    1 where done is infinite, else 0, is added to every leaf: no compiler can foresee that it is 0, while optimization_barrier is
    gone by the time that a schedule is made. An update whose gradient is not finite is skipped anyway.
    """
    zero = jnp.isposinf(done).astype(jnp.int32)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), tree)


def inner(a: Tree, b: Tree) -> jax.Array:
    """Inner product of two pytrees, fp32."""
    return sum(products(x, y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Entry by entry, fp32; to be summed as it lies: to flatten an array that is spread over devices is to gather it."""
    return x.astype(jnp.float32) * y.astype(jnp.float32)


def by_layer_group(a: Tree, b: Tree) -> dict[str, jax.Array]:
    """Inner products of two gradients by group of layers: early, middle and late thirds, and what lies outside the layers.

    Leaves under the key "layers" have the layer as their leading axis; a tree without such a key is one group, "rest".
    """
    found: dict[str, jax.Array] = {}
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b))
    for (path, x), y in pairs:
        if getattr(path[0], "key", None) != "layers":
            found["rest"] = found.get("rest", 0.0) + inner(x, y)
            continue
        inner_L = products(x, y).sum(axis=tuple(range(1, x.ndim)))
        L = inner_L.shape[0]
        for i, name in enumerate(("early", "middle", "late")):
            if L * i // 3 < L * (i + 1) // 3:
                found[name] = found.get(name, 0.0) + inner_L[L * i // 3 : L * (i + 1) // 3].sum()
    return found


def cooperation(G_SFT: Tree, G_RL: Tree) -> Metrics:
    """How two gradients at one iterate agree, whole and by group of layers.

    grad/cos_sft_rl; coop/inner: their inner product, which is by how much a small step along one raises the other's
    objective, per unit of step (the first-order gain); coop/norm_ratio: |G_SFT| / |G_RL|. 0 where one of them is 0.
    """
    products = [by_layer_group(*pair) for pair in ((G_SFT, G_RL), (G_SFT, G_SFT), (G_RL, G_RL))]
    groups = (
        {f"_{name}": [p[name] for p in products] for name in products[0]}
        if len(products[0]) > 1
        else {}
    )
    metrics = {}
    for name, (both, sft, rl) in {"": [sum(p.values()) for p in products], **groups}.items():
        metrics |= {
            f"grad/cos_sft_rl{name}": both / jnp.maximum(jnp.sqrt(sft * rl), 1e-30),
            f"coop/inner{name}": both,
            f"coop/norm_ratio{name}": jnp.where(
                rl > 0, jnp.sqrt(sft / jnp.maximum(rl, 1e-30)), 0.0
            ),
        }
    return metrics


def passed(*rows: Sequences, forward: tuple[Sequences, ...] = ()) -> Metrics:
    """The ledger of an update: tokens of completions and of their prompts that went through a backward pass, and all tokens that
    went through a forward pass alone; rows that were passed twice are given twice. A prompt counts once, packed: per sample."""

    def prompts(seqs):
        real_PM = seqs.length_B.reshape(seqs.prompt_len_P.shape[0], -1) > 0
        return jnp.sum(
            seqs.prompt_len_P
            * (real_PM.any(axis=1) if seqs.packing is None else real_PM.sum(axis=1))
        )

    whole = lambda seqs: seqs.length_B.sum() + prompts(seqs)
    return {
        "budget/gradient_tokens": sum(seqs.length_B.sum() for seqs in rows),
        "budget/gradient_prompt_tokens": sum(map(prompts, rows)),
        "budget/forward_tokens": sum(map(whole, forward), start=jnp.int32(0)),
    }


def scored(policy: Policy, phi: Tree, seqs: Sequences, temperature, entropy_coef: float):
    """logp_BT and entropy_BT; the entropy without a gradient where it has no weight: it is reported, not ascended."""
    logp_BT, entropy_BT = policy.logp(phi, seqs, temperature)
    return logp_BT, entropy_BT if entropy_coef else jax.lax.stop_gradient(entropy_BT)


def J_SFT(
    policy: Policy,
    demos: Sequences,
    term=lambda logp_BT, rows: logp_BT,
    total=None,
    entropy_coef: float = 0.0,
):
    """J_SFT(phi) = mean log pi_phi(y*_t) over the expert tokens of the whole batch; prompts are not scored.

    term(logp_BT, rows) [B,T] stands in for log pi where a method weighs the tokens; total: what the sum is divided by.
    entropy_coef times the token's entropy is added. rows may hold kept_B, 0 where a row is left out.
    """
    total = token_total(demos) if total is None else total

    def J(phi, seqs: Sequences, rows):
        logp_BT, entropy_BT = scored(policy, phi, seqs, 1.0, entropy_coef)
        value_BT = term(logp_BT, rows)
        if entropy_coef:
            value_BT += entropy_coef * entropy_BT
        facts = {"logp_BT": logp_BT, "entropy_BT": entropy_BT}
        return jnp.sum(value_BT * row_mask(seqs, rows, logp_BT.shape[1])) / total, facts

    return J


def J_RL(
    policy: Policy,
    rollouts: Rollouts,
    term,
    kl_coef: float = 0.0,
    total=None,
    entropy_coef: float = 0.0,
):
    """J_RL(phi) = mean over sampled tokens of term(log pi_phi, behaviour, A) - kl_coef k3(pi_phi || ref) + entropy_coef H.

    term: surrogate or clipped_surrogate with its bounds set. The rows given with it: A_B; behaviour_BT (absent: the policy
    itself, so that the ratio is 1, right for the first update on its own samples); ref_BT (needed when kl_coef > 0); kept_B
    where some rows are left out (0). Off policy the KL of a token counts by the same ratio; its entropy H does not. total: what
    the sum is divided by, all sampled tokens unless given.
    """
    total = token_total(rollouts.seqs) if total is None else total

    def J(phi, seqs: Sequences, rows: dict):
        logp_BT, entropy_BT = jax.lax.optimization_barrier(
            scored(policy, phi, seqs, rollouts.temperature, entropy_coef)
        )
        behaviour_BT = rows.get("behaviour_BT", logp_BT)
        value_BT = term(logp_BT, behaviour_BT, rows["A_B"])
        facts = {"logp_BT": logp_BT, "entropy_BT": entropy_BT}
        if kl_coef:
            facts["kl_BT"] = k3(logp_BT, rows["ref_BT"])
            value_BT -= (
                kl_coef * jax.lax.stop_gradient(ratio(logp_BT, behaviour_BT)) * facts["kl_BT"]
            )
        if entropy_coef:
            value_BT += entropy_coef * entropy_BT
        return jnp.sum(value_BT * row_mask(seqs, rows, logp_BT.shape[1])) / total, facts

    return J


def row_mask(seqs: Sequences, rows: dict, T: int) -> jax.Array:
    """1.0 at the tokens of the rows that count, [B,T]."""
    mask_BT = token_mask(seqs.length_B, T)
    return mask_BT * rows["kept_B"][:, None] if "kept_B" in rows else mask_BT


def group_size(rollouts: Rollouts) -> int:
    """M, samples of each prompt."""
    return rollouts.seqs.length_B.shape[0] // rollouts.seqs.prompt_len_P.shape[0]


def rl_rows(
    policy: Policy,
    ref: Tree,
    rollouts: Rollouts,
    advantage: str,
    kl_coef: float,
    microbatch_rows: int,
) -> dict:
    """What J_RL reads beside the samples: advantages, and the reference's log-probabilities where a KL term needs them."""
    rows = {"A_B": group_advantages(rollouts.reward_B, group_size(rollouts), advantage)}
    if kl_coef:
        rows["ref_BT"] = logp_of(policy, ref, rollouts, microbatch_rows)
    return rows


def logp_of(policy: Policy, phi: Tree, rollouts: Rollouts, microbatch_rows: int = 0) -> jax.Array:
    """log pi_phi of the sampled tokens [B,T] at their temperature, forward only, micro-batched."""
    step = lambda carry, seqs, rows: (carry, policy.logp(phi, seqs, rollouts.temperature)[0])
    return over_micro_batches(step, (), rollouts.seqs, {}, microbatch_rows)[1]


def token_total(seqs: Sequences) -> jax.Array:
    """Completion tokens of the whole batch, at least 1, fp32."""
    return jnp.maximum(seqs.length_B.sum(), 1).astype(jnp.float32)


def mean_tokens(x_BT: jax.Array, seqs: Sequences) -> jax.Array:
    """Mean of x over the tokens of the batch."""
    return jnp.sum(x_BT * token_mask(seqs.length_B, x_BT.shape[1])) / token_total(seqs)


def demo_metrics(facts: dict, demos: Sequences) -> Metrics:
    """What every method that reads demonstrations reports, whatever it ascends: mean log-probability of expert tokens, entropy,
    and stop_prob, the probability of ending where the expert ends."""
    real_B = (demos.length_B > 0).astype(jnp.float32)
    stop_B = jnp.take_along_axis(
        facts["logp_BT"], jnp.maximum(demos.length_B - 1, 0)[:, None], axis=1
    )[:, 0]
    return {
        "sft/logp": mean_tokens(facts["logp_BT"], demos),
        "sft/entropy": mean_tokens(facts["entropy_BT"], demos),
        "sft/stop_prob": jnp.sum(jnp.exp(stop_B) * real_B) / jnp.maximum(real_B.sum(), 1.0),
        "budget/demo_tokens": demos.length_B.sum(),
    }


def rollout_metrics(facts: dict, rollouts: Rollouts) -> Metrics:
    """What every method that samples reports; logp_error compares the sampler's log-probabilities with the trainer's.

    rl/clip_fraction is 0 here, as it is for one update on a batch; methods that make several report their own.
    """
    seqs, R_PM = rollouts.seqs, rollouts.reward_B.reshape(-1, group_size(rollouts))
    mask_BT = token_mask(seqs.length_B, facts["logp_BT"].shape[1])
    error_BT = jnp.abs(rollouts.logp_BT - facts["logp_BT"]) * mask_BT
    metrics = {
        "reward/mean": rollouts.reward_B.mean(),
        "reward/all_right": jnp.mean(R_PM.min(axis=1) > 0.5),
        "reward/all_wrong": jnp.mean(R_PM.max(axis=1) < 0.5),
        "rl/clip_fraction": jnp.float32(0),
        "rollout/entropy": mean_tokens(facts["entropy_BT"], seqs),
        "rollout/logp_error": mean_tokens(error_BT, seqs),
        "rollout/logp_error_max": error_BT.max(),
        "rollout/prob_error": mean_tokens(jnp.exp(jnp.minimum(error_BT, LOG_RATIO_BOUND)), seqs),
        "budget/generated_tokens": seqs.length_B.sum(),
    }
    return metrics | (
        {"rollout/kl_ref": mean_tokens(facts["kl_BT"], seqs)} if "kl_BT" in facts else {}
    )
