"""Several processes, one run: parts alone, then real processes over loopback that train, die, are signalled and resume."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest

from bridge_jax.distributed import consistency, multihost
from bridge_jax.evaluation import reading
from bridge_jax.grading.outcome import Outcome
from bridge_jax.rundir import checkpoint, lock, logbook
from bridge_jax.training import build, loop, settings
from configs import base
from tests import tiny_runs
from tests.distributed import host_runs
from tests.filesystem import full_disk
from tests.tiny_runs import STEPS

MAXIMISED = (
    "rl/",
    "sft/",
    "bridge/J_hat",
    "bridge/gain",
    "bridge/kl_hat",
)  # metrics: objectives and what they are made of
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
    h = multihost.read(multihost.Hosts(**given), environment)
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
            "hosts.index=1; allowed: count and index beside hosts.coordinator=HOST:PORT",
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
    if told is None:
        assert multihost.read(multihost.Hosts(**given), environment).index == 1
        return
    with pytest.raises(ValueError, match=told):
        multihost.read(multihost.Hosts(**given), environment)


def test_one_process_is_the_identity():
    """Nothing is started, and what the functions are given is what they return."""
    with multihost.joined(tiny_runs.config()):
        assert (multihost.count(), multihost.index(), multihost.first(), multihost.started()) == (
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
        multihost.agree("it", {"no": object()}), multihost.check_shared("/nowhere")


def as_one_of(monkeypatch, index: int, count: int, gather=None) -> None:
    """This process takes itself for one of several; gather: in place of hosts.gather."""
    monkeypatch.setattr(
        multihost,
        "_watch",
        types.SimpleNamespace(count=count, index=index, name=lambda i: f"host {i} (node{i})"),
    )
    monkeypatch.setattr(multihost, "index", lambda: index)
    monkeypatch.setattr(multihost, "gather", gather or (lambda *_: pytest.fail("asked the others")))


@pytest.mark.parametrize("rows", [0, 1, 7, 16])
def test_shares_make_up_the_whole(monkeypatch, rows):
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
    as_one_of(monkeypatch, 0, len(given), lambda what, mine: [json.dumps(one) for one in given])
    if not told:
        return multihost.agree("it", given[0])
    with pytest.raises(ValueError) as error:
        multihost.agree("it", given[0])
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


def test_hosts_that_ask_each_other_different_things(monkeypatch):
    """As where one saves while the other samples on: neither takes the other's answer for one to its own question."""
    store = {"bridge/all/7": json.dumps([["what to save", "a"], ["the rewards", "b"]])}
    monkeypatch.setattr(multihost, "index", lambda: 1)
    client = types.SimpleNamespace(
        key_value_set=store.__setitem__, blocking_key_value_get=lambda key, wait: store[key]
    )
    monkeypatch.setattr(
        multihost,
        "_watch",
        types.SimpleNamespace(
            client=client,
            count=2,
            index=1,
            name=lambda i: f"host {i}",
            waiting=lambda what: contextlib.nullcontext(7),
        ),
    )
    with pytest.raises(
        RuntimeError,
        match="come apart: here it is about the rewards, elsewhere {'host 0': 'what to save'}",
    ):
        multihost.gather("the rewards", "b")
    store["bridge/all/7"] = json.dumps([["the rewards", "a"], ["the rewards", "b"]])
    assert multihost.gather("the rewards", "b") == ["a", "b"]


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
            lambda what, mine: said.update({index: mine}) or [said.get(i, "[]") for i in (0, 1)],
        )
        found = reading.readings(task, texts, texts, (extract,))
        assert seen == [["a", "b"], ["c", "e"]][index]
    assert found == whole and found[0][3] == (None, Outcome.no_answer)


def test_decided_by_the_first(monkeypatch):
    """The others never call the function, and get its result or its error."""
    said = []
    as_one_of(monkeypatch, 0, 2, lambda what, mine: said.append(mine) or [mine, ""])
    assert multihost.broadcast_from_main("it", lambda: {"a": [1]}) == {"a": [1]}
    as_one_of(monkeypatch, 1, 2, lambda what, mine: [said[-1], mine])
    assert multihost.broadcast_from_main("it", lambda: pytest.fail("called")) == {"a": [1]}

    def refuse():
        raise ValueError("no")

    as_one_of(monkeypatch, 0, 2, lambda what, mine: said.append(mine) or [mine, ""])
    with pytest.raises(ValueError, match="no"):
        multihost.broadcast_from_main("it", refuse)
    as_one_of(monkeypatch, 1, 2, lambda what, mine: [said[-1], mine])
    with pytest.raises(ValueError, match="no"):
        multihost.broadcast_from_main("it", lambda: pytest.fail("called"))


def test_a_workdir_of_each_hosts_own_is_refused(monkeypatch, tmp_path):
    """And one that all see is not, nor is anything left in it."""
    monkeypatch.setattr(multihost.time, "sleep", lambda _: None)
    for answers, blind in ((["yes", "yes"], False), (["yes", ""], True)):
        as_one_of(
            monkeypatch,
            0,
            2,
            lambda what, mine: [mine, mine] if what.startswith("a file") else answers,
        )
        if blind:
            with pytest.raises(
                ValueError,
                match="is not one directory: host 1 .node1. do not see what host 0 writes there",
            ):
                multihost.check_shared(str(tmp_path))
        else:
            multihost.check_shared(str(tmp_path))
        assert list(tmp_path.iterdir()) == []


def test_hosts_may_change_when_a_run_resumes():
    assert (
        "hosts." in loop.CHANGEABLE_KEYS
        and settings.read(tiny_runs.config(), 1).hosts == multihost.Hosts()
    )
    assert base.get_config().hosts.to_dict() == dataclasses.asdict(multihost.Hosts())


# ---- real processes


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, shared by all processes of this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def one(tmp_path_factory, cache):
    """The run of one process with all devices."""
    workdir = tmp_path_factory.mktemp("one")
    assert host_runs.run(workdir, 1, cache) == [0], host_runs.output(workdir, 0)
    return workdir


def real(*marks):
    """Marks of a test of real processes; times are for a machine that has other work, too."""

    def mark(test):
        for one in (pytest.mark.timeout(1800), *marks):
            test = one(test)
        return test

    return mark


def state(workdir, method: str) -> dict[str, np.ndarray]:
    """Of the newest checkpoint, whoever wrote it."""
    given = {key: value for key, value in host_runs.CONFIG.items() if not key.startswith("hosts")}
    run, _ = build.build(tiny_runs.config(method, **given), jax.devices()[: host_runs.DEVICES])
    with checkpoint.Checkpoints(str(workdir / "run"), read_only=True) as store:
        restored, _ = store.restore(build.abstract_state(run))
    leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def samples(workdir, step: int) -> list[tuple]:
    """What was sampled and what became of it."""
    rows = tiny_runs.rows(workdir / "run" / "rollouts" / f"step_{step:06d}.jsonl")
    return [(row["id"], row["sample"], row["ids"], row["outcome"]) for row in rows]


def assert_same(workdir, other, method: str = "grpo") -> None:
    """Samples, outcomes and rewards are equal, what is maximised to 1e-6; the rest but for the order in which devices add up.

    Adam divides by the root of the second moment, so that the last bits of a gradient near zero decide its step: parameters and
    moments differ by up to 2e-5 of their array's largest number after five steps of 1e-2, and an element near zero by any factor.
    """
    mine, theirs = tiny_runs.lines(workdir / "run"), tiny_runs.lines(other / "run")
    assert (
        [line["step"] for line in mine]
        == list(range(STEPS + 1))
        == [line["step"] for line in theirs]
    )
    for step in range(1, STEPS + 1):
        assert samples(workdir, step) == samples(other, step)
        a, b = mine[step], theirs[step]
        assert a.keys() == b.keys() and a["reward/mean"] == b["reward/mean"]
        exact = [
            key for key in a if key.startswith(("reward/", "budget/", "eval/")) and a[key] != b[key]
        ]
        assert exact == []
        for key in a:
            bound = dict(abs=1e-6, rel=0) if key.startswith(MAXIMISED) else dict(abs=1e-5, rel=1e-5)
            assert a[key] == pytest.approx(b[key], **bound), (step, key)
    assert mine[1]["grad/norm_theta"] == pytest.approx(theirs[1]["grad/norm_theta"], rel=1e-6)
    one, another = state(workdir, method), state(other, method)
    assert one.keys() == another.keys()
    for key in one:
        largest = np.abs(one[key]).max(initial=0.0)
        np.testing.assert_allclose(one[key], another[key], rtol=0, atol=1e-4 * largest, err_msg=key)


@real()
def test_two_processes_train_like_one(tmp_path, cache):
    """BRIDGE, with evaluations and checkpoints; the first step, before any update, is the same to the last bit."""
    for count in (1, 2):
        assert host_runs.run(tmp_path / str(count), count, cache, method="bridge") == [0] * count, (
            tmp_path
        )
    assert_same(tmp_path / "2", tmp_path / "1", "bridge")
    first = [
        (tmp_path / count / "run" / "rollouts" / "step_000001.jsonl").read_text() for count in "12"
    ]
    assert first[0] == first[1]
    lines = logbook.read(str(tmp_path / "2" / "run"))
    assert any(
        0 < line["reward/mean"] < 1 for line in lines[1:]
    )  # or equal rewards would say nothing
    assert "steps 1 to 5" in host_runs.output(
        tmp_path / "2", 0
    ) and "steps" not in host_runs.output(tmp_path / "2", 1)
    for step in (2, STEPS):  # each has written what its own devices hold
        state = tmp_path / "2" / "run" / "checkpoints" / f"step_{step:06d}" / "state"
        written = [
            sum(path.stat().st_size for path in (state / f"ocdbt.process_{i}" / "d").iterdir())
            for i in (0, 1)
        ]
        assert min(written) > sum(written) / 4, written


@real()
@pytest.mark.parametrize(
    "differ, told",
    [
        (
            dict(optim__base__learning_rate=0.5),
            "config.optim.base.learning_rate is 0.5, elsewhere 0.01",
        ),
        (dict(stop_at=2), "stop_at is 2, elsewhere null"),
    ],
)
def test_different_configs_are_refused(tmp_path, cache, differ, told):
    codes = host_runs.run(tmp_path, 2, cache, differ={1: differ})
    assert codes == [2, 2]
    for index in range(2):
        said = host_runs.output(tmp_path, index)
        assert "error: the hosts are not alike" in said and told in said and "  host 1 (" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@real(pytest.mark.slow)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_stops_the_others_and_the_run_resumes(one, tmp_path, cache, victim):
    """The survivor names who is gone, within the timeout; host 0 holds jax's coordination service."""
    processes = host_runs.start(tmp_path, 2, cache, at={victim: ["die", 3]})
    processes[victim].wait(700)
    survivor = 1 - victim
    assert processes[survivor].wait(host_runs.TIMEOUT + 10) == multihost.LOST
    host_runs.finish(processes)
    assert processes[victim].returncode == -9
    told = host_runs.errors(tmp_path, survivor)
    assert told and f"host {victim} (" in told[-1] and "gone" in told[-1], host_runs.output(
        tmp_path, survivor
    )
    # as a kill in the middle of a save leaves it
    saves = tmp_path / "run" / "checkpoints"
    (saves / "step_000004.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert host_runs.run(tmp_path, 2, cache) == [0, 0]
    assert_same(tmp_path, one)
    assert "steps 3 to 5" in host_runs.output(tmp_path, 0)
    assert [path.name for path in saves.glob("*tmp*")] == []


@real(pytest.mark.slow)
def test_a_run_is_refused_while_a_process_of_the_last_one_is_there(tmp_path, cache):
    """It may still write its part of a checkpoint: nothing of the directory changes, and once it is gone all is well."""
    left = tmp_path / "run" / "checkpoints" / "step_000004.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    with lock.shared_run_lock(str(tmp_path / "run")):
        assert host_runs.run(tmp_path, 2, cache, steps=2) == [2, 2]
        for index in range(2):
            (told,) = host_runs.errors(tmp_path, index)
            assert "a process of an earlier run is still in" in told
        assert left.exists() and not (tmp_path / "run" / "metrics.jsonl").exists()
    assert host_runs.run(tmp_path, 2, cache, steps=2) == [0, 0]
    assert not left.exists()


@real(pytest.mark.slow)
@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_is_the_end_of_all_and_told_apart(one, tmp_path, cache, full):
    """The host that finds it ends with 5, the other is told and ends with 4; with room the run goes on as if nothing had been."""
    with full_disk.small(tmp_path / "run", 16384) as disk:
        codes = host_runs.run(tmp_path, 2, cache, at={full: ["fill", 3]})
        assert set(codes) <= {5, multihost.LOST} and 5 in codes, codes
        told = host_runs.errors(tmp_path, codes.index(5))
        assert "No space left on device" in told[-1] and "make room" in told[-1]
        (disk / "filler").unlink()
        assert host_runs.run(tmp_path, 2, cache) == [0, 0]
        assert_same(tmp_path, one)


@real(pytest.mark.slow)
def test_a_frozen_process_is_named_with_stacks(tmp_path, cache):
    """It lives, but does not come: all end, none waits for ever."""
    processes = host_runs.start(tmp_path, 2, cache, at={1: ["freeze", 1]})
    codes = host_runs.finish(processes)
    assert codes == [multihost.LOST, multihost.LOST]
    said = host_runs.output(tmp_path, 0)
    assert "host 1 (" in said and "has not come, last seen" in said and "Current thread" in said


@real(pytest.mark.slow)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_the_system_has_stopped_is_named(tmp_path, cache, victim):
    """Not a thread of it runs, but its connections stay open; host 0 holds the store in which all others would look."""
    processes = host_runs.start(tmp_path, 2, cache, at={victim: ["stop", 2]})
    survivor = 1 - victim
    try:
        assert processes[survivor].wait(700) == multihost.LOST
        assert processes[victim].poll() is None
    finally:
        for process in processes:
            process.kill()
    told = host_runs.errors(tmp_path, survivor)
    assert told and f"host {victim} (" in told[-1], host_runs.output(tmp_path, survivor)


@real(pytest.mark.slow)
def test_a_signal_to_one_stops_all_after_the_same_step(one, tmp_path, cache):
    assert host_runs.run(tmp_path, 2, cache, at={1: ["terminate", 3]}) == [0, 0]
    assert "stopped by a signal after step 3; saved" in host_runs.output(tmp_path, 0)
    with checkpoint.Checkpoints(str(tmp_path / "run"), read_only=True) as store:
        assert store.steps()[-1] == 3
    assert host_runs.run(tmp_path, 1, cache) == [
        0
    ]  # and one process goes on from what two have saved
    assert_same(tmp_path, one)


@real(pytest.mark.slow)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_second_ctrl_c_ends_one_at_once_and_the_others_name_it(one, tmp_path, cache, victim):
    """As if it was killed, but for its line and exit code; the run resumes from its last checkpoint."""
    processes = host_runs.start(tmp_path, 2, cache, at={victim: ["interrupt twice", 3]})
    assert processes[victim].wait(700) == 130
    assert processes[1 - victim].wait(host_runs.TIMEOUT + 10) == multihost.LOST
    host_runs.finish(processes)
    assert "finishing step 3, saving; again to end at once" in host_runs.output(tmp_path, victim)
    told = host_runs.errors(tmp_path, 1 - victim)
    assert told and f"host {victim} (" in told[-1], host_runs.output(tmp_path, 1 - victim)
    # host 0 takes the store with it, in which its last words stand
    assert victim == 0 or "stopped: by a second signal" in told[-1]
    assert host_runs.run(tmp_path, 2, cache) == [0, 0]
    assert_same(tmp_path, one)


@real(pytest.mark.slow)
def test_four_processes_and_two_go_on_from_them(one, tmp_path, cache):
    assert host_runs.run(tmp_path, 4, cache, stop_at=3) == [0, 0, 0, 0], host_runs.output(
        tmp_path, 0
    )
    shutil.copytree(tmp_path, tmp_path / "kept")
    assert host_runs.run(tmp_path, 2, cache) == [0, 0], host_runs.output(tmp_path, 0)
    assert_same(tmp_path, one)
    assert host_runs.run(tmp_path / "kept", 4, cache) == [0, 0, 0, 0]
    assert_same(tmp_path / "kept", one)


@real(pytest.mark.slow)
@pytest.mark.parametrize("method", ["dapo", "luffy"])
def test_methods_that_ask_again_and_pair(tmp_path, cache, method):
    """Further rounds by rewards, paired rows, cooperation and sampled evaluation: the same from two processes as from one."""
    given = dict(method=method, steps=3, eval__samples=1, eval__cooperation=True)
    for count in (1, 2):
        assert host_runs.run(tmp_path / str(count), count, cache, **given) == [0] * count
    for step in range(1, 4):
        assert samples(tmp_path / "1", step) == samples(tmp_path / "2", step)
    for a, b in zip(
        tiny_runs.lines(tmp_path / "1" / "run"),
        tiny_runs.lines(tmp_path / "2" / "run"),
        strict=True,
    ):
        assert a.keys() == b.keys()
        for key in a:
            if key.startswith((*MAXIMISED, "reward/", "coop/expert_logp")):
                assert a[key] == pytest.approx(b[key], abs=1e-6, rel=0), (a["step"], key)
