"""Progress of a run, or of another long command, on the terminal."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from bridge_jax.filesystem import streams

# between two lines of progress where there is no terminal
PROGRESS_SECONDS = 10.0


def duration(seconds: float) -> str:
    """A time in its two largest units, such as "12 s", "3 min 10 s" or "1 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


@contextlib.contextmanager
def progress(
    total: int | None, initial: int, desc: str, quiet: bool = False, unit: str = "step"
) -> Iterator[Callable]:
    """`with progress(...) as show: show(step, text)`.

    It shows a bar on a terminal, else a line on stderr every few seconds. total: None where it is
    not known.
    """
    if quiet:
        yield lambda step, text="": None
        return
    start, shown = time.monotonic(), -math.inf

    def line(step: int, text: str = "") -> None:
        nonlocal shown
        now = time.monotonic()
        if (total is None or step < total) and now - shown < PROGRESS_SECONDS:
            return
        shown, pace = now, (now - start) / max(1, step - initial)
        left = f"{pace:.3g} s/{unit}"
        if total is not None:
            left += f", {duration(pace * (total - step))} left"
        of = "" if total is None else f"/{total}"
        streams.write_line(f"{desc} {step}{of}  {left}  {text}".rstrip(), descriptor=2)

    if not streams.has_terminal(2):
        yield line
        return
    # only a terminal needs it
    from tqdm import tqdm

    bar = tqdm(total=total, initial=initial, desc=desc, unit=unit)

    def advance(step: int, text: str = "") -> None:
        # the terminal may be gone by now
        with contextlib.suppress(OSError, ValueError):
            bar.set_postfix_str(text, refresh=False)
            bar.update(step - bar.n)

    try:
        yield advance
    finally:
        with contextlib.suppress(OSError, ValueError):
            bar.close()
