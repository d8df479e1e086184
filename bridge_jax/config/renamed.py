"""Renamed config keys: those of config.method, once one flat group, and of config.rollout.

A run directory with old keys resumes under the new names. An old key on a command line is an error
that gives the new name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEDULE = {
    "lam_schedule": "lam_schedule.kind",
    **{f"lam_{key}": f"lam_schedule.{key}" for key in ("end", "steps", "boundaries", "values")},
}
BRIDGE = {
    **SCHEDULE,
    "lam_gain": "lam_schedule.gain",
    **{f"shadow_{key}": f"shadow.{key}" for key in ("storage", "moments", "offload")},
    **{
        key: f"variant.{key}"
        for key in ("shadow_rollouts", "ratio_cap", "w_learns", "resync_every", "inner_steps")
    },
}
# method -> {old key of config.method: new key of config.method.<method>}
RENAMED = {
    "bridge": BRIDGE,
    "joint": SCHEDULE,
    "chord": {
        "chord_mu": "mu",
        "chord_mu_end": "mu_schedule.end",
        "chord_steps": "mu_schedule.steps",
        "chord_weighting": "weighting",
    },
    "dapo": {
        "dapo_low": "clip_low",
        "dapo_high": "clip_high",
        "dapo_buffer": "overlong_buffer",
        "dapo_penalty": "overlong_penalty",
        "dapo_resample": "resample_rounds",
    },
    "gspo": {"gspo_low": "clip_low", "gspo_high": "clip_high"},
    "hpt": {"hpt_gate": "gate", "hpt_advantage": "advantage", "hpt_entropy": "entropy_coef"},
    "luffy": {"luffy_gamma": "gamma", "luffy_entropy": "entropy_coef"},
    "srft": {"srft_expert": "expert_coef", "srft_rewarded": "rewarded_coef"},
}
# method -> old keys that have the same name in its group
UNCHANGED = {
    "bridge": ("lam", "advantage", "kl_coef", "sft_microbatches"),
    "joint": ("lam", "advantage", "kl_coef"),
    "grpo": ("advantage", "clip_low", "clip_high", "kl_coef", "updates_per_batch", "normaliser"),
    "dr_grpo": ("clip_low", "clip_high", "kl_coef", "updates_per_batch"),
    "gspo": ("advantage", "updates_per_batch"),
    "dapo": ("updates_per_batch",),
    "hybrid": ("mu", "advantage", "kl_coef"),
    "chord": ("advantage", "kl_coef"),
    "cold_start": ("sft_steps", "advantage", "kl_coef"),
    "alternate": ("advantage", "kl_coef"),
}

# {old key of config.rollout: new key}
ROLLOUT = {"halvings": "compactions", "stretches": "cache_segments"}


def keys_of(method: str) -> dict[str, str]:
    """{old key: new key, without "method."} for the settings of this method."""
    unchanged = {key: key for key in UNCHANGED.get(method, ())}
    return {old: f"{method}.{new}" for old, new in {**unchanged, **RENAMED.get(method, {})}.items()}


def hint(method: str, key: str) -> str:
    """The new name of an old key of config.method or config.rollout.

    "" for a key that never was.
    """
    if key in ROLLOUT:
        return f"it is config.rollout.{ROLLOUT[key]} now."
    chosen = keys_of(method).get(key)
    others = [keys[key] for keys in map(keys_of, {*RENAMED, *UNCHANGED}) if key in keys]
    places = [chosen] if chosen else sorted(others)
    return f"it is config.method.{' or config.method.'.join(places)} now." if places else ""


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config (JSON) of a run with every key under its new name.

    Settings that the run's method did not read are left out. chord's mu was constant where its two
    ends were equal.
    """
    rollout = {ROLLOUT.get(key, key): value for key, value in config.get("rollout", {}).items()}
    config = dict(config) | ({"rollout": rollout} if "rollout" in config else {})
    group = dict(config.get("method", {}))
    flat = {key: value for key, value in group.items() if not isinstance(value, Mapping)}
    method = flat.pop("name", "")
    if not flat:
        return dict(config)
    if method == "chord":
        constant = flat.get("chord_mu") == flat.get("chord_mu_end")
        flat["mu_schedule.kind"] = "constant" if constant else "cosine"
        if constant:
            # not read any more, and so not compared
            flat = {key: flat[key] for key in flat if key not in ("chord_mu_end", "chord_steps")}
    found = {key: value for key, value in group.items() if isinstance(value, Mapping)}
    names = keys_of(method) | {"mu_schedule.kind": "chord.mu_schedule.kind"}
    for old, value in flat.items():
        if old in names:
            *places, last = names[old].split(".")
            place = found
            for name in places:
                place = place.setdefault(name, {})
            place[last] = value
    return dict(config) | {"method": {"name": method, **found}}
