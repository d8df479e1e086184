r"""Reproduce the paper's table for one model: `python -m experiments.reproduce --model=qwen25_3b
--out=DIR`.

Stages, each an ordinary command in a process of its own, with its log in DIR/logs:

    plan        memory and seconds of a step on --topology, compiled without its devices
    demos       demonstrations of LIMR's problems from public data (experiments.traces)
    tune        with --tuned: each method at several learning rates, judged on 500 other problems
    train       SFT, RL-zero, cold start, alternating, hybrid, CHORD, BRIDGE, BRIDGE without J_meta
    evaluate    the base model and each run on the five benchmarks
    page        DIR/page: ours beside the published figures, as Markdown, HTML, CSV, LaTeX, a picture

What is done is not repeated: the same command goes on, and more methods, seeds, benchmarks or
ablations may be asked for later. A command that fails loses no other; it is named at the end.
--dry_run prints every command for pods or Slurm. --rehearse runs all of it on a CPU with a tiny
random model (or smollm2) and real data from --data_dir: it proves that the parts fit, nothing else.

Exit codes: 0 done; 1 a command failed; 2 the request is invalid; 5 the disk is full: make room, and
the same command goes on; 130 stopped.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import sys
from pathlib import Path

from absl import flags

from bridge_jax.filesystem import files
from experiments import INTERRUPTED
from experiments.cli import (
    DISK_FULL,
    check_output,
    define_path,
    fail,
    fail_by,
    interrupt_by_signals,
    run_command,
)
from experiments.processes import available_cores
from experiments.reproduce import estimate, jobs, launch, page, rehearsal, tuning
from experiments.reproduce import request as requests
from experiments.reproduce.request import STAGES, Request

EXAMPLE = "python -m experiments.reproduce --model=qwen25_3b --out=runs/paper"
# flags that are no part of the command for one stage
NOT_OF_A_STAGE = ("--dry_run", "--stages", "--launcher", "--jobs")
# stages that this command does itself
OWN = {
    "model": rehearsal.write_model,
    "validation": tuning.write_validation,
    "page": page.write,
}


def main(argv: list[str]) -> None:
    """Check, estimate, print or run the stages, say what failed."""
    given = flags.FLAGS
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}")
    try:
        request, stages = read_flags(), read_stages()
        requests.check(request)
        if given.dry_run or given.launcher != "local":
            show(request, stages, given.launcher)
            return
        requests.claim(request)
        if request.rehearse:
            # also where there are other devices, unless they are asked for
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
        interrupt_by_signals()
        failures = run_stages(request, stages, given.jobs or usual_jobs(request))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError) as error:
        fail_by(error)
    report(request, failures)


def run_stages(request: Request, stages: list[str], at_a_time: int) -> list[launch.Failure]:
    """Run the stages in order; a stage goes on although jobs of the one before failed."""
    if {"plan", "train"} & set(stages):
        print(estimate.text(request), flush=True)
    failures, is_done = [], lambda job: jobs.done(request, job)
    for stage in stages:
        found = jobs_of(request, stage, alone=len(stages) == 1)
        left = sum(not is_done(job) for job in found)
        if found:
            print(f"{stage}: {len(found) - left} of {len(found)} done before", flush=True)
        failures += launch.run(found, is_done, at_a_time, logs(request))
        if stage in OWN and not found and wanted(request, stage):
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
    """The jobs of a stage. The tiny model is made by a process of its own unless it is all there is.

    Its weights are drawn on a device, which this process must not take from its jobs.
    """
    found = jobs.of_stage(request, stage)
    if stage == "model" and not found and wanted(request, stage) and not alone:
        return [own_job(request, stage)]
    return found


def wanted(request: Request, stage: str) -> bool:
    """Whether the request has something to do in a stage of this command's own."""
    makes_model = request.rehearse and not request.model_path
    return {"model": makes_model, "validation": request.tuned}.get(stage, True)


def usual_jobs(request: Request) -> int:
    """Jobs at a time: one, which has all devices; in a rehearsal two, if there are the cores."""
    return min(2, len(available_cores())) if request.rehearse else 1


def logs(request: Request) -> Path:
    """The folder of the commands' output."""
    return request.folder / "logs"


def show(request: Request, stages: list[str], launcher: str) -> None:
    """Print the estimate on standard error, and a command on each line of standard output."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(estimate.text(request), file=sys.stderr, flush=True)
    if launcher == "slurm":
        print(f"mkdir -p {shlex.quote(str(logs(request)))}")
    if request.rehearse and launcher == "local":
        print("export JAX_PLATFORMS=cpu")
    shown: set[str] = set()
    for stage in stages:
        found = jobs.of_stage(request, stage)
        if stage in OWN and not found and wanted(request, stage):
            found = [own_job(request, stage)]
        found = [job for job in found if job.text not in shown]
        if found:
            print(f"# {stage}: begin when the stages before are done")
        for job in found:
            shown.add(job.text)
            mark = "# done: " if jobs.done(request, job) else ""
            print(f"{mark}{launch.shown(job, launcher, logs(request))}")
        if stage == "tune" and request.tuned and not tuning.chosen(request):
            print("# the chosen rates are known after this: print the later stages again then")
    check_output()


def own_job(request: Request, stage: str) -> jobs.Job:
    """This command for one stage that it does itself."""
    kept = [flag for flag in given_flags() if not flag.startswith(NOT_OF_A_STAGE)]
    out = {"model": Path(request.base_model), "validation": tuning.validation_file(request)}
    arguments = (*kept, f"--stages={stage}")
    return jobs.Job(stage, stage, jobs.THIS, arguments, out.get(stage, Path()))


def given_flags() -> list[str]:
    """The flags of the command line, each as one --NAME=VALUE."""
    module = sys.modules[__name__]
    found = flags.FLAGS.flags_by_module_dict().get(module.__name__, [])
    return [flag.serialize() for flag in found if flag.present]


def report(request: Request, failures: list[launch.Failure]) -> None:
    """Say what failed and end with the exit code."""
    for failure in failures:
        print(f"failed: {launch.explain(failure, logs(request))}", file=sys.stderr)
    if failures:
        print(
            f"not done: {len(failures)}; mend the cause, and the same command goes on with what is "
            "left; --methods=... leaves a method out",
            file=sys.stderr,
        )
    check_output()
    sys.exit(launch.exit_code(failures))


def read_stages() -> list[str]:
    """The stages asked for, in their order; ValueError for an unknown one."""
    given = [name for name in flags.FLAGS.stages if name]
    for name in given:
        if name not in STAGES:
            raise ValueError(f"--stages: unknown stage {name!r}; allowed: {', '.join(STAGES)}")
    return [name for name in STAGES if name in given]


def read_flags() -> Request:
    """The flags as a Request."""
    given = {field.name: getattr(flags.FLAGS, field.name) for field in dataclasses.fields(Request)}
    lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    for key, kind in (("seeds", int), ("rates", float)):
        try:
            lists[key] = tuple(kind(text) for text in lists[key])
        except ValueError:
            raise ValueError(f"--{key}={','.join(lists[key])}; allowed: numbers") from None
    for key in ("train_flags", "evaluate_flags"):
        lists[key] = tuple(given[key].split())
    if given["rehearse"] and not given["topology"]:
        lists["topology"] = "cpu:1"
    return Request(**given | lists)


def define_flags() -> None:
    """The flags of this command."""
    default = Request("", "")
    models = ", ".join((*requests.MODELS, f"{requests.SMOLLM2} (with --rehearse)"))
    flags.DEFINE_string("model", None, f"one of {models}")
    define_path("out", None, "the folder of everything; a reproduction in it goes on")
    flags.DEFINE_bool("rehearse", False, "all stages at a tiny size, on a CPU; needs --data_dir")
    define_path("data_dir", "", "folder with train/ and benchmarks/; empty: the hub")
    define_path("model_path", "", "folder of the base model; empty: from the hub")
    flags.DEFINE_string(
        "demos", default.demos, "a source of experiments.traces (NAME[:SUBSET]), or files"
    )
    define_path("traces", "", "a file of demonstrations that is there; no stage demos then")
    flags.DEFINE_list("stages", list(STAGES), "which of them")
    flags.DEFINE_list("methods", list(default.methods), "base, and methods to train")
    flags.DEFINE_list("tasks", list(default.tasks), "benchmarks")
    flags.DEFINE_list("seeds", ["0"], "of the trainings")
    flags.DEFINE_integer("pass_at", 0, "also pass@k, from this many samples of each problem")
    flags.DEFINE_list("ablate", [], "noise (rewards flipped with probability 0.2), lam")
    flags.DEFINE_bool("tuned", False, "also the best of a few learning rates for every method")
    flags.DEFINE_list("rates", [], "those rates; empty: 1, 4 and 20 times the published one")
    flags.DEFINE_integer("max_new", 0, "most new tokens in evaluation; 0: the paper's 5000")
    flags.DEFINE_string("topology", "", "what to plan for, such as v5e:4x4 or gpu:8")
    flags.DEFINE_string("train_flags", "", "further flags of every training, as one text")
    flags.DEFINE_string("evaluate_flags", "", "further flags of every evaluation, as one text")
    flags.DEFINE_integer("jobs", 0, "commands at a time; 0: one, in a rehearsal two", lower_bound=0)
    flags.DEFINE_bool("dry_run", False, "print the commands")
    flags.DEFINE_enum(
        "launcher",
        "local",
        launch.LAUNCHERS,
        "slurm, tpu: print the commands for sbatch or a slice",
    )
    flags.mark_flags_as_required(["model", "out"])


def start() -> None:
    """The command, with its flags."""
    define_flags()
    run_command(main, EXAMPLE)
