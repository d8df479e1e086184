"""What is asked for: the model, the data, methods, seeds, and the sizes of a rehearsal.

Left out: checks (checks.py).
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import NamedTuple

from bridge_jax import methods

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
# and those that the paper has of another model alone
LABELS = METHODS | {"luffy": "LUFFY"}
BENCHMARKS = ("math500", "minerva_math", "olympiadbench", "aime24", "amc23")
ABLATIONS = ("noise", "lam")
STAGES = ("model", "plan", "demos", "validation", "tune", "train", "evaluate", "page")
SMOLLM2 = "smollm2"
# LIMR's problems are MATH's: the first two have problems of MATH, the third mostly others
DEMOS = "openthoughts,s1k,openr1:all"


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
    demos: str = DEMOS
    traces: str = ""
    allow_few_demos: bool = False
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
    # the flags as they were given, for the command of one stage
    given: tuple[str, ...] = ()

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
    def sources(self) -> tuple[str, ...]:
        """Where demonstrations are from, in the order in which a problem takes them."""
        if self.rehearse and self.demos == DEMOS:
            # LIMR's own solutions, where the local file has them
            return (str(Path(self.data_dir) / "train" / "limr.jsonl"),)
        # a path may have a comma
        return (self.demos,) if Path(self.demos).exists() else tuple(self.demos.split(","))

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
