"""Compare every method's metrics with those of another revision, digit for digit.

    python -m tests.same_digits --against=REV [--methods=bridge,grpo] [--keep=DIR]

Runs each method for six steps of a small model (configs/from_scratch.py), one seed, first in a
worktree of REV and then in this checkout, and compares the lines of metrics.jsonl. A change that
only moves code leaves every digit as it was; one that changes the order of a sum says which digits
moved. What depends on the clock or on the machine's memory is left out. Not a test by itself: it
takes about a minute a method.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from bridge_jax.config import renamed

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 6
CLOCK = ("time/", "memory/", "compile/")

# Settings of a method beside the config's own: {method: {key: value}}. A key may be written in
# several ways, the oldest last; a revision takes the first one that its configs/base.py has.
SETTINGS = {
    "cold_start": {("method.cold_start.sft_steps", "method.sft_steps"): 3},
    "chord": {("method.chord.mu_schedule.steps", "method.chord_steps"): 4},
}

SMALL = {
    "steps": STEPS,
    "task.train_size": 400,
    "task.demo_size": 60,
    "task.eval_size": 40,
    "eval.rows": 40,
    "eval.every": 3,
    "batch.prompts_per_step": 8,
    "batch.samples_per_prompt": 4,
    "batch.demos_per_step": 8,
    "batch.microbatch_rows": 16,
    "optim.base.learning_rate": 1e-3,
    "optim.lora.learning_rate": 1e-2,
}


def methods_of(tree: pathlib.Path) -> list[str]:
    """Names of the methods of a checkout: its files of bridge_jax/methods."""
    files = (tree / "bridge_jax" / "methods").glob("*.py")
    named = [path.stem for path in files if not path.stem.startswith("_")]
    return sorted(name for name in named if "def make(" in source(tree, name))


def source(tree: pathlib.Path, method: str) -> str:
    """Text of a method's file."""
    return (tree / "bridge_jax" / "methods" / f"{method}.py").read_text()


def has_key(tree: pathlib.Path, method: str, key: str) -> bool:
    """Whether the checkout's config of this method has the key."""
    code = f"""
from configs import base
place = base.get_config({method!r})
for part in {key!r}.split("."):
    place = place[part]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True)
    return done.returncode == 0


def config_file(tree: pathlib.Path) -> str:
    """The config of the small model, which was the quickstart's once."""
    name = "configs/from_scratch.py"
    return name if (tree / name).exists() else "configs/quickstart.py"


def run(tree: pathlib.Path, method: str, workdir: pathlib.Path) -> list[dict]:
    """Lines of metrics.jsonl of a fresh run of the method in a checkout."""
    given = dict(SMALL)
    for spellings, value in SETTINGS.get(method, {}).items():
        key = next((key for key in spellings if has_key(tree, method, key)), None)
        if key is None:
            raise ValueError(f"{method}: none of {spellings} is a key of {tree}/configs/base.py")
        given[key] = value
    command = [
        sys.executable,
        "-m",
        "experiments.train",
        f"--config={config_file(tree)}:{method}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in given.items()),
    ]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {tree} failed:\n{done.stderr[-3000:]}")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def comparable(line: dict) -> dict:
    """A line under today's names, without what the clock decides."""
    named = renamed.metrics(line)
    return {key: value for key, value in named.items() if not key.startswith(CLOCK)}


def differences(old: list[dict], new: list[dict]) -> list[str]:
    """What differs, a line each; keys that only the new revision has are named once, as added."""
    found = [] if len(old) == len(new) else [f"{len(old)} lines, now {len(new)}"]
    added = set()
    for before, after in zip(map(comparable, old), map(comparable, new)):
        added |= after.keys() - before.keys()
        for key, value in before.items():
            if key not in after:
                found.append(f"step {before['step']}: {key} is gone")
            elif after[key] != value:
                found.append(f"step {before['step']}: {key} {value!r}, now {after[key]!r}")
    return found + ([f"added keys: {', '.join(sorted(added))}"] if added else [])


def main() -> int:
    """Print a line a method; 1 if a digit moved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", required=True, help="a git revision")
    parser.add_argument("--methods", default="", help="names, comma-separated; default: all")
    parser.add_argument("--keep", default="", help="folder for the runs; default: a temporary one")
    options = parser.parse_args()
    moved = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(options.keep or scratch).absolute()
        tree = pathlib.Path(scratch) / "tree"
        add = ["git", "worktree", "add", "--quiet", "--detach", str(tree), options.against]
        subprocess.run(add, cwd=ROOT, check=True)
        try:
            old = methods_of(tree)
            for method in options.methods.split(",") if options.methods else old:
                before = run(tree, method, folder / "before" / method)
                after = run(ROOT, method, folder / "after" / method)
                found = differences(before, after)
                changed = [line for line in found if not line.startswith("added keys")]
                moved |= bool(changed)
                print(f"{method}: {'DIFFERS' if changed else 'same digits'}", flush=True)
                for line in found[:20]:
                    print(f"    {line}", flush=True)
        finally:
            remove = ["git", "worktree", "remove", "--force", str(tree)]
            subprocess.run(remove, cwd=ROOT, check=True)
    return int(moved)


if __name__ == "__main__":
    sys.exit(main())
