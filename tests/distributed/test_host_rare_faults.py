"""As test_host_faults.py, through what is rarer: in a save, two signals, a full disk."""

from __future__ import annotations

import signal

import pytest

from bridge_jax.distributed import multihost
from bridge_jax.rundir import lock
from tests.distributed import compare_runs, host_runs
from tests.distributed.host_runs import HANG_S
from tests.filesystem import full_disk

LEFT = "step_000004.orbax-checkpoint-tmp"
pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Each attempt goes on from what the one before has left; "attended" does not begin.

    Steps 3 and 4 are those of four processes, whose checkpoint two go on from.
    """
    chain = host_runs.Chain(tmp_path_factory.mktemp("rare"))
    chain.go("kill 1 in a save", 2, at={1: ["die", 4, "save"]})
    run = chain.workdir / "run"
    (run / "checkpoints" / LEFT / "state").mkdir(parents=True, exist_ok=True)
    with lock.shared_run_lock(str(run)):
        chain.go("attended", 2)
    chain.go("kill 3", 4, at={3: ["die", 5]})
    chain.go("interrupt 1 twice", 2, at={1: ["interrupt twice", 5]})
    chain.go("last", 1)
    return chain


def test_a_run_is_refused_while_a_process_of_the_last_one_is_there(chain):
    """It may still write its part of a checkpoint: nothing of the directory changes."""
    end = chain.made["attended"]
    assert end.codes == [2, 2]
    assert all("a process of an earlier run is still in" in error for (error,) in end.errors)
    assert end.unfinished == [LEFT]


def test_four_processes_go_on_from_two_and_two_from_four(chain):
    """From the checkpoints of steps 2 and 4."""
    assert "steps 3 to 5" in chain.made["kill 3"].texts[0]
    assert "steps 5 to 5" in chain.made["interrupt 1 twice"].texts[0]


@pytest.mark.parametrize("name", ["kill 3", "kill 1 in a save"])
def test_the_end_of_one_ends_the_others_and_names_it(chain, name):
    """Without a hang, with exit code 4; it is the last one, of four or of two."""
    end = chain.made[name]
    *others, last = end.codes
    assert last == -signal.SIGKILL
    assert others == [multihost.LOST] * len(others) and end.seconds < HANG_S
    for errors, text in zip(end.errors[:-1], end.texts):
        assert f"no heartbeat from host {len(others)} (" in errors[-1], text


def test_two_signals_to_one_end_the_other(chain):
    """The other is told why."""
    end = chain.made["interrupt 1 twice"]
    assert end.codes == [multihost.LOST, 130] and end.seconds < HANG_S
    assert "host 1 (" in end.errors[0][-1]
    assert "stopped: by a second signal" in end.errors[0][-1]
    assert "finishing step 5, saving; again to end at once" in end.texts[1]


def test_each_attempt_goes_on_from_the_last_checkpoint(chain):
    """Whatever ended the one before."""
    compare_runs.assert_each_goes_on(chain, but="attended")


def test_the_numbers_are_those_of_an_undisturbed_run(chain, one):
    """Of one process."""
    compare_runs.assert_undisturbed(chain, one)


def test_a_full_disk_ends_all_with_exit_code_5(one, tmp_path):
    """Whoever finds it ends with 5, the other is told and ends with 4; with room the run goes
    on.
    """
    with full_disk.small(tmp_path / "run", 16384) as disk:
        end = host_runs.attempt(tmp_path, 2, at={1: ["fill", 3]})
        assert set(end.codes) <= {5, multihost.LOST} and 5 in end.codes, end.codes
        printed = end.errors[end.codes.index(5)]
        assert "No space left on device" in printed[-1] and "make room" in printed[-1]
        (disk / "filler").unlink()
        # one process is enough: that two go on is in the chains
        assert host_runs.run(tmp_path, 1) == [0]
        compare_runs.assert_same(tmp_path, one)
