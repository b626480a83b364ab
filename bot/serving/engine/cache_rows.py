"""Which request sits in which row of the cache, and what of an earlier one it can reuse.

A row keeps its keys and values after its request has ended. A request whose prompt begins like a row's
tokens, under the very same adapter (the key is the content hash that names it, or none for the base), takes
those over instead of reading them again: the system prompt of everybody, the earlier turns of a conversation,
a question that is answered or scored several times. A row that was scored keeps its scores too, which whoever
is scored next takes over with it.
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
    """``tokens`` are those whose keys and values a free row holds, ``scores`` those of all but the first
    where it was scored; a running job counts its own. ``begun`` is whether its prompt is being read.
    """

    adapter: str | None = None
    tokens: Sequence[int] = ()
    scores: Sequence[float] = ()
    job: Job | None = None
    begun: bool = False
    used: int = 0
    forgotten: bool = False

    def held(self) -> Sequence[int]:
        return self.tokens if self.job is None else self.job.tokens[: self.job.cached]

    def scored(self) -> Sequence[float]:
        return self.scores if self.job is None else self.job.scores

    def usable(self, job: Job) -> int:
        """Return how many of a request's first tokens the row could stand for, if it holds the same.

        The last token is always left to be read, since its logits choose the next; where tokens are scored,
        the last shared one is read again, since its logits score the next.
        """
        return min(len(job.tokens), len(self.scored()) + 1) if job.score else len(job.tokens) - 1


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
        """Give a request a free row with as much of its prompt as any row holds; sets ``job.cached``."""
        self._clock += 1
        source, shared = self._longest(job)
        target = self._choose(source, shared)
        found = self._rows[source]
        self._rows[target] = _Row(_key(job), job=job, used=self._clock)
        self._places[job] = target
        # One that had stepped aside counts on nothing that it had read.
        job.cached = 0
        self._take_over(job, found, source, shared)

    def begin_reading(self, job: Job) -> int:
        """Look once more, before a request's first piece is read, for what others have read since it came.

        Returns how many tokens needn't be read in all; 0 for its later pieces.
        """
        row = self._rows[self._places[job]]
        if row.begun:
            return 0
        row.begun = True
        source, shared = self._longest(job)
        if shared > job.cached + 1:
            self._take_over(job, self._rows[source], source, shared)
        return job.cached

    def waits_for(self, job: Job, other: Job, read: int) -> bool:
        """Whether a request whose reading has not begun had better take over the first ``read`` tokens of
        another, which are being read.
        """
        alike = _key(job) == _key(other) and other.score >= job.score
        if self._rows[self._places[job]].begun or self._rows[self._places[other]].forgotten or not alike:
            return False
        shared = _common(other.tokens[:read], job.tokens, len(job.tokens) - 1)
        return shared - max(job.cached, self._longest(job)[1]) >= WORTH_COPYING

    def _take_over(self, job: Job, found: _Row, source: int, shared: int) -> None:
        if not shared:
            return
        job.scores = list(found.scored()[: shared - 1]) if job.score else []
        if source != self._places[job]:
            self._cache.copy(source, self._places[job], shared)
        job.cached = shared - 1 if job.score else shared

    def leave(self, job: Job) -> None:
        """Free a request's row; what it holds stays for others."""
        self._clock += 1
        index = self._places.pop(job)
        row = self._rows[index]
        if row.forgotten:
            self._clear(index)
        else:
            tokens, scores = tuple(job.tokens[: job.cached]), tuple(job.scores)
            self._rows[index] = _Row(row.adapter, tokens, scores, used=self._clock)

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

    def _longest(self, job: Job) -> tuple[int, int]:
        """Return the row that begins most like a request, and how many tokens they share."""
        best, most, adapter = 0, 0, _key(job)
        for index, row in enumerate(self._rows):
            if row.forgotten or row.adapter != adapter:
                continue
            if (shared := _common(row.held(), job.tokens, row.usable(job))) > most:
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


def _key(job: Job) -> str | None:
    return None if job.adapter is None else job.adapter.content or job.adapter.name


def _common(held: Sequence[int], tokens: Sequence[int], limit: int) -> int:
    """Return the length of the common beginning, at most ``limit``."""
    count = min(len(held), limit)
    if tuple(held[:count]) == tuple(tokens[:count]):
        return count
    return next(index for index in range(count) if held[index] != tokens[index])
