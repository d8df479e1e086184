"""The bench beside the peers: what it reads from a script, what it keeps, and how its table sets
rates beside each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench import peers

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """import json, os, sys
given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:] if "=" in argument)
assert os.path.isdir(os.environ["BENCH_MODEL"]) and os.environ["BENCH_DATA"].endswith("train/gsm8k_train.jsonl")
json.dump(%s | {"peak_rss_gb": 1.0, "versions": {"peer": "1"}}, open(given["out"], "w"))
"""
ROLLOUT = {"tokens_per_s_median": 80.0, "seconds": {"median": 4.0}}
TRAIN = {
    "step_s_8xmedian_plus_update": 32.0,
    "compile_events_first_call_s": {"backward": 3.0, "update": 1.0},
}


def line(name: str, k: int, rate: float, seconds: float = 1.0) -> dict:
    return {
        "name": name,
        "round": k,
        "rate": rate,
        "seconds": seconds,
        "compile_s": 2.0,
        "peak_gb": 3.0,
    }


def test_ratios_are_of_one_round():
    """Rates of a machine that becomes twice as slow: the ratio stays 4, though the medians of 2 and
    1 rounds differ more.
    """
    lines = [
        line("rollout", 0, 400.0),
        line("rollout Tunix", 0, 100.0),
        line("rollout", 1, 200.0, 2.0),
        line("rollout Tunix", 1, 50.0),
        line("rollout", 2, 40.0, 9.0),
    ]
    rows = {row.split(" | ")[0].strip("| "): row for row in peers.table(lines).splitlines()}
    assert (
        "| rollout | 200 tokens/s | 2.0 (1.0, 9.0) | 2.0 | 3.0 | rollout Tunix 4.00 (4.00, 4.00) | 3 |"
        == rows["rollout"]
    )
    assert "update" not in rows and rows["rollout Tunix"].endswith("|  | 2 |")


def bench(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The command with scripts that stand in for the peers'."""
    scripts, model = tmp_path / "scripts", tmp_path / "model"
    model.mkdir(exist_ok=True)
    scripts.mkdir(exist_ok=True)
    for name, found in (
        ("tunix_rollout", ROLLOUT),
        ("tunix_train", TRAIN),
        ("torch_rollout", ROLLOUT),
        ("torch_train", TRAIN),
    ):
        (scripts / f"{name}.py").write_text(SCRIPT % found)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.bench.peers",
            f"--scripts={scripts}",
            f"--tunix={sys.executable}",
            f"--torch={sys.executable}",
            f"--data_dir={tmp_path}",
            f"--model={model}",
            "--rounds=1",
            f"--out={tmp_path / 'peers.jsonl'}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_what_stands_in_the_file_is_not_run_again(tmp_path):
    """This project's own cases are given, the peers' are run; a second call runs nothing."""
    out = tmp_path / "peers.jsonl"
    given = [name for name, script in peers.CASES.items() if not script[0]]
    out.write_text("".join(json.dumps(line(name, 0, 400.0)) + "\n" for name in given))
    done = bench(tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert [one["name"] for one in lines] == given + [
        name for name in peers.CASES if name not in given
    ]
    by_name = {one["name"]: one for one in lines}
    assert by_name["rollout Tunix"]["rate"] == 80.0 and by_name["rollout Tunix"][
        "peak_gb"
    ] == pytest.approx(1.073741824)
    assert (
        by_name["update TRL"]["rate"] == 2.0 and by_name["update TRL"]["compile_s"] == 4.0
    )  # 64 rows in 32 s
    assert bench(tmp_path).stdout == "" and len(out.read_text().splitlines()) == len(lines)
    shown = bench(tmp_path, "--table").stdout
    assert "rollout Tunix 5.00 (5.00, 5.00); rollout transformers 5.00 (5.00, 5.00)" in shown


@pytest.mark.parametrize(
    "broken, words", [("script", "no torch here"), ("python", "/nowhere/python")]
)
def test_what_cannot_be_run_ends_the_bench_with_a_line(tmp_path, monkeypatch, broken, words):
    """A failing script or a missing Python ends the bench with a clear error."""
    given = [name for name in peers.CASES if name != "update TRL"]
    (tmp_path / "peers.jsonl").write_text(
        "".join(json.dumps(line(name, 0, 1.0)) + "\n" for name in given)
    )
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", "raise SystemExit('no torch here')  # %s")
    done = bench(tmp_path, *["--torch=/nowhere/python"] * (broken == "python"))
    assert done.returncode == 2 and words in done.stderr and "bench_peers.py" not in done.stderr
