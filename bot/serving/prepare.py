"""Prepare a base in a process of its own, whose memory goes with it: ``python -m bot.serving.prepare``.

Downloading and quantizing leave a heap behind that a server would keep for as long as it runs. The child
reads one JSON object on standard input and writes JSON lines: what it does, and how it ended. It ends when
its input does, so that it never outlives a server that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from bot.serving import logs
from bot.serving.errors import BaseRefusedError, BaseUnreachableError
from bot.serving.messages import Message, read_message
from bot.serving.model.sources import BaseSource

EXIT_UNREADABLE = 2


class PreparationFailedError(Exception):
    """The child ended without a base and without saying what stands against it; its log says more."""


class PreparingChild:
    """A process that will prepare one base; made early, it imports what it needs while others do theirs."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "bot.serving.prepare"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def ask(self, source: BaseSource, *, device: str, models_dir: Path) -> None:
        """Let it begin."""
        asked = {"source": asdict(source), "device": device, "models_dir": models_dir}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(asked, default=str), file=self._process.stdin, flush=True)

    def folder(self, progress: Callable[[Message], None]) -> Path:
        """Return the 4-bit folder once it is there; ``progress`` takes what is done meanwhile.

        Raises:
            BaseRefusedError, BaseUnreachableError: as :func:`bot.serving.model.quantize.prepare_source`.
            PreparationFailedError: the process failed, or was killed.
        """
        with self._process as child:
            found = _listen(child.stdout or [], progress)
            self.end()
        if found is None:
            raise PreparationFailedError(f"its process ended with code {child.returncode}")
        return found

    def end(self) -> None:
        """Let it end, whatever it does; more than once is fine."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


def _listen(lines: Iterable[str], progress: Callable[[Message], None]) -> Path | None:
    for line in lines:
        kind, text, more = json.loads(line)
        if kind == "folder":
            return Path(text)
        message = read_message(text, more.get("template"), more.get("values"))
        if kind == "progress":
            progress(message)
        else:
            raise BaseUnreachableError(message) if kind == "unreachable" else BaseRefusedError(message)
    return None


def main() -> int:
    """Prepare what is asked for on standard input; return the exit code (1: refused, 2: no request)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever else is printed must not get between the lines.
    answers, sys.stdout = sys.stdout, sys.stderr
    logs.configure()
    requests: queue.Queue[_Request] = queue.Queue()
    threading.Thread(target=_read, args=(requests,), name="input", daemon=True).start()

    def say(kind: str, text: str, more: dict[str, Any] | None = None) -> None:
        print(json.dumps([kind, text, more or {}]), file=answers, flush=True)

    # Seconds, in which the server finds out which base it wants.
    from bot.serving.model.quantize import prepare_source

    asked = requests.get()
    try:
        folder = prepare_source(
            asked.source,
            device=asked.device,
            models_dir=asked.models_dir,
            progress=lambda message: say("progress", message, message.as_json()),
        )
    except BaseRefusedError as error:
        kind = "unreachable" if isinstance(error, BaseUnreachableError) else "refused"
        say(kind, error.message, error.message.as_json())
        return 1
    say("folder", str(folder))
    return 0


@dataclass(frozen=True, slots=True)
class _Request:
    """What is to be prepared."""

    source: BaseSource
    device: str
    models_dir: Path

    @classmethod
    def of(cls, line: str) -> Self:
        """Read the request. Raises ValueError for anything else than a whole one."""
        try:
            value = json.loads(line)
            source = dict(value["source"])
            path = source.pop("path")
            found = BaseSource(**source, path=None if path is None else Path(path))
            return cls(found, str(value["device"]), Path(value["models_dir"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _read(requests: queue.Queue[_Request]) -> None:
    """Take the request, and end the process with its input; who asks for nothing gets no words either."""
    if line := sys.stdin.readline():
        try:
            requests.put(_Request.of(line))
        except ValueError as error:
            problem = f"its input is not one whole request in JSON on a line ({error})"
            print(f"python -m bot.serving.prepare: {problem}.", file=sys.stderr, flush=True)
            os._exit(EXIT_UNREADABLE)
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
