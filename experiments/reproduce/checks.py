"""Refusals: of a request that cannot be, and of a folder that belongs to another one.

What adds to a folder (methods, seeds, ablations, benchmarks, tuning) may change from one command to
the next; what its results depend on may not.
"""

from __future__ import annotations

import json
from pathlib import Path

from bridge_jax import methods, tasks
from bridge_jax.config import schema
from bridge_jax.data import demo_schemas
from bridge_jax.filesystem import files, textfile
from experiments.reproduce import jobs
from experiments.reproduce.request import ABLATIONS, MODELS, SMOLLM2, Request

RECORD = "reproduce.json"
# beginnings of the names in a folder whose commands were started one by one
OURS = ("model", "plans", "demos", "validation", "runs", "evaluations", "logs", "page", ".")
# files and folders with which a folder has results; before them its request may change
BEGUN = ("model", "demos.jsonl", "runs", "evaluations")
# what a folder's results depend on
OWNED = ("model", "rehearse", "data_dir", "model_path", "demos", "traces", "max_new", "train_flags")


def check(request: Request) -> None:
    """ValueError in one line for the first thing that cannot be."""
    check_names(request)
    if request.model == SMOLLM2 and not request.rehearse:
        raise ValueError(
            "--model=smollm2 is no model of the paper; it is for --rehearse, or take one of "
            f"{', '.join(MODELS)}"
        )
    if request.rehearse and not request.data_dir:
        raise ValueError(
            "--rehearse reads local data: give --data_dir=DIR with train/, benchmarks/ and "
            "tokenizers/ (docs/reproduce.md)"
        )
    if request.data_dir and not Path(request.data_dir).is_dir():
        raise ValueError(f"--data_dir={request.data_dir}: no such folder")
    if request.rehearse and request.model in MODELS and not request.model_path:
        tokenizer_folder(request)
    if request.traces:
        check_traces(request.traces)
    else:
        check_sources(request)
    if request.pass_at == 1 or request.pass_at < 0:
        raise ValueError(
            f"--pass_at={request.pass_at}; allowed: 0 (none), or from 2 on, such as 32"
        )
    if len(set(request.seeds)) < len(request.seeds) or not request.seeds:
        raise ValueError(f"--seeds={request.seeds}: give one or more distinct seeds")


def check_names(request: Request) -> None:
    """ValueError for an unknown model, method, benchmark or ablation, with the nearest."""
    benchmarks = [name for name in tasks.names() if tasks.load(name).Config is tasks.Benchmark]
    allowed = {
        "model": ([request.model], (*MODELS, SMOLLM2)),
        "methods": (request.methods, ("base", *methods.names())),
        "tasks": (request.tasks, benchmarks),
        "ablate": (request.ablate, ABLATIONS),
    }
    for flag, (given, names) in allowed.items():
        if not given and flag != "ablate":
            raise ValueError(f"--{flag} is empty; allowed: {', '.join(names)}")
        for name in given:
            if name not in names:
                hint = schema.did_you_mean(name, names)
                raise ValueError(f"--{flag}: unknown name {name!r}: {hint}")


def check_storage(request: Request, launcher: str) -> None:
    """ValueError where several machines would each take --out for a folder of their own."""
    if launcher != "local" and not request.folder.is_absolute():
        raise ValueError(
            f"--out={request.out} is relative, and the machines of --launcher={launcher} must "
            "share it: give an absolute path on their common storage, such as --out=/shared/paper"
        )


def tokenizer_folder(request: Request) -> Path:
    """The folder of the model's tokenizer in the data; ValueError where it is not complete."""
    folder = Path(request.data_dir) / "tokenizers" / MODELS[request.model].tokenizer
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is missing: a rehearsal of {request.model} takes the tokenizer "
                "from there; copy it, or give a whole model with --model_path=FOLDER"
            )
    return folder


def check_traces(path: str) -> None:
    """ValueError unless the file of --traces has a line."""
    try:
        with open(path, encoding="utf-8") as file:
            empty = not any(line.strip() for line in file)
    except OSError as error:
        raise ValueError(f"--traces={path}: {error.strerror}; give a file of traces") from None
    if empty:
        raise ValueError(
            f"--traces={path} holds no demonstration; make some with python -m experiments.traces, "
            "or leave the flag out"
        )


def check_sources(request: Request) -> None:
    """ValueError for a source of --demos that is empty, given twice, or has an unknown name."""
    named = [jobs.source_name(one) for one in request.sources]
    for number, given in enumerate(request.sources):
        if not named[number] or named[number] in named[:number]:
            raise ValueError(
                f"--demos={request.demos}: {given!r} is empty or there twice; allowed: sources "
                "with commas between them, such as openthoughts,openr1:all"
            )
        name = given.partition(":")[0]
        if "/" not in name and not Path(given).exists() and not demo_schemas.find(name):
            known = [one.name for one in demo_schemas.SCHEMAS if one.hub]
            raise ValueError(
                f"--demos={request.demos}: {given!r} is neither a file nor a folder, and no known "
                f"data set: {schema.did_you_mean(name, known)}"
            )


def claim(request: Request) -> None:
    """Write what the folder is for; ValueError with what differs where it is for something else."""
    path = request.folder / RECORD
    now = schema.to_json({key: getattr(request, key) for key in OWNED})
    begun = any((request.folder / name).exists() for name in BEGUN)
    if path.exists() and begun:
        check_same(request, path, now)
    strangers = [one.name for one in request.folder.glob("*") if not one.name.startswith(OURS)]
    if strangers and not path.exists():
        raise ValueError(
            f"--out={request.out} holds {', '.join(sorted(strangers)[:3])} and no {RECORD}, so "
            "that it is no reproduction; give a new or empty folder"
        )
    request.folder.mkdir(parents=True, exist_ok=True)
    files.replace(path, json.dumps(now, indent=1) + "\n")


def check_same(request: Request, path: Path, now: dict) -> None:
    """ValueError with what differs from the record in the folder."""
    try:
        there = json.loads(textfile.read(path))
        differs = [key for key in OWNED if there.get(key) != now[key]]
        if not there.get("traces") and not (request.folder / "demos.jsonl").exists():
            # no training has read demonstrations yet
            differs = [key for key in differs if key not in ("demos", "traces")]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); take another --out") from None
    if differs:
        shown = ", ".join(f"{key} {there.get(key)!r} there, {now[key]!r} now" for key in differs)
        raise ValueError(
            f"--out={request.out} was made with other settings: {shown}; take another --out, or "
            "ask for the same"
        )
