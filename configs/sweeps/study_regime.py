"""The regime of the cooperative gain: settings of bridge around the tuned ones.

    python -m experiments.study --stages=regime

Settings are changed one by one, and a few together. A variant is bridge/SETTING. lam "by the gain"
gives demonstrations more weight while theta, with them, is better than theta_hat.
"""

from configs.sweeps import ladder

RISE = {
    "method.bridge.lam": 0.1,
    "method.bridge.lam_schedule.end": 0.9,
    "method.bridge.lam_schedule.steps": ladder.ROLLOUTS,
}
SETTINGS = {f"lam={lam}": {"method.bridge.lam": lam} for lam in (0.3, 0.7)} | {
    "lam rises by a cosine, 0.1 to 0.9": RISE | {"method.bridge.lam_schedule.kind": "cosine"},
    "lam by the gain, 0.2 to 0.8": {
        "method.bridge.lam_schedule.kind": "gain",
        "method.bridge.lam": 0.2,
        "method.bridge.lam_schedule.end": 0.8,
    },
    "resync_every=25": {"method.bridge.variant.resync_every": 25},
    "inner_steps=4": {"method.bridge.variant.inner_steps": 4},
    "ratio_cap=2": {"method.bridge.variant.ratio_cap": 2.0},
}
RATIOS = (0.1, 1, 10, 30)  # beta / alpha


def get_sweep() -> dict:
    """Up to 13 settings x 4 seeds."""
    alpha, tuned = ladder.tuned().get("bridge", (ladder.ALPHA, ladder.RATIOS[0]))
    variants = {
        f"bridge/beta={ratio} alpha": ladder.at_rate("bridge", alpha, ratio)
        for ratio in RATIOS
        if ratio != tuned
    }
    variants |= {
        f"bridge/{name}": ladder.at_tuned("bridge", **given) for name, given in SETTINGS.items()
    }
    variants["bridge/beta=30 alpha, resync_every=10"] = ladder.at_rate(
        "bridge", alpha, 30, **{"method.bridge.variant.resync_every": 10}
    )
    variants["bridge/gain alone, beta=100 alpha, resync_every=10"] = ladder.at_rate(
        "bridge",
        alpha,
        100,
        **{"method.bridge.variant.w_learns": "gain", "method.bridge.variant.resync_every": 10},
    )
    return dict(config="configs/ladder.py", set=ladder.common(), variants=variants, seeds=range(4))
