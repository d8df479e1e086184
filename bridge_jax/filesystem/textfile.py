"""Reading of text files, which must be UTF-8, with or without a byte-order mark.

Some editors and spreadsheets write UTF-16 or Latin-1. A file in another encoding is a ValueError
that names the file, the first offending byte, and the command that converts the file. The encoding
is never guessed, since a wrong guess would change the data. All kinds of line ends are accepted.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# UTF-32 before UTF-16, whose marks are a beginning of those of UTF-32
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read(path: str | Path) -> str:
    """The text of a file, all line ends as newlines; ValueError where it is not UTF-8."""
    text = decode(Path(path).read_bytes(), str(path))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines(file: BinaryIO, name: str) -> Iterator[str]:
    """The lines of an open binary file, without their ends.

    ValueError names a line that is not UTF-8.
    """
    for number, line in enumerate(file, 1):
        text = decode(line, f"{name}, line {number}")
        yield from text.rstrip("\r\n").split("\r")


def check_byte_order_mark(beginning: bytes, name: str) -> None:
    """ValueError where a file begins with the byte-order mark of another encoding."""
    for mark, encoding in MARKS.items():
        if beginning.startswith(mark):
            raise ValueError(
                encoding_error(name, f"it begins with the mark of {encoding}", encoding)
            )


def decode(content: bytes, name: str) -> str:
    """Bytes as text, without a byte-order mark; ValueError where they are not UTF-8."""
    check_byte_order_mark(content, name)
    if (zero := content.find(b"\0")) >= 0:
        # UTF-16 without a mark: every second byte of plain text is 0, which UTF-8 would allow
        encoding = "UTF-16LE" if zero % 2 else "UTF-16BE"
        raise ValueError(
            encoding_error(name, f"byte 0x00 at {zero} is not a character of text", encoding)
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        shown = f"byte 0x{content[error.start]:02x} at {error.start} is invalid there"
        raise ValueError(encoding_error(name, shown, "LATIN1")) from None


def encoding_error(name: str, why: str, encoding: str) -> str:
    """The message for a text that is not UTF-8; encoding: the most likely one."""
    return (
        f"{name} is not UTF-8 text: {why}. Convert the file, such as with `iconv -f {encoding} -t "
        f"UTF-8 OLD > NEW` if it was written in {encoding}"
    )
