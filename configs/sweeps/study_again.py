"""Repeated runs of the study: several inner steps of theta_hat, and bounded weights.

    python -m experiments.study --stages=again

The first runs did not test these settings as they said. Settings and names are those of the main
sweep (bridge_inner) and of the search for a regime (bridge/SETTING).
"""

from configs.sweeps import ladder, study_regime


def get_sweep() -> dict:
    """3 variants and plain bridge x 4 seeds."""
    again = {
        f"bridge/{name}": ladder.at_tuned("bridge", **study_regime.SETTINGS[name])
        for name in ("inner_steps=4", "ratio_cap=2")
    }
    return dict(
        config="configs/ladder.py",
        set=ladder.common(),
        seeds=range(4),
        variants=ladder.settled("bridge", "bridge_inner") | again,
    )
