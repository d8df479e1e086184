"""config.json: another config is refused, harmless changes are kept, a missing one is an error."""

from __future__ import annotations

import json
import logging
import os

import pytest

from bridge_jax.rundir import run_config
from tests import errors
from tests.rundir.run_records import CONFIG, IGNORE, make_record, open_run


def on_disk(workdir):
    with open(f"{workdir}/config.json") as file:
        return json.load(file)


def changed(**groups):
    return CONFIG | {
        key: CONFIG[key] | value if isinstance(value, dict) else value
        for key, value in groups.items()
    }


def begin(workdir) -> None:
    """A line of metrics: from here on the run's config may not change."""
    (workdir / "metrics.jsonl").write_text('{"step": 0}\n')


def test_open_run_takes_a_corrected_config_where_nothing_was_begun(tmp_path):
    """A run without any step takes another config without complaint."""
    open_run(tmp_path, CONFIG, {}, ignore=IGNORE)
    (tmp_path / "metrics.jsonl").touch()
    open_run(tmp_path, changed(optim={"lr": 0.2}), {}, ignore=IGNORE)
    assert on_disk(tmp_path)["config"]["optim"]["lr"] == 0.2


def test_open_run_writes_the_config_and_opens_the_same_run_again(tmp_path):
    """The same config opens the run again and leaves the file as it was."""
    workdir = tmp_path / "a" / "b"
    for _ in range(2):
        open_run(workdir, CONFIG, {"seed": (1, 0)}, ignore=IGNORE)
        want = {
            "config": json.loads(json.dumps(CONFIG)),
            "diff": {"seed": [1, 0]},
            "fingerprints": {},
            "changes": [],
        }
        assert on_disk(workdir) == want
    assert os.listdir(workdir) == ["config.json"]  # no temporary file is left


def test_open_run_refuses_another_config_and_shows_it(tmp_path):
    """Another config for a begun run is refused with old and new values."""
    open_run(tmp_path, CONFIG, {}, ignore=IGNORE)
    begin(tmp_path)
    with pytest.raises(ValueError) as error:
        open_run(tmp_path, changed(optim={"lr": 0.2}, steps=20), {}, ignore=IGNORE)
    text = str(error.value)
    assert ["optim.lr", "0.1", "0.2"] in [
        line.split() for line in text.splitlines()
    ] and "in the run" in text
    assert "steps" not in text and "--force_config" in text and "another --workdir" in text
    assert on_disk(tmp_path)["config"]["optim"]["lr"] == 0.1


def test_open_run_lets_harmless_keys_change_and_keeps_what_changed(tmp_path, caplog):
    """Ignored keys may change; every change is kept in config.json."""
    open_run(tmp_path, CONFIG, {}, ignore=IGNORE)
    begin(tmp_path)
    open_run(tmp_path, changed(steps=20, log={"every": 5, "new": True}), {}, ignore=IGNORE)
    assert on_disk(tmp_path)["config"]["steps"] == 20
    with caplog.at_level(logging.WARNING):
        open_run(
            tmp_path,
            changed(steps=20, log={"every": 5, "new": True}, seed=2),
            {},
            force=True,
            ignore=IGNORE,
        )
    assert "another config" in caplog.text and on_disk(tmp_path)["config"]["seed"] == 2
    assert on_disk(tmp_path)["changes"] == [
        {"steps": [10, 20], "log.every": [1, 5], "log.new": ["(not set)", True]},
        {"seed": [1, 2]},
    ]


def test_an_ignored_key_is_not_a_prefix_of_others(tmp_path):
    """An ignored key does not cover a longer key that starts with it."""
    open_run(tmp_path, {"steps": 1, "steps_between": 1}, {}, ignore=("steps",))
    begin(tmp_path)
    with pytest.raises(ValueError, match="steps_between"):
        open_run(tmp_path, {"steps": 1, "steps_between": 2}, {}, ignore=("steps",))


def test_open_run_says_why_it_cannot(tmp_path):
    """A workdir that is a file, and a broken config.json, are clear errors."""
    (tmp_path / "file").write_text("")
    with errors.raises(ValueError, "Not a directory", "--workdir"):
        open_run(tmp_path / "file" / "run", CONFIG, {})
    (tmp_path / "config.json").write_text('{"config": ')
    begin(tmp_path)
    with errors.raises(ValueError, str(tmp_path / "config.json")):
        open_run(tmp_path, CONFIG, {})


def test_a_kill_while_a_file_is_replaced_leaves_the_old_one(tmp_path, monkeypatch):
    """An interrupted replacement leaves the old config and no other file."""
    open_run(tmp_path, CONFIG, {})
    before = on_disk(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        os, "fsync", killed
    )  # the moment before the new file takes the old one's place
    with pytest.raises(KeyboardInterrupt):
        open_run(tmp_path, changed(seed=5), {}, force=True)
    assert on_disk(tmp_path) == before and os.listdir(tmp_path) == ["config.json"]


def test_a_key_that_came_later_is_no_difference(tmp_path):
    """A run without the key goes on while the key is at its default, and not when it is set."""
    open_run(tmp_path, CONFIG, {}, ignore=IGNORE)
    begin(tmp_path)
    newer, defaults = changed(fresh=0.0), {"fresh": 0.0}
    assert (
        run_config.check_run(tmp_path, newer, {}, ignore=IGNORE, defaults=defaults)["changes"] == []
    )
    with pytest.raises(ValueError, match="fresh"):
        run_config.check_run(tmp_path, changed(fresh=0.5), {}, ignore=IGNORE, defaults=defaults)
    with pytest.raises(ValueError, match="fresh"):
        run_config.check_run(tmp_path, newer, {}, ignore=IGNORE)


def test_a_run_without_its_config_is_refused(tmp_path, caplog):
    """Whether what it left is a line or a checkpoint; forced, it goes on and says so."""
    for left in ("metrics.jsonl", "checkpoints/step_000002/state"):
        workdir = tmp_path / left.partition("/")[0]
        (workdir / left).parent.mkdir(parents=True)
        (workdir / left).write_text('{"step": 1}\n')
        with errors.raises(ValueError, "config.json", "--force_config"):
            run_config.check_run(workdir, CONFIG, {})
        forced = run_config.check_run(workdir, CONFIG, {}, force=True)
        assert forced["config"]["seed"] == 1
        # and the record says that the config of the earlier steps is unknown
        (change,) = forced["changes"]
        assert (
            change["config.json"][0] == "missing"
            and "forced behind step" in change["config.json"][1]
        )
        assert "config.json is missing" in caplog.text
        caplog.clear()


def test_whether_the_steps_that_are_taken_again_come_out_the_same(tmp_path):
    """Not with another config, nor where the old config is unknown."""
    make_record(tmp_path, 3)
    given = dict(force=True, ignore=IGNORE)
    record = lambda **keys: run_config.check_run(tmp_path, changed(**keys), {}, **given)
    (ignored,) = IGNORE[:1]
    other = {
        name: run_config.changed(str(tmp_path), record(**keys), IGNORE)
        for name, keys in (("none", {}), ("ignored", {ignored: 99}), ("seed", {"seed": 9}))
    }
    assert other == {"none": False, "ignored": False, "seed": True}
    # a change of long ago is none of now
    run_config.write_config(tmp_path, record(seed=9))
    assert not run_config.changed(str(tmp_path), record(seed=9), IGNORE)
    (tmp_path / "config.json").unlink()
    assert run_config.changed(str(tmp_path), record(seed=9), IGNORE)
