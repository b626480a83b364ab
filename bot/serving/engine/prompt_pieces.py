"""How much of a prompt a step reads while others decode: as much as it can without making them wait twice.

What a token costs to read and what a step takes are measured as they happen, for they differ by processor,
kernels, context and what else the machine does. A piece has a least size: below it most of the time goes into
the forward pass itself, and the newcomer's first word would take longer than the smoothness is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

# A request's tokens are torch's; sizes need none of it.
if TYPE_CHECKING:
    from bot.serving.engine.request import Job

# A step that reads a piece should take so many times as long as one that only decodes: less than twice, since
# what a token costs is known to a tenth or so.
STRETCH = 1.8
# The weight of the latest measurement in a running mean: about the last ten count.
LATEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Piece:
    """The next ``count`` tokens of a request's prompt."""

    job: Job
    count: int

    @property
    def tokens(self) -> Sequence[int]:
        """The token ids."""
        return self.job.tokens[self.job.cached : self.job.cached + self.count]

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends with it."""
        return self.job.cached + self.count == len(self.job.tokens)

    @property
    def keep(self) -> int:
        """Of how many of its last positions the logits are needed."""
        return self.count if self.job.score else int(self.is_last)


class PieceSize:
    """Learns from steps on a CPU; sizes are in tokens, times in seconds of the engine's thread.

    Its time on the processor: what else the machine does slows steps and tokens alike.
    """

    def __init__(self, least: int, most: int) -> None:
        self._least = min(least, most)
        self._most = most
        self._token_s: float | None = None
        self._step_s: dict[int, float] = {}

    def decoded(self, rows: int, seconds: float, read: int = 0) -> None:
        """Note how long decoding so many rows took, with so many tokens of a prompt in the same pass."""
        if not read:
            self._step_s[rows] = _mean(self._step_s.get(rows), seconds)
        elif rows in self._step_s:
            self.read(read, max(seconds - self._step_s[rows], 0.0))
        elif self._token_s:
            # Where prompts come one after the other, no step of so many rows is without a piece.
            self._step_s[rows] = max(seconds - read * self._token_s, self._step(rows) or 0.0)

    def read(self, tokens: int, seconds: float) -> None:
        """Note how long reading a piece took; one larger than any beside others is only a first guess."""
        if 0 < tokens <= self._most or self._token_s is None:
            self._token_s = _mean(self._token_s, seconds / tokens)

    def beside(self, rows: int) -> int:
        """Return how many tokens to read in a step that decodes so many rows."""
        step_s = self._step(rows)
        if step_s is None or not self._token_s:
            return self._most
        allowed = int((STRETCH - 1) * step_s / self._token_s)
        return max(self._least, min(self._most, allowed))

    def _step(self, rows: int) -> float | None:
        """Return what a step of so many rows takes, or of the next fewer, or of the fewest that were seen."""
        seen = [count for count in self._step_s if count <= rows]
        return self._step_s[max(seen)] if seen else self._step_s.get(min(self._step_s, default=0))


def _mean(before: float | None, latest: float) -> float:
    return latest if before is None else before + LATEST_SHARE * (latest - before)
