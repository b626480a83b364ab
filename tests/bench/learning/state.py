"""What the benchmark has done so far, on disk after each step, so that it goes on where it was stopped.

Each history has a file of its own: histories can be played side by side, by processes that know nothing of
each other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Seconds that a step is expected to take on two quiet cores, until one of its kind was measured.
EXPECTED_S = {
    "base": 30,
    "chat": 60,
    "run": 400,
    "measure": 20,
    "bad": 100,
    "erase": 300,
    "cycle": 240,
    "verdicts": 30,
    "retrains": 180,
}


class State:
    """Results by step name. A step is done once, its time is kept, and the time left is told before each.

    A step's name begins with its history's, as in "7/clean/1/chat"; results are stored in `folder`, one file
    a history. `commit` says which version of the product does the steps from now on.
    """

    def __init__(
        self, folder: Path, plan: list[str], tell: Callable[[str], None], commit: str | None = None
    ) -> None:
        self._folder = folder
        self._commit = commit
        self._plan = plan
        self._tell = tell
        self._steps: dict[str, dict[str, Any]] = {}
        for history in dict.fromkeys(map(history_of, plan)):
            path = self._path(history)
            if path.exists():
                self._steps |= json.loads(path.read_text(encoding="utf-8"))["steps"]

    def do(self, name: str, work: Callable[[], Any]) -> Any:
        """Return a step's result: as it was stored, or by doing it now."""
        if name not in self._steps:
            done = sum(step in self._steps for step in self._plan)
            left_min = self.left_s() / 60
            self._tell(f"[{done + 1}/{len(self._plan)}] {name}; about {left_min:.0f} min left in all")
            started = time.monotonic()
            result = work()
            seconds = round(time.monotonic() - started, 1)
            day = datetime.now(UTC).strftime("%Y-%m-%d")
            self._steps[name] = {"result": result, "seconds": seconds, "day": day, "commit": self._commit}
            self._write(history_of(name))
        return self._steps[name]["result"]

    def missing(self, steps: Iterable[str]) -> bool:
        """Whether any of these steps is still to be done."""
        return any(step not in self._steps for step in steps)

    def left_s(self) -> float:
        """Return about how many seconds are left, from the steps of the same kind that were measured."""
        return sum(self._expected_s(kind_of(step)) for step in self._plan if step not in self._steps)

    def result(self, name: str) -> Any:
        """Return a step's result, None while it is not done."""
        return self._steps[name]["result"] if name in self._steps else None

    @property
    def total_s(self) -> float:
        """Return how long all steps took."""
        return sum(float(step["seconds"]) for step in self._steps.values())

    def seconds(self, names: Iterable[str]) -> float:
        """Return how long these steps took, of those that are done."""
        return sum(float(self._steps[name]["seconds"]) for name in names if name in self._steps)

    def kept(self, history: str, key: str) -> list[str]:
        """Return every "day" or "commit" that steps of a history were done on or with."""
        steps = (step for name, step in self._steps.items() if history_of(name) == history)
        return sorted({step[key] for step in steps if step.get(key)})

    def _expected_s(self, kind: str) -> float:
        seen = [step["seconds"] for name, step in self._steps.items() if kind_of(name) == kind]
        return float(sum(seen) / len(seen)) if seen else float(EXPECTED_S.get(kind, 60))

    def _path(self, history: str) -> Path:
        return self._folder / f"{history.replace('/', '-')}.json"

    def _write(self, history: str) -> None:
        steps = {name: step for name, step in self._steps.items() if history_of(name) == history}
        path = self._path(history)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"steps": steps}, ensure_ascii=False), encoding="utf-8")
        partial.replace(path)


def history_of(step: str) -> str:
    """Return the history that a step belongs to: "7/clean" of "7/clean/1/chat"."""
    return "/".join(step.split("/")[:2])


def kind_of(step: str) -> str:
    """Return the kind of a step: "7/clean/1/chat" is a "chat", "7/clean/bad/worse" a "bad"."""
    parts = step.split("/")
    return parts[-2] if parts[-2] in ("bad", "verdicts") else parts[-1]
