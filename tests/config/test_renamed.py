"""Keys of config.method from before it had a group for each method."""

from __future__ import annotations

import pytest

from bridge_jax import methods
from bridge_jax.config import renamed, schema


def test_every_new_name_is_a_setting():
    """Of the method it is said to belong to, and of one old key alone."""
    for name in {*renamed.RENAMED, *renamed.UNCHANGED}:
        settings = schema.flatten({name: methods.defaults(name)})
        new = list(renamed.keys_of(name).values())
        assert set(new) <= set(settings) and len(set(new)) == len(new), name


@pytest.mark.parametrize("method", ["dapo", "gspo"])
def test_bounds_of_a_clip_keep_their_sides(method):
    """low stays low."""
    old = {"name": method, f"{method}_low": 0.1, f"{method}_high": 0.3}
    found = renamed.translated({"method": old})["method"][method]
    assert found == {"clip_low": 0.1, "clip_high": 0.3}


def test_a_run_of_before_under_the_new_names():
    """What its method read, in the method's groups; keys of other methods are left out."""
    method = {"name": "bridge", "lam": 0.3, "lam_schedule": "linear", "lam_end": 0.9}
    method |= {"inner_steps": 2, "shadow_storage": "difference", "chord_mu": 0.9}
    found = renamed.translated({"seed": 1, "method": method})
    assert found == {
        "seed": 1,
        "method": {
            "name": "bridge",
            "bridge": {
                "lam": 0.3,
                "lam_schedule": {"kind": "linear", "end": 0.9},
                "variant": {"inner_steps": 2},
                "shadow": {"storage": "difference"},
            },
        },
    }
    assert renamed.translated(found) == found


@pytest.mark.parametrize(
    "end, schedule",
    [(0.1, {"kind": "constant"}), (0.05, {"kind": "cosine", "end": 0.05, "steps": 40})],
)
def test_chords_mu_was_constant_where_its_ends_were_equal(end, schedule):
    """And then its end and steps were not read."""
    method = {"name": "chord", "chord_mu": 0.1, "chord_mu_end": end, "chord_steps": 40}
    found = renamed.translated({"method": method})["method"]["chord"]
    assert found == {"mu": 0.1, "mu_schedule": schedule}


def test_an_old_key_is_refused_with_its_new_name():
    """That of the chosen method, or of every method that has it; nothing for a key that never
    was.
    """
    assert (
        renamed.hint("bridge", "inner_steps")
        == "it is config.method.bridge.variant.inner_steps now."
    )
    assert renamed.hint("sft", "lam_end") == (
        "it is config.method.bridge.lam_schedule.end or config.method.joint.lam_schedule.end now."
    )
    assert renamed.hint("bridge", "lamb") == ""


def test_rollouts_keys_of_before():
    """Their values under the new names."""
    old = {"rollout": {"halvings": 2, "stretches": 4, "calls": 1}}
    assert renamed.translated(old)["rollout"] == {"compactions": 2, "cache_segments": 4, "calls": 1}
    assert renamed.hint("grpo", "halvings") == "it is config.rollout.compactions now."


def test_metrics_of_before():
    """In all forms of their names, and in the list of those that were not finite."""
    old = {
        "step": 1,
        "coop/inner_early": 1.0,
        "coop/gain_low": None,
        "nonfinite": ["coop/gain_low"],
    }
    new = {
        "step": 1,
        "grad/inner_sft_rl_early": 1.0,
        "measured_gain/gain_low": None,
        "nonfinite": ["measured_gain/gain_low"],
    }
    assert renamed.metrics(old) == new and renamed.metrics(new) == new


def test_keys_that_differed_from_the_defaults_of_before():
    """config.json's "diff", which decides how runs are grouped."""
    stored = {
        "config": {"method": {"name": "bridge"}, "eval": {"cooperation": True}},
        "facts": {"rows": 1},
        "diff": {"eval.cooperation": [True, False], "method.lam_end": [0.1, 0.2], "steps": [1, 2]},
    }
    found = renamed.record(stored)
    assert list(found["diff"]) == [
        "eval.measured_gain",
        "method.bridge.lam_schedule.end",
        "steps",
    ]
    assert found["fingerprints"] == {"rows": 1} and "facts" not in found
    assert found["config"]["eval"] == {"measured_gain": True}
    assert renamed.record(found) == found
    assert renamed.hint("sft", "cooperation") == "it is config.eval.measured_gain now."
