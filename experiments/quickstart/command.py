"""Train and compare four methods: `python -m experiments.quickstart [--out=DIR]`.

It takes under two minutes on two cores, and trains sft, grpo, hybrid and bridge
(configs/quickstart.py) from the base model that the repository ships, for the same number of steps,
prompts, samples and demonstrations. Each is an ordinary run of experiments.train in a process of
its own, with a share of the cores and a log. Then it prints a table and what it says, and draws
DIR/quickstart.png. Runs that are finished are not repeated. There is one seed: intervals are over
problems, for these very models.

Exit codes: 0 done; 1 a run failed; 2 the request is invalid; 5 the disk is full; 130 stopped. The
same command goes on.
"""

from __future__ import annotations

import os
import pathlib
import sys
import time

from absl import flags

from experiments import INTERRUPTED
from experiments.cli import (
    define_path,
    fail,
    fail_by,
    interrupt_by_signals,
    run_command,
)
from experiments.quickstart import launch, page

NEXT = """next:
  python -m experiments.train --config=configs/quickstart.py:chord --workdir={out}/chord
  python -m experiments.report --runs='{out}/*' --out={out}/report.html
  docs/train.md: your own model, data and settings; docs/methods.md: what each method does"""


def main(argv: list[str]) -> None:
    """Train, print, draw."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}; the flag is --out")
    began, out = time.monotonic(), pathlib.Path(flags.FLAGS.out)
    # also where there are other devices, unless they are asked for: the model is tiny
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    interrupt_by_signals()
    try:
        out.mkdir(parents=True, exist_ok=True)
        print(
            f"{', '.join(page.METHODS)} from one base model of 0.15 million parameters, on sums of "
            f"three\ntwo-digit numbers, here on {os.cpu_count()} cores; logs and runs in {out}/",
            flush=True,
        )
        failed = launch.train(page.LONGEST_FIRST, out)
        if failed:
            fail(*launch.explain(failed))
        results = page.read(out)
        page.draw(results, out / "quickstart.png")
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError) as error:
        fail_by(error)
    print(
        f"\n{page.table(results)}\n\n{page.findings(results)}\n\npicture: {out}/quickstart.png; "
        f"{time.monotonic() - began:.0f} seconds in all\n{NEXT.format(out=out)}"
    )


def start() -> None:
    """The command, with its flag."""
    define_path("out", "runs/quickstart", "where the runs and the picture go")
    run_command(main)
