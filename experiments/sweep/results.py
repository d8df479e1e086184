"""Results of a sweep: a line of a JSONL file for each finished run."""

from __future__ import annotations

import json
import os
import re
import threading

from bridge_jax.filesystem import files
from bridge_jax.filesystem.hf_folder import weights_hash
from bridge_jax.rundir import layout, logbook
from experiments.sweep.plan import Run

# metrics that are kept as means since the evaluation before
MEANS = (
    "reward/mean",
    "reward/outcome_correct",
    "grad/cos_sft_rl",
    "bridge/gain",
    "bridge/ess",
    "bridge/kl_hat",
    "sft/logp",
    "rollout/entropy",
    "rollout/length",
    "bridge/lam",
)
# metrics that are kept as they are
KEPT = re.compile(
    r"eval/.*_accuracy|eval/demo_logp|measured_gain/.*|budget/.*|memory/.*"
    r"|time/(wall|cpu|train|device)_s"
)
_writing = threading.Lock()


def done(results: str) -> set[tuple[str, str, str]]:
    """Run.identity of every run that has a result; ValueError for a file of another kind."""
    if not os.path.exists(results):
        return set()
    found, number = set(), 0
    try:
        lines = files.lines(results)
    except OSError as error:
        raise ValueError(f"--results={results} cannot be read: {error}") from None
    try:
        for number, text in enumerate(lines, 1):
            line = json.loads(text)
            found.add((line["name"], line["fingerprint"], line["weights"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{results}, line {number}, is no result ({error!r}); repair or remove the line: its "
            "run "
            "is then looked at again"
        ) from None
    return found


def summary(run: Run, workdir: str) -> dict:
    """The result of a finished run; ValueError if the run has not taken its last step."""
    folder = os.path.join(workdir, run.folder)
    lines = logbook.read(folder)
    config = layout.read_config(folder)["config"]
    steps = config["steps"]
    if not lines or lines[-1]["step"] < steps:
        raise ValueError(f"it is at step {lines[-1]['step'] if lines else 0} of {steps}")
    return {
        "name": run.name,
        "variant": run.variant,
        "seed": run.seed,
        "config": run.config,
        "settings": run.settings,
        "fingerprint": run.fingerprint,
        "weights": weights_hash(config["model"]["path"]),
        "steps": steps,
        "skipped": sum(line.get("update/skipped", 0) for line in lines),
        "curve": curve_of(lines, steps),
        "solved": solved_of(logbook.read_solved(folder)),
    }


def curve_of(lines: list[dict], steps: int) -> list[dict]:
    """A point for each evaluation and the last step: figures, and means since the point before."""
    curve, since = [], []
    for line in lines:
        since.append(line)
        if any(key.startswith("eval/") for key in line) or line["step"] == steps:
            means = {key: [row[key] for row in since if row.get(key) is not None] for key in MEANS}
            point = {"step": line["step"]}
            point |= {key: sum(values) / len(values) for key, values in means.items() if values}
            point |= {
                key: value
                for key, value in line.items()
                if KEPT.fullmatch(key) and value is not None
            }
            curve.append({key: float(f"{value:.5g}") for key, value in point.items()})
            since = []
    return curve


def solved_of(last: dict[str, str]) -> dict[str, str]:
    """Which held-out problems the run solved: bits as a hexadecimal number, counts as digits.

    The number has a leading 1, so that leading zeros are kept.
    """
    solved = {
        key: f"{int('1' + bits, 2):x}" for key, bits in last.items() if key in ("held_out", "dev")
    }
    return solved | {key: counts for key, counts in last.items() if key == "held_out_sampled"}


def record(run: Run, workdir: str, results: str) -> str:
    """Append the result of the run: "", or what is wrong with the run.

    OSError where the results cannot be written. Several threads and sweeps may share the file.
    """
    try:
        text = json.dumps(summary(run, workdir)) + "\n"
    except (ValueError, OSError) as error:
        return files.explain(error)
    with _writing:
        files.append(results, text)
    return ""
