"""What the sweeps of the study share: the methods, their settings beside the learning rate, and how long each trains.

Equal budgets: every method generates in 150 steps, 16 prompts x 8 samples each, and reads 16 experts in a step of its own or in the
same one; steps that generate nothing (cold_start's first 50, every second one of alternate) come on top, and are cheap. sft
has 150 steps, too. Not a sweep itself.
"""
import json
import pathlib

ROLLOUTS = 150  # generating steps of each run
TUNED = pathlib.Path(__file__).resolve().parents[2] / "docs" / "study" / "tuned.json"
METHODS = {  # variant -> method and what it sets beside the learning rates
    "sft": {"method": "sft"},
    "grpo": {"method": "grpo"},
    "dr_grpo": {"method": "dr_grpo"},
    "gspo": {"method": "gspo"},
    "dapo": {"method": "dapo"},
    "cold_start": {"method": "cold_start", "method.sft_steps": 50, "steps": ROLLOUTS + 50},
    "alternate": {"method": "alternate", "steps": 2 * ROLLOUTS},
    "hybrid": {"method": "hybrid"},
    "chord_mu": {"method": "chord", "method.chord_steps": ROLLOUTS},
    "chord_phi": {"method": "chord", "method.chord_weighting": "phi", "method.chord_mu": 0.1, "method.chord_mu_end": 0.1},
    "luffy": {"method": "luffy"},
    "srft": {"method": "srft"},
    "hpt": {"method": "hpt"},
    "bridge": {"method": "bridge"},
    "bridge_own": {"method": "bridge", "method.shadow_rollouts": "own"},
    "bridge_resync": {"method": "bridge", "method.resync_every": 10},
    "bridge_gain_only": {"method": "bridge", "method.w_learns": "gain"},
    "joint": {"method": "joint"},
}
WITH_ADAPTER = ("bridge", "bridge_own", "bridge_resync", "bridge_gain_only", "joint")
MAIN = ("sft", "grpo", "cold_start", "alternate", "hybrid", "bridge")
MAIN_WITH_SAMPLES = MAIN[1:]  # sft reads no reward
ALPHA = 3e-4  # the base rate of configs/ladder.py
RATES = (1e-5, 3e-5, 1e-4, 3e-4)  # of every method
BETA = 10  # beta / alpha while alpha is tuned


def common(**given) -> dict:
    """Keys that all runs of the study set."""
    return {"model.path": "runs/study/base/model", "steps": ROLLOUTS, "eval.every": 50} | given


def at_rate(variant: str, rate: float) -> dict:
    """The settings of a variant at a learning rate."""
    adapter = {"optim.lora.learning_rate": float(f"{BETA * rate:.3g}")} if variant in WITH_ADAPTER else {}
    return METHODS[variant] | {"optim.base.learning_rate": rate} | adapter


def settled(*variants: str) -> dict:
    """{variant: its settings}, of all unless named: at its rates of docs/study/tuned.json, else at those of the config."""
    chosen = json.loads(TUNED.read_text()) if TUNED.exists() else {}
    return {name: at_rate(name, chosen[name]) if name in chosen else METHODS[name] for name in variants or METHODS}
