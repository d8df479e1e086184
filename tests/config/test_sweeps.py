"""Every sweep file is valid, its runs differ, and ablations vary what they name."""

import pathlib

import pytest

from bridge_jax import methods
from configs.sweeps import ladder
from experiments.sweep import plan

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs" / "sweeps"
FILES = sorted(path for path in FOLDER.glob("*.py") if "def get_sweep" in path.read_text())
VARIED = {
    "methods": "method.name",
    "lam": "method.bridge.lam",
    "lora": "model.lora_rank",
    "beta": "optim.lora.learning_rate",
    "reward_noise": "rollout.reward_noise",
    "expert_quality": "task.corrupt",
    "expert_scarcity": "task.demo_size",
}


@pytest.fixture(scope="module", autouse=True)
def at_the_root(request):
    """Sweep files name configs as they are named on the command line, from the root."""
    import os

    before = os.getcwd()
    os.chdir(FOLDER.parents[1])
    yield
    os.chdir(before)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, marks=() if path.stem in ("methods", "lam", "lora") else pytest.mark.slow
        )
        for path in FILES
    ],
    ids=lambda path: path.stem,
)
def test_runs_are_valid_and_distinct(path):
    """Each sweep has distinct runs, two seeds or more a variant, and varies what it names."""
    runs = plan.runs_of(plan.load(str(path)))
    assert len({run.fingerprint for run in runs}) == len(runs)
    by_variant = {}
    for run in runs:
        by_variant.setdefault(
            tuple(sorted((key, str(value)) for key, value in run.settings.items())) + (run.config,),
            set(),
        ).add(run.seed)
    assert all(len(seeds) >= 2 for seeds in by_variant.values())
    if path.stem in VARIED and path.stem != "methods":
        assert len({str(run.settings.get(VARIED[path.stem])) for run in runs}) >= 3
    if path.stem == "methods":
        assert {run.variant for run in runs} - {"hybrid_matched"} == set(
            ladder.tuned() or ladder.METHODS
        )


def test_the_variants_of_the_study():
    """Of methods that there are; dapo and the shadow's own samples have fewer steps, which generate
    more each.
    """
    assert {given["method"] for given in ladder.METHODS.values()} <= set(methods.names())
    assert set(ladder.MAIN) | set(ladder.WITH_ADAPTER) <= set(ladder.METHODS)
    lengths = {name: ladder.at_rate(name, 1e-4)["steps"] for name in ladder.METHODS}
    assert (
        lengths["dapo"]
        < lengths["bridge_own"]
        < lengths["grpo"]
        < lengths["cold_start"]
        == lengths["alternate"]
    )


def test_a_method_that_the_study_has_not_stands_beside_its_variants():
    """By its name and its defaults, over the study's steps."""
    found = ladder.settled("bridge", "a_new_method")
    assert found["bridge"] == ladder.at_tuned("bridge")
    assert found["a_new_method"]["method"] == "a_new_method"
    assert found["a_new_method"]["steps"] == ladder.ROLLOUTS
    assert ladder.scaled("a_new_method", 0.4) == {"steps": round(0.4 * ladder.ROLLOUTS)}


def test_lam_has_the_papers_range_and_every_schedule():
    """The sweep of lam covers 0.1 to 0.9 and all kinds of schedule."""
    runs = plan.runs_of(plan.load(str(FOLDER / "lam.py")))
    assert {0.1, 0.3, 0.5, 0.7, 0.9} <= {run.settings["method.bridge.lam"] for run in runs}
    assert {run.settings.get("method.bridge.lam_schedule.kind", "constant") for run in runs} == {
        "constant",
        "linear",
        "cosine",
        "step",
    }
