"""The stages one after the other: run, or printed.

Most jobs are other commands; the tiny model, the validation problems and the page are this one's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bridge_jax.filesystem import files
from experiments.cli import DISK_FULL, output_for_a_pipe
from experiments.reproduce import (
    demonstrations,
    estimate,
    jobs,
    launch,
    marks,
    page,
    rehearsal,
    tuning,
)
from experiments.reproduce.printed import Lines
from experiments.reproduce.request import Request

# stages that this command does itself
OWN = {
    "model": rehearsal.write_model,
    "demos": demonstrations.write,
    "validation": tuning.write_validation,
    "page": page.write,
}


def run(request: Request, stages: list[str], at_a_time: int) -> list[launch.Failure]:
    """Run the stages in order; a stage goes on although jobs of the one before failed."""
    if {"plan", "train"} & set(stages):
        print(estimate.text(request), flush=True)
    failures, is_done = [], lambda job: marks.done(request, job)
    for stage in stages:
        found = jobs_of(request, stage, alone=len(stages) == 1)
        left = sum(not is_done(job) for job in found)
        if found:
            print(f"{stage}: {len(found) - left} of {len(found)} done before", flush=True)
        failures += launch.run(found, is_done, at_a_time, logs(request))
        if does_itself(request, stage, found):
            failures += do_own(request, stage)
        if stage == "plan" and left:
            print(estimate.text(request), flush=True)
    return failures


def do_own(request: Request, stage: str) -> list[launch.Failure]:
    """Do a stage of this command's own, and say what came of it; its failure, if it is one."""
    try:
        print(f"{stage}: {OWN[stage](request)}", flush=True)
    except (ValueError, OSError) as error:
        code = DISK_FULL if files.is_full(error) else None
        return [launch.Failure(own_job(request, stage), files.explain(error), code)]
    return []


def jobs_of(request: Request, stage: str, alone: bool) -> list[jobs.Job]:
    """The jobs of a stage; the tiny model has a process of its own unless it is alone.

    Its weights are drawn on a device, which this process must not take from its jobs.
    """
    found = jobs.of_stage(request, stage)
    if stage == "model" and not found and wanted(request, stage) and not alone:
        return [own_job(request, stage)]
    return found


def does_itself(request: Request, stage: str, found: list[jobs.Job]) -> bool:
    """Whether this command has a part in the stage: all of it, or of demos the end."""
    return stage in OWN and (stage == "demos" or not found) and wanted(request, stage)


def wanted(request: Request, stage: str) -> bool:
    """Whether the request has something to do in a stage of this command's own."""
    makes_model = request.rehearse and not request.model_path
    asked = {"model": makes_model, "demos": not request.traces, "validation": request.tuned}
    return asked.get(stage, True)


def logs(request: Request) -> Path:
    """The folder of the commands' output."""
    return request.folder / "logs"


def show(request: Request, stages: list[str], launcher: str) -> None:
    """Print the estimate on standard error, and a command on each line of standard output."""
    with output_for_a_pipe():
        print_commands(request, stages, launcher)


def print_commands(request: Request, stages: list[str], launcher: str) -> None:
    """`show` to a reader who reads all of it."""
    print(estimate.text(request), file=sys.stderr, flush=True)
    if request.rehearse and launcher == "local":
        print("export JAX_PLATFORMS=cpu")
    shown, lines = set(), Lines(launcher, logs(request))
    for line in lines.preparation():
        print(line)
    for stage in stages:
        found = jobs.of_stage(request, stage)
        if does_itself(request, stage, found):
            found = [*found, own_job(request, stage)]
        found = [job for job in found if job.text not in shown]
        if found:
            print(lines.heading(stage))
        for job in found:
            shown.add(job.text)
            print(f"# done: {job.text}" if marks.done(request, job) else lines.line(job))
        if stage == "tune" and request.tuned and not tuning.chosen(request):
            print("# the chosen rates are known after this: print the later stages again then")


def own_job(request: Request, stage: str) -> jobs.Job:
    """This command for one stage that it does itself."""
    if stage == "demos":
        return jobs.join_job(request)
    out = {"model": Path(request.base_model), "validation": tuning.validation_file(request)}
    arguments = (*request.given, f"--stages={stage}")
    return jobs.Job(stage, stage, jobs.THIS, arguments, out.get(stage, Path()))
