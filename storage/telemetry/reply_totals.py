"""Replies that ended since a process began to count, and how long each part of them took."""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field

import sqlite_utils

from storage.db import sql
from storage.db.clock import now_ms

# Upper bounds in seconds: from the first word on a GPU to the whole of a long reply on a small CPU.
BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
PARTS = {"queue": "queue_ms", "first_token": "first_token_ms", "whole": "duration_ms"}
# Rows become visible in about the order of their times: so much later none of an earlier time appears.
_LATE_MS = 60 * 1000
# A reply that is still being written after so long will not end any more.
LONGEST_REPLY_MS = 60 * 60 * 1000


@dataclass
class Histogram:
    """How often a time fell below each bound, the last count being for what is above all of them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        self.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


class ReplyTotals:
    """Counts each reply once, when it has ended; totals only grow, as counters must."""

    def __init__(self, since_ms: int | None = None) -> None:
        """Count the replies that are asked for from now on, or from `since_ms` on."""
        self.by_status: Counter[str] = Counter({"complete": 0, "stopped": 0, "failed": 0})
        self.parts = {part: Histogram() for part in PARTS}
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._since_ms = now_ms() if since_ms is None else since_ms
        self._counted: dict[str, int] = {}

    def update(self, db: sqlite_utils.Database) -> None:
        """Count what has ended since the last call. For one thread at a time."""
        now = now_ms()
        rows = sql.many(
            db,
            """SELECT id, status, created_ms, queue_ms, first_token_ms, duration_ms, prompt_tokens,
                      completion_tokens
               FROM replies WHERE created_ms >= ?""",
            (self._since_ms,),
        )
        for row in rows:
            if row["status"] != "streaming" and row["id"] not in self._counted:
                self._count(row)
        unfinished = [row["created_ms"] for row in rows if row["status"] == "streaming"]
        # What is older has ended, and is counted: neither is it read again nor remembered.
        newest = max((row["created_ms"] for row in rows), default=self._since_ms)
        kept = min([newest - _LATE_MS, *unfinished])
        self._since_ms = max(kept, now - LONGEST_REPLY_MS, self._since_ms)
        self._counted = {key: at for key, at in self._counted.items() if at >= self._since_ms}

    def _count(self, row: sql.Row) -> None:
        self._counted[row["id"]] = row["created_ms"]
        self.by_status[row["status"]] += 1
        self.prompt_tokens += row["prompt_tokens"] or 0
        self.completion_tokens += row["completion_tokens"] or 0
        for part, column in PARTS.items():
            if row[column] is not None:
                self.parts[part].observe(row[column] / 1000)
