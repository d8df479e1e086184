"""What a check found, in one line."""

from __future__ import annotations

from typing import NamedTuple

OK, NOTE, FAIL = "ok", "note", "FAIL"
# from good to bad
GRADES = (OK, NOTE, FAIL)


class Record(NamedTuple):
    """The result of one check."""

    name: str
    # of GRADES. note: slower or less than usual, the run can go on; FAIL: it would be wrong or end
    grade: str
    text: str
    way_out: str = ""  # what to do about a note or a FAIL

    def line(self) -> str:
        """The record as it is printed."""
        return f"{self.grade:<4}  {self.name:<18}  {self.text}" + (
            f"; {self.way_out}" if self.way_out else ""
        )


def graded(name: str, text: str, good: bool, way_out: str, otherwise: str = FAIL) -> Record:
    """ok where it is good, `otherwise` with the way out where it is not."""
    return Record(name, OK, text) if good else Record(name, otherwise, text, way_out)


def worst(records: list[Record]) -> Record:
    """The worst of the records of one check; the first of equals."""
    return max(records, key=lambda record: GRADES.index(record.grade))


def one_line(text: object, limit: int = 300) -> str:
    """A message, such as that of an error, on one line of at most `limit` characters."""
    words = " ".join(str(text).split())
    return words if len(words) <= limit else f"{words[:limit]} ..."
