"""Several processes, one run: its parts alone. Real processes: test_joining.py, test_host_runs.py."""

from __future__ import annotations

import dataclasses
import threading
import types

import jax
import numpy as np
import pytest

from bridge_jax.distributed import consistency, multihost, rendezvous
from bridge_jax.evaluation import reading
from bridge_jax.grading.outcome import Outcome
from bridge_jax.rundir import checkpoint
from bridge_jax.training import settings, trainer
from configs import base
from tests import errors, tiny_runs
from tests.distributed.one_of_several import as_one_of

EXPLICIT = dict(coordinator="10.0.0.1:1234", count=2, index=1)


@pytest.mark.parametrize(
    "given, environment, found",
    [
        ({}, {}, ("", 0, -1)),
        (EXPLICIT, {}, ("10.0.0.1:1234", 2, 1)),
        (
            dict(coordinator="10.0.0.1:1234", count=2),
            {"BRIDGE_HOST_INDEX": "0"},
            ("10.0.0.1:1234", 2, 0),
        ),
        (
            {},
            {"BRIDGE_COORDINATOR": "node-1:99", "BRIDGE_HOST_COUNT": "3", "BRIDGE_HOST_INDEX": "2"},
            ("node-1:99", 3, 2),
        ),
        (
            EXPLICIT,
            {"BRIDGE_HOST_INDEX": "0"},
            ("10.0.0.1:1234", 2, 1),
        ),  # what the config says counts
        ({}, {"BRIDGE_COORDINATOR": "auto"}, ("auto", 0, -1)),
        (dict(coordinator="[::1]:1234", count=1, index=0), {}, ("", 1, 0)),
        (EXPLICIT | dict(coordinator="node-1:65535"), {}, ("node-1:65535", 2, 1)),
    ],
)
def test_config_and_environment(given, environment, found):
    """The environment fills in the keys that stand at their defaults."""
    h = rendezvous.read(rendezvous.Hosts(**given), environment)
    assert (h.coordinator, h.count, h.index) == found


@pytest.mark.parametrize(
    "given, environment, message",
    [
        (dict(coordinator="10.0.0.1"), {}, ("hosts.coordinator='10.0.0.1'", "HOST:PORT")),
        (
            EXPLICIT | dict(index=2),
            {},
            ("hosts.count=2, hosts.index=2", "BRIDGE_HOST_INDEX"),
        ),
        (EXPLICIT | dict(index=-1), {}, "hosts.index=-1"),
        (EXPLICIT, {"BRIDGE_HOST_INDEX": "one"}, None),
        (
            dict(coordinator="10.0.0.1:1234", count=2),
            {"BRIDGE_HOST_INDEX": "one"},
            "BRIDGE_HOST_INDEX='one'",
        ),
        (
            dict(index=1),
            {},
            ("hosts.index=1", "hosts.coordinator=HOST:PORT"),
        ),
        (dict(coordinator="auto", count=4), {}, "hosts.count=4"),
        (
            EXPLICIT | dict(coordinator="10.0.0.1:99999"),
            {},
            ("hosts.coordinator='10.0.0.1:99999'", "1 to 65535"),
        ),
        (
            EXPLICIT | dict(coordinator="10.0.0.1:0"),
            {},
            "hosts.coordinator='10.0.0.1:0'",
        ),
        (dict(timeout_s=1), {}, ("hosts.timeout_s=1", "at least 10")),
    ],
)
def test_invalid_hosts(given, environment, message):
    """Invalid settings are refused with what is allowed."""
    if message is None:
        assert rendezvous.read(rendezvous.Hosts(**given), environment).index == 1
        return
    with errors.raises(ValueError, message):
        rendezvous.read(rendezvous.Hosts(**given), environment)


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
        assert multihost.replicate(tree) is tree and multihost.device_get("it", tree)[
            "a"
        ].tolist() == [
            0,
            1,
            2,
            3,
        ]
        assert multihost.place(np.arange(3), sharding).tolist() == [0, 1, 2]
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


def test_hosts_may_change_when_a_run_resumes():
    """hosts.* is no part of what a run is."""
    assert (
        "hosts." in trainer.CHANGEABLE_KEYS
        and settings.read(tiny_runs.config(), 1).hosts == rendezvous.Hosts()
    )
    assert base.get_config().hosts.to_dict() == dataclasses.asdict(rendezvous.Hosts())


def test_an_error_is_not_kept_back_by_a_save_that_waits_for_others(monkeypatch, tmp_path):
    """Checkpoints that close after an error wait hosts.timeout_s at most; without others, as ever."""
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
