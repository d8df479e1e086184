"""What a run has spent, so that runs can be compared at equal budgets: FLOPs, wall time, processor
time, peak memory.

Tokens are counted by the methods (`objectives.passed`) and the loop. FLOPs are those of the model
alone: 2 per weight of a matrix and token in a forward pass, 4 per layer, head, head width and
attended position, three times both in a forward-and-backward pass; padding, recomputation (remat),
norms and the optimizer are not counted. A prompt is computed once for all its samples, and without
the output head (but in the forward-only passes of a KL term or of theta_hat's own samples, which
are not told apart). time/device_s (summed by the loop) is what sampling and updates took from
dispatch until the host had the result: the device's time where the host is not the slower one.
Processor time and memory/host_peak_gib are those of the first host's process, and the peak is of
all it ever held: loading, compiling and evaluation too.
"""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np

from bridge_jax.models import layers, params
from bridge_jax.types import Batch


def matrix_weights(cfg: layers.Config) -> int:
    """Weights that a token is multiplied with: all matrices, the embedding only where it is also
    the head.
    """
    table = cfg.tensors()
    sizes = {
        path: math.prod(params.full_shape(cfg, path, table[path]))
        for path, matrix in params.matrices(cfg).items()
        if matrix
    }
    return sum(sizes.values()) - (0 if cfg.tied else sizes["embed"])


def head_weights(cfg: layers.Config) -> int:
    """Those of them that are the output head."""
    return cfg.vocab * cfg.width


def forward_flops(cfg: layers.Config, tokens: float, context: float, head: bool = True) -> float:
    """Of a forward pass of that many tokens, each of which attends to `context` positions on
    average.
    """
    weights = matrix_weights(cfg) - (0 if head else head_weights(cfg))
    return tokens * (2.0 * weights + 4.0 * cfg.layers * cfg.heads * cfg.head_dim * context)


def step_flops(
    cfg: layers.Config, spent: dict[str, float], prompt: float, completion: float
) -> float:
    """Of one step.

    spent: its budget/* counts; prompt and completion: mean lengths of its rows, for attention.
    """
    count = lambda name: spent.get(f"budget/{name}", 0.0)
    within, behind = prompt / 2, prompt + completion / 2
    return forward_flops(
        cfg, count("prefilled_tokens") + 3 * count("gradient_prompt_tokens"), within, head=False
    ) + forward_flops(
        cfg,
        count("generated_tokens") + 3 * count("gradient_tokens") + count("forward_tokens"),
        behind,
    )


def token_rates(spent: dict[str, float], rollout_s: float, update_s: float) -> dict[str, float]:
    """Tokens a second of one step. spent: its budget/* counts.

    time/rollout_tokens_per_s: generated tokens over the seconds that sampling took; where nothing
    is sampled there is none. time/update_tokens_per_s: tokens that went through a pass of the
    update, backward or forward alone, over its seconds.
    """
    count = lambda *names: sum(spent.get(f"budget/{name}", 0.0) for name in names)
    passed = count("gradient_tokens", "gradient_prompt_tokens", "forward_tokens")
    rates = {"time/update_tokens_per_s": passed / max(update_s, 1e-9)}
    if "budget/generated_tokens" in spent:
        rates["time/rollout_tokens_per_s"] = count("generated_tokens") / max(rollout_s, 1e-9)
    return rates


def mean_lengths(batch: Batch) -> tuple[float, float]:
    """Of a step's prompts and of its completions."""
    rows = [samples.seqs for samples in batch.rollouts.values()] + (
        [batch.demos] if batch.demos else []
    )
    mean = lambda lengths: float(np.mean(np.concatenate([np.asarray(x) for x in lengths])))
    return mean([seqs.prompt_len_P for seqs in rows]), mean([seqs.length_B for seqs in rows])


def peak_memory() -> dict[str, float]:
    """Peak GiB of this process, and of the fullest local device where the backend tells."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    found = {
        "memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    }
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return found | ({"memory/device_peak_gib": max(peaks) / 2**30} if peaks else {})


class Meter:
    """Wall and processor seconds of training, evaluation and saving left out.

    Goes on from what an earlier process spent.
    """

    def __init__(self, before: dict[str, float]):
        self._spent = {name: before.get(name, 0.0) for name in ("time/wall_s", "time/cpu_s")}
        self._since, self._paused = self._now(), False

    def _now(self) -> dict[str, float]:
        return {"time/wall_s": time.monotonic(), "time/cpu_s": time.process_time()}

    def read(self) -> dict[str, float]:
        """Seconds so far."""
        if self._paused:
            return dict(self._spent)
        now = self._now()
        return {name: self._spent[name] + now[name] - self._since[name] for name in now}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count."""
        self._spent, self._paused = self.read(), True
        try:
            yield
        finally:
            self._since, self._paused = self._now(), False
