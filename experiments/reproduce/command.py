r"""Reproduce the paper's table for one model: `python -m experiments.reproduce --model=qwen25_3b
--out=DIR`.

Stages, each an ordinary command in a process of its own, with its log in DIR/logs:

    model       only of a rehearsal: the small model that stands for the paper's
    plan        memory and seconds of a step on --topology; h100:8 or v5e:4x4 need no device
    demos       demonstrations of LIMR's problems from public data (experiments.traces), joined
    validation  with --tuned: 500 problems of MATH's training set, to choose learning rates by
    tune        with --tuned: each method at several learning rates, judged on those
    train       every method of --methods, from the same model
    evaluate    the base model and each run on the five benchmarks
    page        DIR/page: ours beside the published figures, as Markdown, HTML, CSV, LaTeX, a
    picture

What is done is not repeated: the same command goes on, and more methods, seeds, benchmarks or
ablations may be asked for later. A command that fails loses no other; it is named at the end.
--dry_run prints every command; --launcher=slurm or tpu prints them for Slurm or a TPU slice.
--rehearse runs all of it on a CPU with a tiny random model (or smollm2) and real data from
--data_dir: it proves that the parts fit, nothing else.

Exit codes: 0 done; 1 a command failed; 2 the request is invalid; 5 the disk is full: make room, and
the same command goes on; 130 stopped.
"""

from __future__ import annotations

import dataclasses
import os
import sys

from absl import flags

from bridge_jax.planner import chips
from experiments import INTERRUPTED
from experiments.cli import (
    check_output,
    define_path,
    fail,
    fail_by,
    interrupt_by_signals,
    run_command,
)
from experiments.processes import available_cores
from experiments.reproduce import checks, estimate, launch, printed, stages
from experiments.reproduce.request import LABELS, METHODS, MODELS, SMOLLM2, STAGES, Request

# flags that are no part of the command for one stage
NOT_OF_A_STAGE = ("--dry_run", "--stages", "--launcher", "--jobs")
EXAMPLE = "python -m experiments.reproduce --model=qwen25_3b --out=runs/paper"


def main(argv: list[str]) -> None:
    """Check, estimate, print or run the stages, say what failed."""
    given = flags.FLAGS
    if argv[1:]:
        fail(f"unexpected arguments {argv[1:]}")
    try:
        request, chosen = read_flags(), read_stages()
        checks.check(request)
        checks.check_storage(request, given.launcher)
        if given.dry_run or given.launcher != "local":
            stages.show(request, chosen, given.launcher)
            return
        checks.claim(request)
        if request.rehearse:
            # also where there are other devices, unless they are asked for
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
        interrupt_by_signals()
        failures = stages.run(request, chosen, given.jobs or usual_jobs(request))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError) as error:
        fail_by(error)
    report(request, failures)


def usual_jobs(request: Request) -> int:
    """Jobs at a time: one, which has all devices; in a rehearsal two, if there are the cores."""
    return min(2, len(available_cores())) if request.rehearse else 1


def given_flags() -> tuple[str, ...]:
    """The flags of the command line that are of all stages, each as one --NAME=VALUE."""
    found = flags.FLAGS.flags_by_module_dict().get(define_flags.__module__, [])
    given = (flag.serialize() for flag in found if flag.present)
    return tuple(text for text in given if not text.startswith(NOT_OF_A_STAGE))


def report(request: Request, failures: list[launch.Failure]) -> None:
    """Say what failed and end with the exit code."""
    for failure in failures:
        print(f"failed: {launch.explain(failure, stages.logs(request))}", file=sys.stderr)
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
    names = [field.name for field in dataclasses.fields(Request) if field.name != "given"]
    given = {name: getattr(flags.FLAGS, name) for name in names}
    lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    for key, kind in (("seeds", int), ("rates", float)):
        try:
            lists[key] = tuple(kind(text) for text in lists[key])
        except ValueError:
            raise ValueError(f"--{key}={','.join(lists[key])}; allowed: numbers") from None
    for key in ("train_flags", "evaluate_flags"):
        lists[key] = tuple(given[key].split())
    lists["given"] = given_flags()
    if given["methods"] is None:
        lists["methods"] = usual_methods(given["model"])
    topology = given["topology"] or ("cpu:1" if given["rehearse"] else "")
    lists["topology"] = chips.parse(topology).name if topology else ""
    return Request(**given | lists)


def usual_methods(model: str) -> tuple[str, ...]:
    """The paper's methods, and what it has of this model alone."""
    theirs = estimate.published(Request(model, "")).get("averages", ())
    return tuple(name for name in LABELS if name in (*METHODS, *theirs))


def define_flags() -> None:
    """The flags of this command."""
    default = Request("", "")
    models = ", ".join((*MODELS, f"{SMOLLM2} (with --rehearse)"))
    flags.DEFINE_string("model", None, f"one of {models}")
    define_path("out", None, "the folder of everything; a reproduction in it goes on")
    flags.DEFINE_bool("rehearse", False, "all stages at a tiny size, on a CPU; needs --data_dir")
    define_path("data_dir", "", "folder with train/ and benchmarks/; empty: the hub")
    define_path("model_path", "", "folder of the base model; empty: from the hub")
    define_path(
        "demos",
        default.demos,
        "sources of experiments.traces (NAME[:SUBSET]) or files; of a problem the first with it",
        several=True,
    )
    flags.DEFINE_bool(
        "allow_few_demos", False, "go on where fewer than half of the problems have a demonstration"
    )
    define_path("traces", "", "a file of demonstrations that is there; no stage demos then")
    flags.DEFINE_list("stages", list(STAGES), "which of those above")
    flags.DEFINE_list(
        "methods",
        None,
        "base, and methods to train; none given: the paper's, and what is published of the model",
    )
    flags.DEFINE_list("tasks", list(default.tasks), "benchmarks")
    flags.DEFINE_list("seeds", ["0"], "of the trainings")
    flags.DEFINE_integer("pass_at", 0, "also pass@k, from this many samples of each problem")
    flags.DEFINE_list("ablate", [], "noise (rewards flipped with probability 0.2), lam")
    flags.DEFINE_bool("tuned", False, "also the best of a few learning rates for every method")
    flags.DEFINE_list("rates", [], "those rates; empty: 1, 4 and 20 times the published one")
    flags.DEFINE_integer("max_new", 0, "most new tokens in evaluation; 0: the paper's 5000")
    flags.DEFINE_string(
        "topology",
        "",
        "what to plan for, such as h100:8 or v5e:4x4, without a device; gpu: this machine's GPUs",
    )
    flags.DEFINE_string("train_flags", "", "further flags of every training, as one text")
    flags.DEFINE_string("evaluate_flags", "", "further flags of every evaluation, as one text")
    flags.DEFINE_integer("jobs", 0, "commands at a time; 0: one, in a rehearsal two", lower_bound=0)
    flags.DEFINE_bool("dry_run", False, "print the commands")
    flags.DEFINE_enum(
        "launcher",
        "local",
        printed.LAUNCHERS,
        "slurm, tpu: print the commands for sbatch or a slice",
    )
    flags.mark_flags_as_required(["model", "out"])


def start() -> None:
    """The command, with its flags."""
    define_flags()
    run_command(main, EXAMPLE)
