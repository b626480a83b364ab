"""How much of a prompt a step reads while others decode: as much as it can without making them wait twice.

What a token costs to read and what a step takes are measured as they happen, for they differ by processor,
kernels, context and what else the machine does. A piece has a least size: below it most of the time goes into
the forward pass itself, and the newcomer's first word would take longer than the smoothness is worth.
"""

from __future__ import annotations

# A step that reads a piece may take so many times as long as one that only decodes.
STRETCH = 2.0
# The weight of the latest measurement in a running mean: about the last ten count.
LATEST_SHARE = 0.2


class PieceSize:
    """Learns from steps on a CPU; sizes are in tokens, times in seconds."""

    def __init__(self, least: int, most: int) -> None:
        self._least = min(least, most)
        self._most = most
        self._token_s: float | None = None
        self._step_s: dict[int, float] = {}

    def decoded(self, rows: int, seconds: float) -> None:
        """Note how long decoding so many rows took."""
        self._step_s[rows] = _mean(self._step_s.get(rows), seconds)

    def read(self, tokens: int, seconds: float) -> None:
        """Note how long reading a piece took; larger ones than ever stand beside others say nothing."""
        if 0 < tokens <= self._most:
            self._token_s = _mean(self._token_s, seconds / tokens)

    def beside(self, rows: int) -> int:
        """Return how many tokens to read in a step that decodes so many rows."""
        step_s = self._step_s.get(rows)
        if step_s is None or not self._token_s:
            return self._most
        allowed = int((STRETCH - 1) * step_s / self._token_s)
        return max(self._least, min(self._most, allowed))


def _mean(before: float | None, latest: float) -> float:
    return latest if before is None else before + LATEST_SHARE * (latest - before)
