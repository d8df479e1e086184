"""A saved state comes back bit for bit after kills, damage, donation, or on other devices."""

from __future__ import annotations

import gc
import logging
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bridge_jax.filesystem.files import NoSpace
from bridge_jax.rundir.checkpoint import Checkpoints, remove_unfinished
from bridge_jax.types import Params, TrainState
from tests import errors
from tests.filesystem import full_disk

# a read that fails leaves tensorstore's other reads of the same checkpoint without a listener
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(1e-3), optax.masked(optax.trace(0.9), False)
)


def make_state(seed: int, shadow: bool = False, width: int = 64) -> TrainState:
    """A state with None, NamedTuples, empty nodes, nan, bfloat16, bools and an empty array."""
    keys = jax.random.split(jax.random.key(seed), 4)
    theta = {
        "embed": jax.random.normal(keys[0], (width, width)),
        "layers/attn.q": jnp.full((2, 3), jnp.nan),
        "half": jax.random.normal(keys[1], (7,)).astype(jnp.bfloat16),
        "none": jnp.zeros((0, 4)),
    }
    w = {"layers/attn.q": {"A": jax.random.normal(keys[2], (2, 3, 1)), "B": -jnp.zeros((2, 1, 3))}}
    params = Params(theta, jax.tree.map(jnp.copy, theta) if shadow else None, w)
    opt_state = OPTIMIZER.init(params), {"mask": jax.random.bernoulli(keys[3], 0.5, (5,))}
    return TrainState(jnp.int32(seed), params, opt_state)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def host(state):
    """A copy that shares no memory with the state's buffers."""
    return jax.tree.map(lambda x: np.array(x, copy=True), state)


def assert_same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(want)):
        assert isinstance(x, jax.Array), path
        assert (
            x.dtype == y.dtype
            and x.shape == y.shape
            and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        ), path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory with the checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir, keep=3) as checkpoints:
        for step in (1, 2):
            assert checkpoints.save(step, make_state(step), {"cursor": [step, 7]})
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it that a test may damage."""
    yield shutil.copytree(saved, tmp_path / "run")
    gc.collect()  # the reads without a listener complain here, not in somebody else's test


def largest_file(workdir, step: int) -> str:
    files = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(f"{workdir}/checkpoints/step_{step:06d}")
        for name in names
    ]
    return max(files, key=os.path.getsize)


def test_structure_types_and_bits_come_back_with_the_notes(tmp_path):
    """A restored state has the saved types, bits and notes; a step is saved once."""
    state = make_state(3, shadow=True)
    meta = {"cursors": {"rl": [0, 12]}, "seed": 3, "best": None, "score": 0.1}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.restore(abstract(state)) is None
        assert checkpoints.save(3, state, meta) and not checkpoints.save(3, state, meta)
        got, got_meta = checkpoints.restore(abstract(state))
    assert_same_bits(got, state)
    assert got_meta == meta
    assert type(got.opt_state[0][1][0]) is type(state.opt_state[0][1][0])


def test_restored_state_is_ready_for_a_donating_step(run):
    """A jitted step may donate the arrays of a restored state."""
    with Checkpoints(run) as checkpoints:
        state, _ = checkpoints.restore(abstract(make_state(0)))
    want = make_state(2).params.theta["embed"] + 1
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    np.testing.assert_array_equal(step(state.params.theta["embed"]), want)


def test_a_part_marked_unread_stays_unread(run):
    """A part given as `...` is not read, and the other parts are."""
    with Checkpoints(run, read_only=True) as checkpoints:
        got, _ = checkpoints.restore(abstract(make_state(0)).replace(opt_state=...))
    assert got.opt_state is ...
    assert_same_bits(got.params, make_state(2).params)


def test_keep_holds_the_newest_and_a_failed_save_deletes_nothing(tmp_path):
    """`keep` newest checkpoints stay; a save that fails deletes none of them."""
    big = make_state(1, width=512)  # 1 MiB of noise, which does not compress
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, big, {})
        checkpoints.wait()
        assert checkpoints.steps() == [3]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))  # as on a full disk
        try:
            with errors.raises(OSError, "[3]"):
                checkpoints.save(4, make_state(4, width=512), {})
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert_same_bits(checkpoints.restore(abstract(big))[0], big)
        checkpoints.save(5, big, {"after": 1})  # room again
        checkpoints.wait()
        assert checkpoints.steps() == [5] and checkpoints.restore(abstract(big))[1] == {"after": 1}


def test_a_full_disk_is_a_NoSpace_and_costs_no_checkpoint(tmp_path):
    """And what was cut off is removed, so that there is room for the next."""
    big = make_state(1, width=256)  # 256 KiB of noise, which does not compress
    with full_disk.small(tmp_path / "disk", 2048) as disk:
        with Checkpoints(disk, keep=1) as checkpoints:
            checkpoints.save(1, big, {})
            checkpoints.wait()
            filler = full_disk.fill(disk, leave=100_000)
            with errors.raises(NoSpace, "[1]", "room"):
                checkpoints.save(2, make_state(2, width=256), {})
                checkpoints.wait()
            unfinished = [name for name in os.listdir(checkpoints.directory) if "tmp" in name]
            assert unfinished == ["step_000002.orbax-checkpoint-tmp"]
        remove_unfinished(disk)
        assert os.listdir(disk / "checkpoints") == ["step_000001"]
        full_disk.fill(disk)
        with Checkpoints(disk, keep=1) as checkpoints:
            assert_same_bits(checkpoints.restore(abstract(big))[0], big)
            filler.unlink()
            checkpoints.save(2, big, {})
        assert os.listdir(disk / "checkpoints") == ["step_000002"]


def test_what_is_removed_as_unfinished_is_no_checkpoint(run):
    """remove_unfinished deletes temporary directories and no checkpoint."""
    folder = f"{run}/checkpoints"
    os.mkdir(f"{folder}/damaged_step_000001")
    before = sorted(os.listdir(folder))
    for name in (
        "step_000003.orbax-checkpoint-tmp/state",
        "step_000003.orbax-checkpoint-tmp-123/d",
    ):
        os.makedirs(f"{folder}/{name}")
    remove_unfinished(run)
    remove_unfinished(f"{run}/none")
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize(
    "keep, good, kept",
    [
        (1, [-1, -1, -1, -1], [4]),
        # known to be good: the step before the one that is saved, none but the first, the first two
        (1, [-1, 1, 2, 3], [3, 4]),
        (1, [-1, 1, 1, 1], [1, 4]),
        (2, [-1, 1, 1, 1], [1, 3, 4]),
        (2, [-1, 1, 2, 3], [3, 4]),
    ],
)
def test_the_last_good_one_is_kept_beside_the_newest(tmp_path, keep, good, kept):
    """Beside the newest checkpoints, the newest one that is known to be good stays."""
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, {"x": jnp.full(3, step)}, {}, good=good[step - 1])
        checkpoints.wait()
        assert checkpoints.steps() == kept == Checkpoints(tmp_path, read_only=True).steps()


def test_retreat_renames_what_is_newer_than_the_last_good_one(run):
    """A retreat renames the checkpoints after the good step as diverged."""
    folder = f"{run}/checkpoints"
    with Checkpoints(run, keep=3) as checkpoints:
        assert checkpoints.retreat(0) == (None, []) and checkpoints.steps() == [1, 2]
        assert checkpoints.retreat(2) == (2, []) and not checkpoints.went_back(1)
        assert checkpoints.retreat(1) == (1, ["diverged_step_000002"])
        assert checkpoints.steps() == [1] and checkpoints.went_back(1)
        assert not checkpoints.went_back(2)
        assert_same_bits(checkpoints.restore(abstract(make_state(0)))[0], make_state(1))
        # again: of one step no more than one is kept
        assert checkpoints.save(2, make_state(2), {"again": True})
        assert checkpoints.retreat(1) == (1, ["diverged_step_000002"])
    assert sorted(os.listdir(folder)) == ["diverged_step_000002", "step_000001"]


def test_the_caller_may_donate_delete_and_overwrite_at_once(tmp_path):
    """A save holds the values of its call, whatever becomes of the arrays afterwards."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    arrays = {str(i): jax.random.normal(jax.random.key(i), (300_000,)) for i in range(4)}
    want, meta = host(arrays), {"cursor": [1]}
    spare = jax.block_until_ready(overwrite(jax.tree.map(jnp.copy, arrays)))  # compiled before
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, arrays, meta)
        meta["cursor"].append(2)
        for _ in range(3):
            arrays = overwrite(arrays)
        jax.block_until_ready(arrays)
        for leaf in jax.tree.leaves((arrays, spare)):
            leaf.delete()
        refill = [jnp.full((300_000,), 7.0) for _ in range(8)]  # into the memory that was freed
        jax.block_until_ready(refill)
        got, got_meta = checkpoints.restore(abstract(want))
    assert_same_bits(got, want)
    assert got_meta == {"cursor": [1]}


def truncate(path):
    os.truncate(path, os.path.getsize(path) // 2)


def flip_a_bit(path):
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def change_the_cursor(path):
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(text.replace('"cursor": [2, 7]', '"cursor": [3, 7]'))
    assert '"cursor": [3, 7]' in open(path).read()


@pytest.mark.parametrize(
    "damage, name",
    [
        (truncate, None),
        (os.unlink, None),
        (flip_a_bit, None),
        (truncate, "state/_METADATA"),
        (shutil.rmtree, "state/d"),
        (os.unlink, "state/manifest.ocdbt"),
        (truncate, "notes/metadata"),
        (os.unlink, "notes/metadata"),
        (change_the_cursor, "notes/metadata"),
        (shutil.rmtree, "state"),
    ],
)
def test_a_damaged_newest_falls_back_says_so_and_makes_room(run, caplog, damage, name):
    """A damaged newest checkpoint is renamed, and the one before it is restored."""
    newest = f"{run}/checkpoints/step_000002"
    damage(f"{newest}/{name}" if name else largest_file(run, 2))
    with caplog.at_level(logging.WARNING), Checkpoints(run, keep=3) as checkpoints:
        state, meta = checkpoints.restore(abstract(make_state(0)))
        assert_same_bits(state, make_state(1))
        warning = meta.pop("restore_warning")
        assert meta == {"cursor": [1, 7]} and warning in caplog.text
        assert "step 1," in warning and "step 2 is damaged (now damaged_step_000002)" in warning
        assert checkpoints.steps() == [1] and os.path.isdir(
            f"{run}/checkpoints/damaged_step_000002"
        )
        assert checkpoints.save(2, make_state(2), {"again": True, "restore_warning": warning})
        state, meta = checkpoints.restore(abstract(make_state(0)))
    assert_same_bits(state, make_state(2))
    assert meta == {"again": True}


def test_a_second_quarantine_finds_another_name_and_a_reader_renames_nothing(run):
    """A damaged checkpoint gets a free name; a reader leaves it where it is."""
    os.mkdir(f"{run}/checkpoints/damaged_step_000002")
    truncate(largest_file(run, 2))
    before = sorted(os.listdir(f"{run}/checkpoints"))
    with Checkpoints(run, read_only=True) as reader:
        assert "step 2 is damaged:" in reader.restore(abstract(make_state(0)))[1]["restore_warning"]
    assert sorted(os.listdir(f"{run}/checkpoints")) == before
    with Checkpoints(run) as checkpoints:
        assert (
            "now damaged_step_000002_2"
            in checkpoints.restore(abstract(make_state(0)))[1]["restore_warning"]
        )


def test_all_damaged_is_an_error_that_lists_them_and_changes_nothing(run):
    """If every checkpoint is damaged, the error lists each and none is renamed."""
    truncate(largest_file(run, 1))
    flip_a_bit(largest_file(run, 2))
    with Checkpoints(run) as checkpoints:
        with pytest.raises(ValueError) as error:
            checkpoints.restore(abstract(make_state(0)))
        assert checkpoints.steps() == [1, 2]
    errors.assert_names(str(error.value), "step 1", "step 2", str(run / "checkpoints"))


def test_a_full_memory_is_not_taken_for_damage(run, monkeypatch):
    """An error for lack of memory is raised, and the checkpoints stay."""
    with Checkpoints(run) as checkpoints:
        for error in (MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: out of memory")):
            monkeypatch.setattr(
                checkpoints, "_read_arrays", lambda *_, error=error: (_ for _ in ()).throw(error)
            )
            with pytest.raises(type(error)):
                checkpoints.restore(abstract(make_state(0)))
        assert checkpoints.steps() == [1, 2]


def test_another_methods_state_is_refused_with_what_differs(run):
    """A state of another structure or shape is refused with the differences."""
    with Checkpoints(run) as checkpoints:
        with errors.raises(ValueError, "model", "method", "optimizer") as error:
            checkpoints.restore(abstract(make_state(0, shadow=True)))
        errors.assert_names(
            str(error.value),
            "params/theta_hat (4 arrays)",
            "opt_state/0/1/0/mu/theta_hat (4 arrays)",
        )
        assert "only in the checkpoint" not in str(error.value)
        with errors.raises(ValueError, "checkpoint", "opt_state (14 arrays)"):
            checkpoints.restore(abstract(make_state(0)).replace(opt_state=None))
        with errors.raises(ValueError, "params/theta/embed", "float32[64,64]", "float32[8,8]"):
            checkpoints.restore(abstract(make_state(0, width=8)))
        assert checkpoints.steps() == [1, 2]  # no damage, so that nothing was renamed


def test_unfinished_directories_are_ignored_and_replaced(run):
    """An unfinished checkpoint is not restored, and a save of its step replaces it."""
    folder = f"{run}/checkpoints"
    os.rename(f"{folder}/step_000002", f"{folder}/step_000002.orbax-checkpoint-tmp")
    with Checkpoints(run, keep=3) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[1] == {"cursor": [1, 7]}
        checkpoints.save(2, make_state(2), {})
    assert sorted(os.listdir(folder)) == ["step_000001", "step_000002"]


KILLED = """
    import os, signal, sys
    import jax.numpy as jnp
    from bridge_jax.rundir.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], keep=1)
    checkpoints.save(1, {"x": jnp.full(3, 1.5)}, {"cursor": 1})
    checkpoints.wait()
    for name in ("rename", "replace"):
        def commit(source, target, *rest, real=getattr(os, name)):
            if os.path.basename(str(target)) == "step_000002":
                os.kill(os.getpid(), signal.SIGKILL)
            return real(source, target, *rest)
        setattr(os, name, commit)
    checkpoints.save(2, {"x": jnp.full(3, 2.5)}, {"cursor": 2})
    checkpoints.wait()
"""


def in_another_process(code: str, *args: str, **env: str) -> subprocess.CompletedProcess:
    root = str(pathlib.Path(__file__).resolve().parents[2])
    env = os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"} | env
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=env, timeout=240)


def test_kill_9_during_a_save_leaves_the_step_before_to_another_process(tmp_path):
    """After SIGKILL in a save, another process restores the step before."""
    child = in_another_process(KILLED, str(tmp_path))
    assert child.returncode == -signal.SIGKILL, child.stderr
    left = os.listdir(tmp_path / "checkpoints")
    assert "step_000002" not in left and any(
        name.startswith("step_000002.") for name in left
    )  # it was half way
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state, meta = checkpoints.restore({"x": jax.ShapeDtypeStruct((3,), jnp.float32)})
        assert_same_bits(state, {"x": jnp.full(3, 1.5)})
        assert meta == {"cursor": 1}
    remove_unfinished(tmp_path)
    assert os.listdir(tmp_path / "checkpoints") == ["step_000001"]
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(2, state, {})
    assert os.listdir(tmp_path / "checkpoints") == ["step_000002"]


LAYOUTS = """
    import sys
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from bridge_jax.rundir.checkpoint import Checkpoints
    from bridge_jax.rundir.state_arrays import checksums

    noise = np.random.default_rng(0).integers(0, 2**32, (16, 8), np.uint32)
    want = {"x": noise.view(np.float32), "step": np.int32(3)}  # every bit pattern, nan among them

    def layout(shape):
        mesh = jax.make_mesh(shape, ("data", "model"), devices=jax.devices()[:shape[0] * shape[1]])
        specs = {"x": PartitionSpec("data", "model"), "step": PartitionSpec()}
        return {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, specs[key]))
                for key, x in want.items()}

    assert jax.device_count() == 8
    sums = []
    for step, (one, other) in enumerate([((4, 2), (1, 1)), ((1, 1), (2, 4))]):
        state = jax.device_put(want, {key: x.sharding for key, x in layout(one).items()})
        with Checkpoints(sys.argv[1] + str(step)) as checkpoints:
            checkpoints.save(step, state, {})
            got, meta = checkpoints.restore(layout(other))
        assert meta == {}
        for key, x in layout(other).items():
            assert got[key].sharding == x.sharding and got[key].dtype == x.dtype
            assert np.asarray(got[key]).tobytes() == want[key].tobytes(), key
        assert len(got["x"].sharding.device_set) == other[0] * other[1]
        sums += [checksums(state), checksums(got)]
    assert all(each == sums[0] for each in sums)
    print("equal")
"""


@pytest.mark.slow
def test_eight_devices_to_one_and_back_and_to_another_mesh(tmp_path):
    """A state saved on one mesh is restored equal on another."""
    child = in_another_process(
        LAYOUTS, str(tmp_path / "run"), XLA_FLAGS="--xla_force_host_platform_device_count=8"
    )
    assert child.stdout.strip() == "equal", child.stderr


TWO = """
    import sys
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    from bridge_jax.distributed import multihost
    from bridge_jax.rundir.checkpoint import Checkpoints

    hosts = dict(coordinator=sys.argv[2], count=2, index=int(sys.argv[3]))
    with multihost.joined({"hosts": hosts}):
        sharding = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
        want = np.arange(6, dtype=np.float32)
        state = {"x": jax.make_array_from_callback((6,), sharding, lambda index: want[index])}
        with Checkpoints(sys.argv[1], keep=2) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, state, {"step": step})
            read = checkpoints._read_arrays

            def one_bad_disk(step, wanted):
                arrays = read(step, wanted)
                if step == 2 and jax.process_index() == 1:
                    raise OSError("bad disk")
                return arrays

            checkpoints._read_arrays = one_bad_disk
            got, meta = checkpoints.restore({"x": jax.ShapeDtypeStruct((6,), np.float32, sharding=sharding)})
            assert all(np.array_equal(shard.data, want[shard.index]) for shard in got["x"].addressable_shards)
            assert "now damaged_step_000002)" in meta["restore_warning"] and checkpoints.save(2, got, {})
            print("restored", meta["step"], checkpoints.steps())
"""


@pytest.mark.slow
def test_two_processes_fall_back_together_when_one_cannot_read(tmp_path):
    """If one process cannot read a step, all restore the same earlier one."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(in_another_process, TWO, str(tmp_path), address, str(i), XLA_FLAGS="")
            for i in range(2)
        ]
        for child in (run.result() for run in runs):
            assert "restored 1 [1]" in child.stdout or "restored 1 [1, 2]" in child.stdout, (
                child.stderr
            )


def test_users_errors_name_the_way_out(tmp_path, run):
    """Unusable folders, settings, steps and notes are errors that name the way out."""
    (tmp_path / "file").write_text("")
    with errors.raises(
        ValueError, str(tmp_path / "file" / "checkpoints"), "Not a directory", "--workdir"
    ):
        Checkpoints(tmp_path / "file")
    # to take another directory would leave the run behind
    (tmp_path / "checkpoints").symlink_to(tmp_path / "unmounted")
    with errors.raises(ValueError, str(tmp_path / "checkpoints"), str(tmp_path / "unmounted")):
        Checkpoints(tmp_path)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "checkpoints").write_text("")
    with errors.raises(ValueError, str(tmp_path / "checkpoints"), "folder"):
        Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="checkpoint.keep=0"):
        Checkpoints(tmp_path, keep=0)
    with Checkpoints(run) as checkpoints:
        with errors.raises(ValueError, "step 2", "step 0"):
            checkpoints.save(0, make_state(0), {})
        for meta in ({"best": float("nan")}, {"a": {1}}, None):
            with errors.raises(ValueError, "JSON"):
                checkpoints.save(3, make_state(0), meta)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take its own rights away for a moment")
def test_a_directory_without_write_permission_is_refused(tmp_path):
    """A workdir without write permission is refused at once."""
    os.chmod(tmp_path, 0o555)
    os.seteuid(65534)
    try:
        with errors.raises(ValueError, str(tmp_path), "Permission denied"):
            Checkpoints(tmp_path)
    finally:
        os.seteuid(0)


def test_orbax_keeps_quiet_below_warnings_and_others_do_not(tmp_path, caplog):
    """Info messages of orbax are dropped, and those of others are kept."""
    from absl import logging as absl_logging

    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, logger="absl"):
        absl_logging.info("logged by the run itself")
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"x": jnp.ones(3)}, {})
            checkpoints.restore({"x": jax.ShapeDtypeStruct((3,), jnp.float32)})
    assert [record.message for record in caplog.records if record.name == "absl"] == [
        "logged by the run itself"
    ]
