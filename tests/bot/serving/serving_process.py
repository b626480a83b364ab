"""A model server in a process of its own, as the supervisor starts it."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class ServingProcess:
    """Starts ``python -m bot.serving`` with a slice on stdin; use it in a ``with`` block.

    Without ``env`` it has the tests' own environment, in which the hub is switched off.
    """

    def __init__(self, home: Path, *, env: dict[str, str] | None = None, **changes: Any) -> None:
        self.home = home
        self.env = env
        self.run_dir = home / "run"
        self.slice = {
            "base": "SmolLM2-135M-Instruct",
            "revision": "",
            "device": "cpu",
            "context_tokens": 256,
            "slots": 4,
            "threads": 1,
            "host": "127.0.0.1",
            "port": 0,
            "api_key": None,
            "models_dir": str(home / "models"),
            "adapters_dir": str(home / "adapters"),
            "run_dir": str(self.run_dir),
            **changes,
        }
        self.process: subprocess.Popen[str]

    def __enter__(self) -> "ServingProcess":
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bot.serving"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(self.slice))
        self.process.stdin.close()
        self.process.stdin = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def address(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait for ``server.json`` and return it."""
        ends = time.monotonic() + timeout_s
        while not (self.run_dir / "server.json").exists():
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            assert time.monotonic() < ends, "the server did not announce itself"
            time.sleep(0.05)
        value: dict[str, Any] = json.loads((self.run_dir / "server.json").read_text())
        return value

    def refusal(self) -> str:
        """Wait for the process to end with code 2 and return what it said."""
        _, said = self.process.communicate(timeout=60)
        assert self.process.returncode == 2, said
        return said
