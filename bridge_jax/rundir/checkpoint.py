"""Checkpoints of a run: the training state, and JSON notes about it, written together by orbax.

A checkpoint is complete or does not exist: orbax writes in the background and renames a finished
directory. A state is restored bit for bit, onto any layout of devices. orbax stores arrays without
checksums and would read a flipped bit as a number; so the notes have a checksum of each array,
which is compared after reading.

A checkpoint that cannot be read, or whose checksums differ, is damaged: the one before is restored
instead. Damaged ones are renamed only after an older one was read, so that a fault elsewhere (no
memory, a wrong mount) renames nothing. A state of other shapes, such as another method's, is not
damaged: it is refused with the differences. A checkpoint is good once an update from it was finite.
The newest good one is kept in addition to the newest `keep`; a run that diverged goes back to it
(`retreat`). Left out: when to save (training/end_of_step.py), choosing a checkpoint by its score.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from bridge_jax.config import schema
from bridge_jax.distributed import multihost
from bridge_jax.filesystem import files
from bridge_jax.rundir import layout
from bridge_jax.rundir.state_arrays import (
    by_path,
    check_same_arrays,
    checksums,
    describe_leaf,
    name_some,
    path_name,
)
from bridge_jax.types import Tree

logger = logging.getLogger(__name__)
# of one checkpoint in the background; orbax would give up on the other hosts after 20 minutes
LONGEST_WRITE_S = 6 * 3600
# names of directories that are checkpoints no more
ASIDE = re.compile(r"(?:damaged|diverged)_step_(\d+)(?:_\d+)?")
# marks a part of an abstract state that is not to be read
UNREAD = ...

# orbax logs each phase of each save at INFO, through absl; its warnings pass
logging.getLogger("absl").addFilter(
    lambda record: (
        record.levelno >= logging.WARNING or f"{os.sep}orbax{os.sep}" not in record.pathname
    )
)


class Checkpoints:
    """The checkpoints/ of a run directory: the newest `keep` of them, and the last good one.

    Every process of a run makes one and calls the same methods. read_only: for other readers, since
    the run may be alive; nothing is created, deleted or renamed.
    """

    def __init__(self, workdir: str, keep: int = 1, read_only: bool = False):
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"checkpoint.keep={keep!r}: must be a whole number of at least 1.")
        self.directory = os.path.join(os.path.abspath(workdir), "checkpoints")
        self.read_only = read_only
        if not read_only:
            _make(self.directory)
        self._keep = _Keep(keep)
        self._manager = ocp.CheckpointManager(
            self.directory, item_names=("state", "notes"), options=_options(self._keep)
        )

    def save(self, step: int, state: Tree, meta: dict, good: int = -1) -> bool:
        """Start to write the state of a step, after the save before is finished.

        Returns once the state is copied to the host, so that the caller may donate it. False, and
        nothing is written, if there is a checkpoint of this step. meta: a JSON object. good: states
        up to this step are good; the newest checkpoint of one is kept. ValueError for a step before
        the newest; OSError if the save before could not be written, as on a full disk.
        """
        assert not self.read_only, "these checkpoints were opened to be read"
        with self._writing():
            self._manager.wait_until_finished()
        newest = self._manager.latest_step()
        if newest is not None and step <= newest:
            if step in self._manager.all_steps():
                return False
            raise ValueError(
                f"{self.directory} holds step {newest}, later than step {step}: restore it and go "
                "on from there, or take another --workdir."
            )
        arrays = by_path(state)
        assert all(isinstance(leaf, jax.Array) for leaf in arrays.values()), (
            "a training state holds jax arrays alone"
        )
        self._keep.good = good
        notes = {
            "step": step,
            "meta": _json_object(meta),
            "arrays": {key: describe_leaf(leaf) for key, leaf in arrays.items()},
            "checksums": checksums(state),
        }
        # orbax refuses empty arrays
        stored = {key: leaf for key, leaf in arrays.items() if leaf.size}
        with self._writing():
            # before the new one is written, so that there are never more than `keep` others on disk
            for old in self._keep.dispensable(self._manager.all_steps()):
                self._manager.delete(old)
            self._manager.save(
                step,
                force=True,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(stored),
                    notes=ocp.args.JsonSave(
                        {"notes": notes, "fingerprint": schema.fingerprint(notes)}
                    ),
                ),
            )
        return True

    def restore(self, abstract_state: Tree) -> tuple[Tree, dict] | None:
        """(state, meta) of the newest checkpoint that can be read, None where there is none.

        abstract_state: ShapeDtypeStructs, with the shardings to restore onto. A part that is UNREAD
        is not read and stays UNREAD. If newer checkpoints were damaged, meta["restore_warning"]
        says which and why. ValueError if all are damaged, or if the arrays saved are not those
        wanted.
        """
        self.wait()
        self._manager.reload()
        damaged: dict[int, str] = {}
        for step in multihost.broadcast_from_main(
            "steps of the checkpoints",
            lambda: sorted(self._manager.all_steps(), reverse=True),
            io_grace=True,
        ):
            try:
                state, meta = self._read(step, abstract_state)
            except _Damaged as error:
                damaged[step] = str(error)
                continue
            if damaged:
                meta["restore_warning"] = self._set_aside(step, damaged)
            return state, meta
        if damaged:
            reasons = "\n".join(f"  step {step}: {reason}" for step, reason in damaged.items())
            raise ValueError(
                f"no checkpoint in {self.directory} can be read:\n{reasons}\nNothing was changed. "
                "Bring one back, or move the directory away to start from step 0."
            )
        return None

    def path(self, step: int) -> str:
        """The directory of the checkpoint of a step."""
        return os.path.join(self.directory, _step_name(step))

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, the oldest first; some may be damaged."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def retreat(self, good: int) -> tuple[int | None, list[str]]:
        """Rename the checkpoints after step `good`: (step of the newest that stays, new names).

        (None, []), and nothing is renamed, where no checkpoint would stay: a doubtful checkpoint is
        better than none.
        """
        self.wait()
        known = self.steps()
        found = max((step for step in known if step <= good), default=None)
        doubtful = [step for step in known if found is not None and step > found]
        # keep one of each step, so that a run that diverges repeatedly does not fill the disk
        for step in doubtful if jax.process_index() == 0 else ():
            shutil.rmtree(os.path.join(self.directory, f"diverged_{_step_name(step)}"), True)
        moved = self._rename(doubtful, "diverged")
        return found, list(moved.values())

    def went_back(self, step: int) -> bool:
        """Whether checkpoints after this step were renamed, as damaged or as diverged."""
        found = map(ASIDE.fullmatch, os.listdir(self.directory))
        return any(match and int(match[1]) > step for match in found)

    def wait(self) -> None:
        """Wait until the last save is on disk; OSError if it could not be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and end the threads; may be called twice."""
        with (
            multihost.watchdog("the end of the last checkpoint", io_grace=True),
            self._writing(),
        ):
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is None:
            self.close()
        else:
            # another host may never come to its part of the save that is under way
            multihost.close_with_limit(self.close)

    def _read(self, step: int, abstract_state: Tree) -> tuple[Tree, dict]:
        """One verified checkpoint; _Damaged in every process if it is damaged for one of them."""
        notes = _in_all_processes(lambda: self._read_notes(step))
        wanted = by_path(abstract_state)
        skipped = tuple(key for key, leaf in wanted.items() if leaf is UNREAD)
        saved = {key: kind for key, kind in notes["arrays"].items() if not _under(key, skipped)}
        wanted = {key: leaf for key, leaf in wanted.items() if leaf is not UNREAD}
        kinds = {key: describe_leaf(leaf) for key, leaf in wanted.items()}
        check_same_arrays(f"{self.directory} at step {step}", saved, kinds)
        arrays = _in_all_processes(lambda: self._read_arrays(step, wanted))
        state = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if leaf is UNREAD else arrays[path_name(path)], abstract_state
        )
        sums = checksums(arrays)
        wrong = [key for key in arrays if sums[key] != notes["checksums"][key]]
        if wrong:
            raise _Damaged(f"other numbers than were saved in {name_some(wrong)}")
        return state, notes["meta"]

    def _read_notes(self, step: int) -> dict:
        record = self._manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))[
            "notes"
        ]
        if schema.fingerprint(record["notes"]) != record["fingerprint"]:
            raise _Damaged("its notes do not have the fingerprint that was saved with them")
        return record["notes"]

    def _read_arrays(self, step: int, wanted: dict[str, Any]) -> dict[str, jax.Array]:
        def target(leaf):
            sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
                jax.local_devices()[0]
            )
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        targets = {key: target(leaf) for key, leaf in wanted.items()}
        stored = {key: leaf for key, leaf in targets.items() if leaf.size}
        arrays = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    stored,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(stored),
                    partial_restore=True,
                )
            ),
        )["state"]
        empty = {
            key: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
            for key, leaf in targets.items()
            if not leaf.size
        }
        return dict(arrays) | empty

    def _set_aside(self, good: int, damaged: dict[int, str]) -> str:
        """Rename damaged checkpoints, so that their steps can be saved again; the warning."""
        moved = {} if self.read_only else self._rename(list(damaged), "damaged")
        message = "; ".join(
            f"step {step} is damaged{f' (now {moved[step]})' if step in moved else ''}: {reason}"
            for step, reason in damaged.items()
        )
        warning = f"{self.directory}: went back to the checkpoint of step {good}, because {message}"
        logger.warning(warning)
        return warning

    def _rename(self, steps: list[int], why: str) -> dict[int, str]:
        """Rename checkpoints, so that their steps can be saved again: {step: new name}."""
        moved = {step: _free_name(self.directory, why, step) for step in steps}
        multihost.barrier(f"names of {why} checkpoints chosen", io_grace=True)
        if jax.process_index() == 0:
            for step, name in moved.items():
                os.rename(
                    os.path.join(self.directory, _step_name(step)),
                    os.path.join(self.directory, name),
                )
        multihost.barrier(f"{why} checkpoints renamed", io_grace=True)
        self._manager.reload()
        return moved

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # the manager has already removed from its list what the failed save would have replaced
            self._manager.reload()
            full = files.is_full(error)
            way_out = "make room, and run" if full else "run"
            raise (files.NoSpace if full else OSError)(
                f"a checkpoint could not be written to {self.directory}: {_reason(error)}. "
                "Complete "
                f"there: steps {self._manager.all_steps()}; {way_out} the same command again: it "
                "goes "
                "on from the last of them."
            ) from error


class _Damaged(Exception):
    """A checkpoint that cannot be read as it was written."""


class _Keep:
    """orbax's policy of preservation: the newest `count`, and the last one up to step `good`."""

    def __init__(self, count: int):
        self.count, self.good = count, -1

    def should_preserve(self, checkpoints: Sequence, *, context: Any) -> list[bool]:
        gone = self.dispensable([info.step for info in checkpoints])
        return [info.step not in gone for info in checkpoints]

    def dispensable(self, steps: Sequence[int]) -> list[int]:
        """The steps whose checkpoints may be deleted."""
        kept = sorted(steps)[-self.count :]
        kept.append(max((step for step in steps if step <= self.good), default=-1))
        return [step for step in steps if step not in kept]


def remove_unfinished(workdir: str) -> None:
    """Remove incomplete saves, which can be as large as a state.

    Only the run that has locked the directory may call it, while it does not save.
    """
    directory = os.path.join(os.path.abspath(workdir), "checkpoints")
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        path = os.path.join(directory, name)
        if layout.UNFINISHED in name and not os.path.islink(path):
            logger.info("%s: a save that was cut off is removed", path)
            shutil.rmtree(path)


def _options(keep: _Keep) -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(
        create=False,
        preservation_policy=keep,
        async_options=ocp.AsyncOptions(timeout_secs=LONGEST_WRITE_S),
        step_name_format=ocp.path.step.standard_name_format(
            step_prefix="step", step_format_fixed_length=6
        ),
    )


def _step_name(step: int) -> str:
    return f"step_{step:06d}"


def _free_name(directory: str, why: str, step: int) -> str:
    names = [
        f"{why}_{_step_name(step)}",
        *(f"{why}_{_step_name(step)}_{n}" for n in range(2, 1000)),
    ]
    return next(name for name in names if not os.path.exists(os.path.join(directory, name)))


def _make(directory: str) -> None:
    probe = os.path.join(directory, f".writable_{jax.process_index()}_{os.getpid()}")
    try:
        os.makedirs(directory, exist_ok=True)
        with open(probe, "w"):
            pass
        os.unlink(probe)
    except OSError as error:
        if files.is_full(error):
            raise files.write_error(directory, error) from error
        reason = f"{error.strerror};"
        if os.path.islink(directory) and not os.path.exists(directory):
            target = os.readlink(directory)
            reason = f"it is a link to {target!r}, which is not there; bring that back, or"
        elif os.path.exists(directory) and not os.path.isdir(directory):
            reason = "it is no folder; bring that back, or"
        raise ValueError(
            f"cannot write to {directory!r}: {reason} take another --workdir."
        ) from None


def _under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + "/") for prefix in prefixes)


def _json_object(meta: dict) -> dict:
    """A copy of meta as JSON will give it back; ValueError if JSON cannot hold it."""
    try:
        copy = json.loads(json.dumps(meta, allow_nan=False))
        return {key: value for key, value in copy.items() if key != "restore_warning"}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"meta of a checkpoint must be a JSON object ({error}): {meta!r}"
        ) from None


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _in_all_processes(read: Callable[[], Any]) -> Any:
    """read(); _Damaged if it failed in any process, so that all processes go on alike."""
    result, reason = None, ""
    try:
        result = read()
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            # the file is not at fault
            raise
        reason = str(error) if isinstance(error, _Damaged) else _reason(error)
    if multihost.any_process("a checkpoint that cannot be read", bool(reason), io_grace=True):
        raise _Damaged(reason or "another process could not read it")
    return result
