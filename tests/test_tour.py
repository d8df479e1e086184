"""docs/tour.ipynb runs, and what its text says is true.

Its cells are executed in order in one namespace of a fresh process, from docs/. That is all that a
kernel would do with them, so the tests need no Jupyter. The flags of conftest.py are left out: the
tour says what a reader's own run shows, which is exact equality where XLA optimises.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOUR = ROOT / "docs" / "tour.ipynb"
# prints, as its last line, the numbers that the text speaks of
EXECUTE = """
import json, sys
space = {}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec("".join(cell["source"]), space)
as_floats = lambda tree: space["jax"].tree.map(float, tree)
print(json.dumps({name: as_floats(space[name]) for name in sys.argv[2:]}))
"""
NUMBERS = (
    "alignment",
    "alignment_weighted",
    "moved",
    "difference_at_first",
    "difference",
    "history",
    "distance",
    "accuracy_before",
    "accuracy_after",
    "accuracy_shadow",
    "gain_after",
    "total_before",
    "total_after",
)


def cells(kind: str) -> list[dict]:
    """The cells of one kind."""
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.fixture(scope="module")
def found() -> dict:
    """NUMBERS after all cells, as a reader runs them."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, TOUR.name, *NUMBERS],
        cwd=TOUR.parent,
        env=environment | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_step_by_hand_is_the_librarys(found):
    """At the first step, and at the last, where theta_hat differs from theta."""
    assert found["moved"] > 1e-4
    assert found["difference_at_first"] < 1e-2 * found["moved"]
    assert found["difference"] < 1e-2 * found["moved"]
    first, last = found["history"][0], found["history"][-1]
    assert first["bridge/gain"] == 0 and last["bridge/gain"] != 0
    assert last["bridge/kl_hat"] > 0
    assert not any(metrics["update/skipped"] for metrics in found["history"])


@pytest.mark.slow
def test_cosines(found):
    """Both objectives have a cosine with J_RL; the first is the one that the method reports."""
    assert 0 < found["alignment"] < 1 and -1 < found["alignment_weighted"] < 1
    assert found["alignment"] != found["alignment_weighted"]
    assert found["history"][0]["grad/cos_sft_rl"] == pytest.approx(found["alignment"], abs=1e-3)


@pytest.mark.slow
def test_training_helps(found):
    """The reward rises, accuracy too, the demonstration becomes more likely; the gain is within its
    error.
    """
    rewards = [metrics["reward/mean"] for metrics in found["history"]]
    assert sum(rewards[-5:]) > sum(rewards[:5])
    assert found["accuracy_after"][0] > found["accuracy_before"][0]
    assert found["total_before"] < found["total_after"] < 0
    errors = math.hypot(found["accuracy_after"][1], found["accuracy_shadow"][1])
    assert abs(found["gain_after"]) < 2 * errors


@pytest.mark.slow
def test_every_part_moved(found):
    """theta, theta_hat and w."""
    assert set(found["distance"]) == {"theta", "theta_hat", "w"}
    assert min(found["distance"].values()) > 0.01


def test_what_is_stored():
    """Outputs of one run in order, with two plots, without warnings and without paths of a
    machine.
    """
    text, code = TOUR.read_text(encoding="utf-8"), cells("code")
    assert len(text.encode()) < 300_000
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    printed = [line for output in outputs for line in output.get("text", [])]
    assert printed and not any("/" in line for line in printed)


def test_links():
    """Links between files lead to files."""
    text = "".join(line for cell in cells("markdown") for line in cell["source"])
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    local = [link for link in links if "://" not in link]
    assert local
    for link in local:
        assert (TOUR.parent / link).is_file(), link
