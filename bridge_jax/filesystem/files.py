"""How files are written here: replaced whole, or grown by whole lines.

A kill, a full disk or a lost machine at any moment leaves what was there before, or all of what is
new. A file that grows is JSON lines; a last line that was torn is mended, by `mend`, before the
next one is written. Every error names the file, the reason and the way out; that of a full disk is
a NoSpace, for which the commands have an exit code of its own. Left out: what the files hold
(logbook.py, transcripts.py, experiments/).
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
# libraries that write through C++ or Rust pass the system's reason on as text alone
FULL_TEXT = re.compile(r"No space left on device|Disk quota exceeded|\bENOSPC\b|\bEDQUOT\b")
UNCHANGED = "what stood there before is unchanged"
# of `replace`, before the new file takes the old one's place
TEMPORARY = re.compile(r"\.\w[\w.-]*\.(?:json|jsonl|npz|txt|md|csv|tex)\.[a-z0-9_]{8}")
# what to do, by the system's reason
WAYS = dict.fromkeys(FULL, "make room and run the same command again") | {
    errno.EFBIG: "make room (ulimit -f limits the size of a file) and run the same command again",
    errno.EACCES: "see to its permissions, or give another place",
    errno.EPERM: "see to its permissions, or give another place",
    errno.EROFS: "its file system can only be read: give another place",
    errno.ENOENT: "see whether the path is right",
    errno.ENOTDIR: "see whether the path is right",
    errno.EISDIR: "it is a folder: see whether the path is right",
    errno.EIO: "see to the disk, and run the same command again",
    errno.ESTALE: "see to the mount, and run the same command again",
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
    """The text of an error; of the system's own errors the file, the reason and the way out."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    named = error.filename if error.filename2 is None else error.filename2
    if isinstance(named, bytes):
        named = os.fsdecode(named)
    way = WAYS.get(error.errno)
    return f"{named or 'a file'}: {error.strerror}" + (f"; {way}" if way else "")


def unwritten(path: str | os.PathLike, error: OSError, kept: str = UNCHANGED) -> OSError:
    """The error to raise where a file could not be written; kept: what the reader can rely on."""
    kind = NoSpace if is_full(error) else OSError
    way = WAYS.get(error.errno, "see to that and run the same command again")
    return kind(
        f"{os.fspath(path)} could not be written ({error.strerror or error}): {kept}; {way}"
    )


def replace(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file whole, so that it is on disk when this returns, and else is as it was before."""
    path = os.fspath(path)
    folder, name = os.path.split(path)
    # half a surrogate pair is no UTF-8; its escape is, and means the same in JSON
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=folder or ".", prefix=f".{name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes it private
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
        sync_folder(folder or ".")
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Removes what kills have left of files that were being replaced.

    For the one process that writes the folder.
    """
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if TEMPORARY.fullmatch(name):
            os.unlink(os.path.join(folder, name))


def append(path: str | os.PathLike, text: str, sync: bool = True, kept: str = UNCHANGED) -> None:
    """Adds whole lines to a file that may not exist yet, behind a last line that is mended if it
    was torn.

    sync: they are on disk when this returns. If they cannot be written, the file is as it was
    before. Other processes may append to it too.
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
                # where even that fails, the next one mends it
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), before)
                raise
        if new and sync:
            sync_folder(os.path.dirname(path) or ".")
    except OSError as error:
        raise unwritten(path, error, kept) from error


def mend(path: str | os.PathLike, cut: bool = True) -> bool:
    """Ends a last line that lacks its newline; whether it did.

    A part of a JSON value is cut off, unless `cut` is False.
    """
    if not os.path.exists(path):
        return False
    try:
        with open(path, "a+b", buffering=0) as file:
            _lock(file, fcntl.LOCK_EX)
            return _mend(file, cut)
    except OSError as error:
        raise unwritten(path, error) from error


def lines(path: str | os.PathLike) -> list[bytes]:
    """The lines of a file that grows, without their newlines; a torn last one is left out."""
    with open(path, "rb") as file:
        content = file.read()
    # every line of another encoding would read as torn
    textfile.refuse_mark(content[:4], os.fspath(path))
    *found, last = content.split(b"\n")
    return [*found, last] if last and _is_json(last) else found


def rows(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """(number, value) of each line of JSON; ValueError names a line that is none.

    A torn last one is left out.
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
    """The beginning of a line, to be shown."""
    return repr(line[:80].decode(errors="replace"))


def sync_file(path: str | os.PathLike) -> None:
    """Returns once what was written to the file is on disk; nothing where there is none."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: str | os.PathLike) -> None:
    """Returns once the names of the files in it are on disk."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str | os.PathLike, how: int) -> None:
    try:
        handle = os.open(path, how)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        # some network file systems cannot do that for a folder, and need not
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise unwritten(path, error, "what was written last may be lost") from error
    finally:
        os.close(handle)


@contextlib.contextmanager
def scratch(path: str | os.PathLike, refusal: str) -> Iterator[str]:
    """An empty folder beside `path`, for what is to be moved there once it is complete.

    Gone at the end.

    What a kill has left of one is removed when the next begins. ValueError while another process
    has it, NoSpace for whatever a full disk has caused in between.
    """
    parent, name = os.path.split(os.path.abspath(path))
    folder = os.path.join(parent, f".{name}.unfinished")
    with claimed(folder + ".lock", refusal, remove=True):
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
                f"{WAYS[errno.ENOSPC]}"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def free_name(folder: str | os.PathLike, stem: str) -> str:
    """A path in the folder that is not taken: stem_1, stem_2, ..."""
    number = 1
    while os.path.lexists(path := os.path.join(folder, f"{stem}_{number}")):
        number += 1
    return path


@contextlib.contextmanager
def claimed(
    path: str | os.PathLike, refusal: str, shared: bool = False, remove: bool = False
) -> Iterator[None]:
    """Holds a lock file, which the system lets go when the process ends, however it ends.

    ValueError if another holds it.

    shared: beside others that hold it as shared. remove: the file goes with the lock, unless the
    process was killed. A file system that has no locks is trusted.
    """
    try:
        file = open(path, "a")
    except OSError as error:
        raise unwritten(path, error, "it is the lock of its folder") from error
    with file:
        held = _lock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait=False)
        # who held it may have removed the file since it was opened here: then the lock is of
        # nothing
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
    """Whether the lock is held, or cannot be had on this file system."""
    try:
        fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _mend(file, cut: bool = True) -> bool:
    """mend, of an open file whose lock is held.

    ValueError for a file in another encoding, before it is touched.
    """
    size = file.seek(0, os.SEEK_END)
    textfile.refuse_mark(_read(file, 0, min(size, 4)), os.fspath(file.name))
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
    """Whether it is a whole JSON object: no part of one is, but a part of a number may be a number."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
