"""Whether a command is done, by what it wrote.

That is the manifest of traces, the finished.json of a run, the results.json of an evaluation. So a
stage may be run on one machine and the next on another.
"""

from __future__ import annotations

import json
from pathlib import Path

from bridge_jax.rundir import finished, layout
from experiments.reproduce import estimate, results
from experiments.reproduce.jobs import THIS, Job
from experiments.reproduce.request import Request

# settings of an evaluation that its scores depend on
NUMBERS = ("limit", "max_new", "samples", "temperature", "seed")


def done(request: Request, job: Job) -> bool:
    """Whether nothing is left to do; a run that tuning has seen diverge is at its end."""
    if job.stage == "tune" and results.diverged(run_of(job)):
        return True
    if job.module == "experiments.train":
        return trained(job.out)
    if job.module == "experiments.evaluate":
        return evaluated(job)
    if job.module == "experiments.plan":
        return estimate.plan_of(request, job.name, request.topology) is not None
    if job.stage == "model":
        return (job.out / "config.json").exists()
    if job.module == THIS:
        return job.stage != "page" and job.out.exists()
    return job.out.exists() and Path(f"{job.out}.manifest.json").exists()


def run_of(job: Job) -> Path:
    """The run directory that a job trains or evaluates."""
    return job.out if job.module == "experiments.train" else job.needs[0].out


def trained(folder: Path) -> bool:
    """Whether the run has taken its last step and its last checkpoint is whole."""
    if not (folder / "config.json").exists():
        return False
    steps = layout.read_config(str(folder))["config"]["steps"]
    return finished.last_line(str(folder), steps) is not None


def evaluated(job: Job) -> bool:
    """Whether the results hold all benchmarks that are asked for, of the run as it is now."""
    path = job.out / "results.json"
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in job.arguments if "=" in flag)
    mark = Path(flags["model"]) / layout.FINISHED
    if not path.exists() or mark.exists() and mark.stat().st_mtime > path.stat().st_mtime:
        return False
    there = json.loads(path.read_text(encoding="utf-8"))
    names = {
        f"custom_{Path(task).stem}" if task.startswith("custom:") else task
        for task in flags["tasks"].split(",")
    }
    # where --evaluate_flags changed since, evaluate itself refuses the folder and says why
    asked = {"limit": 0} | {key: flags[key] for key in NUMBERS if key in flags}
    settings = there["settings"]
    same = all(float(settings.get(key, value)) == float(value) for key, value in asked.items())
    return same and names <= set(there["benchmarks"])
