"""Markdown tables, and pages whose tables are drawn anew between marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


def grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def fill_tables(page: str, draw: Callable[[str], str]) -> str:
    """The page with draw(NAME) between every `<!-- table NAME -->` and the next `<!-- end -->`."""
    made = lambda found: f"<!-- table {found[1]} -->\n{draw(found[1])}\n<!-- end -->"
    return re.sub(r"<!-- table (.+?) -->\n.*?<!-- end -->", made, page, flags=re.DOTALL)
