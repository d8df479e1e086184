"""Text files of users are UTF-8: read as such, with or without a byte-order mark, or refused by
name.

Files come from many hands, and some editors and spreadsheets write UTF-16 or Latin-1. A file in
another encoding is a ValueError that names the file, the first byte that shows it, and the command
that converts it; nothing is guessed, since a wrong guess would change the mathematics. All kinds of
line ends are read.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# UTF-32 before UTF-16: the mark of the one begins with that of the other
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read(path: str | Path) -> str:
    """The whole text of a file, lines ended by a newline alone; ValueError where it is no UTF-8."""
    text = decoded(Path(path).read_bytes(), str(path))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines(file: BinaryIO, name: str) -> Iterator[str]:
    """The lines of an open binary file one by one, without their ends.

    ValueError names the line.
    """
    for number, line in enumerate(file, 1):
        text = decoded(line, f"{name}, line {number}")
        yield from text.rstrip("\r\n").split("\r")


def refuse_mark(beginning: bytes, name: str) -> None:
    """ValueError where a file begins with the byte-order mark of another encoding."""
    for mark, encoding in MARKS.items():
        if beginning.startswith(mark):
            raise ValueError(refusal(name, f"it begins with the mark of {encoding}", encoding))


def decoded(content: bytes, name: str) -> str:
    """Bytes as text, a byte-order mark left out; ValueError where they are no UTF-8."""
    refuse_mark(content, name)
    if (zero := content.find(b"\0")) >= 0:
        # UTF-16 without a mark: every second byte of plain text is 0, which UTF-8 would allow
        encoding = "UTF-16LE" if zero % 2 else "UTF-16BE"
        raise ValueError(refusal(name, f"byte 0x00 at {zero} is no character of a text", encoding))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        shown = f"byte 0x{content[error.start]:02x} at {error.start} cannot stand there"
        raise ValueError(refusal(name, shown, "LATIN1")) from None


def refusal(name: str, why: str, encoding: str) -> str:
    """What an error says of a text that is no UTF-8; encoding: the likeliest one."""
    return (
        f"{name} is not UTF-8 text: {why}. Convert the file, such as with `iconv -f {encoding} -t "
        f"UTF-8 OLD > NEW` if it was written in {encoding}"
    )
