"""Who is served next, and what those who wait are told (torch-free).

People come before background work. Among people, the one who holds the fewest rows comes first, and among
equals they take turns; so a member who sends two hundred requests waits for those two hundred, and nobody
else does. While others are served or wait, nobody holds more than an equal share of the rows, nor more rows
than somebody else could fill: where every row slows the step, that is what keeps the others' replies quick
(so does how prompts are read: :mod:`bot.serving.engine.running_batch`). And when a row is wanted and somebody
holds at least two more than the one who waits, they give one up. The shortest of their replies then steps
aside: it keeps its tokens and goes on later. Each such exchange makes the shares more even, so that they
can't go round in circles.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from bot.serving.errors import ServerBusyError
from bot.serving.protocol import PRIORITY_BACKGROUND, PRIORITY_PEOPLE, QueuePlace, QueueState

# Before the first reply has ended nobody knows how long one takes; this is a guess for a small model.
FIRST_GUESS_S = 5.0
# The share of the latest reply in the running mean of how long a reply takes.
LATEST_SHARE = 0.1


class Waiter(Protocol):
    """What the queue needs to know of a request; ``user`` is empty where the caller named nobody."""

    user: str
    priority: int
    cancelled: bool
    tokens: list[int]

    def expired(self, now: float) -> bool:
        """Whether its deadline has passed."""

    def step_aside(self) -> None:
        """Note that it has lost its row and waits again."""


W = TypeVar("W", bound=Waiter)
W_co = TypeVar("W_co", bound=Waiter, covariant=True)


class Running(Protocol[W_co]):
    """The running requests of one priority (:class:`bot.serving.engine.running_batch.RunningBatch`)."""

    @property
    def jobs(self) -> Sequence[W_co]:
        """Those that have a row, the latest last."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many requests may wait: people's, background work's, one user's, and those that name no user."""

    people: int = 64
    background: int = 512
    per_user: int = 8
    unnamed: int = 32

    def of_one_caller(self, priority: int, user: str) -> int:
        """Return how many requests of one caller may wait."""
        if priority == PRIORITY_BACKGROUND:
            return self.background
        return self.per_user if user else self.unnamed


LIMITS = QueueLimits()


class _Turns(Generic[W]):
    """The waiting requests of one priority, by user, in the order in which the users' turns come."""

    def __init__(self) -> None:
        self._users: dict[str, deque[W]] = {}

    def __len__(self) -> int:
        return sum(len(jobs) for jobs in self._users.values())

    def __iter__(self) -> Iterator[W]:
        return (job for jobs in self._users.values() for job in jobs)

    @property
    def users(self) -> list[str]:
        return list(self._users)

    def of(self, user: str) -> int:
        return len(self._users.get(user, ()))

    def add(self, job: W) -> None:
        self._users.setdefault(job.user, deque()).append(job)

    def put_back(self, job: W) -> None:
        """Make it its user's next, and its user the next among equals."""
        jobs = self._users.pop(job.user, deque())
        jobs.appendleft(job)
        self._users = {job.user: jobs, **self._users}

    def first(self, rows: Counter[str]) -> W | None:
        """Return who comes next, given how many rows each user holds."""
        user = min(self._users, key=lambda user: rows[user], default=None)
        return None if user is None else self._users[user][0]

    def take(self, job: W) -> None:
        """Remove a user's next request; the user's next turn comes after everyone else's."""
        jobs = self._users.pop(job.user)
        jobs.popleft()
        if jobs:
            self._users[job.user] = jobs

    def remove(self, job: W) -> None:
        self._users[job.user].remove(job)
        if not self._users[job.user]:
            del self._users[job.user]

    def in_order(self, rows: Counter[str]) -> list[W]:
        """Return all in the order of their turns, as things stand now."""
        ranked = [
            (rows[user] + behind, turn, job)
            for turn, (user, jobs) in enumerate(self._users.items())
            for behind, job in enumerate(jobs)
        ]
        return [job for *_, job in sorted(ranked, key=lambda entry: entry[:2])]


class RequestQueue(Generic[W]):
    """The waiting requests of an engine with ``slots`` rows. Not thread-safe: the engine's lock guards it."""

    def __init__(
        self, slots: int, limits: QueueLimits = LIMITS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._slots = slots
        self._limits = limits
        self._clock = clock
        self._people: _Turns[W] = _Turns()
        self._background: _Turns[W] = _Turns()
        self._served = 0
        self._mean_row_s = FIRST_GUESS_S
        self._promised_until = 0.0

    def __len__(self) -> int:
        return len(self._people) + len(self._background)

    def __iter__(self) -> Iterator[W]:
        yield from self._people
        yield from self._background

    def add(self, job: W, people: Running[W]) -> None:
        """Let a request wait.

        Raises:
            ServerBusyError: too many wait already, of this user or of all; it says when to come back.
        """
        turns = self._turns(job.priority)
        background = job.priority == PRIORITY_BACKGROUND
        total = self._limits.background if background else self._limits.people
        if turns.of(job.user) >= self._limits.of_one_caller(job.priority, job.user):
            raise self._busy("of yours ", turns.of(job.user), self._own_turn_s(turns, job.user, people))
        if len(turns) >= total:
            raise self._busy("", len(turns), self._turn_s(0) if background else self._promise_s(total))
        turns.add(job)

    def remove_ended(self, now: float) -> list[W]:
        """Remove and return the requests that were cancelled or whose deadline has passed."""
        ended = [job for job in self if job.cancelled or job.expired(now)]
        for job in ended:
            self._turns(job.priority).remove(job)
        return ended

    def users(self, priority: int) -> list[str]:
        """Return of whom requests of a priority wait."""
        return self._turns(priority).users

    def clear(self) -> list[W]:
        """Remove and return everything."""
        everything = list(self)
        self._people, self._background = _Turns(), _Turns()
        return everything

    def admit(
        self,
        people: Running[W],
        background: Running[W],
        join: Callable[[W], None],
        leave: Callable[[W], None],
    ) -> None:
        """Give rows to those whose turn it is, as far as there are rows for them.

        ``join`` gives a request a free row, ``leave`` takes its row away; both change the lanes at once.
        """
        rows = Counter(job.user for job in people.jobs)
        for user in list(rows):
            for _ in range(rows[user] - self._share(rows, user)):
                self._step_aside(_shortest(people, user), rows, leave)
        while (job := self._people.first(rows)) is not None and rows[job.user] < self._share(rows, job.user):
            if not self._has_free_row(people, background):
                giver = self._who_steps_aside(rows[job.user], rows, people, background)
                if giver is None:
                    break
                self._step_aside(giver, rows, leave)
            self._people.take(job)
            rows[job.user] += 1
            join(job)
        rows = Counter(job.user for job in background.jobs)
        while (job := self._background.first(rows)) is not None and self._has_free_row(people, background):
            self._background.take(job)
            rows[job.user] += 1
            join(job)

    def observe(self, row_s: float) -> None:
        """Learn from a person's reply for how long it held its row, in seconds."""
        self._served += 1
        share = max(LATEST_SHARE, 1 / self._served)
        self._mean_row_s += share * (row_s - self._mean_row_s)

    def place(self, job: W, people: Running[W]) -> QueuePlace | None:
        """Return how many come before a waiting request and about how long it waits; None once it runs."""
        if job.priority != PRIORITY_PEOPLE:
            return None
        rows = Counter(running.user for running in people.jobs)
        order = self._people.in_order(rows)
        ahead = next((index for index, waiting in enumerate(order) if waiting is job), None)
        return None if ahead is None else QueuePlace(ahead, self._wait_s(order, ahead, rows))

    def state(self, people: Running[W]) -> QueueState:
        """Return the counts, and about how long somebody without a row would wait."""
        rows = Counter(job.user for job in people.jobs)
        free = len(people.jobs) < self._slots or max(rows.values(), default=0) > 1
        ahead = sum(rows[user] == 0 for user in self._people.users)
        return QueueState(
            people=len(self._people),
            background=len(self._background),
            users=len(self._people.users),
            wait_s=0.0 if free and not ahead else self._turn_s(ahead),
        )

    def _turns(self, priority: int) -> _Turns[W]:
        return self._background if priority == PRIORITY_BACKGROUND else self._people

    def _turn_s(self, ahead: int) -> float:
        """Rows become free one by one, as many as there are in the time that a reply takes."""
        return (ahead + 1) * self._mean_row_s / self._slots

    def _wait_s(self, order: list[W], ahead: int, rows: Counter[str]) -> float:
        """Estimate a wait; whoever holds a full share waits for rows of that share alone."""
        user = order[ahead].user
        share = self._share(rows, user)
        if rows[user] < share:
            return self._turn_s(ahead)
        own = sum(job.user == user for job in order[:ahead])
        return max(self._turn_s(ahead), (own + 1) * self._mean_row_s / share)

    def _own_turn_s(self, turns: _Turns[W], user: str, people: Running[W]) -> float:
        """Estimate when the next of a user's own requests leaves the queue."""
        rows = Counter(job.user for job in people.jobs)
        order = turns.in_order(rows)
        ahead = next(index for index, job in enumerate(order) if job.user == user)
        return self._wait_s(order, ahead, rows)

    def _share(self, rows: Counter[str], user: str) -> int:
        """Return how many rows a user may hold: an equal share, and no more than somebody else has use for.

        Rows that only one user could fill stay empty while others are served: each would slow them.
        """
        people = {each for each, count in rows.items() if count} | set(self._people.users) | {user}
        wanted = [rows[each] + self._people.of(each) for each in people if each != user]
        equal = -(-self._slots // len(people))
        return min(equal, max(wanted)) if wanted else equal

    def _promise_s(self, limit: int) -> float:
        """Return when a place is free in a full queue, each refused caller's after the one before."""
        now = self._clock()
        promised = max(self._promised_until, now) + self._turn_s(0)
        self._promised_until = min(promised, now + self._turn_s(limit))
        return self._promised_until - now

    def _busy(self, whose: str, waiting: int, retry_after_s: float) -> ServerBusyError:
        retry_after_s = max(1.0, retry_after_s)
        return ServerBusyError(
            f"{waiting} requests {whose}are waiting already; try again in about {retry_after_s:.0f} s.",
            retry_after_s,
        )

    def _has_free_row(self, people: Running[W], background: Running[W]) -> bool:
        return len(people.jobs) + len(background.jobs) < self._slots

    def _who_steps_aside(
        self, own: int, rows: Counter[str], people: Running[W], background: Running[W]
    ) -> W | None:
        """Return whose row goes to a user who holds ``own``, where that is fair to both."""
        if background.jobs:
            return background.jobs[-1]
        greatest = max(rows, key=lambda user: rows[user])
        if rows[greatest] < own + 2:
            return None
        return _shortest(people, greatest)

    def _step_aside(self, job: W, rows: Counter[str], leave: Callable[[W], None]) -> None:
        leave(job)
        job.step_aside()
        self._turns(job.priority).put_back(job)
        if job.priority == PRIORITY_PEOPLE:
            rows[job.user] -= 1


def _shortest(people: Running[W], user: str) -> W:
    """Return a user's running request that is read again most quickly."""
    return min((job for job in people.jobs if job.user == user), key=lambda job: len(job.tokens))
