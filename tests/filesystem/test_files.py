"""Files are replaced whole and grow by whole lines, whatever kills or fills what; errors name file,
reason and way out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from bridge_jax.filesystem import files
from tests import errors
from tests.filesystem import full_disk
from tests.filesystem.full_disk import disk_for

ROOT = pathlib.Path(__file__).resolve().parents[2]


def in_another_process(code: str, *args) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "torn, kept",
    [
        (b"", []),
        (b'{"a": 3', []),
        (b'{"a": 3}', [3]),  # it lacks its newline alone
        (b"12", []),  # of 123, perhaps
        (b"\0\0\0\0", []),  # what some file systems leave after a power cut
        ('{"a": "é'.encode()[:-1], []),  # in the middle of a character
        (b"x" * 200_000, []),
    ],
)
def test_a_torn_last_line_never_swallows_the_next(tmp_path, torn, kept):
    """A torn last line is dropped or completed, and the next append is a line of its own."""
    path = tmp_path / "a.jsonl"
    files.append(path, '{"a": 1}\n{"a": 2}\n')
    with path.open("ab") as file:
        file.write(torn)
    assert [row["a"] for _, row in files.rows(path)] == [1, 2, *kept]
    files.append(path, '{"a": 4}\n')
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 2, *kept, 4]


def test_mending_a_file_that_is_no_json_keeps_what_is_there(tmp_path):
    """Without cutting, mend adds the missing newline and keeps the text."""
    path = tmp_path / "a.log"
    path.write_text("one\ntw")
    assert files.mend(path, cut=False) and not files.mend(path, cut=False)
    assert path.read_text() == "one\ntw\n"
    assert not files.mend(tmp_path / "none") and not (tmp_path / "none").exists()


def test_a_broken_line_inside_is_named(tmp_path):
    """A broken line before the last is an error that names its number."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a"{"a": 2}\n')
    with errors.raises(ValueError, "a.jsonl", "line 2", "JSON"):
        list(files.rows(path))


def test_what_cannot_be_appended_leaves_the_file_as_it_was(tmp_path):
    """An append that fails for lack of room leaves the file unchanged."""
    path = tmp_path / "a.jsonl"
    files.append(path, '{"a": 1}\n')
    with disk_for(20), errors.raises(OSError, "a.jsonl", "unchanged"):
        files.append(path, json.dumps({"a": "2" * 50}) + "\n", assurance="unchanged")
    assert path.read_text() == '{"a": 1}\n'


def test_an_append_that_is_interrupted_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    """An append that is interrupted leaves the file unchanged."""
    path = tmp_path / "a.jsonl"
    files.append(path, '{"a": 1}\n')

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        files.append(path, '{"a": 2}\n')
    assert path.read_text() == '{"a": 1}\n'


def test_processes_that_append_at_once_never_mix_their_lines(tmp_path):
    """Lines that several processes append at once are all there and whole."""
    path = tmp_path / "a.jsonl"
    code = """
        import sys
        from bridge_jax.filesystem import files
        for n in range(50):
            files.append(sys.argv[1], '{"who": %s, "n": %d, "text": "%s"}\\n' % (sys.argv[2], n, "x" * 5000), sync=False)
    """
    writers = [in_another_process(code, path, who) for who in range(3)]
    assert [writer.wait(240) for writer in writers] == [0, 0, 0]
    found = [(row["who"], row["n"]) for _, row in files.rows(path)]
    assert sorted(found) == [(who, n) for who in range(3) for n in range(50)]


@pytest.mark.parametrize("grow", [lambda path: files.append(path, '{"a": 3}\n'), files.mend])
def test_what_another_is_writing_is_not_taken_for_torn(tmp_path, grow):
    """Its line is half there while it holds the lock: it is waited for."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n')
    with path.open("ab", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b'{"a"')
        thread = threading.Thread(target=grow, args=(path,), daemon=True)
        thread.start()
        thread.join(0.5)
        other.write(b": 2}\n")
    thread.join(60)
    assert path.read_text().startswith('{"a": 1}\n{"a": 2}\n')


def test_a_kill_between_the_bytes_of_a_line_costs_that_line_alone(tmp_path):
    """The writer is killed after half of it; the next writer's line stands alone."""
    path = tmp_path / "a.jsonl"
    files.append(path, '{"a": 1}\n')
    code = """
        import os, signal, sys
        from bridge_jax.filesystem import files
        with open(sys.argv[1], "ab", buffering=0) as file:
            file.write(b'{"a": ')
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert in_another_process(code, path).wait(240) == -signal.SIGKILL
    files.append(path, '{"a": 3}\n')
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_appended_lines_are_on_disk_when_it_returns(tmp_path, monkeypatch):
    """An append syncs the line and a new file's folder, unless told not to."""
    path, synced = tmp_path / "a.jsonl", []
    real = os.fsync

    def note(handle):
        synced.append((os.fstat(handle).st_ino, os.fstat(handle).st_size))
        real(handle)

    monkeypatch.setattr(os, "fsync", note)
    files.append(path, '{"a": 1}\n')
    # the line, and the name of a file that is new
    assert (path.stat().st_ino, 9) in synced and tmp_path.stat().st_ino in dict(synced)
    synced.clear()
    files.append(path, '{"a": 2}\n', sync=False)
    assert synced == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    """A failed replacement leaves the old content and no other file."""
    path = tmp_path / "table.md"
    files.replace(path, "old")
    with disk_for(100), errors.raises(OSError, "table.md", "unchanged"):
        files.replace(path, "new" * 100)
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["table.md"]
    files.replace(path, b"\x00new")
    assert path.read_bytes() == b"\x00new" and path.stat().st_mode & 0o777 == 0o644


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path):
    """A model's text may hold one; the line reads back as the same text."""
    row = {"text": "é\ud800"}
    files.replace(tmp_path / "a", json.dumps(row, ensure_ascii=False) + "\n")
    files.append(tmp_path / "b", json.dumps(row, ensure_ascii=False) + "\n")
    for name in "ab":
        assert [found for _, found in files.rows(tmp_path / name)] == [row]


def test_what_kills_left_of_replaced_files_is_removed_and_nothing_else(tmp_path):
    """remove_unfinished deletes leftover temporary files alone."""
    stay = [
        "config.json",
        ".lock",
        ".lock_of_others",
        ".nfs0000000001",
        ".gitignore",
        "a.b.12345678",
    ]
    for name in [*stay, ".config.json.ab12_cd3", ".step_000002.npz.6i9d_hzl"]:
        (tmp_path / name).touch()
    files.remove_unfinished(tmp_path)
    files.remove_unfinished(tmp_path / "none")
    assert sorted(os.listdir(tmp_path)) == sorted(stay)


def test_a_full_disk_is_a_NoSpace_with_its_path(tmp_path):
    """A full disk raises NoSpace with the file's name, and loses nothing."""
    with full_disk.small(tmp_path / "disk", 64) as disk:
        files.append(disk / "a.jsonl", '{"a": 1}\n')
        files.replace(disk / "b.json", "{}")
        filler = full_disk.fill(disk)
        for name, write in (("a.jsonl", files.append), ("b.json", files.replace)):
            text = json.dumps({"a": "x" * 9000}) + "\n"
            with pytest.raises(files.NoSpace) as error:
                write(disk / name, text)
            names = str(disk / name), "No space left on device", "room"
            errors.assert_names(str(error.value), names)
        assert (disk / "a.jsonl").read_text() == '{"a": 1}\n'
        assert (disk / "b.json").read_text() == "{}"
        assert sorted(os.listdir(disk)) == ["a.jsonl", "b.json", "filler"]
        filler.unlink()
        files.append(disk / "a.jsonl", '{"a": 2}\n')
        assert len(files.lines(disk / "a.jsonl")) == 2


def test_a_full_device_without_root():
    """/dev/full counts as a full disk."""
    with errors.raises(files.NoSpace, "/dev/full"):
        files.append("/dev/full", "{}\n")


@pytest.mark.parametrize(
    "error, full",
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        # by its number, whatever the system's language
        (OSError(errno.ENOSPC, "Kein Platz"), True),
        (OSError(errno.EDQUOT, "Kontingent ausgeschöpft"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        # as tensorstore and safetensors say it; the first words are those of a full memory, too
        (ValueError('RESOURCE_EXHAUSTED: Error writing "x": No space left on device'), True),
        (Exception("I/O error: No space left on device (os error 28)"), True),
        (ValueError("RESOURCE_EXHAUSTED: out of memory"), False),
    ],
)
def test_is_full(error, full):
    """A full disk is recognised by number or text, and through a raised cause."""
    assert files.is_full(error) == full
    try:
        raise RuntimeError("the save failed") from error
    except RuntimeError as outer:
        assert files.is_full(outer) == full
    try:
        try:
            raise error
        except Exception:
            raise RuntimeError("of its own") from None
    except RuntimeError as outer:
        assert not files.is_full(outer)


@pytest.mark.parametrize(
    "raise_it, named",
    [
        (lambda folder: open(folder / "none"), "none: No such file or directory; check the path"),
        (lambda folder: open(folder), "Is a directory; it is a folder"),
        (lambda folder: os.rename(folder / "none", folder / "other"), "other: No such file"),
        (lambda folder: os.rename(os.fsencode(folder / "none"), b"other"), "other: No such file"),
        (lambda folder: os.write(os.open("/dev/full", os.O_WRONLY), b"x"), "make room and run"),
    ],
)
def test_the_systems_errors_are_explained(tmp_path, raise_it, named):
    """A system error is explained with file, reason and remedy, without its number."""
    with pytest.raises(OSError) as error:
        raise_it(tmp_path)
    assert named in files.explain(error.value) and "Errno" not in files.explain(error.value)


def test_other_errors_explain_themselves():
    """Other errors are shown by their own message."""
    assert files.explain(ValueError("steps=-1")) == "steps=-1"
    assert files.explain(files.write_error("a", OSError(errno.EIO, "I/O error"))).startswith(
        "a could not"
    )


HOLDS = """
    import sys, time
    from bridge_jax.filesystem import files
    with files.file_lock(sys.argv[1], "held", shared=sys.argv[2] == "shared"):
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("shared", [False, True])
def test_a_lock_is_held_until_its_process_ends(tmp_path, shared):
    """A lock excludes others until its process ends; shared holders admit each other."""
    lock = tmp_path / ".lock"
    holder = in_another_process(HOLDS, lock, "shared" if shared else "")
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match="held by another"),
            files.file_lock(lock, "held by another"),
        ):
            pytest.fail("both hold it")
        refused = contextlib.nullcontext() if shared else pytest.raises(ValueError)
        with refused, files.file_lock(lock, "held by another", shared=True):
            assert shared
    finally:
        holder.kill()
        holder.wait()
    with files.file_lock(lock, "held by another"):
        pass


def test_a_lock_that_is_removed_is_not_held_by_two(tmp_path, monkeypatch):
    """Who opened the file before it was removed gets a lock of nothing: refused, for another may
    hold the new one.
    """
    lock = tmp_path / ".lock"
    real = files._lock

    def late(file, how, wait=True):
        lock.unlink()
        return real(file, how, wait)

    monkeypatch.setattr(files, "_lock", late)
    with pytest.raises(ValueError, match="refused"), files.file_lock(lock, "refused", remove=True):
        pytest.fail("it holds nothing")
    monkeypatch.undo()
    with files.file_lock(lock, "refused", remove=True):
        assert lock.exists()
    assert not lock.exists()


def test_scratch_beside_a_folder_is_one_processs_and_is_gone_at_the_end(tmp_path):
    """A scratch folder is emptied of leftovers, is locked, and is gone at the end."""
    target = tmp_path / "model"
    code = """
        import os, signal, sys
        from bridge_jax.filesystem import files
        with files.scratch(sys.argv[1], "busy") as folder:
            open(os.path.join(folder, "weights"), "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert in_another_process(code, target).wait(240) == -signal.SIGKILL
    assert os.listdir(tmp_path / ".model.unfinished") == ["weights"]
    with files.scratch(target, "busy") as folder:
        assert os.listdir(folder) == []
        with pytest.raises(ValueError, match="busy"), files.scratch(target, "busy"):
            pytest.fail("both write it")
        os.rename(folder, target)
    assert os.listdir(tmp_path) == ["model"]
