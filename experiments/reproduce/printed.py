"""Commands as lines of shell to paste: for this machine, for Slurm, or for a TPU slice.

The reader sets $SBATCH_FLAGS and $SBATCH_CPU_FLAGS, or $TPU and $ZONE (docs/reproduce.md).
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from experiments import processes
from experiments.reproduce.jobs import THIS, Job
from experiments.reproduce.launch import log_of

LAUNCHERS = ("local", "slurm", "tpu")
# each is one process's work, with all devices of its machine
ON_DEVICES = ("experiments.train", "experiments.evaluate")
# stages of one job that all later jobs need
GATES = ("model", "validation")
# Of each job of Slurm: half an hour before its time limit the command is asked to save and end, and
# the job goes back to the queue; those that wait for it go on waiting.
JOB_SCRIPT = """\
#!/bin/bash
trap 'late=1; kill -TERM "$child"' USR1
"$@" &
child=$!
# a signal cuts a wait short
while true; do wait "$child"; code=$?; kill -0 "$child" 2>/dev/null || break; done
if [ "$late" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
"""
SAVES_FIRST = ("--signal=B:USR1@1800", "--requeue", "--open-mode=append")


class Lines:
    """The lines of one launcher, in the order in which they are asked for."""

    def __init__(self, launcher: str, logs: Path):
        self.launcher, self.logs = launcher, logs
        # the shell's variables with the numbers of Slurm's jobs so far
        self.jobs: list[str] = []
        # what a job writes -> its variable
        self.writers: dict[Path, str] = {}
        self.gates: list[str] = []

    def preparation(self) -> list[str]:
        """The lines before all others: Slurm's jobs need a folder of logs, and their script."""
        if self.launcher != "slurm":
            return []
        script = shlex.quote(str(self.script))
        return [
            f"mkdir -p {shlex.quote(str(self.logs))}",
            f"cat > {script} <<'END'\n{JOB_SCRIPT}END",
        ]

    @property
    def script(self) -> Path:
        """The script that every job of Slurm is."""
        return self.logs / "job.sh"

    def heading(self, stage: str) -> str:
        """The line above a stage."""
        if self.launcher == "slurm":
            return f"# {stage}"
        return f"# {stage}: begin when the stages before are done"

    def line(self, job: Job) -> str:
        """The line that starts a job, or that says where to start it."""
        return {"local": lambda job: job.text, "slurm": self.slurm, "tpu": tpu}[self.launcher](job)

    def slurm(self, job: Job) -> str:
        """One process on one node, which waits for the jobs above that it needs."""
        variable = f"job{len(self.jobs) + 1}"
        words = [
            "sbatch --parsable",
            *SAVES_FIRST,
            "$SBATCH_FLAGS" if on_devices(job) else "$SBATCH_CPU_FLAGS",
            *self.dependency(job),
            f"--job-name={shlex.quote(f'{job.stage}.{job.name}')}",
            f"--output={shlex.quote(str(log_of(self.logs, job)))}",
            shlex.join([str(self.script), python(), *job.command[1:]]),
        ]
        self.jobs.append(variable)
        self.writers[job.out] = variable
        if job.stage in GATES:
            self.gates.append(variable)
        return f"{variable}=$({' '.join(words)})"

    def dependency(self, job: Job) -> list[str]:
        """sbatch's flags; a job whose needs have failed is cancelled rather than left pending.

        The page is made of what there is, so that it waits for the end of all; demonstrations are
        joined by a command that says itself which are missing.
        """
        if job.stage == "page":
            kind, wanted = "afterany", self.jobs
        elif job.out in self.writers:
            # plans are lines of one file, each written behind the one before
            kind, wanted = "afterany", [self.writers[job.out]]
        else:
            needed = [self.writers[one.out] for one in job.needs if one.out in self.writers]
            kind = "afterany" if job.module == THIS else "afterok"
            wanted = [*self.gates, *needed]
        if not wanted:
            return []
        after = ":".join(f"${name}" for name in wanted)
        return [f"--dependency={kind}:{after}", "--kill-on-invalid-dep=yes"]


def on_devices(job: Job) -> bool:
    """Whether the command works with devices; the others need a CPU alone."""
    measured = job.module == "experiments.plan" and "--topology=gpu" in " ".join(job.arguments)
    return measured or job.module in ON_DEVICES


def tpu(job: Job) -> str:
    """A training on all hosts of a slice; the others are one process's work, so a comment."""
    if job.module == "experiments.train":
        return processes.on_tpu([*job.command[1:], "--config.hosts.coordinator=auto"])
    where = "a machine with one host" if on_devices(job) else "any machine with the same storage"
    return f"# on {where}: {job.text}"


def python() -> str:
    """The Python that is running: seen from this folder, in which sbatch starts its jobs."""
    path, here = Path(sys.executable), Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
