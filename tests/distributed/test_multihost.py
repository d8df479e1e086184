"""Several processes, one run: its parts alone. Real processes: test_joining.py, test_host_runs.py."""

from __future__ import annotations

import dataclasses
import json
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
from tests import tiny_runs

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
    "given, environment, told",
    [
        (dict(coordinator="10.0.0.1"), {}, "hosts.coordinator='10.0.0.1'; allowed: .*HOST:PORT"),
        (
            EXPLICIT | dict(index=2),
            {},
            "hosts.count=2, hosts.index=2; allowed: .*BRIDGE_HOST_INDEX",
        ),
        (EXPLICIT | dict(index=-1), {}, "hosts.index=-1"),
        (EXPLICIT, {"BRIDGE_HOST_INDEX": "one"}, None),
        (
            dict(coordinator="10.0.0.1:1234", count=2),
            {"BRIDGE_HOST_INDEX": "one"},
            "BRIDGE_HOST_INDEX='one'; allowed: a whole",
        ),
        (
            dict(index=1),
            {},
            "hosts.index=1; allowed: count and index only together with hosts.coordinator=HOST:PORT",
        ),
        (dict(coordinator="auto", count=4), {}, "hosts.count=4"),
        (
            EXPLICIT | dict(coordinator="10.0.0.1:99999"),
            {},
            "hosts.coordinator='10.0.0.1:99999'; allowed: .*PORT from 1 to 65535",
        ),
        (
            EXPLICIT | dict(coordinator="10.0.0.1:0"),
            {},
            "hosts.coordinator='10.0.0.1:0'; allowed: ",
        ),
        (dict(timeout_s=1), {}, "hosts.timeout_s=1; allowed: at least 10"),
    ],
)
def test_what_cannot_be_meant(given, environment, told):
    """Invalid settings are refused with what is allowed."""
    if told is None:
        assert rendezvous.read(rendezvous.Hosts(**given), environment).index == 1
        return
    with pytest.raises(ValueError, match=told):
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


def as_one_of(monkeypatch, index: int, count: int, gather=None) -> None:
    """This process takes itself for one of several; gather: in place of multihost.gather."""
    names = [f"host {i} (node{i})" for i in range(count)]
    monkeypatch.setattr(multihost, "_peers", types.SimpleNamespace(count=count, names=names))
    monkeypatch.setattr(multihost, "_index", index)
    monkeypatch.setattr(
        multihost, "gather", gather or (lambda *_, **__: pytest.fail("asked the others"))
    )


@pytest.mark.parametrize("rows", [0, 1, 7, 16])
def test_shares_make_up_the_whole(monkeypatch, rows):
    """The slices of all hosts are disjoint and cover every row."""
    parts = []
    for index in range(4):
        as_one_of(monkeypatch, index, 4)
        parts.append(list(range(rows))[multihost.process_slice(rows)])
    assert sum(parts, []) == list(range(rows)) and max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    "given, told",
    [
        ([{"config.seed": 0, "file a.py": "12"}] * 3, ""),
        (
            [{"config.seed": 0}, {"config.seed": 1}],
            "  host 1 (node1): config.seed is 1, elsewhere 0",
        ),
        (
            [{"config.seed": 1}, {"config.seed": 0}, {"config.seed": 0}],
            "  host 0 (node0): config.seed is 1, elsewhere 0",
        ),
        (
            [{"file a.py": "1", "file b.py": "2"}, {"file a.py": "3"}],
            '  host 1 (node1): file a.py is "3", elsewhere "1"; file b.py is "(not set)", elsewhere "2"',
        ),
    ],
)
def test_differences_are_named(monkeypatch, given, told):
    """The host in the minority is named, with the key and both values."""
    as_one_of(monkeypatch, 0, len(given), lambda what, mine, *_: [json.dumps(one) for one in given])
    if not told:
        return consistency.check("it", given[0])
    with pytest.raises(ValueError) as error:
        consistency.check("it", given[0])
    assert str(error.value).splitlines()[1:-1] == [told]


def test_identity_is_config_code_and_versions(monkeypatch, tmp_path):
    """hosts.index alone may differ; a changed file is another identity."""
    config = tiny_runs.config()
    mine = consistency.identity(config)
    config.hosts.index = 3
    assert consistency.identity(config) == mine
    config.optim.base.learning_rate = 0.5
    changed = {key for key, value in consistency.identity(config).items() if mine[key] != value}
    assert changed == {"config.optim.base.learning_rate"}
    assert {
        "file bridge_jax/training/loop.py",
        "file experiments/train.py",
        "version of jax",
        "config.hosts.count",
    } <= set(mine)
    (tmp_path / "bridge_jax" / "training").mkdir(parents=True)
    (tmp_path / "bridge_jax" / "training" / "loop.py").write_text("other")
    monkeypatch.setattr(consistency, "ROOT", tmp_path)
    assert (
        consistency.identity(config)["file bridge_jax/training/loop.py"]
        != mine["file bridge_jax/training/loop.py"]
    )


def test_identity_knows_packages_flags_and_the_model(monkeypatch, tmp_path):
    """Of the weights their header and their end; where the compiler dumps to is a host's own affair."""
    config = tiny_runs.config()
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_dump_to=/here")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    mine = consistency.identity(config)
    names = (
        "jax",
        "jaxlib",
        "numpy",
        "optax",
        "flax",
        "orbax-checkpoint",
        "transformers",
        "tokenizers",
        "sympy",
        "math-verify",
    )
    assert {f"version of {name}" for name in ("python", *names)} <= set(mine)
    assert (mine["variable XLA_FLAGS"], mine["variable LIBTPU_INIT_ARGS"]) == ("--xla_a=1", "")
    names = ("libtpu", "jax_cuda13_plugin", "jax-cuda12-pjrt", "jaxtyping")
    plugins = [types.SimpleNamespace(name=name, version="1") for name in names]
    monkeypatch.setattr(consistency.importlib.metadata, "distributions", lambda: plugins)
    assert {key for key in consistency.identity(config) if key.startswith("version")} == {
        "version of python",
        "version of libtpu",
        "version of jax-cuda13-plugin",
        "version of jax-cuda12-pjrt",
    }

    def changed(**files) -> set[str]:
        before = consistency.model_files(str(tmp_path))
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_bytes(content)
        after = consistency.model_files(str(tmp_path))
        return {name for name in after if before.get(name) != after[name]}

    header, weights = (20).to_bytes(8, "little") + b"{" + b" " * 19, bytes(1 << 17)
    assert changed(config_json=b"{}", model_safetensors=header + weights, notes_txt=b"") == {
        "config.json",
        "model.safetensors",
    }
    assert changed(config_json=b"{ }") == {"config.json"}
    for other in (
        header.replace(b"{ ", b"{}") + weights,
        header + weights[1:] + b"1",
        header + weights,
    ):
        assert changed(model_safetensors=other) == {"model.safetensors"}
    assert (
        changed(model_safetensors=header + b"1" + weights[1:]) == set()
    )  # not read: it would take minutes
    assert changed(model_safetensors=b"\xff" * 9) == {
        "model.safetensors"
    }  # damaged; loading it will tell
    with config.model.ignore_type():
        config.model.path = str(tmp_path)
    assert "model file config.json" in consistency.identity(config)
    assert consistency.model_files("") == consistency.model_files("Qwen/Qwen2.5-3B") == {}


def test_identity_knows_the_settings_of_jax():
    """Given by variables of the environment, too, they draw other numbers from the same key."""
    mine = consistency.identity(tiny_runs.config())
    with jax.default_prng_impl("rbg"), jax.default_matmul_precision("bfloat16"):
        other = consistency.identity(tiny_runs.config())
    assert {key: value for key, value in other.items() if mine[key] != value} == {
        "setting jax_default_prng_impl": "rbg",
        "setting jax_default_matmul_precision": "bfloat16",
    }


def test_each_grades_its_share_alone(monkeypatch):
    """And both get to know all outcomes."""
    seen, said = [], {}
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
                said.update({index: mine}) or [said.get(i, "[]") for i in (0, 1)]
            ),
        )
        found = reading.readings(task, texts, texts, (extract,))
        assert seen == [["a", "b"], ["c", "e"]][index]
    assert found == whole and found[0][3] == (None, Outcome.no_answer)


def test_decided_by_the_main_host(monkeypatch):
    """The others never call the function, and get its result or its error."""
    said = []
    as_one_of(monkeypatch, 0, 2, lambda what, mine, *_: said.append(mine) or [mine, ""])
    assert multihost.broadcast_from_main("it", lambda: {"a": [1]}) == {"a": [1]}
    as_one_of(monkeypatch, 1, 2, lambda what, mine, *_: [said[-1], mine])
    assert multihost.broadcast_from_main("it", lambda: pytest.fail("called")) == {"a": [1]}

    def refuse():
        raise ValueError("no")

    as_one_of(monkeypatch, 0, 2, lambda what, mine, *_: said.append(mine) or [mine, ""])
    with pytest.raises(ValueError, match="no"):
        multihost.broadcast_from_main("it", refuse)
    as_one_of(monkeypatch, 1, 2, lambda what, mine, *_: [said[-1], mine])
    with pytest.raises(ValueError, match="no"):
        multihost.broadcast_from_main("it", lambda: pytest.fail("called"))


def test_a_workdir_of_each_hosts_own_is_refused(monkeypatch, tmp_path):
    """And one that all see is not, nor is anything left in it."""
    monkeypatch.setattr(consistency.time, "sleep", lambda _: None)
    for answers, blind in ((["yes", "yes"], False), (["yes", ""], True)):
        as_one_of(
            monkeypatch,
            0,
            2,
            lambda what, mine, *_: [mine, mine] if what.startswith("a file") else answers,
        )
        if blind:
            with pytest.raises(
                ValueError,
                match="is not one directory: host 1 .node1. do not see what host 0 .main. writes there",
            ):
                consistency.check_shared(str(tmp_path))
        else:
            consistency.check_shared(str(tmp_path))
        assert list(tmp_path.iterdir()) == []


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
