"""Options of an evaluation: the given ones, their checks, and defaults for the others.

An option that is empty or 0 was left out. `resolve_defaults` fills it in from the model: a run
directory is evaluated as in its training, unless an option says otherwise.
Left out: flags and their help (experiments/evaluate.py).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from bridge_jax.data import batches
from bridge_jax.models.precision import dtype_of

MAX_NEW, BUCKETS = 5000, (64, 128, 256, 512, 1024, 2048)
PROMPTS = ("", "boxed", "plain", "user")
# options of benchmarks of one's own
OWN_BENCHMARK = ("columns", "reward", "pattern", "instruction")
# those of them that say how it is asked and read: taken together from a run, or not at all
OWN_READING = ("reward", "pattern", "instruction")
LEAST = {"samples": 1, "max_new": 0, "limit": 0, "rows": 0, "seed": 0, "decode_tensor": 1}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of an evaluation; the fields are the flags of experiments.evaluate."""

    tasks: tuple[str, ...] = ()
    data_dir: str = ""
    greedy: bool = True
    samples: int = 1
    # of the samples
    temperature: float = 0.7
    max_new: int = 0
    # problems of each split; 0: all
    limit: int = 0
    # completions generated at once; 0: as many as fit into free memory (rows.py)
    rows: int = 0
    # of the samples
    seed: int = 0
    buckets: tuple[int, ...] = ()
    dtype: str = ""
    prompt: str = ""
    # of custom:FILE, as the keys of config.task
    columns: str = ""
    reward: str = ""
    pattern: str = ""
    instruction: str = ""
    # in addition to those of the tasks
    stop: tuple[str, ...] = ()
    task_stop: bool = True
    # devices that share one copy of the weights and its heads; the rows are split over the others
    decode_tensor: int = 1

    @property
    def sampled(self) -> int:
        """Samples of each problem in addition to the greedy completion."""
        return self.samples if self.samples > 1 or not self.greedy else 0

    @property
    def kinds(self) -> dict[str, int]:
        """Kind of completion -> completions of each problem, of the kinds that were asked for."""
        counts = {"greedy": int(self.greedy), "sampled": self.sampled}
        return {kind: count for kind, count in counts.items() if count}


class Defaults(NamedTuple):
    """Values of the options that were left out. 0 and (): as the model has room for."""

    dtype: str
    prompt: str = "boxed"
    stop: tuple[str, ...] = ()
    task_stop: bool = True
    limit: int = 0
    buckets: tuple[int, ...] = ()
    max_new: int = 0
    # of a run whose task is custom; for benchmarks of one's own alone
    columns: str = ""
    reward: str = ""
    pattern: str = ""
    instruction: str = ""


def check(options: Options) -> None:
    """ValueError for an option that is invalid whatever the model."""
    for key, least in LEAST.items():
        if getattr(options, key) < least:
            raise ValueError(
                f"--{key}={getattr(options, key)}; allowed: a whole number of at least {least}"
            )
    if options.sampled and not options.temperature > 0:
        raise ValueError(
            f"--temperature={options.temperature} would make all samples of a problem equal; "
            "allowed: above 0. The greedy completion is made without --samples"
        )
    if options.prompt not in PROMPTS:
        raise ValueError(
            f"--prompt={options.prompt!r}; allowed: {', '.join(filter(None, PROMPTS))}"
        )
    if "" in options.stop:
        raise ValueError("--stop= is empty, and every text contains it; leave the flag out")
    for key in OWN_BENCHMARK:
        if getattr(options, key) and not has_own_benchmark(options.tasks):
            raise ValueError(f"--{key} is of a benchmark of your own, --tasks=custom:FILE")
    if options.dtype:
        dtype_of("--dtype", options.dtype)
    if not options.tasks:
        _check_own_task(options)


def has_own_benchmark(names: tuple[str, ...]) -> bool:
    """Whether one of the tasks is custom:FILE."""
    return any(name.startswith("custom:") for name in names)


def _check_own_task(options: Options) -> None:
    """ValueError for an option that would change how a run is asked its own task."""
    flags = [f"--prompt={options.prompt}"] * bool(options.prompt)
    flags += [f"--stop={text!r}" for text in options.stop]
    flags += ["--notask_stop"] * (not options.task_stop)
    if flags:
        raise ValueError(
            f"{flags[0]} without --tasks: a run is asked its own task as it was in training"
        )


def resolve_defaults(options: Options, defaults: Defaults, positions: int) -> Options:
    """The options with nothing left out; ValueError where prompts and completions do not fit.

    positions: how many the model has. Prompts take at most half of them by default.
    """
    usual = tuple(b for b in BUCKETS if b <= positions // 2) or (max(1, positions // 2),)
    buckets = options.buckets or defaults.buckets or usual
    batches.check_buckets(buckets)
    room = positions - max(buckets)
    max_new = options.max_new or defaults.max_new or min(MAX_NEW, room)
    if max_new > room or room < 1:
        raise ValueError(
            f"--max_new={max_new} behind prompts of up to {max(buckets)} tokens (--buckets) makes "
            f"{max(buckets) + max_new} positions, the model has {positions}; lower one of the two"
        )
    return dataclasses.replace(
        options,
        prompt=options.prompt or defaults.prompt,
        stop=options.stop or defaults.stop,
        task_stop=options.task_stop and defaults.task_stop,
        buckets=buckets,
        max_new=max_new,
        dtype=options.dtype or defaults.dtype,
        limit=options.limit or defaults.limit,
        **own_benchmark(options, defaults),
    )


def own_benchmark(options: Options, defaults: Defaults) -> dict[str, str]:
    """Values of OWN_BENCHMARK: the given ones, else those of a run whose task is custom.

    A run's pattern belongs to its reward: where --reward or --pattern is given, neither these nor
    the instruction are the run's.
    """
    given = {key: getattr(options, key) for key in OWN_BENCHMARK}
    if not has_own_benchmark(options.tasks):
        return given
    runs = {key: getattr(defaults, key) for key in OWN_BENCHMARK}
    if given["reward"] or given["pattern"]:
        runs |= dict.fromkeys(OWN_READING, "")
    return {key: given[key] or runs[key] for key in OWN_BENCHMARK}


def own_benchmark_note(options: Options, resolved: Options) -> str:
    """A line where custom:FILE is asked and read as a run's own task was; else ""."""
    taken = [
        f"--{key}={getattr(resolved, key)}"
        for key in OWN_BENCHMARK
        if getattr(resolved, key) != getattr(options, key)
    ]
    if not taken:
        return ""
    return f"custom: asked and read as in the run's training, {' '.join(taken)}"


def clipping_note(options: Options, resolved: Options, defaults: Defaults, positions: int) -> str:
    """A line where max_new is less than usual, since the model has no room for it; else ""."""
    if options.max_new or defaults.max_new or resolved.max_new >= MAX_NEW:
        return ""
    return (
        f"--max_new={resolved.max_new}: {MAX_NEW} is usual, but the model has {positions} "
        "positions, "
        f"{max(resolved.buckets)} of them kept for the prompt"
    )
