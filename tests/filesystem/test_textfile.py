"""Text files: UTF-8 with every kind of line end is read, other encodings are refused by name with a
way out.
"""

from __future__ import annotations

import io

import pytest

from bridge_jax.filesystem import textfile
from tests import errors

TEXT = '{"problem": "Für x² ≤ 4, 求 x"}\n{"problem": "é"}\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_utf8_is_read_whatever_its_mark_and_line_ends(tmp_path, encoding, end):
    """UTF-8 is read alike with or without a byte order mark, with any line ends."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert textfile.read(path) == TEXT
    with open(path, "rb") as file:
        found = list(textfile.lines(file, "a.jsonl"))
    assert [line for line in found if line] == TEXT.split("\n")[:2]


def test_other_line_ends_inside_a_line_stay(tmp_path):
    """U+2028 and U+0085 may stand inside a string of JSON."""
    path = tmp_path / "a.txt"
    path.write_bytes("a\u2028b\x85c\n".encode())
    assert textfile.read(path) == "a\u2028b\x85c\n"
    assert list(textfile.lines(io.BytesIO(path.read_bytes()), "a.txt")) == ["a\u2028b\x85c"]


@pytest.mark.parametrize(
    "encoding, way",
    [
        ("utf-16", "-f UTF-16 "),
        ("utf-16-le", "-f UTF-16LE "),
        ("utf-16-be", "-f UTF-16BE "),
        ("utf-32", "-f UTF-32 "),
        ("latin-1", "-f LATIN1 "),
        ("gb18030", "-f LATIN1 "),
    ],
)
def test_other_encodings_are_refused_by_name(tmp_path, encoding, way):
    """Text that is not UTF-8 is refused with the iconv command that converts it."""
    text = '{"problem": "é", "answer": "1"}\n' * 2
    path = tmp_path / "odd.jsonl"
    path.write_bytes(text.encode(encoding))
    with errors.raises(ValueError, "odd.jsonl", f"iconv {way}-t UTF-8"):
        textfile.read(path)
    with (
        open(path, "rb") as file,
        errors.raises(ValueError, "odd.jsonl", "line 1", f"iconv {way}"),
    ):
        list(textfile.lines(file, "odd.jsonl"))


def test_the_line_at_fault_is_named_and_those_before_it_are_read():
    """A bad byte is reported with its line, after the lines before it were read."""
    found = []
    with errors.raises(ValueError, "a.jsonl", "line 3", "0xe9 at 1"):
        for line in textfile.lines(io.BytesIO(b"1\n\xc3\xa9\n2\xe9\n4\n"), "a.jsonl"):
            found.append(line)
    assert found == ["1", "é"]
