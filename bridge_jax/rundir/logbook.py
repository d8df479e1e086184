"""The files of a run directory: config.json, metrics.jsonl, rollouts/, batches/, and mirrors of the metrics elsewhere.

metrics.jsonl is the truth: append-only, one JSON object a line, one line a step, {"step": 12, "reward/mean": 0.25}.
A run that resumes at step k first cuts the file back to steps <= k, so that file and training state tell the same story
whatever killed the run, and says what is missing of them. What no checkpoint stands behind is never cut: `set_aside`
renames it. Numbers that JSON does not have (nan, inf) are written as null and named under "nonfinite".
TensorBoard and W&B are mirrors: they may fail, lag or be absent without touching the run.
In a run of several processes, `writes=False` makes a Logbook that accepts everything and touches nothing.
Left out: plots and tables (experiments/report.py), checkpoints (checkpoint.py).
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bridge_jax.config import renamed, schema
from bridge_jax.filesystem import files, streams, textfile

logger = logging.getLogger(__name__)
KEY = re.compile(r"[\w.-]+(/[\w.-]+)+")  # group/name
PROGRESS_SECONDS = 10.0  # between two lines of progress where there is no terminal
GROWS = ("metrics.jsonl", "solved.jsonl")  # one line for each step, or evaluation
FOLDERS = ("rollouts", "batches")  # one file for each step
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a save that is not complete
FINISHED = "finished.json"  # of finished.py: nothing is left to do
OF_STEP = re.compile(r"(?:step|eval)_(\d+)\.\w+")


def open_run(
    workdir: str,
    resolved: dict,
    defaults_diff: dict,
    force: bool = False,
    ignore: Iterable[str] = (),
    facts: dict | None = None,
) -> None:
    """Creates the run directory with config.json {"config", "diff", "facts", "changes"}, or checks that the run is the same."""
    write_config(workdir, check_run(workdir, resolved, defaults_diff, force, ignore, facts))


def write_config(workdir: str, record: dict) -> None:
    """config.json of what check_run returned: once it is certain that the run goes on under it."""
    files.replace(
        os.path.join(workdir, "config.json"), json.dumps(record, indent=1, sort_keys=True) + "\n"
    )


def check_run(
    workdir: str,
    resolved: dict,
    defaults_diff: dict,
    force: bool = False,
    ignore: Iterable[str] = (),
    facts: dict | None = None,
    defaults: dict | None = None,
) -> dict:
    """Makes the directory, checks that a run in it has this config, and returns what config.json shall say.

    facts: what decides a run beside its config (fingerprints of data and prompts); compared like keys of the config.
    defaults: a key that the run does not know, and that is at its default, is one that came later: no difference.

    `ignore`: keys ("steps") and groups ("log.") that do not decide a run's future: they may change when it resumes.
    ValueError if the directory cannot be written, or holds a run of another config, or of none that is written down, and
    `force` is False. Each change that was let through is kept in "changes" as {key: [before, after]}, oldest first."""
    path = os.path.join(_writable(workdir), "config.json")
    record = {
        "config": schema.to_json(resolved),
        "diff": schema.to_json(defaults_diff),
        "facts": schema.to_json(facts or {}),
        "changes": [],
    }
    if not begun(workdir):
        return record
    if not os.path.exists(path):
        refuse_unknown(workdir, force)
        record["changes"] = [
            {"config.json": ["missing", f"forced behind step {last_step(workdir)}"]}
        ]
    else:
        before = _read_config(path)
        before["config"] = renamed.translated(before["config"])
        whole = lambda record: record["config"] | {"facts": record.get("facts", {})}
        changes = schema.diff(whole(before), whole(record))
        usual = schema.flatten(schema.to_json(defaults or {}))
        newer = [
            key
            for key, (old, new) in changes.items()
            if old == schema.NOT_SET and key in usual and usual[key] == new
        ]
        changes = {key: pair for key, pair in changes.items() if key not in newer}
        decisive = {key: pair for key, pair in changes.items() if not _ignored(key, tuple(ignore))}
        if decisive and not force:
            table = schema.format_diff(decisive, "in the run", "given")
            raise ValueError(
                f"{workdir} holds a run with another config:\n{table}\nTake another --workdir, or "
                "--force_config to go on with this run under the config that is given."
            )
        if decisive:
            logger.warning(
                "the run in %s goes on with another config:\n%s",
                workdir,
                schema.format_diff(decisive, "in the run", "given"),
            )
        kept = before.get("changes", [])
        record["changes"] = (
            kept + [{key: list(pair) for key, pair in changes.items()}] if changes else kept
        )
    return record


def refuse_unknown(workdir: str, force: bool) -> None:
    """ValueError for a run whose config.json is gone, so that nobody knows how it was made; a warning with `force`."""
    if not force:
        raise ValueError(
            f"{workdir} holds files of a run, but no config.json: nobody knows how they were made. Bring it back, take "
            "another --workdir, or --force_config to go on with this run under the config that is given."
        )
    logger.warning(
        "the run in %s, whose config.json is missing, goes on under the config that is given",
        workdir,
    )


@contextlib.contextmanager
def claimed(workdir: str) -> Iterator[None]:
    """The directory is this run's until the end of the process, however it ends; ValueError while another run has it.

    Of a run of several processes the first one calls it; the others, once it has, `attended`."""
    lock, attendance = _locks(_writable(workdir))
    way = "wait for it or stop it, or take another --workdir."
    with files.file_lock(lock, f"another process trains in {workdir!r}; {way}"):
        with files.file_lock(
            attendance, f"a process of an earlier run is still in {workdir!r}; {way}"
        ):
            pass
        yield


@contextlib.contextmanager
def attended(workdir: str) -> Iterator[None]:
    """This process is one of the others of the run that has claimed the directory: no later run begins beside it."""
    with files.file_lock(
        _locks(workdir)[1],
        f"another run begins in {workdir!r}: take another --workdir.",
        shared=True,
    ):
        yield


def _locks(workdir: str) -> tuple[str, str]:
    return os.path.join(workdir, ".lock"), os.path.join(workdir, ".lock_of_others")


def begun(workdir: str) -> bool:
    """Whether the directory holds something of a run that a change of config could spoil: a line or a checkpoint.

    A save that a kill has cut off is neither.
    """
    metrics, saved = os.path.join(workdir, "metrics.jsonl"), os.path.join(workdir, "checkpoints")
    return (os.path.exists(metrics) and os.path.getsize(metrics) > 0) or any(
        not name.startswith(".") and UNFINISHED not in name for name in _names(saved)
    )


def recorded(workdir: str) -> bool:
    """Whether there is a line, or a file of a step, be it of an evaluation that was cut off."""
    grown = (os.path.join(workdir, name) for name in GROWS)
    kept = (name for folder in FOLDERS for name in _names(os.path.join(workdir, folder)))
    return any(os.path.exists(path) and os.path.getsize(path) for path in grown) or any(
        map(OF_STEP.fullmatch, kept)
    )


def last_step(workdir: str) -> int:
    """The last step of metrics.jsonl; -1 where there is none."""
    path = os.path.join(workdir, "metrics.jsonl")
    found = [line["step"] for line, _ in _lines(path) if line] if os.path.exists(path) else []
    return max(found, default=-1)


def save_interval(workdir: str) -> int:
    """checkpoint.every of the run that was in the directory until now; 0 if it is not known, or none was due."""
    path = os.path.join(workdir, "config.json")
    config = _read_config(path)["config"] if os.path.exists(path) else {}
    return config.get("checkpoint", {}).get("every", 0)


def changed(workdir: str, record: dict, ignore: Iterable[str]) -> bool:
    """Whether the run in the directory goes on with another config (`record`, of check_run), or nobody knows.

    Another in a key that decides its numbers (not of `ignore`): what it takes again then comes out otherwise."""
    path = os.path.join(workdir, "config.json")
    if not os.path.exists(path):
        return True
    known = len(_read_config(path).get("changes", []))
    new = (key for change in record["changes"][known:] for key in change)
    return not all(_ignored(key, tuple(ignore)) for key in new)


def set_aside(workdir: str, after: int) -> str | None:
    """Renames the record of the steps later than `after`, so that they can be taken again; its new place, None if there is none.

    after=-1: the whole record. Nothing is deleted: lines stay in the new place as well, beside a copy of config.json."""
    later = [
        os.path.join(folder, name)
        for folder in FOLDERS
        for name in _names(os.path.join(workdir, folder))
        if (match := OF_STEP.fullmatch(name)) and int(match[1]) > after
    ]
    if not (recorded(workdir) if after < 0 else later or last_step(workdir) > after):
        return None
    place = files.free_name(workdir, "set_aside")
    os.makedirs(place)
    config = os.path.join(workdir, "config.json")
    if os.path.exists(config):
        shutil.copy2(config, place)
    # what it says of the checkpoints is not true any more
    if os.path.exists(os.path.join(workdir, FINISHED)):
        later.append(FINISHED)
    for name in later:
        os.makedirs(os.path.join(place, os.path.dirname(name)), exist_ok=True)
        os.rename(os.path.join(workdir, name), os.path.join(place, name))
    # last, because a record without them is still known for one
    for name in filter(lambda name: os.path.exists(os.path.join(workdir, name)), reversed(GROWS)):
        if after < 0:
            os.rename(os.path.join(workdir, name), os.path.join(place, name))
        else:
            shutil.copy2(os.path.join(workdir, name), place)
    return place


def _names(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _ignored(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(
        key.startswith(prefix) if prefix.endswith(".") else key == prefix for prefix in prefixes
    )


def _read_config(path: str) -> dict:
    try:
        record = json.loads(textfile.read(path))
        assert isinstance(record["config"], dict)
        return record
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{path} is no config of a run ({error!r}): mend it, or take another --workdir."
        ) from None


def _writable(workdir: str) -> str:
    """The directory, created if need be; ValueError with the system's reason where no file can be made in it."""
    try:
        os.makedirs(workdir, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        if files.is_full(error):
            raise files.write_error(workdir, error) from error
        raise ValueError(
            f"cannot write to workdir {workdir!r}: {error.strerror}; take another --workdir."
        ) from None
    return workdir


class Logbook:
    """The files of one run as it goes on. `mirrors`: names out of MIRRORS; `start_step`: steps that the restored state has taken and logged.

    taken: steps that it has taken, where the last of them is not logged yet; its rollouts stay."""

    def __init__(
        self,
        workdir: str,
        start_step: int,
        mirrors: Iterable[str] = (),
        writes: bool = True,
        taken: int | None = None,
    ):
        self.workdir, self.step, self.writes, self._mirrors = workdir, start_step, writes, {}
        if not writes:
            return
        self._metrics = os.path.join(_writable(workdir), "metrics.jsonl")
        for folder in ("", *FOLDERS):
            files.remove_unfinished(os.path.join(workdir, folder))
        for name in GROWS:
            _cut_back(os.path.join(workdir, name), start_step)
        warn_of_flaws(workdir, start_step)
        _drop_later(os.path.join(workdir, "rollouts"), start_step if taken is None else taken)
        for name in mirrors:
            if name not in MIRRORS:
                raise ValueError(
                    f"unknown mirror log.mirrors={name!r}: {schema.did_you_mean(name, MIRRORS)}"
                )
            self._mirrors[name] = MIRRORS[name](workdir, start_step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line. Values: scalars (fetch device arrays first: each would wait), str, bool, None.

        ValueError on a key that is not group/name and on a value that is not a scalar."""
        assert step > self.step, f"metrics of step {step} after those of step {self.step}"
        values = {key: _scalar(key, value) for key, value in metrics.items()}
        self.step = step
        if not self.writes:
            return
        nonfinite = [
            key
            for key, value in values.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        line = {"step": step} | values | dict.fromkeys(nonfinite)
        if nonfinite:
            line["nonfinite"] = nonfinite
        # in the system's hands, so that a killed process loses nothing; a lost machine: see `sync`
        files.append(self._metrics, json.dumps(line, allow_nan=False) + "\n", sync=False)
        numbers = {
            key: value
            for key, value in line.items()
            if key != "step" and isinstance(value, (int, float))
        }
        for name, mirror in list(self._mirrors.items()):
            try:
                mirror.write(step, numbers)
            except Exception as error:  # whatever a service raises, the run goes on
                logger.warning(
                    "mirror %r failed at step %d and is left out from here on: %r",
                    name,
                    step,
                    error,
                )
                del self._mirrors[name]

    def write_rollouts(
        self, step: int, rows: Iterable[Mapping[str, Any]], kind: str = "step"
    ) -> str | None:
        """rollouts/step_000012.jsonl, one object a row (arrays as lists, nan and inf as null); its path. kind: or "eval"."""
        if not self.writes:
            return None
        path = os.path.join(self.workdir, "rollouts", f"{kind}_{step:06d}.jsonl")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        files.replace(
            path,
            "".join(
                json.dumps(_plain(row), allow_nan=False, ensure_ascii=False) + "\n" for row in rows
            ),
        )
        return path

    def write_solved(self, step: int, solved: Mapping[str, str]) -> None:
        """A line of solved.jsonl: for each split a 1 or 0 a problem, in its order; the last line of a step counts."""
        if self.writes:
            path = os.path.join(self.workdir, "solved.jsonl")
            files.append(path, json.dumps({"step": step, **solved}) + "\n")

    def sync(self) -> None:
        """Returns once all that was written is on disk: before a checkpoint may say that these steps are done."""
        if self.writes:
            files.sync_file(self._metrics)
            for folder in ("", *FOLDERS):
                files.sync_folder(os.path.join(self.workdir, folder))

    def write_batch(self, step: int, arrays: Any) -> str | None:
        """batches/step_000012.npz, arrays of a pytree by path ("rollouts/theta/logp_BT"); returns its path."""
        if not self.writes:
            return None
        path = os.path.join(self.workdir, "batches", f"step_{step:06d}.npz")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        leaves = jax.tree_util.tree_flatten_with_path(arrays)[0]
        named = {
            jax.tree_util.keystr(key, simple=True, separator="/"): _numpy(leaf)
            for key, leaf in leaves
        }
        buffer = io.BytesIO()
        np.savez(buffer, **named)
        files.replace(path, buffer.getvalue())
        return path

    def close(self) -> None:
        """Closes the mirrors; may be called twice."""
        for name, mirror in self._mirrors.items():
            try:
                mirror.close()
            except Exception as error:
                logger.warning("mirror %r failed to close: %r", name, error)
        self._mirrors = {}

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *error) -> None:
        self.close()


def read(workdir: str) -> list[dict]:
    """The lines of metrics.jsonl; a last line that a kill tore is left out. ValueError where there is no such file."""
    path = os.path.join(workdir, "metrics.jsonl")
    if not os.path.exists(path):
        raise ValueError(
            f"no metrics.jsonl in {workdir!r}: give the --workdir of a run that was started."
        )
    return [line for line, _ in _lines(path) if line is not None]


def read_solved(workdir: str) -> dict[str, str]:
    """The last line of solved.jsonl without its step, {} where there is none; a line that a kill tore is left out."""
    path = os.path.join(workdir, "solved.jsonl")
    lines = [line for line, _ in _lines(path) if line is not None] if os.path.exists(path) else [{}]
    return {key: value for key, value in (lines or [{}])[-1].items() if key != "step"}


def _lines(path: str) -> Iterator[tuple[dict | None, str]]:
    """Each line as (object, or None if it is no object with a step; text). A torn last one is left out."""
    for text in files.lines(path):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        known = isinstance(line, dict) and isinstance(line.get("step"), int)
        yield line if known else None, text


def _cut_back(path: str, start_step: int) -> None:
    """Keeps the steps <= start_step. The file is left untouched where that is all of it."""
    if not os.path.exists(path):
        return
    files.mend(path)
    found = list(_lines(path))
    keeps = [line is not None and line["step"] <= start_step for line, _ in found]
    if all(keeps):
        return
    end = max((n for n, keep in enumerate(keeps, 1) if keep), default=0)
    broken = [(n, text) for n, (line, text) in enumerate(found[:end], 1) if line is None]
    if broken:
        copy = files.free_name(os.path.dirname(path), f"damaged_{os.path.basename(path)}")
        shutil.copy2(path, copy)
        told = "; ".join(f"line {n} is none of a step: {files.shorten(text)}" for n, text in broken)
        logger.warning("%s: %s. Left out; the file as it was is %s", path, told, copy)
    logger.info("%s: cut back to step %d, %d line(s) dropped", path, start_step, keeps.count(False))
    kept = (text + b"\n" for (_, text), keep in zip(found, keeps) if keep)
    files.replace(path, b"".join(kept))


def warn_of_flaws(workdir: str, start_step: int) -> None:
    """A warning for each flaw of metrics.jsonl."""
    path = os.path.join(workdir, "metrics.jsonl")
    for flaw in flaws(path, start_step):
        logger.warning("%s: %s", path, flaw)


def flaws(path: str, start_step: int) -> list[str]:
    """What keeps metrics.jsonl from being one line for each of the steps 1 to start_step, in words; [] if nothing does."""
    found = [line["step"] for line, _ in _lines(path) if line] if os.path.exists(path) else []
    counts = collections.Counter(found)
    missing = [step for step in range(1, start_step + 1) if not counts[step]]
    repeated = [step for step in sorted(counts) if counts[step] > 1]
    told = []
    if missing:
        told.append(f"the line of {_steps(missing)} is missing; the checkpoint has taken them")
    if repeated:
        told.append(f"{_steps(repeated)}: more than one line of each")
    if not repeated and found != sorted(found):
        told.append("the steps are not in their order")
    return told


def _steps(steps: list[int]) -> str:
    """[1, 2, 3, 7] as "steps 1 to 3, 7"."""
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and step == ranges[-1][-1] + 1:
            ranges[-1][1:] = [step]
        else:
            ranges.append([step])
    told = ", ".join(" to ".join(map(str, one)) for one in ranges)
    return f"step{'s' * (len(steps) > 1)} {told}"


def _drop_later(folder: str, start_step: int) -> None:
    """Removes the rollout files of steps that are about to be taken again."""
    for name in _names(folder):
        match = OF_STEP.fullmatch(name)
        if match and int(match[1]) > start_step:
            os.unlink(os.path.join(folder, name))


def _scalar(key: str, value: Any) -> Any:
    if not KEY.fullmatch(key):
        raise ValueError(
            f"metric {key!r}: wanted group/name, of letters, digits and _ . - (such as reward/mean)."
        )
    if value is None or isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "biufV":  # V: bfloat16 and its like
        raise ValueError(
            f"metric {key!r} must be a scalar, got shape {array.shape} of {array.dtype}: reduce it first."
        )
    return array.item() if array.dtype.kind in "biu" else float(array)


def _numpy(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    return array.astype(np.float32) if array.dtype.kind == "V" else array  # .npz has no bfloat16


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _plain(_numpy(value).tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Mirror(NamedTuple):
    """A second home of the metrics."""

    write: Callable  # (step, {key: number}) -> None
    close: Callable  # () -> None


def tensorboard(workdir: str, start_step: int) -> Mirror:
    """Event files under tensorboard/; points of steps that are taken again are purged."""
    try:
        import tensorboardX
    except ImportError as error:
        raise ValueError(
            f"log.mirrors has 'tensorboard': pip install tensorboardX ({error})"
        ) from None
    writer = tensorboardX.SummaryWriter(
        os.path.join(workdir, "tensorboard"), purge_step=start_step + 1
    )

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)

    return Mirror(write, writer.close)


def wandb(workdir: str, start_step: int) -> Mirror:
    """One W&B run per directory, resumed by the id in its file wandb_id; project and mode come from WANDB_* variables.

    The step is a metric of its own: W&B's own counter refuses steps it has seen, and a resumed run takes some again."""
    try:
        import wandb as client
    except ImportError as error:
        raise ValueError(f"log.mirrors has 'wandb': pip install wandb ({error})") from None
    path, name = os.path.join(workdir, "wandb_id"), os.path.basename(os.path.abspath(workdir))
    if not os.path.exists(path):
        files.replace(path, uuid.uuid4().hex)
    with open(path) as file:
        run_id = file.read().strip()
    config_path = os.path.join(workdir, "config.json")
    config = _read_config(config_path)["config"] if os.path.exists(config_path) else {}
    run = client.init(id=run_id, name=name, dir=workdir, config=config, resume="allow")
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return Mirror(lambda step, metrics: run.log({"step": step, **metrics}), run.finish)


MIRRORS = {"tensorboard": tensorboard, "wandb": wandb}


@contextlib.contextmanager
def progress(total: int, initial: int, desc: str, quiet: bool = False) -> Iterator[Callable]:
    """`with progress(...) as show: show(step, text)`: a bar on a terminal, else a line on stderr every few seconds."""
    if quiet:
        yield lambda step, text="": None
        return
    start, shown = time.monotonic(), -math.inf

    def line(step: int, text: str = "") -> None:
        nonlocal shown
        now = time.monotonic()
        if step < total and now - shown < PROGRESS_SECONDS:
            return
        shown, pace = now, (now - start) / max(1, step - initial)
        left = f"{pace:.3g} s/step, {pace * (total - step):.0f} s left"
        streams.write_line(f"{desc} {step}/{total}  {left}  {text}".rstrip(), descriptor=2)

    if not streams.has_terminal(2):
        yield line
        return
    from tqdm import tqdm  # only a terminal needs it

    bar = tqdm(total=total, initial=initial, desc=desc)

    def advance(step: int, text: str = "") -> None:
        # the terminal may be gone by now
        with contextlib.suppress(OSError, ValueError):
            bar.set_postfix_str(text, refresh=False)
            bar.update(step - bar.n)

    try:
        yield advance
    finally:
        with contextlib.suppress(OSError, ValueError):
            bar.close()
