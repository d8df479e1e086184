"""Measure this project and its peers, in turn:

    python -m experiments.bench.peers --scripts=DIR --tunix=PYTHON --torch=PYTHON --data_dir=DIR
    python -m experiments.bench.peers --table

The peers are Tunix (JAX), and transformers and TRL (torch), each in an environment of its own.
Scripts give them the inputs of experiments.bench: tunix_rollout.py, tunix_train.py,
torch_rollout.py and torch_train.py. They read BENCH_MODEL, a model folder, and BENCH_DATA, problems
of GSM8K, and write a JSON object to --out. A round runs every case once, each in its own process,
loaded and compiled before the clock starts; so changes of the machine over time affect all cases
alike. Each result is a line of --out; a case of a round with a line is not run again. The table has
medians, and ratios within a round.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags

from bridge_jax.filesystem import files
from experiments.cli import define_path, fail, fail_by, run_command

# in the order of a round: name -> (flag of the peer's python, script and arguments); without a flag
# it is a case of experiments.bench
CASES = {
    "rollout": ("", ["rollout"]),
    "rollout bf16": ("", ["rollout", "--dtype=bfloat16"]),
    "rollout Tunix": ("tunix", ["tunix_rollout.py", "--repeats=1"]),
    "rollout transformers": ("torch", ["torch_rollout.py", "--repeats=1"]),
    "rollout_uneven": ("", ["rollout_uneven"]),
    "update_repeated": ("", ["update_repeated"]),
    # calls 3 to 5 are measured: the first two compile
    "update Tunix": ("tunix", ["tunix_train.py", "--micros=5", "--update-s=0.1"]),
    "update": ("", ["update"]),
    "update TRL": ("torch", ["torch_train.py", "--micros=4"]),
}
# case -> cases that its rate is divided by
COMPARED = {
    "rollout": ("rollout Tunix", "rollout transformers"),
    "rollout_uneven": ("rollout",),
    "rollout bf16": ("rollout Tunix", "rollout transformers", "rollout"),
    "update_repeated": ("update Tunix", "update TRL"),
    "update": ("update Tunix", "update TRL", "update_repeated"),
}
# of each update
ROWS = 64


def own(name: str) -> dict:
    """The medians of a case of experiments.bench."""
    given = flags.FLAGS
    out = run(
        [
            sys.executable,
            "-m",
            "experiments.bench",
            *CASES[name][1],
            "--repeats=1",
            f"--model={given.model}",
            f"--data_dir={given.data_dir}",
        ],
        Path.cwd(),
    )
    line = json.loads(out.splitlines()[-1])
    return {
        "rate": line["tokens_per_s"] if "rollout" in name else line["rows_per_s"],
        "seconds": line["seconds"],
        "compile_s": line["compile_s"],
        "peak_gb": line["peak_mb"]["self"] * 2**20 / 1e9,
        "versions": line["versions"],
    }


def peer(name: str) -> dict:
    """The figures of a peer's script."""
    given, (which, arguments) = flags.FLAGS, CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        run(
            [str(Path(given[which].value).absolute()), *arguments, f"--out={out}"],
            Path(given.scripts),
            BENCH_MODEL=str(Path(given.model).resolve()),
            BENCH_DATA=str(Path(given.data_dir).resolve() / "train" / "gsm8k_train.jsonl"),
        )
        found = json.loads(out.read_text())
    compiling = sum(found.get("compile_events_first_call_s", {}).values())
    if "tokens_per_s_median" in found:
        rate, seconds = found["tokens_per_s_median"], found["seconds"]["median"]
    else:
        seconds = found["step_s_8xmedian_plus_update"]
        rate = ROWS / seconds
    return {
        "rate": rate,
        "seconds": seconds,
        "compile_s": compiling,
        "peak_gb": found["peak_rss_gb"] * 2**30 / 1e9,
        "versions": found["versions"],
    }


def run(command: list[str], folder: Path, **env: str) -> str:
    """The output of the command; RuntimeError with the end of its errors if it fails."""
    done = subprocess.run(command, cwd=folder, env=os.environ | env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return done.stdout


def table(lines: list[dict]) -> str:
    """Markdown: the median of each case, and the median of its ratios to others within a round."""
    by_name: dict[str, dict[int, dict]] = {}
    for line in lines:
        by_name.setdefault(line["name"], {})[line["round"]] = line
    median = lambda name, key: statistics.median(line[key] for line in by_name[name].values())
    rows = [
        "| work | rate | seconds (least, most) | compile s | peak GB | times the rate of | rounds "
        "|",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for name in CASES:
        if name not in by_name:
            continue
        seconds, ratios = [line["seconds"] for line in by_name[name].values()], []
        for other in COMPARED.get(name, ()):
            both = sorted(set(by_name[name]) & set(by_name.get(other, ())))
            if both:
                each = [by_name[name][k]["rate"] / by_name[other][k]["rate"] for k in both]
                ratios.append(
                    f"{other} {statistics.median(each):.2f} ({min(each):.2f}, {max(each):.2f})"
                )
        unit = "tokens/s" if "rollout" in name else "rows/s"
        rows.append(
            f"| {name} | {median(name, 'rate'):.3g} {unit} | {statistics.median(seconds):.1f} "
            f"({min(seconds):.1f}, {max(seconds):.1f}) | {median(name, 'compile_s'):.1f} | "
            f"{median(name, 'peak_gb'):.1f} | {'; '.join(ratios)} | {len(seconds)} |"
        )
    return "\n".join(rows)


def main(argv: list[str]) -> None:
    """Run the cases that have no result, or print the table."""
    given, out = flags.FLAGS, Path(flags.FLAGS.out)
    try:
        lines = [line for _, line in files.rows(out)] if out.is_file() else []
    except (ValueError, OSError) as error:
        fail_by(error)
    if given.table:
        return print(table(lines))
    if missing := [
        f"--{name}" for name in ("scripts", "tunix", "torch", "data_dir") if not given[name].value
    ]:
        fail(f"{', '.join(missing)} must be given; see python -m experiments.bench.peers --help")
    # what cannot be written fails before the work
    out.parent.mkdir(parents=True, exist_ok=True)
    there = {(line["name"], line["round"]) for line in lines}
    for k in range(given.rounds):
        for name in CASES:
            if (name, k) in there:
                continue
            try:
                found = peer(name) if CASES[name][0] else own(name)
            except (RuntimeError, OSError) as error:
                fail_by(error)
            line = {
                "name": name,
                "round": k,
                "cores": os.cpu_count(),
                "machine": platform.machine(),
                **found,
            }
            try:
                files.append(out, json.dumps(line) + "\n")
            except OSError as error:
                fail_by(error)
            print(
                f"round {k} {name}: {found['rate']:.3g} a second, {found['seconds']:.1f} s",
                flush=True,
            )


def define_flags() -> None:
    """The flags of this command."""
    for name, about in (
        ("scripts", "the folder of the peers' scripts"),
        ("tunix", "a python that has google-tunix"),
        ("torch", "a python that has trl and torch"),
        ("data_dir", "the folder with train/gsm8k_train.jsonl"),
    ):
        define_path(name, "", about)
    define_path("model", "models_local/smollm2", "a local model folder")
    define_path("out", "docs/speed/peers.jsonl", "one line for each result")
    flags.DEFINE_integer("rounds", 5, "how often each case")
    flags.DEFINE_bool("table", False, "print the table of the results")


if __name__ == "__main__":
    define_flags()
    run_command(main)
