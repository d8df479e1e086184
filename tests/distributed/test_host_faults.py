"""Real processes over loopback that are killed, frozen, signalled, or find the disk full, and
resume.

Runs are made by module fixtures, and read by several tests each; runs that mostly wait go side by
side.
"""

from __future__ import annotations

import signal
import time
import types

import pytest

from bridge_jax.distributed import multihost
from bridge_jax.rundir import lock
from tests.distributed import host_runs
from tests.distributed.compare_runs import assert_same
from tests.filesystem import full_disk
from tests.tiny_runs import STEPS

# times are for a machine that has other work, too
# two processes that are killed, stopped and resumed, minutes of them: test_joining.py and
# test_host_runs.py have what guards every change
pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]
# a hang: many times the patience of a host, which a busy machine may stretch
HANG_S = 15 * host_runs.TIMEOUT
ABORTED = -signal.SIGABRT  # by jax, without the coordination service of host 0


def attempt(workdir, count: int, compiled, **given) -> types.SimpleNamespace:
    """A run's exit codes, outputs, seconds from the first end of a process to the last, and the
    checkpoints after it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    processes, seen = host_runs.start(workdir, count, compiled, **given), []
    until = time.monotonic() + HANG_S
    while len(seen) < count and time.monotonic() < until:
        seen += [time.monotonic()] * (sum(p.poll() is not None for p in processes) - len(seen))
        time.sleep(0.05)
    codes = host_runs.finish(processes, 1)
    texts = [host_runs.output(workdir, i) for i in range(count)]
    errors = [host_runs.errors(workdir, i) for i in range(count)]
    saves = workdir / "run" / "checkpoints"
    steps = sorted(int(path.name[5:]) for path in saves.glob("step_??????"))
    return types.SimpleNamespace(
        codes=codes,
        texts=texts,
        errors=errors,
        seconds=seen[-1] - seen[0],
        steps=steps,
        unfinished=[path.name for path in saves.glob("*tmp*")],
    )


@pytest.fixture(scope="module")
def chain(tmp_path_factory, compiled):
    """One run directory through the usual faults: each attempt goes on from what the last one
    left.
    """
    workdir, made = tmp_path_factory.mktemp("chain"), {}
    go = lambda name, count, **given: made.update(
        {name: attempt(workdir, count, compiled, **given)}
    )
    go("signal", 4, at={1: ["terminate", 1]})
    go("kill 1", 2, at={1: ["die", 3]})
    go("kill 0 in a save", 2, at={0: ["die", 4, "save"]})
    go("last", 1)
    return types.SimpleNamespace(workdir=workdir, made=made)


@pytest.fixture(scope="module")
def rare(tmp_path_factory, compiled):
    """Another one, through what is rarer."""
    workdir, made = tmp_path_factory.mktemp("rare"), {}
    go = lambda name, count, **given: made.update(
        {name: attempt(workdir, count, compiled, **given)}
    )
    go("kill 3", 4, at={3: ["die", 3]})
    left = workdir / "run" / "checkpoints" / "step_000004.orbax-checkpoint-tmp" / "state"
    left.mkdir(parents=True)
    with lock.shared_run_lock(str(workdir / "run")):
        go("attended", 2)
    go("kill 1 in a save", 2, at={1: ["die", 4, "save"]})
    go("interrupt 1 twice", 2, at={1: ["interrupt twice", 5]})
    go("last", 1)
    return types.SimpleNamespace(workdir=workdir, made=made)


CHAINS = pytest.mark.parametrize("name", ["chain", "rare"])


def test_a_signal_to_one_stops_all_after_the_same_step(chain):
    """One of four: other numbers of processes go on from what four have saved."""
    end = chain.made["signal"]
    assert end.codes == [0] * 4 and end.steps == [1]
    assert "stopped by a signal after step 1; saved" in end.texts[0]
    assert "finishing step 1, saving" in end.texts[1]


def test_a_run_is_refused_while_a_process_of_the_last_one_is_there(rare):
    """It may still write its part of a checkpoint: nothing of the directory changes."""
    end = rare.made["attended"]
    assert end.codes == [2, 2]
    assert all("a process of an earlier run is still in" in error for (error,) in end.errors)
    assert end.unfinished == ["step_000004.orbax-checkpoint-tmp"]


@pytest.mark.parametrize(
    "attempts, name",
    [
        ("chain", "kill 1"),
        ("rare", "kill 3"),
        ("rare", "kill 1 in a save"),
        ("rare", "interrupt 1 twice"),
    ],
)
def test_the_end_of_one_ends_the_others_and_names_it(request, attempts, name):
    """Without a hang, with exit code 4; it is the last one, of two or of four."""
    end, killed = request.getfixturevalue(attempts).made[name], name.startswith("kill")
    *others, last = end.codes
    assert last == (-signal.SIGKILL if killed else 130)
    assert others == [multihost.LOST] * len(others) and end.seconds < HANG_S
    expected = f"no heartbeat from host {len(others)} (" if killed else "host 1 ("
    for errors, text in zip(end.errors[:-1], end.texts):
        assert expected in errors[-1], text
    assert killed or "stopped: by a second signal" in end.errors[0][-1]
    assert killed or "finishing step 5, saving; again to end at once" in end.texts[1]


@CHAINS
def test_each_attempt_goes_on_from_the_last_checkpoint(request, name):
    """Whatever ended the one before."""
    attempts = request.getfixturevalue(name).made
    ends = [end for name, end in attempts.items() if name != "attended"]
    for before, after in zip(ends, ends[1:]):
        assert f"steps {before.steps[-1] + 1} to {STEPS}" in after.texts[0]


def test_the_end_of_host_0_ends_the_others(chain):
    """It holds jax's coordination service: jax aborts them, with a message of its own."""
    end = chain.made["kill 0 in a save"]
    assert end.codes == [-signal.SIGKILL, ABORTED] and end.seconds < HANG_S
    assert "leader task" in end.texts[1] or "coordination service" in end.texts[1]


@CHAINS
def test_the_numbers_are_those_of_an_undisturbed_run(request, name, one):
    """State and metrics of all attempts together are those of one whole run."""
    chain = request.getfixturevalue(name)
    end = chain.made["last"]
    assert end.codes == [0] and end.unfinished == []
    assert_same(chain.workdir, one)


@pytest.fixture(scope="module")
def stuck(tmp_path_factory, compiled, one):
    """{name: (exit codes, outputs)}: runs of two side by side in which one process stops, and the
    other waits.
    """
    acts = {
        "freeze": {1: ["freeze", 1]},
        "stop 1": {1: ["stop", 2]},
        "kill 0": {0: ["die", 3]},
    }
    folders = {name: tmp_path_factory.mktemp("stuck") for name in acts}
    runs = {name: host_runs.start(folders[name], 2, compiled, at=at) for name, at in acts.items()}
    until = time.monotonic() + HANG_S
    for name, processes in runs.items():
        waiting = [p for i, p in enumerate(processes) if acts[name].get(i, [""])[0] != "stop"]
        for process in waiting:
            process.wait(max(1, until - time.monotonic()))
    codes = {name: host_runs.finish(processes, 0.1) for name, processes in runs.items()}
    return {
        name: (codes[name], [host_runs.output(folders[name], i) for i in (0, 1)]) for name in acts
    }


def test_a_frozen_process_is_named_with_stacks(stuck):
    """It lives, but does not come: all end, and it shows where it is."""
    codes, texts = stuck["freeze"]
    assert codes == [multihost.LOST, multihost.LOST]
    for text in texts:
        error = [line for line in text.splitlines() if line.startswith("error: ")][-1]
        assert (
            f"waited {host_runs.TIMEOUT} s (hosts.timeout_s)" in error
            and "did not come: host 1 (" in error
        )
    assert "host_runs.py" in texts[1] and "Current thread" in texts[1]


def test_a_process_that_the_system_has_stopped_ends_the_others(stuck):
    """Not a thread of it runs, but its connections stay open."""
    codes, texts = stuck["stop 1"]
    assert codes == [multihost.LOST, -signal.SIGKILL], texts[0]
    assert "error: no heartbeat from host 1 (" in texts[0]


def test_host_0_that_is_killed_in_a_step_ends_the_others(stuck):
    """jax aborts them when its service is gone."""
    assert stuck["kill 0"][0] == [-signal.SIGKILL, ABORTED]


def test_a_full_disk_ends_all_with_exit_code_5(one, tmp_path, compiled):
    """Whoever finds it ends with 5, the other is told and ends with 4; with room the run goes
    on.
    """
    with full_disk.small(tmp_path / "run", 16384) as disk:
        end = attempt(tmp_path, 2, compiled, at={1: ["fill", 3]})
        assert set(end.codes) <= {5, multihost.LOST} and 5 in end.codes, end.codes
        printed = end.errors[end.codes.index(5)]
        assert "No space left on device" in printed[-1] and "make room" in printed[-1]
        (disk / "filler").unlink()
        # one process is enough: that two go on is in the chains
        assert host_runs.run(tmp_path, 1, compiled) == [0]
        assert_same(tmp_path, one)
