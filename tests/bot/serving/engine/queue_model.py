"""A model server's queue without a model: the real waiting room and lanes, a clock that a test turns."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from bot.serving.engine.running_batch import RunningBatch
from bot.serving.engine.scheduler import QueueLimits, RequestQueue
from bot.serving.errors import ServerBusyError
from bot.serving.protocol import PRIORITY_PEOPLE, QueuePlace


@dataclass(eq=False)
class Reply:
    """A request that needs ``length`` tokens; its row costs a prompt again whenever it steps aside."""

    user: str
    length: int
    prompt: int
    asked_at: float
    priority: int = 0
    cancelled: bool = False
    cached: int = 0
    tokens: list[int] = field(default_factory=list)
    row_s: float = 0.0
    times_aside: int = 0
    queued_at: float = 0.0
    ended_at: float | None = None
    first_told: QueuePlace | None = None
    row_at: float | None = None
    tries: int = 0

    def expired(self, now: float) -> bool:
        return False

    def step_aside(self) -> None:
        self.times_aside += 1
        self.cached = 0


class QueueModel:
    """Steps as long as a CPU's: a fixed part, a part for each decoding row, and a chunk of a prompt.

    The chunk is smaller while others decode, as in the engine, and then a token of it costs more. Measured
    with the kernels on one thread, in processor time: steps of 1, 4 and 8 rows take 13, 22 and 55 ms, a chunk
    of 256 takes 0.78 s, and one of 32 beside four rows 0.18 s.
    """

    FIXED_S, ROW_S = 0.008, 0.006
    CHUNK, SHARED_CHUNK = 256, 32
    PROMPT_TOKEN_S, SHARED_PROMPT_TOKEN_S = 0.003, 0.0048

    def __init__(self, slots: int = 8, limits: QueueLimits | None = None) -> None:
        self.now = 0.0
        self.slots = slots
        self.room: RequestQueue[Reply] = RequestQueue(slots, limits or QueueLimits(), lambda: self.now)
        self.people: Any = RunningBatch(lambda: self.now)
        self.background: Any = RunningBatch(lambda: self.now)
        self.ended: list[Reply] = []
        self.refused = 0
        self.on_end: Callable[[Reply], None] = lambda _: None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, moment: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment, self._count, action))

    def submit(self, reply: Reply) -> float | None:
        """Queue a reply; return None, or after how long to come back."""
        reply.tries += 1
        try:
            self.room.add(reply, self.people)
        except ServerBusyError as busy:
            self.refused += 1
            return busy.retry_after_s
        reply.queued_at = self.now
        reply.first_told = self.room.place(reply, self.people)
        return None

    def submit_patiently(self, reply: Reply) -> None:
        """Come back whenever the server says so."""
        wait_s = self.submit(reply)
        if wait_s is not None:
            self.at(self.now + wait_s, lambda: self.submit_patiently(reply))

    def run(self, until: float) -> None:
        while self.now < until:
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            self.room.admit(self.people, self.background, self.people.join, self.people.leave)
            self.people.crowding = self.room.users(PRIORITY_PEOPLE)
            self.check_shares()
            jobs: list[Reply] = self.people.jobs
            if jobs:
                self.step(jobs)
            elif self._events:
                self.now = max(self.now, min(self._events[0][0], until))
            else:
                return

    def step(self, jobs: list[Reply]) -> None:
        for job in jobs:
            if job.row_at is None:
                job.row_at = self.now
        duration, wrote, readers = self.read_prompts()
        decoding = list(self.people.decoding)
        if decoding:
            duration += self.FIXED_S + self.ROW_S * len(decoding)
        self.now += duration
        self.people.count_reading(readers, duration)
        for job in jobs:
            job.row_s += duration
        for job in decoding:
            job.cached += 1
        for job in wrote + decoding:
            if job.ended_at is None:
                job.tokens.append(0)
                if len(job.tokens) >= job.length:
                    self.end(job)

    def read_prompts(self) -> tuple[float, list[Reply], set[str]]:
        """Read one chunk, of as many prompts as it takes; return what that lasted, which prompts ended, and
        the users whose prompts were read.

        A prompt's last token brings the reply's first, and its row decodes in the same step already.
        """
        shared = bool(self.people.decoding)
        budget, token_s = (
            (self.SHARED_CHUNK, self.SHARED_PROMPT_TOKEN_S) if shared else (self.CHUNK, self.PROMPT_TOKEN_S)
        )
        duration: float = 0.0
        finished: list[Reply] = []
        readers: set[str] = set()
        while budget > 0 and (reading := self.people.next_to_read()) is not None:
            readers.add(reading.user)
            missing = reading.prompt + len(reading.tokens) - reading.cached
            count = min(budget, missing)
            budget -= count
            reading.cached += count
            duration += token_s * count
            if count == missing:
                self.people.begin_decoding(reading)
                finished.append(reading)
        return duration, finished, readers

    def end(self, job: Reply) -> None:
        self.people.leave(job)
        job.ended_at = self.now
        self.room.observe(job.row_s)
        self.ended.append(job)
        self.on_end(job)

    def check_shares(self) -> None:
        """Nobody has more than an equal share, or than somebody else has use for; who waits has that much, or
        no row is free and nobody has two more.
        """
        rows = Counter(job.user for job in self.people.jobs)
        waiting = {reply.user for reply in self.room}
        wanted = rows + Counter(reply.user for reply in self.room)
        ranked = wanted.most_common(2)
        for user in wanted:
            most_of_others = next((count for other, count in ranked if other != user), self.slots)
            share = min(math.ceil(self.slots / len(wanted)), most_of_others)
            assert rows[user] <= share
            if user in waiting and rows[user] < share:
                assert len(self.people.jobs) == self.slots
                assert max(rows.values()) < rows[user] + 2


def latencies(replies: Iterable[Reply], user: str | None = None) -> list[float]:
    """Seconds from asking to the last token, of one user or of all."""
    return sorted(
        reply.ended_at - reply.asked_at
        for reply in replies
        if reply.ended_at is not None and (user is None or reply.user == user)
    )


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def draw(random_: random.Random, user: str, moment: float) -> Reply:
    """A question as Discord's: some context before it, an answer of some sentences."""
    return Reply(user, random_.randint(20, 120), random_.randint(40, 300), moment)
