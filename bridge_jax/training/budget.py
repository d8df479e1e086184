"""The budget of a run, for comparisons at equal cost: tokens, FLOPs, times, peak memory.

Methods (`objectives.token_counts`) and the loop count tokens. FLOPs are those of the model alone: 2
per token and weight of a matrix in a forward pass, 4 per layer, head, head width and attended
position, and three times both in a forward-backward pass. Padding, recomputation (remat), norms and
the optimizer are not counted. A prompt is computed once for all its samples, and without the output
head (except in the forward-only passes of a KL term or of theta_hat's own samples, whose prompt
tokens are not counted separately).

time/device_s, summed by the loop, is the time of sampling and updates from dispatch until the host
has the result: the device's time, unless the host is slower. Processor time and
memory/host_peak_gib are those of the main host's process; the peak includes loading, compiling and
evaluation.
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
    """Number of weights in matmuls per token: all matrices.

    The embedding only if it is the head.
    """
    table = cfg.tensors()
    sizes = {
        path: math.prod(params.full_shape(cfg, path, table[path]))
        for path, matrix in params.matrices(cfg).items()
        if matrix
    }
    return sum(sizes.values()) - (0 if cfg.tied else sizes["embed"])


def head_weights(cfg: layers.Config) -> int:
    """Number of weights of the output head."""
    return cfg.vocab * cfg.width


def forward_flops(cfg: layers.Config, tokens: float, context: float, head: bool = True) -> float:
    """FLOPs of a forward pass over so many tokens; context: mean number of attended positions."""
    weights = matrix_weights(cfg) - (0 if head else head_weights(cfg))
    return tokens * (2.0 * weights + 4.0 * cfg.layers * cfg.heads * cfg.head_dim * context)


def step_flops(
    cfg: layers.Config, counts: dict[str, float], prompt: float, completion: float
) -> float:
    """FLOPs of one step.

    counts: its budget/* metrics; prompt and completion: mean lengths of its rows, for attention.
    """
    count = lambda name: counts.get(f"budget/{name}", 0.0)
    prompt_context, completion_context = prompt / 2, prompt + completion / 2
    return forward_flops(
        cfg,
        count("prefilled_tokens") + 3 * count("gradient_prompt_tokens"),
        prompt_context,
        head=False,
    ) + forward_flops(
        cfg,
        count("generated_tokens") + 3 * count("gradient_tokens") + count("forward_tokens"),
        completion_context,
    )


def token_rates(counts: dict[str, float], rollout_s: float, update_s: float) -> dict[str, float]:
    """Tokens per second of one step; counts: its budget/* metrics.

    time/rollout_tokens_per_s: generated tokens per second of sampling; absent without sampling.
    time/update_tokens_per_s: tokens of all passes of the update, with or without gradient, per
    second of it.
    """
    count = lambda *names: sum(counts.get(f"budget/{name}", 0.0) for name in names)
    processed = count("gradient_tokens", "gradient_prompt_tokens", "forward_tokens")
    rates = {"time/update_tokens_per_s": processed / max(update_s, 1e-9)}
    if "budget/generated_tokens" in counts:
        rates["time/rollout_tokens_per_s"] = count("generated_tokens") / max(rollout_s, 1e-9)
    return rates


def mean_lengths(batch: Batch) -> tuple[float, float]:
    """Mean lengths of a step's prompts and of its completions."""
    rows = [samples.seqs for samples in batch.rollouts.values()] + (
        [batch.demos] if batch.demos else []
    )
    mean = lambda lengths: float(np.mean(np.concatenate([np.asarray(x) for x in lengths])))
    return mean([seqs.prompt_len_P for seqs in rows]), mean([seqs.length_B for seqs in rows])


def peak_memory() -> dict[str, float]:
    """Peak GiB of this process, and of the fullest local device if the backend reports it."""
    # of ru_maxrss, in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    found = {
        "memory/host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    }
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return found | ({"memory/device_peak_gib": max(peaks) / 2**30} if peaks else {})


class Meter:
    """Wall and processor seconds of training, without evaluation and saving.

    earlier: seconds of earlier processes of the run, which are included.
    """

    def __init__(self, earlier: dict[str, float]):
        self._spent = {name: earlier.get(name, 0.0) for name in ("time/wall_s", "time/cpu_s")}
        self._since, self._paused = self._now(), False

    def _now(self) -> dict[str, float]:
        return {"time/wall_s": time.monotonic(), "time/cpu_s": time.process_time()}

    def read(self) -> dict[str, float]:
        """The seconds until now."""
        if self._paused:
            return dict(self._spent)
        now = self._now()
        return {name: self._spent[name] + now[name] - self._since[name] for name in now}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside of the context."""
        self._spent, self._paused = self.read(), True
        try:
            yield
        finally:
            self._since, self._paused = self._now(), False
