"""The plan command as a user starts it: what it prints, writes and refuses, and that nothing of the
compiler's noise is seen.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from bridge_jax.evaluation import markdown
from bridge_jax.planner import table
from experiments import plan as command

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = """from tests import tiny_runs


def get_config(method="bridge"):
    config = tiny_runs.config(method)
    config.task.name = "arithmetic"
    config.batch.update(dict(prompts_per_step=16, samples_per_prompt=2, microbatch_rows=1))
    return config
"""


def run(folder, *arguments) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of python -m experiments.plan in a process of its own."""
    path = folder / "tiny.py"
    path.write_text(CONFIG)
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("TPU_")
    } | dict(
        XLA_FLAGS=flags, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.plan",
            *(a.replace("TINY", str(path)) for a in arguments),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_plan_for_eight_cpus(tmp_path):
    """bridge beside grpo, 8 devices whatever there is: the tables, the ratio, a line of JSON
    each.
    """
    out = tmp_path / "plans.jsonl"
    code, printed, errors = run(
        tmp_path,
        "--config=TINY:bridge",
        "--topology=cpu:8",
        "--phases=update,decode,merge",
        f"--out={out}",
    )
    assert code == 0 and "Traceback" not in errors, errors
    plans = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(plan["name"], plan["method"], plan["devices"], plan["changed"]) for plan in plans] == [
        ("tiny", "bridge", 8, ""),
        ("tiny", "grpo", 8, ""),
    ]
    assert [phase["phase"] for phase in plans[0]["phases"]] == ["merge", "decode", "update"]
    assert plans[0]["phases"][1]["program"] == plans[1]["phases"][1]["program"]  # they sample alike
    assert "step: no estimate" in printed
    ratio = plans[0]["phases"][-1]["peak"] / plans[1]["phases"][-1]["peak"]
    assert f"bridge against grpo: update peak {ratio:.2f}x" in printed and ratio > 1
    assert "GB per device" in printed and "all-gather" in printed and "Assumed: " in printed
    made = table.markdown(plans)
    assert "| tiny | cpu:8 | bridge |" in made["plans"] and "| tiny | bridge |  |" in made["states"]


@pytest.mark.parametrize(
    "arguments, message",
    (
        (("--config=TINY:bridge", "--topology=v5e:16"), "did you mean 'v5e:4x4'"),
        pytest.param(("--config=TINY:bridge", "--topology=cpu"), "cpu:8", marks=pytest.mark.slow),
        pytest.param(
            ("--config=TINY:bridge",), "--topology=KIND:SIZE are needed", marks=pytest.mark.slow
        ),
        pytest.param(
            ("--topology=cpu:8",), "--config=configs/NAME.py:METHOD and", marks=pytest.mark.slow
        ),
        pytest.param(
            ("--config=TINY:bridge", "--topology=cpu:8", "--phases=updat"),
            "did you mean 'update'",
            marks=pytest.mark.slow,
        ),
        (
            ("--config=TINY:bridge", "--topology=cpu:8", "--fit"),
            "--fit: the memory of 'cpu' is not in the table",
        ),
        pytest.param(
            ("--config=TINY:bridge", "--topology=cpu:8", "--against=grop"),
            "did you mean 'grpo'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--config=TINY:bridge", "--topology=cpu:8", "--out=no/such/folder.jsonl"),
            "no/such/folder.jsonl",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--config=TINY:bridge", "--topology=cpu:8", "--config.mesh.fsdp=3"),
            "takes 3 devices, there are 8",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (
                "--config=TINY:bridge",
                "--topology=cpu:8",
                "--config.mesh.tensor=8",
                "--config.mesh.fsdp=1",
            ),
            "heads",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--config=TINY:bridge", "--topology=cpu:6"),
            "Nearest that work",
            marks=pytest.mark.slow,
        ),
    ),
)
def test_what_cannot_be_planned_is_refused_at_once(tmp_path, arguments, message):
    """Invalid arguments are refused with a remedy and no traceback."""
    code, printed, errors = run(tmp_path, *arguments)
    assert code == 2 and message in errors, errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_tables_are_drawn_between_their_marks(tmp_path):
    """--table alone, with no config: of the plans beside the page, whose own words stay."""
    pages = tmp_path / "docs" / "plans"
    pages.mkdir(parents=True)
    page = pages.with_name("plan.md")
    page.write_text("Words.\n<!-- table states -->\nstale\n<!-- end -->\nMore.\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    draw = lambda: subprocess.run(
        [sys.executable, "-m", "experiments.plan", "--table"],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert "no plans in docs/plans/*.jsonl" in draw().stderr
    (pages / "one.jsonl").write_text((ROOT / "docs" / "plans" / "qwen25_3b.jsonl").read_text())
    done = draw()
    assert done.returncode == 0, done.stderr
    assert (
        page.read_text().startswith("Words.\n<!-- table states -->\n| model | method |")
        and "stale" not in page.read_text()
    )
    page.write_text("<!-- table plan -->\n<!-- end -->\n")
    assert "a mark for a table 'plan'; allowed: plans, ratios, states" in draw().stderr


def test_plans_are_set_beside_grpo_of_the_same_settings():
    """Later plans in the place of earlier ones, those with other shared settings last; a setting of
    one method's own does not part it from grpo.
    """

    def plan(method: str, changed: str, peak: float) -> dict:
        return {
            "name": "m",
            "topology": "v5e:4x4",
            "method": method,
            "changed": changed,
            "devices": 16,
            "state_by_chips": {"16": 1e9},
            "phases": [
                {"phase": "update", "peak": peak * 1e9, "fits": True},
                {"phase": "merge", "peak": 7e9, "fits": True},
            ],
            "step": {},
        }

    made = table.markdown(
        [
            plan("grpo", "", 5.0),
            plan("grpo", "data.buckets=(1, 2), model.remat=dots", 8.0),
            plan("bridge", "", 9.0),
            plan("bridge", "data.buckets=(1, 2), method.beta=1, model.remat=dots", 12.0),
            plan("grpo", "", 4.0),
        ]
    )
    rows = [line.split(" | ") for line in made["plans"].splitlines()[2:]]
    assert [(row[2], row[6], row[7], row[8]) for row in rows] == [
        ("grpo", "4.00", "", "7.00"),
        ("bridge", "9.00", "2.25", "7.00"),
        ("grpo", "8.00", "", "7.00"),
        ("bridge", "12.00", "1.50", "7.00"),
    ]


def test_the_committed_page_is_drawn_from_the_committed_plans():
    """The tables of the committed page equal those of the committed plans."""
    files = sorted((ROOT / command.PLANS).glob("*.jsonl"))
    made = table.markdown(
        [json.loads(line) for file in files for line in file.read_text().splitlines()]
    )
    page = (ROOT / command.TABLE).read_text()
    assert markdown.fill_tables(page, made.__getitem__) == page and all(
        f"<!-- table {name} -->" in page for name in made
    )


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_says_how_to_install_it(tmp_path):
    """Without libtpu, a TPU topology is refused with the pip command."""
    code, _, errors = run(tmp_path, "--config=TINY:bridge", "--topology=v5e:4x4")
    assert code == 2 and "pip install libtpu" in errors


@pytest.mark.tpu_compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_plan_for_a_slice_is_quiet(tmp_path):
    """What libtpu says of hosts and logs does not reach the user, nor does it leave its lock
    behind.
    """
    lock = pathlib.Path("/tmp/libtpu_lockfile")
    changed = lambda: lock.stat().st_mtime_ns if lock.exists() else 0  # another program's, maybe
    before = changed()
    code, printed, errors = run(
        tmp_path, "--config=TINY:grpo", "--topology=v5e:2x4", "--phases=prefill", "--against="
    )
    assert code == 0 and "v5e:2x4: 8 device(s) (TPU v5 lite)" in printed
    assert not [
        line for line in errors.splitlines() if not line.startswith(("INFO", "WARNING bridge_jax"))
    ], errors
    assert changed() == before
