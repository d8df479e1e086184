"""Markdown tables and the pages that hold them."""

from __future__ import annotations

from bridge_jax.evaluation import markdown


def test_a_grid_escapes_bars():
    """Bars in cells are escaped, and numbers are aligned right."""
    assert markdown.grid(["a", "b"], [["x|y", "1"]]).splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | 1 |",
    ]


def test_tables_are_drawn_between_their_marks():
    """Every table by its name; the text around them stays; a second time nothing changes."""
    page = "<!-- table a -->\nold\n<!-- end -->\ntext\n<!-- table b c -->\n<!-- end -->\n"
    filled = markdown.fill_tables(page, str.upper)
    assert filled == (
        "<!-- table a -->\nA\n<!-- end -->\ntext\n<!-- table b c -->\nB C\n<!-- end -->\n"
    )
    assert markdown.fill_tables(filled, str.upper) == filled
