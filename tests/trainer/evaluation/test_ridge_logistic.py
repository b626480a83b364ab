"""Labels to be expected: where something is known of a row, though not its label."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluation import ridge_logistic
from trainer.evaluation.ridge_logistic import CLOSE, Array, chance

KNOWN, OTHERS = 40, 80
WEIGHT = 0.3


@pytest.fixture
def rows() -> tuple[Array, Array, Array]:
    """Return a kernel, labels that its first feature decides with noise, and weights of known and others."""
    generator = np.random.default_rng(5)
    columns = generator.standard_normal((KNOWN + OTHERS, 6))
    labels = (columns[:, 0] + generator.standard_normal(KNOWN + OTHERS) > 0).astype(float)
    return columns @ columns.T / 4, labels, np.repeat([1.0, WEIGHT], [KNOWN, OTHERS])


def odds(kernel: Array, found: ridge_logistic.Solution) -> Array:
    return np.asarray(kernel @ found.alpha + found.intercept)


def test_rows_of_which_nothing_is_known_move_nothing(rows: tuple[Array, Array, Array]) -> None:
    kernel, labels, weights = rows
    found = ridge_logistic.fit_expected(kernel, labels[:KNOWN], weights, np.zeros(OTHERS))
    alone = ridge_logistic.fit(kernel[:KNOWN, :KNOWN], labels[:KNOWN], weights[:KNOWN])
    assert np.allclose(odds(kernel, found), odds(kernel[:, :KNOWN], alone), atol=1e-2)


def test_rows_of_which_all_is_known_count_as_labels(rows: tuple[Array, Array, Array]) -> None:
    kernel, labels, weights = rows
    told = np.where(labels[KNOWN:] > 0, 50.0, -50.0)
    found = ridge_logistic.fit_expected(kernel, labels[:KNOWN], weights, told)
    labelled = ridge_logistic.fit(kernel, labels, weights, CLOSE)
    assert np.allclose(odds(kernel, found), odds(kernel, labelled), atol=1e-2)


def test_the_fit_is_where_the_likelihood_of_all_that_is_known_is_flat(
    rows: tuple[Array, Array, Array],
) -> None:
    kernel, labels, weights = rows
    ratios = np.where(labels[KNOWN:] > 0, 1.0, -1.0)
    found = ridge_logistic.fit_expected(kernel, labels[:KNOWN], weights, ratios)

    def likelihood(alpha: Array) -> float:
        fitted = chance(kernel @ alpha + found.intercept)
        known, others = fitted[:KNOWN], fitted[KNOWN:]
        told = np.log(np.where(labels[:KNOWN] > 0, known, 1 - known)).sum()
        told += WEIGHT * np.log(others * np.exp(ratios) + 1 - others).sum()
        return float(told - alpha @ kernel @ alpha / 2)

    best = likelihood(found.alpha)
    for row in range(0, KNOWN + OTHERS, 7):
        for step in (-0.05, 0.05):
            moved = found.alpha.copy()
            moved[row] += step
            assert likelihood(moved) < best
