"""Metrics of a step: of its gradients, its samples and its demonstrations."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bridge_jax.objectives import terms
from bridge_jax.objectives.terms import LOG_RATIO_BOUND, group_size, mean_tokens, ratio, token_mask
from bridge_jax.types import Metrics, Rollouts, Sequences, Tree


def mean_gain(gain_B, prompts: int) -> Metrics:
    """The mean of gain_B over samples, and its standard error, clustered by prompt.

    With a single prompt the error is over its samples.
    """
    gain_C = gain_B.reshape(prompts, -1).mean(axis=1) if prompts > 1 else gain_B
    return {
        "bridge/gain": gain_B.mean(),
        "bridge/gain_stderr": gain_C.std(ddof=1) / gain_C.size**0.5,
    }


def shared_gain(rollouts: Rollouts, logp_BT, logp_hat_BT) -> Metrics:
    """The cooperative gain, KL(pi || pi_hat) and ESS, estimated on theta's samples.

    gain = mean[(1 - rho_seq) R] with rho_seq = pi_hat / pi. It uses raw rewards, since the baseline
    makes the value of a surrogate about 0 for any reward. ESS = (sum rho)^2 / sum rho^2 as a share
    of the samples: near 1 theta_hat is close to theta; near 0 the estimate and its standard error
    depend on few samples.
    """
    mask_BT = terms.token_mask(rollouts.seqs.length_B, logp_BT.shape[1])
    rho_B = terms.ratio(jnp.sum(logp_hat_BT * mask_BT, axis=1), jnp.sum(logp_BT * mask_BT, axis=1))
    prompts = len(rollouts.seqs.prompt_len_P)
    return mean_gain((1.0 - rho_B) * rollouts.reward_B, prompts) | {
        "bridge/ess": rho_B.sum() ** 2 / (rho_B.size * jnp.sum(rho_B**2)),
        "bridge/kl_hat": terms.mean_tokens(terms.k3(logp_BT, logp_hat_BT), rollouts.seqs),
    }


def own_gain(rollouts: Rollouts, own: Rollouts, logp_BT, logp_hat_BT, logp_own_BT) -> Metrics:
    """The gain as the difference of two sampled means, and the sampler's error for theta_hat.

    logp_hat_BT: theta_hat on theta's samples, for KL and ESS; logp_own_BT: theta_hat on its own.
    """
    error_BT = jnp.abs(own.logp_BT - logp_own_BT) * terms.token_mask(
        own.seqs.length_B, logp_own_BT.shape[1]
    )
    return shared_gain(rollouts, logp_BT, logp_hat_BT) | {
        **mean_gain(rollouts.reward_B - own.reward_B, len(rollouts.seqs.prompt_len_P)),
        "bridge/reward_hat": own.reward_B.mean(),
        "rollout/logp_error_hat": terms.mean_tokens(error_BT, own.seqs),
        "rollout/logp_error_hat_max": error_BT.max(),
    }


def clip_fraction(
    logp_BT, behaviour_BT, A_B, low: float, high: float, seqs: Sequences
) -> jax.Array:
    """Share of the tokens without a gradient by the clip of `clipped_surrogate`.

    They have rho > 1 + high at A > 0, or rho < 1 - low at A < 0. logp_BT and behaviour_BT may also
    be [B,1], one ratio for all tokens of a sample.
    """
    rho, A = ratio(logp_BT, behaviour_BT), A_B[:, None]
    clipped = ((rho > 1.0 + high) & (A > 0)) | ((rho < 1.0 - low) & (A < 0))
    return mean_tokens(jnp.broadcast_to(clipped, seqs.tokens_BT.shape).astype(jnp.float32), seqs)


def inner_product(a: Tree, b: Tree) -> jax.Array:
    """Inner product of two pytrees, fp32."""
    return sum(
        elementwise_product(x, y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


def elementwise_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """x * y in fp32, with its shape kept: flattening a sharded array would gather it."""
    return x.astype(jnp.float32) * y.astype(jnp.float32)


def by_layer_group(a: Tree, b: Tree) -> dict[str, jax.Array]:
    """Inner products of two gradients by group: early, middle and late layers, and "rest".

    Leaves under the key "layers", and those of an adapter of such ("layers/q"), have the layer as
    their leading axis; all others are "rest".
    """
    found: dict[str, jax.Array] = {}
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b))
    for (path, x), y in pairs:
        if str(getattr(path[0], "key", "")).partition("/")[0] != "layers":
            found["rest"] = found.get("rest", 0.0) + inner_product(x, y)
            continue
        inner_L = elementwise_product(x, y).sum(axis=tuple(range(1, x.ndim)))
        L = inner_L.shape[0]
        for i, name in enumerate(("early", "middle", "late")):
            if L * i // 3 < L * (i + 1) // 3:
                found[name] = found.get(name, 0.0) + inner_L[L * i // 3 : L * (i + 1) // 3].sum()
    return found


def gradient_alignment(G_SFT: Tree, G_RL: Tree) -> Metrics:
    """Alignment of two gradients at the same parameters, in total and by group of layers.

    grad/cos_sft_rl: their cosine. grad/inner_sft_rl: their inner product, the first-order increase
    of one objective by a unit step along the other's gradient. grad/norm_ratio_sft_rl:
    |G_SFT| / |G_RL|. 0 where one gradient is 0.
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
            f"grad/inner_sft_rl{name}": both,
            f"grad/norm_ratio_sft_rl{name}": jnp.where(
                rl > 0, jnp.sqrt(sft / jnp.maximum(rl, 1e-30)), 0.0
            ),
        }
    return metrics


def token_counts(*rows: Sequences, forward: tuple[Sequences, ...] = ()) -> Metrics:
    """The numbers of tokens that an update computes.

    rows: the sequences of each backward pass; forward: those of each forward-only pass. Sequences
    of several passes are given several times. A prompt counts once; with packing, once for each of
    its samples.
    """

    def prompts(seqs):
        real_PM = seqs.length_B.reshape(seqs.prompt_len_P.shape[0], -1) > 0
        return jnp.sum(
            seqs.prompt_len_P
            * (real_PM.any(axis=1) if seqs.packing is None else real_PM.sum(axis=1))
        )

    all_tokens = lambda seqs: seqs.length_B.sum() + prompts(seqs)
    return {
        "budget/gradient_tokens": sum(seqs.length_B.sum() for seqs in rows),
        "budget/gradient_prompt_tokens": sum(map(prompts, rows)),
        "budget/forward_tokens": sum(map(all_tokens, forward), start=jnp.int32(0)),
    }


def demo_metrics(aux: dict, demos: Sequences) -> Metrics:
    """Metrics of every method that reads demonstrations, for any objective.

    Mean log-probability and entropy of their tokens, and stop_prob, the probability of ending where
    the demonstration ends.
    """
    real_B = (demos.length_B > 0).astype(jnp.float32)
    stop_B = jnp.take_along_axis(
        aux["logp_BT"], jnp.maximum(demos.length_B - 1, 0)[:, None], axis=1
    )[:, 0]
    return {
        "sft/logp": mean_tokens(aux["logp_BT"], demos),
        "sft/entropy": mean_tokens(aux["entropy_BT"], demos),
        "sft/stop_prob": jnp.sum(jnp.exp(stop_B) * real_B) / jnp.maximum(real_B.sum(), 1.0),
        "budget/demo_tokens": demos.length_B.sum(),
    }


def rollout_metrics(aux: dict, rollouts: Rollouts) -> Metrics:
    """Metrics of every method that samples.

    rollout/logp_error compares the sampler's log-probabilities with the trainer's. rl/clip_fraction
    is 0, as for a single update on a batch; methods with several updates report their own.
    """
    seqs, R_PM = rollouts.seqs, rollouts.reward_B.reshape(-1, group_size(rollouts))
    mask_BT = token_mask(seqs.length_B, aux["logp_BT"].shape[1])
    error_BT = jnp.abs(rollouts.logp_BT - aux["logp_BT"]) * mask_BT
    metrics = {
        "reward/mean": rollouts.reward_B.mean(),
        "reward/all_right": jnp.mean(R_PM.min(axis=1) > 0.5),
        "reward/all_wrong": jnp.mean(R_PM.max(axis=1) < 0.5),
        "rl/clip_fraction": jnp.float32(0),
        "rollout/entropy": mean_tokens(aux["entropy_BT"], seqs),
        "rollout/logp_error": mean_tokens(error_BT, seqs),
        "rollout/logp_error_max": error_BT.max(),
        "rollout/prob_error": mean_tokens(jnp.exp(jnp.minimum(error_BT, LOG_RATIO_BOUND)), seqs),
        "budget/generated_tokens": seqs.length_B.sum(),
    }
    return metrics | ({"rollout/kl_ref": mean_tokens(aux["kl_BT"], seqs)} if "kl_BT" in aux else {})
