"""How much of a prompt a step reads while others decode: as much as it can without making them wait twice.

What a step, a row and a token cost is learned from steps as they happen, for it differs by processor,
kernels, context and what else the machine does. A piece has a least size: below it most of the time goes into
the forward pass itself, and the newcomer's first word would take longer than the smoothness is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

# A request's tokens are torch's; sizes need none of it.
if TYPE_CHECKING:
    from bot.serving.engine.request import Job

# A step that reads a piece should take so many times as long as one that only decodes: less than twice, since
# what a token costs is known to a tenth or so.
STRETCH = 1.8
# What a step still counts when the next has been seen: about the last twenty count.
MEMORY = 0.95
# A piece is at most so many times as large as the largest of the latest: estimates start as guesses.
GROWTH = 1.5
# After so many pieces the largest of them counts a third.
SIZE_MEMORY = 0.9
# How uncertain the costs of a step, a row and a token are at first, in squares of the first step's time: a
# row is thought to cost a quarter of a step, a token a sixteenth, give or take four times as much.
UNCERTAINTY = (16.0, 16.0 / 4**2, 16.0 / 16**2)


@dataclass(frozen=True, slots=True)
class Piece:
    """The next ``count`` tokens of a request's prompt."""

    job: Job
    count: int

    @property
    def tokens(self) -> Sequence[int]:
        """The token ids."""
        return self.job.tokens[self.job.cached : self.end]

    @property
    def end(self) -> int:
        """How many of the prompt's tokens are read with it."""
        return self.job.cached + self.count

    @property
    def is_last(self) -> bool:
        """Whether the prompt ends with it."""
        return self.end == len(self.job.tokens)

    @property
    def keep(self) -> int:
        """Of how many of its last positions the logits are needed."""
        return self.count if self.job.score else int(self.is_last)


class StepTime:
    """What a step takes on a CPU: ``costs`` are the seconds of a step, of each row and of each token read.

    Recursive least squares with forgetting (Ljung, System Identification, 1999, section 11.2) of relative
    errors: divided by the longer of what was foreseen and what was seen, a single slow step changes little.
    What is forgotten is replaced by what was known at first: steps that are all alike tell nothing of what a
    row costs.
    """

    def __init__(self) -> None:
        self.costs = np.zeros(3)
        self._at_first = np.zeros((3, 3))
        self._information = np.zeros((3, 3))

    def of(self, rows: int, tokens: int = 0) -> float:
        """Return the seconds of a step that decodes so many rows and reads so many tokens."""
        return float(self.costs @ (1, rows, tokens))

    def saw(self, rows: int, tokens: int, seconds: float) -> None:
        """Learn from one step."""
        if seconds <= 0:
            return
        if not self._at_first.any():
            self._at_first = np.diag([1 / (variance * seconds**2) for variance in UNCERTAINTY])
            self._information = self._at_first
        foreseen = self.of(rows, tokens)
        scale = max(seconds, foreseen)
        inputs = np.array([1, rows, tokens]) / scale
        kept = MEMORY * self._information + (1 - MEMORY) * self._at_first
        self._information = kept + np.outer(inputs, inputs)
        covariance = np.linalg.inv(self._information)
        self.costs += covariance @ inputs * ((seconds - foreseen) / scale)
        # No cost is negative; the others change as they would have, had that been known.
        for i in range(3):
            if self.costs[i] < 0:
                self.costs -= covariance[i] * (self.costs[i] / covariance[i, i])
        self.costs = self.costs.clip(0.0)


class PieceSize:
    """Learns from steps on a CPU; sizes are in tokens, times in seconds of the engine's thread.

    Its time on the processor: what else the machine does slows steps and tokens alike.
    """

    def __init__(self, least: int, most: int) -> None:
        self._least = min(least, most)
        self._most = most
        self._time = StepTime()
        self._latest = 0.0

    def saw(self, rows: int, tokens: int, seconds: float) -> None:
        """Note how long a step took that decoded so many rows and read so many tokens of prompts.

        A piece larger than any beside others is only a first guess.
        """
        if tokens <= self._most or not self._time.costs[-1]:
            self._time.saw(rows, tokens, seconds)
        if rows and 0 < tokens <= self._most:
            self._latest = max(SIZE_MEMORY * self._latest, tokens)

    def beside(self, rows: int) -> int:
        """Return how many tokens to read in a step that decodes so many rows."""
        allowed_s = (STRETCH - 1) * self._time.of(rows)
        most = max(self._least, min(self._most, int(GROWTH * self._latest)))
        token_s = self._time.costs[-1]
        return max(self._least, int(allowed_s / token_s)) if allowed_s < most * token_s else most
