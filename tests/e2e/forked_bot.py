"""Bots that start at once: a process that has imported everything forks one for each start.

A kill test starts hundreds of them, and importing takes far longer than starting. `python -m
tests.e2e.forked_bot` takes a line of JSON for each bot and answers with its process id.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class BotForks:
    """Starts the process that forks, and bots from it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.forked_bot"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(
        self, home: Path, environment: dict[str, str], name: str = "bot", arguments: Sequence[str] = ()
    ) -> ForkedBot:
        """Start a bot with this configuration; it logs to ``NAME.log`` there."""
        assert self._process.stdin is not None and self._process.stdout is not None
        (home / f"{name}.log").touch()
        order = {"home": str(home), "environment": environment, "name": name, "arguments": list(arguments)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return ForkedBot(int(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process that forks; bots that are running go on."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class ForkedBot:
    """One bot, with what `subprocess.Popen` offers of a process that isn't a child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return None while it runs."""
        return -signal.SIGKILL if select.select([self._fd], [], [], 0)[0] else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        if not select.select([self._fd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("bot", timeout or 0.0)
        return -signal.SIGKILL

    def send_signal(self, number: int) -> None:
        """Send a signal to exactly this process, if it still runs."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._fd, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def serve() -> None:
    """Fork a bot for each line; nobody waits for them."""
    import bot.app
    import bot.chat.generation as generation

    assert bot.app is not None
    # A model that loads is asked every other second; here that is only waiting.
    generation.LOADING_POLL_S = 0.1
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_be_bot(order))
        print(pid, flush=True)


def _be_bot(order: dict[str, Any]) -> int:
    from bot.__main__ import main

    home = Path(order["home"])
    log = os.open(home / f"{order['name']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = ["bot", "--config", str(home / "strop.toml"), *order["arguments"]]
    return main()


if __name__ == "__main__":
    serve()
