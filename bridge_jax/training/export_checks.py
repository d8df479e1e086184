"""Checks of exported files: they have the run's numbers, and give its logits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import numpy as np

from bridge_jax.filesystem import hf_folder
from bridge_jax.models import layers, logprobs, lora, params
from bridge_jax.training import build
from bridge_jax.training.build import RunData, Setup
from bridge_jax.types import Params, Sequences, Tree

# in the folder of an adapter: the model that it belongs to
BASE = "base"
# between logits in fp32, times the largest logit where that is above 1
TOLERANCE = 1e-4


def verify(setup: Setup, data: RunData, phi: Tree, folder: Path) -> list[str]:
    """Compare a model folder with phi; lines about it.

    RuntimeError unless the files have phi bit for bit and, where torch is installed, transformers
    gives the same logits.
    """
    cfg = params.read_config(hf_folder.hf_json(folder))
    back = params.load(cfg, folder, build.theta_shardings(setup))
    pairs = zip(jax.tree_util.tree_leaves_with_path(phi), jax.tree.leaves(back))
    differ = [
        jax.tree_util.keystr(path)
        for (path, mine), theirs in pairs
        if not np.array_equal(mine, theirs)
    ]
    if differ:
        raise RuntimeError(f"what was written reads back as other numbers: {', '.join(differ)}")
    lines = ["read back bit for bit"]
    if importlib.util.find_spec("torch") is None:
        return [*lines, "logits were not compared with transformers: torch is not installed"]
    ids = prompt_of(data)
    theirs, ours = transformers_logits(folder, ids), logits(cfg, phi, ids)
    return [*lines, compare("transformers", theirs, ours)]


def verify_adapter(
    setup: Setup, data: RunData, parts: Params, folder: Path, base: str, source: Path
) -> str:
    """Compare an adapter's folder with the run; a line about it.

    base: the name that the folder gives its base; source: the folder where the base is now.
    RuntimeError unless the files have w bit for bit, name their base, and give the policy's logits
    together with it.
    """
    adapter, w, named = lora.load_peft(setup.cfg, folder)
    same = jax.tree.structure(w) == jax.tree.structure(parts.w) and all(
        np.array_equal(mine, theirs)
        for mine, theirs in zip(jax.tree.leaves(parts.w), jax.tree.leaves(w))
    )
    if not same or named != base:
        raise RuntimeError(f"the adapter reads back as another one, on the base {named!r}")
    ids = prompt_of(data)
    wanted = logits(setup.cfg, setup.method.policy(parts, "theta"), ids)
    cfg = params.read_config(hf_folder.hf_json(source))
    theta = params.load(cfg, source, build.theta_shardings(setup))
    return compare("base and adapter", logits(cfg, lora.merge(adapter, theta, w), ids), wanted)


def prompt_of(data: RunData) -> np.ndarray:
    """Tokens of a prompt of the task."""
    return next(iter(data.splits.values())).tokens[0]


def compare(whose: str, theirs: np.ndarray, ours: np.ndarray) -> str:
    """A line about the difference of logits [T, V]; RuntimeError where it is too large."""
    error = float(np.abs(ours - theirs).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(theirs).max()))
    if not error <= allowed:
        raise RuntimeError(
            f"the logits differ by {error:.2g} from those of {whose}; allowed: {allowed:.2g}"
        )
    return f"logits of a prompt of {len(ours)} tokens: at most {error:.2g} from those of {whose}"


def logits(cfg: layers.Config, phi: Tree, ids: np.ndarray) -> np.ndarray:
    """The logits [len(ids), V] of our model after each token of one sequence."""
    # the first token is the prompt; a filler at the end gives the last real token its logits
    tokens = np.asarray([[*ids[1:], 0]], np.int32)
    seqs = Sequences(
        np.asarray([ids[:1]], np.int32),
        np.ones(1, np.int32),
        tokens,
        np.asarray([tokens.shape[1]], np.int32),
    )
    of = jax.jit(
        lambda phi: logprobs.logits_of(
            layers.forward(cfg, phi, seqs), layers.head_weights(cfg, phi)
        )
    )
    # fp32 on every machine
    with jax.default_matmul_precision("highest"):
        return np.asarray(of(phi))[0]


def transformers_logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    """The logits [len(ids), V] of the folder's model in transformers, in fp32."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(np.asarray([ids]), dtype=torch.long)).logits[0].numpy()
