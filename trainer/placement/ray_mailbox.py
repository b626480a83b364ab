"""The actor through which a run speaks with its workers in a Ray cluster (without torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Files: TypeAlias = Mapping[str, bytes]


@dataclass(frozen=True)
class News:
    """What is new in a mailbox since a number: progress, and the newest checkpoint if there is one."""

    number: int
    share: float
    note: Mapping[str, Any] | None
    checkpoint: bytes | None


class Mailbox:
    """Holds a training's folder and what came of it, in memory, for as long as the run watches (an actor)."""

    def __init__(self, sent: Files) -> None:
        self._sent = dict(sent)
        self._number = 0
        self._share = 0.0
        self._note: Mapping[str, Any] | None = None
        self._checkpoint: tuple[int, bytes] = (0, b"")
        self._result: Files = {}

    def folder(self) -> Files:
        """Return the training's folder."""
        return self._sent

    def tell(self, share: float, note: Mapping[str, Any]) -> None:
        """Take a worker's progress."""
        self._number += 1
        self._share, self._note = share, note

    def keep(self, checkpoint: bytes) -> None:
        """Take the first worker's newest checkpoint."""
        self._number += 1
        self._checkpoint = (self._number, checkpoint)

    def put_result(self, result: Files) -> None:
        """Take what has to come back."""
        self._result = result

    def news(self, seen: int) -> News:
        """Return what came after the number that was seen last."""
        number, checkpoint = self._checkpoint
        return News(self._number, self._share, self._note, checkpoint if number > seen else None)

    def result(self) -> Files:
        """Return what has to come back, empty where the training isn't over."""
        return self._result
