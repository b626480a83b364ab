"""The scale of an adapter: the largest at which it answers to the point as its base does."""

from __future__ import annotations

import pytest

from trainer.on_policy import adapter_scale
from trainer.on_policy.adapter_scale import ScaleChoice

BASE = [0.0] * 15 + [1.0]


def chosen(*shares: float, base: list[float] = BASE, answers: int = 16) -> tuple[ScaleChoice | None, int]:
    """What is chosen where so large a share is beside the point at each scale, and how many were asked."""
    asked = []

    def at_scale(scale: float) -> list[float]:
        asked.append(scale)
        return [shares[len(asked) - 1]] * answers

    return adapter_scale.choose(base, at_scale), len(asked)


@pytest.mark.parametrize(
    ("shares", "scale", "asked"),
    [
        ((0.11,), 1.0, 1),
        ((0.01,), 1.0, 1),
        ((0.12, 0.11), 0.75, 2),
        ((0.3, 0.2, 0.1), 0.5, 3),
        ((0.9, 0.8, 0.7), 0.5, 3),
    ],
)
def test_the_largest_scale_that_answers_to_the_point_is_chosen_and_no_smaller_one_asked(
    shares: tuple[float, ...], scale: float, asked: int
) -> None:
    found, times = chosen(*shares)
    assert found is not None
    assert (found.scale, times) == (scale, asked)
    assert [share for _, share in found.by_scale] == pytest.approx(shares)


def test_only_prompts_that_both_have_answered_are_compared() -> None:
    found, _ = chosen(0.04, answers=12)
    assert found is not None
    assert (found.scale, found.base) == (1.0, 0.0)


def test_too_few_prompts_say_nothing() -> None:
    assert chosen(1.0, answers=11) == (None, 1)
    assert chosen(1.0, base=BASE[:11]) == (None, 1)
