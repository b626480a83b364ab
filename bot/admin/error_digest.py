"""What went wrong and was logged, for the operators' channel: an id, a place and a kind, nobody's words.

A person who met the error was told its id; the operators find it here and, with its traceback, in the log.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from bot.language.texts import tr

MOST_KINDS = 20
_IDS = ("error_id", "reply_id", "run_id", "duel_id")
# Told by the watch itself, or by what is watched.
_OWN = frozenset({"operations.round_failed", "operations.refused"})


class FaultLog(logging.Handler):
    """Collects the errors that this process logs, until somebody tells them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._lines: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._beyond = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first error of each kind, and count the rest."""
        event: Mapping[str, Any] = record.msg if isinstance(record.msg, dict) else {}
        name = str(event.get("event") or record.name)
        if name in _OWN:
            return
        where = str(event.get("where") or event.get("handler") or "")
        kind = " ".join(part for part in (name, where, _type(event, record)) if part)
        if kind not in self._lines and len(self._lines) >= MOST_KINDS:
            self._beyond += 1
            return
        self._counts[kind] += 1
        self._lines.setdefault(kind, f"{_named(event)}{kind}")

    def lines(self) -> list[str]:
        """Return a line for each kind of error since they were forgotten."""
        found = [
            tr("{line} ({count} times)", line=line, count=count)
            if (count := self._counts[kind]) > 1
            else line
            for kind, line in self._lines.items()
        ]
        return [*found, tr("and {count} of other kinds", count=self._beyond)] if self._beyond else found

    def forget(self) -> None:
        """Begin anew, once they were told."""
        self._lines.clear()
        self._counts.clear()
        self._beyond = 0


def _named(event: Mapping[str, Any]) -> str:
    found = next((event[key] for key in _IDS if event.get(key)), None)
    return "" if found is None else f"`{found}` "


def _type(event: Mapping[str, Any], record: logging.LogRecord) -> str:
    """Return the kind of an exception. Its text stays in the log: it may quote what a member wrote."""
    info = record.exc_info or event.get("exc_info")
    if isinstance(info, BaseException):
        return type(info).__name__
    if isinstance(info, tuple) and info[0] is not None:
        return str(info[0].__name__)
    # Where structlog has rendered the traceback already, its last line begins with the kind.
    last = str(event.get("exception") or "").strip().rpartition("\n")[2].partition(":")[0].strip()
    return last.rpartition(".")[2] if last.replace(".", "").isidentifier() else ""
