"""What is asked for: the model, the data, methods, seeds, and the sizes of a rehearsal.

`check` refuses what cannot be, `claim` a folder that belongs to another request. What adds to a
folder (methods, seeds, ablations, benchmarks, tuning) may change from one command to the next; what
its results depend on may not.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import NamedTuple

from bridge_jax import methods, tasks
from bridge_jax.config import schema
from bridge_jax.filesystem import files, textfile

# method -> its name in the paper, in the order of its table
METHODS = {
    "base": "Base",
    "sft": "SFT",
    "grpo": "RL-zero",
    "cold_start": "Cold-start",
    "alternate": "Naive alternating",
    "hybrid": "SFT+RL hybrid",
    "chord": "CHORD",
    "bridge": "BRIDGE",
    "joint": "BRIDGE without J_meta",
}
BENCHMARKS = ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")
ABLATIONS = ("noise", "lam")
STAGES = ("model", "plan", "demos", "validation", "tune", "train", "evaluate", "page")
RECORD = "reproduce.json"
SMOLLM2 = "smollm2"
# beginnings of the names in a folder whose commands were started one by one
OURS = ("model", "plans", "demos", "validation", "runs", "evaluations", "logs", "page", ".")
# files and folders with which a folder has results; before them its request may change
BEGUN = ("model", "demos.jsonl", "runs", "evaluations")
# what a folder's results depend on
OWNED = ("model", "rehearse", "data_dir", "model_path", "demos", "traces", "max_new", "train_flags")


class Sizes(NamedTuple):
    """How much is asked of each command."""

    # problems of each benchmark, and of the validation problems; 0: all
    limit: int
    max_new: int
    # longest demonstration in tokens
    max_demo: int
    # most demonstrations; 0: no limit
    demos: int
    # samples of each problem of AIME24
    avg_at: int


# 5,000 tokens in evaluation and 3,000 in training are the paper's
PUBLISHED = Sizes(limit=0, max_new=5000, max_demo=3000, demos=0, avg_at=8)
REHEARSAL = Sizes(limit=4, max_new=32, max_demo=256, demos=64, avg_at=2)


class Model(NamedTuple):
    """A model of the paper."""

    # of its tokenizer under DATA/tokenizers, in a rehearsal
    tokenizer: str
    # how its base model is asked, where it has no chat template
    prompt: str = ""


MODELS = {
    "qwen25_3b": Model("qwen3"),
    "llama32_3b": Model("llama3_1", "plain"),
    "qwen3_8b": Model("qwen3"),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """The flags of the command."""

    model: str
    out: str
    rehearse: bool = False
    data_dir: str = ""
    model_path: str = ""
    demos: str = "openr1:all"
    traces: str = ""
    methods: tuple[str, ...] = tuple(METHODS)
    tasks: tuple[str, ...] = BENCHMARKS
    seeds: tuple[int, ...] = (0,)
    pass_at: int = 0
    ablate: tuple[str, ...] = ()
    tuned: bool = False
    rates: tuple[float, ...] = ()
    max_new: int = 0
    topology: str = ""
    train_flags: tuple[str, ...] = ()
    evaluate_flags: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return Path(self.out)

    @property
    def sizes(self) -> Sizes:
        """The paper's, or those of a rehearsal."""
        sizes = REHEARSAL if self.rehearse else PUBLISHED
        return sizes._replace(max_new=self.max_new or sizes.max_new)

    @property
    def config(self) -> str:
        """The config file of the trainings."""
        return f"configs/{'rehearsal' if self.rehearse else self.model}.py"

    @property
    def base_model(self) -> str:
        """The model that every run begins with: a folder, or a hub name."""
        if self.model_path:
            return self.model_path
        if self.model == SMOLLM2:
            return "models_local/smollm2"
        if self.rehearse:
            return str(self.folder / "model")
        return self.config_of("base").model.path

    @property
    def traces_file(self) -> str:
        """The file of demonstrations that the trainings read."""
        return self.traces or str(self.folder / "demos.jsonl")

    @property
    def published_rate(self) -> float:
        """The learning rate of the trainings that are not tuned."""
        return self.config_of("base").optim.base.learning_rate

    def config_of(self, method: str):
        """The config of a method's training, without the command line's changes."""
        module = importlib.import_module(f"configs.{Path(self.config).stem}")
        return module.get_config(methods.names()[0] if method == "base" else method)


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
            f"--out={request.out} holds {', '.join(sorted(strangers)[:3])} and no {RECORD}, so that "
            "it is no reproduction; give a new or empty folder"
        )
    request.folder.mkdir(parents=True, exist_ok=True)
    files.replace(path, json.dumps(now, indent=1) + "\n")


def check_same(request: Request, path: Path, now: dict) -> None:
    """ValueError with what differs from the record in the folder."""
    try:
        there = json.loads(textfile.read(path))
        differs = [key for key in OWNED if there.get(key) != now[key]]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); take another --out") from None
    if differs:
        shown = ", ".join(f"{key} {there.get(key)!r} there, {now[key]!r} now" for key in differs)
        raise ValueError(
            f"--out={request.out} was made with other settings: {shown}; take another --out, or "
            "ask for the same"
        )
