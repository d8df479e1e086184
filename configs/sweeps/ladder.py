"""Shared settings of the study's sweeps: methods, their settings, learning rates, lengths of runs.

Equal budgets: each method reads 3,200 demonstrations (100 steps of 32, from task.demo_size) and
generates 25,600 samples (100 steps of 32 prompts x 8). Steps without sampling (the first half of
cold_start, every second step of alternate) come on top and are cheap. Methods that generate more
per step have fewer steps: bridge_own samples twice, dapo 2.3 times (measured). Each has a warm-up
of a tenth, and a cosine to 0 at its own end. Equal time: AT_EQUAL_TIME, the same methods for as
long as bridge takes. Not a sweep itself.
"""

import json
import pathlib

from configs.ladder import BASE

ROLLOUTS = 100  # generating steps of each run
TUNED = pathlib.Path(__file__).resolve().parents[2] / "docs" / "study" / "tuned.json"
# variant -> method and its settings other than learning rates
METHODS = {
    "sft": {"method": "sft"},
    "grpo": {"method": "grpo"},
    "cold_start": {
        "method": "cold_start",
        "method.cold_start.sft_steps": ROLLOUTS,
        "steps": 2 * ROLLOUTS,
    },
    "alternate": {"method": "alternate", "steps": 2 * ROLLOUTS},
    "hybrid": {"method": "hybrid"},
    "bridge": {"method": "bridge"},
    "joint": {"method": "joint"},
    "bridge_gain_only": {"method": "bridge", "method.bridge.variant.w_learns": "gain"},
    "bridge_resync": {"method": "bridge", "method.bridge.variant.resync_every": 10},
    "bridge_inner": {"method": "bridge", "method.bridge.variant.inner_steps": 2},
    "bridge_own": {
        "method": "bridge",
        "method.bridge.variant.shadow_rollouts": "own",
        "steps": ROLLOUTS // 2,
    },
    "chord_mu": {"method": "chord", "method.chord.mu_schedule.steps": ROLLOUTS},
    "chord_phi": {
        "method": "chord",
        "method.chord.weighting": "phi",
        "method.chord.mu": 0.1,
        "method.chord.mu_schedule.kind": "constant",
    },
    "luffy": {"method": "luffy"},
    "srft": {"method": "srft"},
    "hpt": {"method": "hpt"},
    "dr_grpo": {"method": "dr_grpo"},
    "gspo": {"method": "gspo"},
    "dapo": {"method": "dapo", "steps": 44},
}
WITH_ADAPTER = (
    "bridge",
    "bridge_own",
    "bridge_resync",
    "bridge_inner",
    "bridge_gain_only",
    "joint",
)
MAIN = ("sft", "grpo", "cold_start", "alternate", "hybrid", "bridge")
MAIN_WITH_SAMPLES = MAIN[1:]  # sft reads no reward
ALPHA = 1e-4  # the base rate of configs/ladder.py
RATES = (1e-4, 3e-4, 1e-3)  # alpha of every method
# also tried for LOWEST_BEST, the variants whose best rate of the three is the lowest; for the main
# variants it was tried and never the best
LOWER = 3e-5
LOWEST_BEST = ("chord_phi", "luffy", "dr_grpo", "gspo", "dapo", "srft", "hpt")
# beta / alpha of variants with an adapter, which therefore have twice as many settings to try
RATIOS = (10, 1)


def common(**given) -> dict:
    """Keys that all runs of the study set."""
    return {"model.path": BASE, "eval.measured_gain": True} | given


def given_of(variant: str) -> dict:
    """The settings of a variant other than learning rates; the defaults for another method."""
    return METHODS.get(variant, {"method": variant})


def annealed(given: dict) -> dict:
    """The settings with learning rates that fall to 0 at the end of the run, or of each phase."""
    steps = given.get("steps", ROLLOUTS)
    length = steps - given.get("method.cold_start.sft_steps", 0)
    every = {"warmup_steps": length // 10, "decay_steps": length - length // 10}
    labels = ("base", "lora") if given["method"] in ("bridge", "joint") else ("base",)
    return (
        {"steps": steps, "eval.every": steps // 4}
        | given
        | {f"optim.{label}.{key}": value for label in labels for key, value in every.items()}
    )


def at_rate(variant: str, rate: float, ratio: float = RATIOS[0], **given) -> dict:
    """The settings of a variant, and those given, with alpha = rate and beta = ratio * alpha."""
    adapter = (
        {"optim.lora.learning_rate": float(f"{ratio * rate:.3g}")}
        if variant in WITH_ADAPTER
        else {}
    )
    return annealed(given_of(variant) | given | {"optim.base.learning_rate": rate} | adapter)


def ratios(variant: str) -> tuple[float, ...]:
    """The ratios beta / alpha to try; a single one without an adapter, where it has no effect."""
    return RATIOS if variant in WITH_ADAPTER else RATIOS[:1]


def setting(variant: str, rate: float, ratio: float) -> str:
    """The name of a tuning setting: METHOD@ALPHA, with xRATIO for a ratio other than 10."""
    return f"{variant}@{rate:g}" + ("" if ratio == RATIOS[0] else f"x{ratio}")


def grid(variant: str) -> dict[str, tuple[float, float]]:
    """The settings to try in tuning: name -> (alpha, beta / alpha)."""
    rates = (LOWER, *RATES) if variant in LOWEST_BEST else RATES
    return {
        setting(variant, rate, ratio): (rate, ratio) for rate in rates for ratio in ratios(variant)
    }


def scaled(variant: str, factor: float) -> dict:
    """The lengths of a variant with all phases scaled by `factor`."""
    given = {"steps": ROLLOUTS} | given_of(variant)
    return {
        key: round(factor * given[key])
        for key in ("steps", "method.cold_start.sft_steps")
        if key in given
    }


def tuned() -> dict[str, tuple[float, float]]:
    """Variant -> (alpha, beta / alpha), for the tuned variants (docs/study/tuned.json)."""
    return (
        {name: tuple(rates) for name, rates in json.loads(TUNED.read_text()).items()}
        if TUNED.exists()
        else {}
    )


def at_tuned(variant: str, **given) -> dict:
    """The settings of a variant, and those given, at its tuned rates, or at the config's."""
    return at_rate(variant, *tuned().get(variant, (ALPHA, RATIOS[0])), **given)


def settled(*variants: str) -> dict:
    """{variant: its settings at its rates}; by default all tuned variants, or all if none is."""
    return {name: at_tuned(name) for name in variants or tuned() or METHODS}
