"""How many threads share a step: measured at the start and while steps run, by how many tokens a step has.

Two threads need not be faster than one: a tiny model's steps are too short to share, and a thread that has to
wait for a core holds up the others. So now and then a step runs with half or twice the threads, and if that
proves better some times running, later steps of that size run so. Results are the same with any number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# How much faster twice the threads must be.
WORTH_DOUBLING = 1.2
# One step of so many tries another number of threads. With half of them it takes at most twice as long, which
# costs less than two in a hundred.
TRY_EVERY = 64
# After a trial that won, the next ones follow at once; so many must win in a row.
CONVINCING = 3
# The weight of the latest measurement in a running mean: about the last five count.
LATEST_SHARE = 0.3


@dataclass(slots=True)
class _Size:
    """Steps of about one number of tokens."""

    threads: int
    seconds: float | None = None
    since_trial: int = 0
    wins: int = 0
    trying_more: bool = False


class ThreadChoice:
    """Halves and doubles the numbers of ``start``, up to ``most``; its keys are the least tokens of a step.

    A step's tokens are those of all rows together; up to twice as many count as of one size.
    """

    def __init__(self, start: Mapping[int, int], most: int) -> None:
        self._start = dict(start)
        self._most = most
        self._sizes: dict[int, _Size] = {}

    @property
    def for_most_tokens(self) -> int:
        """The number at the start for steps of many tokens."""
        return self._start[max(self._start)]

    def next(self, tokens: int) -> int:
        """Return how many threads a step of so many tokens should have."""
        size = self._size(tokens)
        due = CONVINCING if size.wins else TRY_EVERY
        return self._other(size) if size.since_trial >= due else size.threads

    def took(self, tokens: int, threads: int, seconds: float) -> None:
        """Note how long a step took, by the wall's clock."""
        size = self._size(tokens)
        if threads == size.threads:
            before = size.seconds
            size.seconds = seconds if before is None else before + LATEST_SHARE * (seconds - before)
            size.since_trial += 1
        elif size.seconds is not None:
            self._judge(size, threads, seconds, size.seconds)

    def _judge(self, size: _Size, threads: int, seconds: float, usual_s: float) -> None:
        more = threads > size.threads
        gain = usual_s / seconds if more else seconds / usual_s
        won = (gain >= WORTH_DOUBLING) == more
        size.since_trial = 0
        size.wins = size.wins + 1 if won else 0
        if size.wins >= CONVINCING:
            size.threads, size.seconds, size.wins = threads, seconds, 0
        elif not won:
            size.trying_more = not size.trying_more

    def _other(self, size: _Size) -> int:
        """Return half or twice a size's threads, in turns where both are possible."""
        half, double = max(size.threads // 2, 1), min(size.threads * 2, self._most)
        if half == size.threads or (size.trying_more and double > size.threads):
            return double
        return half

    def _size(self, tokens: int) -> _Size:
        key = tokens.bit_length()
        if key not in self._sizes:
            least = max((least for least in self._start if least <= tokens), default=min(self._start))
            self._sizes[key] = _Size(self._start[least])
        return self._sizes[key]


def fastest_threads(step_s: Callable[[int], float], cores: int) -> int:
    """Return the number of threads with the shortest steps, a power of two up to ``cores``; fewer unless more
    clearly pay. ``step_s`` measures a step with so many.
    """
    best, best_s = 1, step_s(1)
    threads = 2
    while threads <= cores:
        if (seconds := step_s(threads)) < best_s / WORTH_DOUBLING:
            best, best_s = threads, seconds
        threads *= 2
    return best
