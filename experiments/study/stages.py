"""The stages of the study: its sweeps, each in a process of its own."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

from bridge_jax.config import schema
from bridge_jax.filesystem import files
from bridge_jax.filesystem.hf_folder import weights_hash
from configs.ladder import BASE
from configs.sweeps import ladder
from experiments.cli import DISK_FULL
from experiments.study import results

ROOT = pathlib.Path(__file__).resolve().parents[2]
# stage -> its file in configs/sweeps/
STAGES = {
    "tune": "study_tune.py",
    "main": "methods.py",
    "conditions": "study_conditions.py",
    "time": "study_time.py",
    "regime": "study_regime.py",
    "again": "study_again.py",
    "paired": "study_paired.py",
}
QUICK = {"quick": "study_quick.py"}


class Study(NamedTuple):
    """Where a study is on disk; the quick one touches nothing of docs/."""

    quick: bool

    @property
    def work(self) -> pathlib.Path:
        """The folder of the run directories."""
        return ROOT / "runs" / ("study_quick" if self.quick else "study")

    @property
    def docs(self) -> pathlib.Path:
        """The folder of the pictures."""
        return self.work if self.quick else ROOT / "docs" / "study"

    @property
    def page(self) -> pathlib.Path:
        """The page that holds the tables."""
        return self.work / "study.md" if self.quick else ROOT / "docs" / "study_appendix.md"

    @property
    def results(self) -> pathlib.Path:
        """The folder of finished runs, a line each."""
        return self.docs / "results"


def check(stages: list[str]) -> None:
    """ValueError for a stage that does not exist."""
    for stage in stages:
        if stage not in STAGES | QUICK:
            raise ValueError(f"--stages: unknown {stage!r}: {schema.did_you_mean(stage, STAGES)}")


def run(module: str, *arguments: str) -> int:
    """Run a command of this project in a process of its own; its exit code.

    On KeyboardInterrupt the command is asked to end, and has saved and ended when this raises.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *arguments], cwd=ROOT
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        # a Ctrl-C of the terminal has reached the command; a signal to this process alone has not
        process.terminate()
        process.wait()
        raise


def run_stage(study: Study, stage: str, jobs: int) -> int:
    """Run the stage's sweep without the runs that have results; the exit code.

    After the stage "tune" the learning rates are chosen.
    """
    weights = weights_hash(str(ROOT / BASE))
    base = results.BASES.get(weights, weights)
    code = run(
        "sweep",
        f"--sweep=configs/sweeps/{(STAGES | QUICK)[stage]}",
        f"--workdir={study.work / stage}",
        f"--results={study.results / stage}_{base}.jsonl",
        f"--jobs={jobs}",
    )
    if stage == "tune" and code != DISK_FULL:
        rates = results.tuned(results.read(study.results))
        files.replace(ladder.TUNED, json.dumps(rates, indent=1) + "\n")
    return code
