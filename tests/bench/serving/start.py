"""How long the model server alone takes to its first answer, and what it then holds in memory, by file.

A whole deployment's starts, with goals, are rows of the speed page (`first_start`).

`python -m tests.bench.serving.start` starts it twice in an empty home with the bundled base, which the first
start quantizes, and asks one question each time. Memory is given as PSS and RSS, and the resident pages of
what has most, in MB (10^6 bytes).
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from bot.serving.protocol import SECRET_HEADER, SERVER_FILE
from tests.bench.serving.memory_use import read_memory_use

LARGEST = 14
_HEAD = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(?P<path>.*)$")


def main() -> int:
    """Start, ask, print; twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--home", type=Path, help="a home to start in instead of an empty one")
    parser.add_argument("--starts", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = options.home or Path(folder)
        for number in range(options.starts):
            print(f"start {number + 1}:", flush=True)
            for line in measure(home):
                print(f"  {line}", flush=True)
    return 0


def measure(home: Path) -> Iterator[str]:
    """Start one server in ``home``, and say what it took and holds after its first answer."""
    began = time.monotonic()
    settings = {"port": 0, **{f"{name}_dir": str(home / name) for name in ("models", "adapters", "run")}}
    server = subprocess.Popen([sys.executable, "-m", "bot.serving"], stdin=subprocess.PIPE, text=True)
    try:
        assert server.stdin is not None
        server.stdin.write(json.dumps(settings))
        server.stdin.close()
        process = psutil.Process(server.pid)
        _first_answer(home / "run" / SERVER_FILE, server)
        spent = process.cpu_times()
        cpu_s = spent.user + spent.system + spent.children_user + spent.children_system
        yield f"{time.monotonic() - began:.1f} s, {cpu_s:.1f} CPU-s to the first answer"
        use = read_memory_use(server.pid)
        yield f"PSS {_mb(use.pss)}, private {_mb(use.private)}, RSS {_mb(process.memory_info().rss)}"
        for path, size in resident_by_mapping(server.pid).most_common(LARGEST):
            yield f"{_mb(size):>10}  {path}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def resident_by_mapping(pid: int) -> Counter[str]:
    """Add up a process' resident pages by what they are mapped from, in bytes."""
    sizes: Counter[str] = Counter()
    path = ""
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if head := _HEAD.match(line):
            path = head["path"] or "[anonymous]"
        elif line.startswith("Rss:"):
            sizes[path] += int(line.split()[1]) * 1024
    return sizes


def _first_answer(announcement: Path, server: subprocess.Popen[str]) -> None:
    while not (announcement.exists() and _said(json.loads(announcement.read_text(encoding="utf-8")))):
        if server.poll() is not None:
            raise SystemExit(f"the server ended with code {server.returncode}")
        time.sleep(0.1)


def _said(found: dict[str, Any]) -> bool:
    headers = {SECRET_HEADER: found["secret"], "Content-Type": "application/json"}
    try:
        health = urllib.request.Request(f"{found['base_url']}/health", headers=headers)
        with urllib.request.urlopen(health, timeout=60) as response:
            model = json.load(response).get("base", {}).get("id")
        if not model:
            return False
        asked = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}
        request = urllib.request.Request(
            f"{found['base_url']}/v1/chat/completions", json.dumps(asked).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return bool(json.load(response)["choices"])
    except (urllib.error.URLError, ConnectionError, AttributeError):
        return False


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
