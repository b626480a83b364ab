"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "problem", "note"]


@dataclass(frozen=True)
class Check:
    """One line of the report: `problem` fails the whole, `note` only informs. Only a problem has a `fix`."""

    name: str
    state: State
    detail: str
    fix: str = ""


def ok(name: str, detail: str) -> Check:
    """A check that passed."""
    return Check(name, "ok", detail)


def note(name: str, detail: str) -> Check:
    """Something to know that neither passes nor fails."""
    return Check(name, "note", detail)


def problem(name: str, detail: str, fix: str) -> Check:
    """Something that will not work, with the way out."""
    return Check(name, "problem", detail, fix)
