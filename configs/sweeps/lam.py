"""The paper's ablation of lam: constants from 0.1 to 0.9, and three schedules from 0 to 1.

    python -m experiments.sweep --sweep=configs/sweeps/lam.py --workdir=runs/lam --jobs=2

The paper reports 0.3 to 0.7 as robust and uses 0.5 (arXiv 2509.06948); its text also describes a
curriculum from 0 to 1.
"""

from configs.sweeps import ladder


def get_sweep() -> dict:
    """Five constants and three schedules x 4 seeds."""
    rise = {
        "method.bridge.lam": 0.0,
        "method.bridge.lam_schedule.end": 1.0,
        "method.bridge.lam_schedule.steps": ladder.ROLLOUTS,
    }
    thirds = (ladder.ROLLOUTS // 3, 2 * ladder.ROLLOUTS // 3)
    variants = {f"lam_{lam}": {"method.bridge.lam": lam} for lam in (0.1, 0.3, 0.5, 0.7, 0.9)}
    variants |= {
        kind: rise | {"method.bridge.lam_schedule.kind": kind} for kind in ("linear", "cosine")
    }
    variants["step"] = {
        "method.bridge.lam": 0.1,
        "method.bridge.lam_schedule.kind": "step",
        "method.bridge.lam_schedule.boundaries": thirds,
        "method.bridge.lam_schedule.values": (0.5, 0.9),
    }
    bridge = ladder.settled("bridge")["bridge"]
    return dict(
        config="configs/ladder.py",
        set=ladder.common(),
        seeds=range(4),
        variants={name: bridge | given for name, given in variants.items()},
    )
