"""Real processes over loopback that are killed, frozen or signalled, and resume.

Runs are made by module fixtures, and read by several tests each; runs that mostly wait go side by
side. What is rarer: test_host_rare_faults.py.
"""

from __future__ import annotations

import signal
import time

import pytest

from bridge_jax.distributed import multihost
from tests.distributed import compare_runs, host_runs
from tests.distributed.host_runs import HANG_S

# two processes that are killed, stopped and resumed, minutes of them: test_host_runs.py has what
# guards every change
pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]
ABORTED = -signal.SIGABRT  # by jax, without the coordination service of host 0


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The usual faults."""
    chain = host_runs.Chain(tmp_path_factory.mktemp("chain"))
    chain.go("signal", 2, at={1: ["terminate", 1]})
    chain.go("kill 1", 2, at={1: ["die", 3]})
    chain.go("kill 0 in a save", 2, at={0: ["die", 4, "save"]})
    chain.go("last", 1)
    return chain


def test_a_signal_to_one_stops_both_after_the_same_step(chain):
    """The checkpoint of that step is there."""
    end = chain.made["signal"]
    assert end.codes == [0, 0] and end.steps == [1]
    assert "stopped by a signal after step 1; saved" in end.texts[0]
    assert "finishing step 1, saving" in end.texts[1]


def test_the_end_of_one_ends_the_other_and_names_it(chain):
    """Without a hang, with exit code 4."""
    end = chain.made["kill 1"]
    assert end.codes == [multihost.LOST, -signal.SIGKILL] and end.seconds < HANG_S
    assert "no heartbeat from host 1 (" in end.errors[0][-1], end.texts[0]


def test_the_end_of_host_0_ends_the_others(chain):
    """It holds jax's coordination service: jax aborts them, with a message of its own."""
    end = chain.made["kill 0 in a save"]
    assert end.codes == [-signal.SIGKILL, ABORTED] and end.seconds < HANG_S
    assert "leader task" in end.texts[1] or "coordination service" in end.texts[1]


def test_each_attempt_goes_on_from_the_last_checkpoint(chain):
    """Whatever ended the one before."""
    compare_runs.assert_each_goes_on(chain)


def test_the_numbers_are_those_of_an_undisturbed_run(chain, one):
    """Of one process."""
    compare_runs.assert_undisturbed(chain, one)


@pytest.fixture(scope="module")
def stuck(tmp_path_factory, one):
    """{name: (exit codes, outputs)}: runs of two side by side in which one process stops, and the
    other waits.
    """
    acts = {
        "freeze": {1: ["freeze", 1]},
        "stop 1": {1: ["stop", 2]},
        "kill 0": {0: ["die", 3]},
    }
    folders = {name: tmp_path_factory.mktemp("stuck") for name in acts}
    runs = {name: host_runs.start(folders[name], 2, at=at) for name, at in acts.items()}
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
        assert f"waited {host_runs.TIMEOUT} s (hosts.timeout_s)" in error
        assert "did not come: host 1 (" in error
    assert "host_runs.py" in texts[1] and "Current thread" in texts[1]


def test_a_process_that_the_system_has_stopped_ends_the_others(stuck):
    """Not a thread of it runs, but its connections stay open."""
    codes, texts = stuck["stop 1"]
    assert codes == [multihost.LOST, -signal.SIGKILL], texts[0]
    assert "error: no heartbeat from host 1 (" in texts[0]


def test_host_0_that_is_killed_in_a_step_ends_the_others(stuck):
    """jax aborts them when its service is gone."""
    assert stuck["kill 0"][0] == [-signal.SIGKILL, ABORTED]
