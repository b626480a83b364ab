"""The pieces that every section of the report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

# So many cases are read at once; the others are there for who asks.
FIRST = 6


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


def case(asked: str, sides: Sequence[tuple[str, str]], verdict: str = "") -> str:
    """Return what was asked with the answers to it side by side, (whose, text) each, and what follows.

    Only the verdict is HTML already.
    """
    said = "".join(f"<div><small>{escape(who)}</small>{escape(text)}</div>" for who, text in sides)
    answers = f'<div class="sides">{said}</div>' if sides else ""
    foot = f'<p class="foot">{verdict}</p>' if verdict else ""
    return f'<article><p class="asked">{escape(asked)}</p>{answers}{foot}</article>'


def cases(found: Sequence[str], what: str) -> str:
    """Return the first few cases, and the others folded behind a line that says how many."""
    if len(found) <= FIRST + 1:
        return "".join(found)
    rest = "".join(found[FIRST:])
    summary = f"<summary>{len(found) - FIRST} more {escape(what)}</summary>"
    return "".join(found[:FIRST]) + f"<details>{summary}{rest}</details>"


def bar(share: float, mark: str = "") -> str:
    """Return a bar as long as a share of its column, 0 to 1."""
    return f'<div class="bar {mark}"><i style="width:{100 * min(1.0, max(0.0, share)):.1f}%"></i></div>'


def small(*notes: str) -> str:
    """Return notes beside a figure, in a row and escaped; nothing for empty ones."""
    text = ", ".join(filter(None, notes))
    return f"<small>{escape(text)}</small>" if text else ""


def number(value: float, form: str) -> str:
    """Return a number with a minus sign in place of the hyphen, and no sign before a zero."""
    text = format(value, form)
    unsigned = text.lstrip("+-")
    return unsigned if not unsigned.strip("0.%") else text.replace("-", "−")
