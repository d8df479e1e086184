"""Run the study of docs/study.md: `python -m experiments.study [--jobs=2] [--stages=tune,...]`.

Runs the sweeps of the stages one after the other, from the base model that the repository ships
(configs/ladder_base). After the stage "tune" it chooses the learning rates of each variant on the
dev split (docs/study/tuned.json). Every finished run is a line of
docs/study/results/STAGE_BASE.jsonl. A run with such a line is not run again. Lines of other base
models, which were made on other processors, stay.

Then tables and pictures are drawn from these files alone (`--stages=` only draws), for each base:
the parts of docs/study_appendix.md between `<!-- table NAME on BASE -->` and `<!-- end -->`, and
docs/study/*_BASE.png; and docs/smollm2/rewards.png, from the metrics beside it.
--quick: two seeds of the main methods, untuned, in about ten minutes, in runs/study_quick. It shows
how the study works; it proves nothing.

Exit codes: 0 done; 1 a run failed; 2 the request cannot be fulfilled; 5 the disk is full: make
room, and the same command goes on; 130 stopped.
"""

from __future__ import annotations

import os
import sys

from absl import flags

from bridge_jax.filesystem import files
from bridge_jax.rundir import logbook
from experiments.cli import DISK_FULL, fail, fail_by, interrupt_by_signals, run_command
from experiments.study import pictures, results, stages, tables
from experiments.study.stages import STAGES, Study


def draw(study: Study) -> None:
    """Draw tables and pictures from the results; ValueError where there are none."""
    bases = results.read(study.results)
    if not bases:
        raise ValueError(
            f"{study.results} holds no finished run; name stages to run: {', '.join(STAGES)}"
        )
    if study.quick:
        text = tables.quick_page(bases)
        print(text)
    else:
        text = tables.fill(study.page.read_text(), bases)
    files.replace(study.page, text)
    for base, rows in bases.items():
        # on other bases no main sweep was run
        if len(results.plain(rows)) > 2:
            pictures.draw(rows, study.docs, base)
    if not study.quick:
        one_run = study.page.parent / "smollm2"
        pictures.draw_run(logbook.read(str(one_run)), one_run / "rewards.png")


def main(argv: list[str]) -> None:
    """Stages, then tables; turn errors into one line and an exit code."""
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}")
    study, codes = Study(flags.FLAGS.quick), []
    chosen = ["quick"] if study.quick else list(filter(None, flags.FLAGS.stages))
    try:
        stages.check(chosen)
        interrupt_by_signals()
        for stage in chosen:
            codes.append(stages.run_stage(study, stage, flags.FLAGS.jobs))
            if codes[-1] == DISK_FULL:
                leave(codes)
        draw(study)
    except (ValueError, OSError) as error:
        fail_by(error)
    leave(codes)


def leave(codes: list[int]) -> None:
    """End with 0, with 5 where the disk was full, else with 1 where a command failed."""
    sys.exit(DISK_FULL if DISK_FULL in codes else int(any(codes)))


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_list("stages", list(STAGES), f"which of {', '.join(STAGES)}; empty: draw alone")
    flags.DEFINE_bool("quick", False, "two seeds of the main methods, about ten minutes")
    flags.DEFINE_integer("jobs", max(1, (os.cpu_count() or 1)), "runs at a time", lower_bound=1)


def start() -> None:
    """The command, with its flags."""
    define_flags()
    run_command(main)
