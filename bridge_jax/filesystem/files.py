"""Atomic replacement of files, and appending of whole lines.

A kill, a full disk or a lost machine leaves either the old content or all of the new. Files that
are appended to hold JSON lines; `mend` repairs an incomplete last line before the next one is
written. Every error names the file, the reason and the remedy. A full disk raises NoSpace, which
has its own exit code. Left out: the content of the files (logbook.py, transcripts.py,
experiments/).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from bridge_jax.filesystem import textfile

logger = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT)
# libraries in C++ or Rust report the reason as text alone, without an errno
FULL_TEXT = re.compile(r"No space left on device|Disk quota exceeded|\bENOSPC\b|\bEDQUOT\b")
UNCHANGED = "its previous content is unchanged"
# temporary files of `replace`
TEMPORARY = re.compile(r"\.\w[\w.-]*\.(?:json|jsonl|npz|txt|md|csv|tex)\.[a-z0-9_]{8}")
# errno -> what the user can do
REMEDIES = dict.fromkeys(FULL, "make room and run the same command again") | {
    errno.EFBIG: "make room (ulimit -f limits the size of a file) and run the same command again",
    errno.EACCES: "check its permissions, or give another place",
    errno.EPERM: "check its permissions, or give another place",
    errno.EROFS: "its file system can only be read: give another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "it is a folder: check the path",
    errno.EIO: "check the disk, and run the same command again",
    errno.ESTALE: "check the mount, and run the same command again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class NoSpace(OSError):
    """The disk, or the quota on it, is full."""


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is the reason of an error, or of what caused it."""
    while error is not None:
        if isinstance(error, NoSpace) or getattr(error, "errno", None) in FULL:
            return True
        if FULL_TEXT.search(str(error)):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def explain(error: BaseException) -> str:
    """The text of an error; for errors of the operating system with file, reason and remedy."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    named = error.filename if error.filename2 is None else error.filename2
    if isinstance(named, bytes):
        named = os.fsdecode(named)
    way = REMEDIES.get(error.errno)
    return f"{named or 'a file'}: {error.strerror}" + (f"; {way}" if way else "")


def write_error(path: str | os.PathLike, error: OSError, assurance: str = UNCHANGED) -> OSError:
    """The error to raise for a file that could not be written.

    assurance: what the message says about the file's content.
    """
    kind = NoSpace if is_full(error) else OSError
    way = REMEDIES.get(error.errno, "solve that and run the same command again")
    return kind(
        f"{os.fspath(path)} could not be written ({error.strerror or error}): {assurance}; {way}"
    )


def replace(path: str | os.PathLike, content: str | bytes) -> None:
    """Replaces a file atomically; the new content is on disk when this returns."""
    path = os.fspath(path)
    folder, name = os.path.split(path)
    # half a surrogate pair is not valid UTF-8; its escape is, and means the same in JSON
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=folder or ".", prefix=f".{name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp creates files that only their owner can read
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
        sync_folder(folder or ".")
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Removes temporary files that killed processes left behind.

    To be called by the one process that writes to the folder.
    """
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if TEMPORARY.fullmatch(name):
            os.unlink(os.path.join(folder, name))


def append(
    path: str | os.PathLike, text: str, sync: bool = True, assurance: str = UNCHANGED
) -> None:
    """Appends whole lines to a file, which is created if need be, after mending its last line.

    sync: the lines are on disk when this returns. Where they cannot be written, the file keeps its
    previous content. Other processes may append at the same time.
    """
    left = memoryview(text.encode("utf-8", "backslashreplace"))
    try:
        new = not os.path.exists(path)
        # without a buffer, which would be written again when the file is closed
        with open(path, "a+b", buffering=0) as file:
            _lock(file, fcntl.LOCK_EX)
            _mend(file)
            before = os.fstat(file.fileno()).st_size
            try:
                while left:
                    left = left[file.write(left) :]
                if sync:
                    os.fsync(file.fileno())
            except BaseException:
                # if this fails too, the next call mends the line
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), before)
                raise
        if new and sync:
            sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        raise write_error(path, error, assurance) from error


def mend(path: str | os.PathLike, cut: bool = True) -> bool:
    """Repairs a last line without a newline, and returns whether there was one.

    A line that is no complete JSON object is removed, unless `cut` is False.
    """
    if not os.path.exists(path):
        return False
    try:
        with open(path, "a+b", buffering=0) as file:
            _lock(file, fcntl.LOCK_EX)
            return _mend(file, cut)
    except OSError as error:
        raise write_error(path, error) from error


def lines(path: str | os.PathLike) -> list[bytes]:
    """The lines of a file, without their newlines; an incomplete last line is left out."""
    with open(path, "rb") as file:
        content = file.read()
    # in another encoding every line would look incomplete
    textfile.check_byte_order_mark(content[:4], os.fspath(path))
    *found, last = content.split(b"\n")
    return [*found, last] if last and _is_json(last) else found


def rows(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """(number, value) of each line of JSON; an incomplete last line is left out.

    ValueError names a line that is not JSON.
    """
    for number, line in enumerate(lines(path), 1):
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{os.fspath(path)}: line {number} is no JSON ({error}): {shorten(line)}. Mend or "
                "remove the line"
            ) from None


def shorten(line: bytes) -> str:
    """The beginning of a line, for a message."""
    return repr(line[:80].decode(errors="replace"))


def sync_file(path: str | os.PathLike) -> None:
    """Flushes a file to disk; does nothing where it does not exist."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: str | os.PathLike) -> None:
    """Flushes a folder's list of files to disk."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str | os.PathLike, how: int) -> None:
    try:
        handle = os.open(path, how)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        # some network file systems cannot sync a folder, and need not
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise write_error(path, error, "what was written last may be lost") from error
    finally:
        os.close(handle)


@contextlib.contextmanager
def scratch(path: str | os.PathLike, refusal: str) -> Iterator[str]:
    """A temporary folder next to `path`, for files that are moved there once they are complete.

    It is removed at the end; one that a killed process left behind is removed by the next call.
    ValueError(refusal) while another process holds it; NoSpace for every error of a full disk.
    """
    parent, name = os.path.split(os.path.abspath(path))
    folder = os.path.join(parent, f".{name}.unfinished")
    with file_lock(folder + ".lock", refusal, remove=True):
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder)
        try:
            yield folder
        except Exception as error:
            if not is_full(error):
                raise
            reason = " ".join(str(error).split())
            raise NoSpace(
                f"{os.fspath(path)} could not be written ({reason}): nothing is left of it; "
                f"{REMEDIES[errno.ENOSPC]}"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def free_name(folder: str | os.PathLike, stem: str) -> str:
    """The first path of stem_1, stem_2, ... in the folder that does not exist."""
    number = 1
    while os.path.lexists(path := os.path.join(folder, f"{stem}_{number}")):
        number += 1
    return path


@contextlib.contextmanager
def file_lock(
    path: str | os.PathLike, refusal: str, shared: bool = False, remove: bool = False
) -> Iterator[None]:
    """Holds a lock on a file; the system releases it when the process ends, however it ends.

    ValueError(refusal) where another process holds it. shared: other shared locks are allowed.
    remove: the file is deleted with the lock, unless the process is killed. On a file system
    without locks the call succeeds.
    """
    try:
        file = open(path, "a")
    except OSError as error:
        raise write_error(path, error, "it is the lock of its folder") from error
    with file:
        held = _lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait=False)
        # The previous holder may have deleted the file after it was opened here: then the lock
        # protects nothing.
        if not held or not _is_there(file, path):
            raise ValueError(refusal)
        try:
            yield
        finally:
            if remove:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def _is_there(file, path: str | os.PathLike) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def _lock(file, how: int, wait: bool = True) -> bool:
    """Whether the lock is held, or the file system has no locks."""
    try:
        fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _mend(file, cut: bool = True) -> bool:
    """`mend` for an open, locked file; ValueError for another encoding, before any change."""
    size = file.seek(0, os.SEEK_END)
    textfile.check_byte_order_mark(_read(file, 0, min(size, 4)), os.fspath(file.name))
    if not size or _read(file, size - 1, size) == b"\n":
        return False
    start = _start_of_last_line(file, size)
    if cut and not _is_json(_read(file, start, size)):
        logger.warning("%s: its last line was torn and is dropped", file.name)
        os.ftruncate(file.fileno(), start)
    else:
        file.write(b"\n")
    return True


def _start_of_last_line(file, size: int, block: int = 1 << 16) -> int:
    end = size
    while end:
        start = max(0, end - block)
        found = _read(file, start, end).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _read(file, start: int, end: int) -> bytes:
    file.seek(start)
    parts = []
    while start < end and (part := file.read(end - start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def _is_json(line: bytes) -> bool:
    """Whether the line is a complete JSON object.

    Objects alone are accepted: the beginning of a number may be a number too.
    """
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
