"""A checkpoint's round trip: a slow disk is a note, a full one and wrong numbers FAIL."""

from __future__ import annotations

import pytest

from bridge_jax.preflight import storage
from bridge_jax.preflight.record import FAIL, NOTE, OK
from tests.preflight import subjects

GB = 10**9


@pytest.mark.parametrize(
    "given, grade",
    [
        (dict(), OK),
        # 50 GB at 10 MB/s: 83 minutes
        (dict(rate=1e7), NOTE),
        (dict(free=100 * GB), NOTE),
        (dict(free=40 * GB), FAIL),
        (dict(same=False), FAIL),
    ],
)
def test_grades(given, grade):
    """By time, room and numbers; the line says how long a save takes."""
    usual = dict(same=True, rate=1e9, size=50 * GB, free=500 * GB, keep=2)
    record = storage.judge(**usual | given)
    assert record.grade == grade
    if given == dict(rate=1e7):
        assert "10 MB/s" in record.text and "1 h 23 min" in record.text


def test_a_round_trip(tmp_path):
    """On two devices; the state's size is that of the run's checkpoint."""
    subject = subjects.make(tmp_path, devices=2, batch__prompts_per_step=4)
    record = storage.check(subject)
    assert record.grade == OK and "MB/s" in record.text
    assert storage.saved_bytes(subject) == pytest.approx(3 * 4 * 19e3, rel=0.2)


def test_nothing_is_left_in_the_run_directory(tmp_path):
    """A new run directory is removed again; one with files keeps them."""
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text("{}")
    for workdir in map(str, (new, old)):
        storage.remove(storage.folder_in(workdir), workdir)
    assert not new.exists() and [path.name for path in old.iterdir()] == ["config.json"]
