"""Several processes, one run: its parts alone. Real processes: test_joining.py,
test_host_runs.py.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import types

import jax
import numpy as np
import pytest

from bridge_jax.distributed import arrays, consistency, multihost, rendezvous, watchdog
from bridge_jax.evaluation import reading
from bridge_jax.grading.outcome import Outcome
from bridge_jax.rundir import checkpoint
from bridge_jax.training import settings, trainer
from configs import base
from tests import tiny_runs
from tests.distributed.one_of_several import as_one_of


def test_one_process_is_the_identity():
    """Nothing is started, and what the functions are given is what they return."""
    with multihost.joined(tiny_runs.config()):
        assert (multihost.count(), multihost.index(), multihost.is_main(), multihost.started()) == (
            1,
            0,
            True,
            False,
        )
        tree, sharding = (
            {"a": jax.numpy.arange(4)},
            jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        )
        assert arrays.replicate(tree) is tree and arrays.device_get("it", tree)["a"].tolist() == [
            0,
            1,
            2,
            3,
        ]
        assert arrays.place(np.arange(3), sharding).tolist() == [0, 1, 2]
        assert (
            multihost.gather("it", "x") == ["x"]
            and multihost.all_gather_lists("it", [1]) == [1]
            and multihost.process_slice(7) == slice(7)
        )
        assert multihost.any_process("it", True) and not multihost.any_process("it", False)
        assert multihost.broadcast_from_main("it", lambda: {1: (2,)}) == {1: (2,)}
        consistency.check("it", {"no": object()}), consistency.check_shared("/nowhere")


@pytest.mark.parametrize("rows", [0, 1, 7, 16])
def test_the_slices_of_all_hosts_are_all_rows(monkeypatch, rows):
    """The slices of all hosts are disjoint and cover every row."""
    parts = []
    for index in range(4):
        as_one_of(monkeypatch, index, 4)
        parts.append(list(range(rows))[multihost.process_slice(rows)])
    assert sum(parts, []) == list(range(rows)) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_each_grades_its_share_alone(monkeypatch):
    """And both get to know all outcomes."""
    seen, gathered = [], {}
    task = types.SimpleNamespace(
        name="t", compare=lambda problem, answer: seen.append(answer) or Outcome.correct
    )
    texts = ("a", "b", "c", "", "e")
    extract = lambda text: text or None
    whole = reading.readings(task, texts, texts, (extract,))
    for index in (0, 1, 0):  # the second time, host 0 knows what host 1 said
        seen.clear()
        as_one_of(
            monkeypatch,
            index,
            2,
            lambda what, mine, *_: (
                gathered.update({index: mine}) or [gathered.get(i, "[]") for i in (0, 1)]
            ),
        )
        found = reading.readings(task, texts, texts, (extract,))
        assert seen == [["a", "b"], ["c", "e"]][index]
    assert found == whole and found[0][3] == (None, Outcome.no_answer)


def test_broadcast_from_main(monkeypatch):
    """The others never call the function, and get its result or its error."""
    gathered = []
    as_one_of(monkeypatch, 0, 2, lambda what, mine, *_: gathered.append(mine) or [mine, ""])
    assert multihost.broadcast_from_main("it", lambda: {"a": [1]}) == {"a": [1]}
    as_one_of(monkeypatch, 1, 2, lambda what, mine, *_: [gathered[-1], mine])
    assert multihost.broadcast_from_main("it", lambda: pytest.fail("called")) == {"a": [1]}

    def refuse():
        raise ValueError("no")

    as_one_of(monkeypatch, 0, 2, lambda what, mine, *_: gathered.append(mine) or [mine, ""])
    with pytest.raises(ValueError, match="no"):
        multihost.broadcast_from_main("it", refuse)
    as_one_of(monkeypatch, 1, 2, lambda what, mine, *_: [gathered[-1], mine])
    with pytest.raises(ValueError, match="no"):
        multihost.broadcast_from_main("it", lambda: pytest.fail("called"))


class LateService:
    """What gather uses of jax's client; the barrier times out, with the texts of `comes` there."""

    def __init__(self, comes: list[int]):
        self.comes, self.texts = comes, {}

    def key_value_set(self, key, text):
        self.texts[key] = text

    def key_value_dir_get(self, folder):
        return [pair for pair in self.texts.items() if pair[0].startswith(folder)]

    def wait_at_barrier(self, name, milliseconds):
        (key,) = self.texts
        for index in self.comes:
            self.texts[f"{key.rpartition('/')[0]}/{index}"] = json.dumps(["rewards", ""])
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out")


@pytest.mark.parametrize(
    "comes, late, message",
    [([1], [2, 3], "did not come: host 2, host 3"), ([1, 2, 3], [], "all have come by now, but")],
)
def test_a_gather_that_times_out(monkeypatch, comes, late, message):
    """Names those who did not come; none did not, where the last came at the very end."""
    peers = watchdog.Peers(LateService(comes), 0, 4, 10.0)
    monkeypatch.setattr(multihost, "_peers", peers)
    with pytest.raises(multihost.Lost) as error:
        multihost.gather("rewards", "")
    assert error.value.late == late and message in str(error.value)
    assert "waited 10 s" in str(error.value) and "'rewards'" in str(error.value)


def test_hosts_may_change_when_a_run_resumes():
    """hosts.* is no part of what a run is."""
    assert (
        "hosts." in trainer.CHANGEABLE_KEYS
        and settings.read(tiny_runs.config(), 1).hosts == rendezvous.Hosts()
    )
    assert base.get_config().hosts.to_dict() == dataclasses.asdict(rendezvous.Hosts())


def test_an_error_is_not_kept_back_by_a_save_that_waits_for_others(monkeypatch, tmp_path):
    """Checkpoints that close after an error wait hosts.timeout_s at most; without others, as
    ever.
    """
    never = threading.Event()
    store = checkpoint.Checkpoints(str(tmp_path))
    close = store.close
    monkeypatch.setattr(store, "close", never.wait)
    monkeypatch.setattr(multihost, "_peers", types.SimpleNamespace(timeout_s=0.1))
    with pytest.raises(RuntimeError, match="the first error"), store:
        raise RuntimeError("the first error")
    monkeypatch.setattr(multihost, "_peers", None)
    closed = []
    monkeypatch.setattr(store, "close", lambda: closed.append(True))
    with pytest.raises(RuntimeError, match="another"), store:
        raise RuntimeError("another")
    assert closed == [True]
    close()
