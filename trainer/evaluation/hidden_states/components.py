"""Many columns made few: principal components of hidden states."""

from __future__ import annotations

import numpy as np

from trainer.data.text_features import Array

# 8, 16 and 32 were compared (EXPERIMENTS, 30).
COMPONENTS = 16


class Components:
    """The first principal components of some rows, each with a deviation of 1 over them.

    Each column is standardised before: a few of a language model's are far larger than all the others.
    """

    def __init__(self, columns: Array, count: int = COMPONENTS) -> None:
        """Find the components of `columns`, shape (rows, columns); no label is looked at."""
        self._mean, self._deviation = columns.mean(0), np.maximum(columns.std(0), 1e-9)
        _, spread, axes = np.linalg.svd(self._standard(columns), full_matrices=False)
        kept = min(count, len(columns) - 1)
        self._axes = axes[:kept].T / np.maximum(spread[:kept] / np.sqrt(len(columns)), 1e-9)

    def __call__(self, columns: Array) -> Array:
        """Return the components of other rows too, shape (rows, components)."""
        return np.asarray(self._standard(columns) @ self._axes)

    def _standard(self, columns: Array) -> Array:
        return np.asarray((columns - self._mean) / self._deviation)
