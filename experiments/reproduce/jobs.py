"""The commands of each stage, in order, each as one would type it."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from experiments.reproduce import estimate, tuning, variants
from experiments.reproduce.request import ABLATIONS, MODELS, SMOLLM2, Request
from experiments.reproduce.variants import Variant, evaluation_folder, run_folder

AVG_TASK = "aime24"
# the module of the command itself
THIS = "experiments.reproduce"


class Job(NamedTuple):
    """One command."""

    stage: str
    name: str
    # behind python -m
    module: str
    arguments: tuple[str, ...]
    # what it writes
    out: Path
    # jobs that must be done before it, of whatever stage
    needs: tuple[Job, ...] = ()

    @property
    def title(self) -> str:
        """Its stage and name."""
        return self.stage if self.name == self.stage else f"{self.stage} {self.name}"

    @property
    def command(self) -> list[str]:
        """The command of a process."""
        return [sys.executable, "-m", self.module, *self.arguments]

    @property
    def text(self) -> str:
        """The command as one would paste it."""
        return shlex.join(["python", "-m", self.module, *self.arguments])


def of_stage(request: Request, stage: str) -> list[Job]:
    """The jobs of a stage; those of a stage that the command does itself are none."""
    made = {
        "model": model_jobs,
        "plan": plan_jobs,
        "demos": demos_jobs,
        "tune": tune_jobs,
        "train": train_jobs,
        "evaluate": evaluate_jobs,
    }
    return made[stage](request) if stage in made else []


def model_jobs(request: Request) -> list[Job]:
    """Fetch SmolLM2 for its rehearsal."""
    if request.model != SMOLLM2 or request.model_path:
        return []
    out = request.base_model
    return [Job("model", "smollm2", "experiments.get_smollm2", (f"--out={out}",), Path(out))]


def plan_jobs(request: Request) -> list[Job]:
    """Plan each method's step on --topology."""
    if not request.topology:
        return []
    out = estimate.own_plans(request)
    arguments = [f"--topology={request.topology}", "--against=", f"--out={out}"]
    arguments += [flag for flag in request.train_flags if flag.startswith("--config.")]
    if request.rehearse or request.model_path:
        arguments.append(f"--config.model.path={request.base_model}")
    config = lambda method: f"--config={request.config}:{method}"
    return [
        Job("plan", method, "experiments.plan", (config(method), *arguments), out)
        for method in estimate.planned(request)
    ]


def demos_jobs(request: Request) -> list[Job]:
    """Make the demonstrations of each source, unless --traces gives them."""
    return [] if request.traces else [source_job(request, one) for one in request.sources]


def source_job(request: Request, given: str) -> Job:
    """Make the demonstrations of one source: a path, or NAME[:SUBSET] of the hub."""
    hub, _, subset = given.partition(":")
    source = [f"--source={given}"]
    if not Path(given).exists():
        source = [f"--from={hub}", *([f"--subset={subset}"] if subset else [])]
    name = source_name(given)
    out = request.folder / "demos" / f"{name}.jsonl"
    arguments = (
        *source,
        "--match=limr",
        f"--tokenizer={request.base_model}",
        f"--max_tokens={request.sizes.max_demo}",
        *data_flags(request),
        *([f"--limit={request.sizes.demos}"] if request.sizes.demos else []),
        "--allow_none",
        f"--out={out}",
    )
    return Job("demos", name, "experiments.traces", arguments, out)


def source_name(given: str) -> str:
    """The name of a source's file and log: hub owner and name; a path's last two parts."""
    return re.sub(r"[^\w.=-]+", "_", "/".join(given.split("/")[-2:])).strip("_")


def join_job(request: Request) -> Job:
    """This command for one file of all sources, which the trainings read."""
    arguments = (*request.given, "--stages=demos")
    out, needs = Path(request.traces_file), tuple(demos_jobs(request))
    return Job("demos", "demos", THIS, arguments, out, needs)


def data_flags(request: Request) -> list[str]:
    """--data_dir, where it is given."""
    return [f"--data_dir={request.data_dir}"] if request.data_dir else []


def train_job(request: Request, variant: Variant, seed: int, stage: str = "train") -> Job:
    """One training."""
    out = run_folder(request, variant, seed)
    demos = variants.reads_demos(request, variant.method)
    arguments = [f"--config={request.config}:{variant.method}", f"--workdir={out}"]
    arguments.append(f"--config.seed={seed}")
    if request.base_model != request.config_of(variant.method).model.path:
        arguments.append(f"--config.model.path={request.base_model}")
    if request.data_dir:
        arguments.append(f"--config.task.data_dir={request.data_dir}")
    if demos:
        arguments.append(f"--config.task.traces={request.traces_file}")
    if request.rehearse and prompt_of(request):
        # the paper's own config has it
        arguments.append(f"--config.task.prompt={prompt_of(request)}")
    arguments += [f"--config.{key}={value}" for key, value in variant.settings]
    needs = (join_job(request),) if demos and not request.traces else ()
    flags = (*arguments, *request.train_flags)
    return Job(stage, variant.run(seed), "experiments.train", flags, out, needs)


def evaluate_job(
    request: Request, variant: Variant, seed: int, kind: str, flags: tuple, stage: str = "evaluate"
) -> Job:
    """One evaluation; kind: "" for greedy answers, else what its folder is named by."""
    out, base = evaluation_folder(request, variant, seed, kind), variant.method == "base"
    model = request.base_model if base else str(run_folder(request, variant, seed))
    limit = request.sizes.limit
    arguments = (
        f"--model={model}",
        *flags,
        *data_flags(request),
        f"--max_new={request.sizes.max_new}",
        *([f"--limit={limit}"] if limit else []),
        *([f"--prompt={prompt_of(request)}"] if base and prompt_of(request) else []),
        *request.evaluate_flags,
        f"--out={out}",
    )
    needs = () if base else (train_job(request, variant, seed),)
    return Job(stage, out.name, "experiments.evaluate", arguments, out, needs)


def prompt_of(request: Request) -> str:
    """How the base model is asked, where not through a chat template; a run records its own."""
    return MODELS[request.model].prompt if request.model in MODELS else ""


def tune_jobs(request: Request) -> list[Job]:
    """With --tuned: each method at each rate with the first seed, and its validation."""
    if not request.tuned:
        return []
    file, seed = tuning.validation_file(request), request.seeds[0]
    trainings = [train_job(request, one, seed, "tune") for one in variants.grid(request)]
    validations = [
        evaluate_job(request, one, seed, "validation", (f"--tasks=custom:{file}",), "tune")
        for one in variants.grid(request)
    ]
    return [*trainings, *validations]


def train_jobs(request: Request) -> list[Job]:
    """Every variant with every seed."""
    return [
        train_job(request, variant, seed)
        for variant in all_variants(request)
        if variant.method != "base"
        for seed in request.seeds
    ]


def evaluate_jobs(request: Request) -> list[Job]:
    """Greedy answers to all benchmarks; but for ablations avg@8 of AIME24, and pass@k if asked."""
    kinds: dict[str, tuple[str, ...]] = {"": (f"--tasks={','.join(request.tasks)}",)}
    if AVG_TASK in request.tasks:
        count = request.sizes.avg_at
        sampled = (f"--tasks={AVG_TASK}", "--nogreedy", f"--samples={count}")
        kinds[f"avg@{count}"] = sampled
    if request.pass_at:
        sampled = (*kinds[""], "--nogreedy", f"--samples={request.pass_at}")
        kinds[f"pass@{request.pass_at}"] = sampled
    return [
        evaluate_job(request, variant, seed, kind, flags)
        for variant in all_variants(request)
        for seed in (request.seeds if variant.method != "base" else request.seeds[:1])
        for kind, flags in kinds.items()
        if not kind or variant.kind not in ABLATIONS
    ]


def all_variants(request: Request) -> list[Variant]:
    """As published, then those tuned that validation has chosen, then the ablations."""
    tuned = [
        variants.at_rate(request, method, rate)
        for method, rate in tuning.chosen(request).items()
        if rate != request.published_rate
    ]
    return [*variants.published(request), *tuned, *variants.ablations(request)]
