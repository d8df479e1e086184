"""Real processes over loopback train what one process trains."""

from __future__ import annotations

import pytest

from bridge_jax.rundir import logbook
from tests import tiny_runs
from tests.distributed import host_runs
from tests.distributed.compare_runs import MAXIMISED, assert_same, samples
from tests.tiny_runs import STEPS

# times are for a machine that has other work, too
pytestmark = pytest.mark.timeout(1800)


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    """With evaluations and checkpoints; the first step, before any update, is the same to the last
    bit.

    Of grpo test_host_faults.py has two processes, and the next test four.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    evaluated = dict(eval__every=3)
    processes = host_runs.start(two, 2, method="bridge", **evaluated)
    assert host_runs.run(one, 1, method="bridge", **evaluated) == [0], one
    assert host_runs.finish(processes) == [0, 0], two
    assert_same(two, one, "bridge")
    first = "run/rollouts/step_000001.jsonl"
    assert (one / first).read_text() == (two / first).read_text()
    lines = logbook.read(str(two / "run"))
    # or equal rewards would say nothing
    assert any(0 < line["reward/mean"] < 1 for line in lines[1:])
    assert "steps 1 to 5" in host_runs.output(two, 0)
    assert "steps" not in host_runs.output(two, 1)
    for step in (2, STEPS):  # each has written what its own devices hold
        state = two / "run" / "checkpoints" / f"step_{step:06d}" / "state"
        written = [
            sum(path.stat().st_size for path in (state / f"ocdbt.process_{i}" / "d").iterdir())
            for i in (0, 1)
        ]
        assert min(written) > sum(written) / 4, written


@pytest.mark.slow
def test_four_processes_train_like_one(tmp_path, one):
    """A whole run, with a device for each process."""
    assert host_runs.run(tmp_path, 4) == [0] * 4, tmp_path
    assert_same(tmp_path, one)


@pytest.mark.parametrize(
    "differ, message",
    [
        (
            dict(optim__base__learning_rate=0.5),
            "config.optim.base.learning_rate is 0.5, elsewhere 0.01",
        ),
        pytest.param(dict(stop_at=2), "stop_at is 2, elsewhere null", marks=pytest.mark.slow),
    ],
)
def test_different_configs_are_refused(tmp_path, differ, message):
    """Every host names the host, the key and both values."""
    codes = host_runs.run(tmp_path, 2, differ={1: differ})
    assert codes == [2, 2]
    for index in range(2):
        output = host_runs.output(tmp_path, index)
        assert (
            "error: the hosts differ, and would not train the same model:" in output
            and message in output
            and "  host 1 (" in output
        )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dapo", "luffy"])
def test_methods_that_ask_again_and_pair(tmp_path, method):
    """Further rounds by rewards, paired rows, cooperation and sampled evaluation: the same from two
    processes as from one.
    """
    given = dict(method=method, steps=2)
    if method == "luffy":
        given |= dict(eval__every=2, eval__samples=1, eval__measured_gain=True)
    runs = {count: host_runs.start(tmp_path / str(count), count, **given) for count in (1, 2)}
    for count, processes in runs.items():
        assert host_runs.finish(processes) == [0] * count
    for step in (1, 2):
        assert samples(tmp_path / "1", step) == samples(tmp_path / "2", step)
    for a, b in zip(
        tiny_runs.lines(tmp_path / "1" / "run"),
        tiny_runs.lines(tmp_path / "2" / "run"),
        strict=True,
    ):
        assert a.keys() == b.keys()
        for key in a:
            if key.startswith((*MAXIMISED, "reward/", "eval/demo_logp")):
                assert a[key] == pytest.approx(b[key], abs=1e-6, rel=0), (a["step"], key)
