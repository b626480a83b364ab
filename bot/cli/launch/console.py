"""Where `strop up` tells what happens: calm lines on a terminal, JSON lines everywhere else."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import defaultdict
from datetime import UTC, datetime
from typing import IO, Protocol

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.text import Text

MARKS = {"info": "[green]•[/]", "good": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}
LOUD_LEVELS = frozenset({"warning", "error", "critical"})
# The keys that structlog adds to every line: of no use to somebody who reads along.
QUIET_KEYS = frozenset({"event", "level", "timestamp", "process", "exception", "stack", "logger"})
MAX_SENTENCE = 300
# What a person who watches the terminal wants to know besides warnings: log events, and how they are said.
TOLD = {
    "gateway.ready": "The bot is connected.",
    "trainer.started": "The trainer waits for ratings.",
    "run.queued": "Run {run_id} is queued.",
    "run.started": "Run {run_id} of {scope} has started.",
    "run.ended": "Run {run_id}: {message}",
    "run.decided": "Run {run_id}: {message}",
}


class Stage(Protocol):
    """An announcer that can also show the state of the start-up."""

    def say(self, process: str, sentence: str, *, level: str = "info", **fields: object) -> None:
        """Tell one event in one sentence."""

    def output(self, process: str, line: str) -> None:
        """Take one line that a child printed."""

    def progress(self, process: str, sentence: str) -> None:
        """Replace what is being waited for; an empty sentence means nothing any more."""

    def announce_page(self, url: str) -> None:
        """Show prominently where the page is."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class JsonStage:
    """One JSON object a line, the children's own lines included, for a service manager or a container."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdout

    def say(self, process: str, sentence: str, *, level: str = "info", **fields: object) -> None:
        """Tell one event in one sentence."""
        level = "info" if level == "good" else level
        self._write({"event": sentence, "level": level, "process": process, **fields})

    def output(self, process: str, line: str) -> None:
        """Pass a child's line on; what isn't JSON becomes an event of its own."""
        if not line.strip():
            return
        record = parse_record(line) or {"event": line, "level": "info"}
        self._write({**record, "process": process})

    def progress(self, process: str, sentence: str) -> None:
        """Tell each new state once."""
        if sentence:
            self.say(process, sentence)

    def announce_page(self, url: str) -> None:
        """Tell the page's address."""
        self.say("playground", f"Open {url}", url=url)

    def close(self) -> None:
        """Nothing to leave behind."""

    def _write(self, record: dict[str, object]) -> None:
        record.setdefault("timestamp", datetime.now(UTC).isoformat(timespec="milliseconds"))
        # Where the output goes the disk may be full, or nobody may listen: the children go on all the same.
        with contextlib.suppress(OSError):
            self._stream.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
            self._stream.flush()


class TerminalStage:
    """For a person: one line per important event; everything else is in the logs."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._status: Status | None = None
        self._waiting: dict[str, str] = {}

    def say(self, process: str, sentence: str, *, level: str = "info", **fields: object) -> None:
        """Print one line: time, process, sentence."""
        mark = MARKS.get(level, MARKS["info"])
        now = datetime.now().strftime("%H:%M:%S")
        with contextlib.suppress(OSError):
            self._console.print(
                f"  [dim]{now}[/]  {mark} [bold]{escape(process):<10}[/] {escape(visible(sentence))}",
                soft_wrap=True,
            )

    def output(self, process: str, line: str) -> None:
        """Print a child's line only where it matters: a warning, an error, or an announced event."""
        record = parse_record(line)
        if record is None:
            return
        level = str(record.get("level", "info"))
        if level in LOUD_LEVELS or record.get("announce") or record.get("event") in TOLD:
            self.say(process, sentence_of(record), level="error" if level == "critical" else level)

    def progress(self, process: str, sentence: str) -> None:
        """Show what is still being waited for on a line that replaces itself."""
        if sentence:
            self._waiting[process] = sentence
        else:
            self._waiting.pop(process, None)
        if not self._waiting or not self._console.is_terminal:
            self.close()
            return
        text = Text(
            "  ".join(f"{name}: {visible(what)}" for name, what in self._waiting.items()), style="dim"
        )
        if self._status is None:
            self._status = self._console.status(text, spinner="dots")
            self._status.start()
        else:
            self._status.update(text)

    def announce_page(self, url: str) -> None:
        """Print the page's address with room around it."""
        self._console.print(f"\n  [bold green]Open {escape(url)}[/]   [dim](Ctrl-C stops everything)[/]\n")

    def close(self) -> None:
        """Stop the line that replaces itself."""
        if self._status is not None:
            self._status.stop()
            self._status = None


def stage_for(stream: IO[str] | None = None) -> Stage:
    """A terminal gets `TerminalStage`, anything else JSON lines."""
    stream = stream or sys.stdout
    return TerminalStage() if stream.isatty() else JsonStage(stream)


def parse_record(line: str) -> dict[str, object] | None:
    """The structured log record in a line, if it is one."""
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def sentence_of(record: dict[str, object]) -> str:
    """A log record as one readable line: as in `TOLD`, else the event and then its other fields."""
    told = TOLD.get(str(record.get("event")))
    if told is not None:
        return told.format_map(defaultdict(str, record))
    fields = [f"{key}={value}" for key, value in record.items() if key not in QUIET_KEYS | {"announce"}]
    return " ".join([str(record.get("event", "")), *fields])


def visible(text: str) -> str:
    """Cut and strip what could move a terminal's cursor: other people's text may be in an error."""
    cleaned = "".join(character if character.isprintable() else " " for character in text)
    return cleaned if len(cleaned) <= MAX_SENTENCE else cleaned[: MAX_SENTENCE - 1] + "…"
