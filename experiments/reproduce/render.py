"""A page of sections as Markdown, and as one HTML file that works offline."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bridge_jax.evaluation import markdown
from experiments.reproduce.tables import PUBLISHED, Table

STYLE = """body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
td, th { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
td:first-child, th:first-child { text-align: left }
tr.published { color: #666; font-style: italic }
img { max-width: 100% }
.notice { border-left: 4px solid #c60; padding: .3em 1em; background: #fff6ec }"""


class Section(NamedTuple):
    """A part of the page."""

    title: str
    text: str
    table: Table | None = None
    picture: str = ""


def as_markdown(title: str, notice: str, sections: Sequence[Section]) -> str:
    """The page as Markdown."""
    parts = [f"# {title}"] + [f"**{notice}**"] * bool(notice)
    for section in sections:
        parts += [f"## {section.title}", section.text]
        if section.table is not None:
            parts.append(markdown.grid(section.table.head, italic(section.table.rows)))
        if section.picture:
            parts.append(f"![{section.title}]({section.picture})")
    return "\n\n".join(parts) + "\n"


def italic(rows: list[list[str]]) -> list[list[str]]:
    """The rows, with the label of published ones in italics."""
    return [[f"*{row[0]}*", *row[1:]] if row[0].startswith(PUBLISHED) else row for row in rows]


def as_html(title: str, notice: str, sections: Sequence[Section], folder: Path) -> str:
    """The page as one file that works offline."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if notice:
        parts.append(f'<p class="notice">{html.escape(notice)}</p>')
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        lines = section.text.split("\n- ")
        if section.text.startswith("- "):
            lines[0] = lines[0].removeprefix("- ")
            items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
            parts.append(f"<ul>{items}</ul>")
        else:
            parts.append(f"<p>{html.escape(section.text)}</p>")
        if section.table is not None:
            parts.append(html_table(section.table))
        if section.picture:
            data = base64.b64encode((folder / section.picture).read_bytes()).decode()
            parts.append(f'<img alt="{section.title}" src="data:image/png;base64,{data}">')
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head>\n<body>\n{body}\n</body></html>\n"


def html_table(table: Table) -> str:
    """A table as HTML; **text** is bold."""

    def cell(text: str) -> str:
        bold = text.startswith("**") and text.endswith("**")
        return f"<b>{html.escape(text[2:-2])}</b>" if bold else html.escape(text)

    lines = ["<tr>" + "".join(f"<th>{html.escape(one)}</th>" for one in table.head) + "</tr>"]
    for row in table.rows:
        marked = ' class="published"' if row[0].startswith(PUBLISHED) else ""
        lines.append(f"<tr{marked}>" + "".join(f"<td>{cell(one)}</td>" for one in row) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"
