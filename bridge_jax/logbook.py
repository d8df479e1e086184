"""The files of a run directory: config.json, metrics.jsonl, rollouts/, batches/, and mirrors of the metrics elsewhere.

metrics.jsonl is the truth: append-only, one JSON object a line, one line a step, {"step": 12, "reward/mean": 0.25}.
A run that resumes at step k first cuts the file back to steps <= k, so that file and training state tell the same story
whatever killed the run. Numbers that JSON does not have (nan, inf) are written as null and named under "nonfinite".
TensorBoard and W&B are mirrors: they may fail, lag or be absent without touching the run.
In a run of several processes, `writes=False` makes a Logbook that accepts everything and touches nothing.
Left out: plots and tables (experiments/report.py), checkpoints (checkpoint.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bridge_jax import settings, textfile

logger = logging.getLogger(__name__)
KEY = re.compile(r"[\w.-]+(/[\w.-]+)+")  # group/name
PROGRESS_SECONDS = 10.0  # between two lines of progress where there is no terminal


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
    _replace(
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
    ValueError if the directory cannot be written, or holds a run of another config and `force` is False. Each change
    that was let through is kept in "changes" as {key: [before, after]}, oldest first."""
    path = os.path.join(_writable(workdir), "config.json")
    record = {
        "config": settings.to_json(resolved),
        "diff": settings.to_json(defaults_diff),
        "facts": settings.to_json(facts or {}),
        "changes": [],
    }
    if os.path.exists(path) and begun(workdir):
        before = _read_config(path)
        whole = lambda record: record["config"] | {"facts": record.get("facts", {})}
        changes = settings.diff(whole(before), whole(record))
        usual = settings.flatten(settings.to_json(defaults or {}))
        newer = [
            key
            for key, (old, new) in changes.items()
            if old == settings.NOT_SET and key in usual and usual[key] == new
        ]
        changes = {key: pair for key, pair in changes.items() if key not in newer}
        decisive = {key: pair for key, pair in changes.items() if not _ignored(key, tuple(ignore))}
        if decisive and not force:
            table = settings.format_diff(decisive, "in the run", "given")
            raise ValueError(
                f"{workdir} holds a run with another config:\n{table}\nTake another --workdir, or "
                "--force_config to go on with this run under the config that is given."
            )
        if decisive:
            logger.warning(
                "the run in %s goes on with another config:\n%s",
                workdir,
                settings.format_diff(decisive, "in the run", "given"),
            )
        kept = before.get("changes", [])
        record["changes"] = (
            kept + [{key: list(pair) for key, pair in changes.items()}] if changes else kept
        )
    return record


@contextlib.contextmanager
def claimed(workdir: str) -> Iterator[None]:
    """Holds WORKDIR/.lock, which the system lets go when the process ends, however it ends; ValueError if another holds it.

    A file system that has no locks is trusted."""
    with open(os.path.join(_writable(workdir), ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise ValueError(
                    f"another process trains in {workdir!r}; wait for it or stop it, or take another "
                    "--workdir."
                ) from None
        yield


def begun(workdir: str) -> bool:
    """Whether the directory holds something of a run that a change of config could spoil: a line or a checkpoint."""
    metrics, saved = os.path.join(workdir, "metrics.jsonl"), os.path.join(workdir, "checkpoints")
    return (os.path.exists(metrics) and os.path.getsize(metrics) > 0) or (
        os.path.isdir(saved) and bool(os.listdir(saved))
    )


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
        raise ValueError(
            f"cannot write to workdir {workdir!r}: {error.strerror}; take another --workdir."
        ) from None
    return workdir


def _replace(path: str, text: str) -> None:
    """Writes a file so that a kill at any moment leaves the old one or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(
        dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}."
    )
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class Logbook:
    """Open files of one run. `mirrors`: names out of MIRRORS; `start_step`: steps that the restored state has taken and logged.

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
        path = os.path.join(_writable(workdir), "metrics.jsonl")
        _cut_back(path, start_step)
        _drop_later(os.path.join(workdir, "rollouts"), start_step if taken is None else taken)
        for name in mirrors:
            if name not in MIRRORS:
                raise ValueError(
                    f"unknown mirror log.mirrors={name!r}: {settings.did_you_mean(name, MIRRORS)}"
                )
            self._mirrors[name] = MIRRORS[name](workdir, start_step)
        self._file = open(path, "a")

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
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()  # in the system's hands: a killed process loses nothing
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
        _replace(
            path,
            "".join(
                json.dumps(_plain(row), allow_nan=False, ensure_ascii=False) + "\n" for row in rows
            ),
        )
        return path

    def write_solved(self, step: int, solved: Mapping[str, str]) -> None:
        """A line of solved.jsonl: for each split a 1 or 0 a problem, in its order; the last line of a step counts."""
        if self.writes:
            with open(os.path.join(self.workdir, "solved.jsonl"), "a") as file:
                file.write(json.dumps({"step": step, **solved}) + "\n")

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
        with open(path, "wb") as file:
            np.savez(file, **named)
        return path

    def close(self) -> None:
        """Closes the files and the mirrors; may be called twice."""
        if self.writes:
            self._file.close()
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
    """Each line as (object, or None if it is no object with a step; text)."""
    with open(path, "rb") as file:
        # every line of it would read as torn, and be cut off
        textfile.refuse_mark(file.read(4), path)
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            yield (
                (line if isinstance(line, dict) and isinstance(line.get("step"), int) else None),
                text,
            )


def _cut_back(path: str, start_step: int) -> None:
    """Keeps the steps <= start_step. The file is left untouched where that is all of it."""
    if not os.path.exists(path):
        return
    lines = list(_lines(path))
    # a kill may have come between a line and its newline
    kept = [
        text.rstrip("\n") + "\n"
        for line, text in lines
        if line is not None and line["step"] <= start_step
    ]
    if kept != [text for _, text in lines]:
        logger.info(
            "%s: cut back to step %d, %d line(s) dropped", path, start_step, len(lines) - len(kept)
        )
        _replace(path, "".join(kept))


def _drop_later(folder: str, start_step: int) -> None:
    """Removes the rollout files of steps that are about to be taken again, and what a kill left of one that was being written."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        match = re.fullmatch(r"(?:step|eval)_(\d+)\.jsonl|\.(?:step|eval)_\d+\.jsonl\.\w+", name)
        if match and (match[1] is None or int(match[1]) > start_step):
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
        _replace(path, uuid.uuid4().hex)
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
        print(f"{desc} {step}/{total}  {left}  {text}".rstrip(), file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        yield line
        return
    from tqdm import tqdm  # only a terminal needs it

    with tqdm(total=total, initial=initial, desc=desc) as bar:

        def advance(step: int, text: str = "") -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(step - bar.n)

        yield advance
