"""Renamed keys of configs, of metrics, and of the other records in a run directory.

A run directory with old keys is read, and resumes, under the new names: its readers pass what they
read through `record` (config.json), `metrics` (lines of metrics.jsonl and of study results),
`checkpoint_meta` and `transcript`. Nothing that is stored is rewritten. An old key on a command
line is an error that gives the new name.

config.method was once one flat group; it has a group for each method now.
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

# group of the config -> {old key: new key}
GROUPS = {
    "rollout": {"halvings": "compactions", "stretches": "cache_segments"},
    "eval": {"cooperation": "measured_gain"},
}
# beginning of an old metric -> beginning of the new one
METRICS = {
    "coop/inner": "grad/inner_sft_rl",
    "coop/norm_ratio": "grad/norm_ratio_sft_rl",
    "coop/gain": "measured_gain/gain",
    "coop/expert_logp": "eval/demo_logp",
}
# new config keys that `fingerprint_key` replaces by the name that stored fingerprints were made of
FINGERPRINTED = {"eval.measured_gain": "eval.cooperation"}


def keys_of(method: str) -> dict[str, str]:
    """{old key: new key, without "method."} for the settings of this method."""
    unchanged = {key: key for key in UNCHANGED.get(method, ())}
    return {old: f"{method}.{new}" for old, new in {**unchanged, **RENAMED.get(method, {})}.items()}


def hint(method: str, key: str) -> str:
    """The new name of an old key of config.method, config.rollout or config.eval.

    "" for a key that never was.
    """
    for group, keys in GROUPS.items():
        if key in keys:
            return f"it is config.{group}.{keys[key]} now."
    chosen = keys_of(method).get(key)
    others = [keys[key] for keys in map(keys_of, {*RENAMED, *UNCHANGED}) if key in keys]
    places = [chosen] if chosen else sorted(others)
    return f"it is config.method.{' or config.method.'.join(places)} now." if places else ""


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config (JSON) of a run with every key under its new name.

    Settings that the run's method did not read are left out. chord's mu was constant where its two
    ends were equal.
    """
    config = dict(config)
    for name, keys in GROUPS.items():
        if name in config:
            config[name] = {keys.get(key, key): value for key, value in config[name].items()}
    group = dict(config.get("method", {}))
    flat = {key: value for key, value in group.items() if not isinstance(value, Mapping)}
    method = flat.pop("name", "")
    # of the present groups, as the name is
    flat.pop("train", None)
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


def config_key(method: str, key: str) -> str:
    """The new name of a key such as "eval.cooperation" of a run of this method."""
    group, _, name = key.partition(".")
    if group == "method":
        return f"method.{keys_of(method).get(name, name)}"
    return f"{group}.{GROUPS[group].get(name, name)}" if group in GROUPS else key


def fingerprint_key(key: str) -> str:
    """The name of a config key in fingerprints, which stay the same when a key is renamed."""
    return FINGERPRINTED.get(key, key)


def record(stored: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with its config, "diff" and "fingerprints" (once "facts") under new names."""
    config = stored["config"]
    method = config.get("method", {}).get("name", "")
    found = {key: value for key, value in stored.items() if key != "facts"}
    found["config"] = translated(config)
    found["fingerprints"] = stored.get("fingerprints", stored.get("facts", {}))
    found["diff"] = {config_key(method, key): pair for key, pair in stored.get("diff", {}).items()}
    return found


def metric(key: str) -> str:
    """The new name of a metric."""
    for old, new in METRICS.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def metrics(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics under their new names; "nonfinite" lists some of them."""
    found = {metric(key): value for key, value in line.items()}
    if "nonfinite" in found:
        found["nonfinite"] = [metric(key) for key in found["nonfinite"]]
    return found


def checkpoint_meta(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a checkpoint, with "deferred_line", once "unlogged"."""
    found = {key: value for key, value in stored.items() if key != "unlogged"}
    line = stored.get("deferred_line", stored.get("unlogged", {}))
    return found | {"deferred_line": metrics(line)}


def transcript(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a file of rollouts, with its "policy", once "actor"."""
    return {"policy" if key == "actor" else key: value for key, value in row.items()}
