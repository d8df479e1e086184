"""config.json of a run: {"config", "diff", "fingerprints", "changes"}; checked at every resume.

"diff" has the keys that are not at their default, "fingerprints" those of data and prompts,
"changes" what was changed when the run resumed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable

from bridge_jax.config import schema
from bridge_jax.filesystem import files
from bridge_jax.rundir import layout, logbook

logger = logging.getLogger(__name__)


def write_config(workdir: str, record: dict) -> None:
    """Write the result of check_run to config.json, once the run is certain to go on with it."""
    files.replace(
        os.path.join(workdir, "config.json"), json.dumps(record, indent=1, sort_keys=True) + "\n"
    )


def check_run(
    workdir: str,
    resolved: dict,
    defaults_diff: dict,
    force: bool = False,
    ignore: Iterable[str] = (),
    fingerprints: dict | None = None,
    defaults: dict | None = None,
) -> dict:
    """Make the directory, check that its run has this config; returns config.json's content.

    fingerprints: of data and prompts, which decide a run as its config does; compared like keys of
    the config. ignore: keys ("steps") and groups ("log.") that may change when a run resumes.
    defaults: a key at its default that the run's config does not have was added later, and is no
    difference.

    ValueError if the directory cannot be written, or holds a run with another config or without a
    config.json. `force` lets the run go on all the same. Changes that are let through are added to
    "changes" as {key: [before, after]}, the oldest first.
    """
    path = os.path.join(layout.make_writable(workdir), "config.json")
    record = {
        "config": schema.to_json(resolved),
        "diff": schema.to_json(defaults_diff),
        "fingerprints": schema.to_json(fingerprints or {}),
        "changes": [],
    }
    if not layout.begun(workdir):
        return record
    if not os.path.exists(path):
        _check_forced(workdir, force)
        step = logbook.last_step(workdir)
        record["changes"] = [{"config.json": ["missing", f"forced behind step {step}"]}]
        return record
    before = layout.read_config(workdir)
    changes = _changes(before, record, defaults or {})
    decisive = {key: pair for key, pair in changes.items() if not _ignored(key, tuple(ignore))}
    if decisive:
        _refuse_or_warn(workdir, decisive, force)
    kept = before.get("changes", [])
    new = [{key: list(pair) for key, pair in changes.items()}] if changes else []
    record["changes"] = kept + new
    return record


def _changes(before: dict, record: dict, defaults: dict) -> dict[str, tuple]:
    """key -> (before, now) of everything that differs, but for keys that were added since."""
    old = before["config"] | {"fingerprints": before["fingerprints"]}
    new = record["config"] | {"fingerprints": record["fingerprints"]}
    usual = schema.flatten(schema.to_json(defaults))
    return {
        key: (mine, given)
        for key, (mine, given) in schema.diff(old, new).items()
        if not (mine == schema.NOT_SET and key in usual and usual[key] == given)
    }


def _refuse_or_warn(workdir: str, decisive: dict[str, tuple], force: bool) -> None:
    """ValueError that shows the differences; a warning with `force`."""
    table = schema.format_diff(decisive, "in the run", "given")
    if not force:
        raise ValueError(
            f"{workdir} holds a run with another config:\n{table}\nTake another --workdir, or "
            "--force_config to go on with this run under the config that is given."
        )
    logger.warning("the run in %s goes on with another config:\n%s", workdir, table)


def _check_forced(workdir: str, force: bool) -> None:
    """ValueError for a run without config.json; a warning with `force`."""
    if not force:
        raise ValueError(
            f"{workdir} holds files of a run, but no config.json, so that it is unknown how they "
            "were made. Bring it back, take another --workdir, or --force_config to go on with "
            "this "
            "run under the config that is given."
        )
    logger.warning(
        "the run in %s, whose config.json is missing, goes on under the config that is given",
        workdir,
    )


def save_interval(workdir: str) -> int:
    """checkpoint.every of the directory's run so far; 0 if it is unknown, or if none was due."""
    known = os.path.exists(os.path.join(workdir, "config.json"))
    config = layout.read_config(workdir)["config"] if known else {}
    return config.get("checkpoint", {}).get("every", 0)


def changed(workdir: str, record: dict, ignore: Iterable[str]) -> bool:
    """Whether the run in the directory goes on with a config that gives other numbers.

    record: of check_run. ignore: keys that change no numbers. True where the old config is unknown.
    """
    if not os.path.exists(os.path.join(workdir, "config.json")):
        return True
    known = len(layout.read_config(workdir).get("changes", []))
    new = (key for change in record["changes"][known:] for key in change)
    return not all(_ignored(key, tuple(ignore)) for key in new)


def _ignored(key: str, prefixes: tuple[str, ...]) -> bool:
    """Whether the key is one of the keys, or in one of the groups, such as "log."."""
    return any(
        key.startswith(prefix) if prefix.endswith(".") else key == prefix for prefix in prefixes
    )
