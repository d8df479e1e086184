"""The trainings that a request asks for: each method as published, tuned, and its ablations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from bridge_jax import methods
from bridge_jax.training import settings
from experiments.reproduce.request import LABELS, Request

# the paper's share of flipped rewards, and values of lam around its 0.5
NOISE, LAM = 0.2, (0.1, 0.3, 0.7, 0.9)
# times the published learning rate
GRID = (1, 4, 20)
RATE_KEYS = ("optim.base.learning_rate", "optim.lora.learning_rate")


class Variant(NamedTuple):
    """A method with some settings changed; "base" is the model before training."""

    method: str
    # "": as published; tuned, noise or lam
    kind: str = ""
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The name of its folders, without the seed."""
        short = {key.split(".")[-1]: value for key, value in self.settings}
        return "__".join([self.method, *(f"{key}={value:g}" for key, value in short.items())])

    @property
    def label(self) -> str:
        """The name in the page's tables."""
        name = LABELS.get(self.method, self.method)
        if self.kind == "tuned":
            return f"{name}, tuned ({self.settings[0][1]:g})"
        values = ", ".join(f"{self.kind} {value:g}" for _, value in self.settings)
        return f"{name}, {values}" if values else name

    def run(self, seed: int) -> str:
        """The name of one run."""
        return self.name if self.method == "base" else f"{self.name}__seed={seed}"


def published(request: Request) -> list[Variant]:
    """Every method of the request as published."""
    return [Variant(method) for method in request.methods]


def ablations(request: Request) -> list[Variant]:
    """Noisy rewards for RL-zero and BRIDGE, other values of lam for BRIDGE."""
    found = []
    if "noise" in request.ablate:
        found += [
            Variant(method, "noise", (("rollout.reward_noise", NOISE),))
            for method in ("grpo", "bridge")
            if method in request.methods
        ]
    if "lam" in request.ablate and "bridge" in request.methods:
        found += [Variant("bridge", "lam", (("method.bridge.lam", lam),)) for lam in LAM]
    return found


def at_rate(request: Request, method: str, rate: float) -> Variant:
    """The method at a learning rate of all its parts; the published one is no variant."""
    if rate == request.published_rate:
        return Variant(method)
    return Variant(method, "tuned", tuple((key, rate) for key in RATE_KEYS))


def rates(request: Request) -> tuple[float, ...]:
    """The learning rates of --tuned; the published one is always among them."""
    given = request.rates or tuple(float(f"{request.published_rate * n:.3g}") for n in GRID)
    return tuple(sorted({request.published_rate, *given}))


def grid(request: Request) -> list[Variant]:
    """Every trained method at every rate."""
    trained = [method for method in request.methods if method != "base"]
    return [at_rate(request, method, rate) for method in trained for rate in rates(request)]


def reads_demos(request: Request, method: str) -> bool:
    """Whether the method reads demonstrations."""
    if method == "base":
        return False
    read = settings.read(request.config_of(method), devices=1)
    return methods.load(method).make(read.method, None, read.recipes).demos


def run_folder(request: Request, variant: Variant, seed: int) -> Path:
    """The run directory of a training."""
    return request.folder / "runs" / variant.run(seed)


def evaluation_folder(request: Request, variant: Variant, seed: int, kind: str = "") -> Path:
    """The folder of an evaluation; kind: avg@8, pass@32 or validation, "" for greedy answers."""
    return request.folder / "evaluations" / (variant.run(seed) + (f".{kind}" if kind else ""))
