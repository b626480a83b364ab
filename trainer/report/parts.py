"""The pieces that every section of the report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def section(title: str, lead: str, body: str) -> str:
    """Return a section; title and lead are escaped here, the body is HTML already."""
    intro = f'<p class="soft">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{body}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table; the cells are HTML already, escaped by who made them."""

    def cells(tag: str, values: Sequence[str]) -> str:
        marks = (' class="n"' if number in numbers else "" for number in range(len(values)))
        return "".join(f"<{tag}{mark}>{value}</{tag}>" for mark, value in zip(marks, values, strict=True))

    top = f"<tr>{cells('th', [escape(name) for name in head])}</tr>" if any(head) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}{body}</table></div>'
