"""Which request sits in which row of the cache, and what of an earlier one it can reuse.

A row keeps its keys and values after its request has ended. A request whose prompt begins like a row's
tokens, under the very same adapter (the key is the content hash that names it, or none for the base), takes
those over instead of reading them again: the system prompt of everybody, and the earlier turns of a
conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bot.serving.engine.kv_cache import RowCache
from bot.serving.engine.request import Job

# Copying fewer tokens than this would cost about as much as reading them.
WORTH_COPYING = 16


@dataclass(slots=True)
class _Row:
    """``tokens`` are those whose keys and values a free row holds; a running job counts its own."""

    adapter: str | None = None
    tokens: Sequence[int] = ()
    job: Job | None = None
    used: int = 0
    forgotten: bool = False

    def held(self) -> Sequence[int]:
        return self.tokens if self.job is None else self.job.tokens[: self.job.cached]


class Rows:
    """The rows of one cache; only the engine's thread uses them."""

    def __init__(self, cache: RowCache, count: int) -> None:
        self._cache = cache
        self._rows = [_Row() for _ in range(count)]
        self._clock = 0
        self._places: dict[Job, int] = {}

    def free(self) -> int:
        """Return how many rows have no request."""
        return sum(row.job is None for row in self._rows)

    def of(self, job: Job) -> int:
        """Return the row of a running request."""
        return self._places[job]

    def take(self, job: Job) -> None:
        """Give a request a free row with as much of its prompt in it as any row holds; sets ``job.cached``.

        At least the last token is always left to be read, since its logits choose the next; a scored prompt
        is read whole, since every token's are wanted.
        """
        self._clock += 1
        adapter = None if job.adapter is None else job.adapter.content or job.adapter.name
        usable = 0 if job.score else len(job.tokens) - 1
        source, shared = self._longest(adapter, job.tokens, usable)
        target = self._choose(source, shared)
        if shared and source != target:
            self._cache.copy(source, target, shared)
        job.cached = shared
        self._rows[target] = _Row(adapter, (), job, self._clock)
        self._places[job] = target

    def leave(self, job: Job) -> None:
        """Free a request's row; what it holds stays for others."""
        self._clock += 1
        index = self._places.pop(job)
        row = self._rows[index]
        if row.forgotten:
            self._clear(index)
        else:
            self._rows[index] = _Row(row.adapter, tuple(job.tokens[: job.cached]), None, self._clock)

    def forget(self) -> None:
        """Keep nothing of what was read so far: free rows are overwritten now, the others when left."""
        for index, row in enumerate(self._rows):
            if row.job is None:
                self._clear(index)
            else:
                row.forgotten = True

    def _clear(self, index: int) -> None:
        self._cache.clear(index)
        self._rows[index] = _Row()

    def _longest(self, adapter: str | None, tokens: Sequence[int], usable: int) -> tuple[int, int]:
        """Return the row that begins most like ``tokens``, and how many tokens they share."""
        best, most = 0, 0
        for index, row in enumerate(self._rows):
            if row.forgotten:
                continue
            if row.adapter == adapter and (shared := _common(row.held(), tokens, usable)) > most:
                best, most = index, shared
        return (best, most) if most >= WORTH_COPYING else (0, 0)

    def _choose(self, source: int, shared: int) -> int:
        """Return the source itself where it is free and little would be lost, else the row unused for
        longest.
        """
        if shared and self._rows[source].job is None and 2 * shared >= len(self._rows[source].tokens):
            return source
        idle = [index for index, row in enumerate(self._rows) if row.job is None]
        others = [index for index in idle if index != source] or idle
        return min(others, key=lambda index: (self._rows[index].used, index))


def _common(held: Sequence[int], tokens: Sequence[int], limit: int) -> int:
    """Return the length of the common beginning, at most ``limit``."""
    count = min(len(held), limit)
    if tuple(held[:count]) == tuple(tokens[:count]):
        return count
    return next(index for index in range(count) if held[index] != tokens[index])
