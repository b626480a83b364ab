"""The scale of an adapter: the largest that keeps to the gate's limits on texts that the gate doesn't see."""

from __future__ import annotations

import pytest

from trainer.data import general_replies
from trainer.on_policy import adapter_scale
from trainer.on_policy.adapter_scale import Look, ScaleChoice

LIMIT = 0.05
# One of sixteen answers is beside the point.
BASE = Look([0.0] * 15 + [1.0], 2.0, 0.1)


def beside(count: int, *, of: int = 16, general_nll: float = 2.0) -> Look:
    """A model of which so many answers, not those of the base's, are beside the point."""
    return Look([1.0] * count + [0.0] * (of - count), general_nll)


def flattering(mean: float) -> Look:
    """A model that flatters so much more than the base, which does by .1."""
    return Look(BASE.beside, 2.0, 0.1 + mean)


def chosen(*looks: Look, base: Look = BASE) -> tuple[ScaleChoice | None, int]:
    """What is chosen where this is seen at each scale, and how many scales were looked at."""
    coming = iter(looks)
    found = adapter_scale.choose(base, lambda scale: next(coming), max_general_nll_increase=LIMIT, seed=0)
    return found, len(looks) - sum(1 for _ in coming)


@pytest.mark.parametrize(
    ("looks", "scale", "tried"),
    [
        # Three instead of one come by chance, eight don't.
        ((beside(3), beside(0)), 1.0, 1),
        ((beside(8), beside(3), beside(0)), 0.75, 2),
        ((beside(9), beside(8), beside(2)), 0.5, 3),
        ((beside(9), beside(8), beside(8), beside(2)), 0.35, 4),
        ((beside(9), beside(8), beside(8), beside(8)), 0.35, 4),
        # As many beside the point, but general knowledge is forgotten: 5 %, 2.6 % and 2.4 %.
        ((beside(1, general_nll=2.1), beside(1, general_nll=2.052), beside(1)), 0.5, 3),
        ((beside(1, general_nll=2.1), beside(1, general_nll=2.048), beside(1)), 0.75, 2),
        ((beside(1, general_nll=1.8), beside(1)), 1.0, 1),
        # More praise: half of what the gate allows, .12, is let pass.
        ((flattering(0.11), flattering(0.07), flattering(0.05)), 0.5, 3),
        ((flattering(0.05), beside(1)), 1.0, 1),
    ],
)
def test_the_largest_scale_that_passes_is_chosen_and_no_smaller_one_tried(
    looks: tuple[Look, ...], scale: float, tried: int
) -> None:
    found, times = chosen(*looks)
    assert found is not None
    assert (found.scale, times) == (scale, tried)
    assert [each.beside for each in found.tried] == [sum(look.beside) / 16 for look in looks[:tried]]
    assert all(each.base == 1 / 16 for each in found.tried)


@pytest.mark.parametrize(("rise", "scale"), [(0.035, 1.0), (0.045, 0.75)])
def test_a_small_rise_is_let_pass_even_where_it_is_beyond_chance(rise: float, scale: float) -> None:
    found, _ = chosen(Look([rise] * 16, 2.0), beside(0), base=beside(0))
    assert found is not None
    assert found.tried[0].most_by_chance < 0.035
    assert found.scale == scale


def test_only_prompts_that_both_have_answered_are_compared() -> None:
    found, _ = chosen(beside(0, of=12))
    assert found is not None
    assert (found.scale, found.tried[0].base) == (1.0, 0.0)


def test_too_few_prompts_say_nothing() -> None:
    assert chosen(beside(11, of=11)) == (None, 1)
    assert chosen(beside(16), base=Look(BASE.beside[:11], 2.0)) == (None, 1)


def test_without_general_replies_only_answers_beside_the_point_count() -> None:
    found, _ = chosen(beside(1, general_nll=0.0), base=Look(BASE.beside, 0.0))
    assert found is not None
    assert found.scale == 1.0


def test_no_general_prompt_is_in_two_sets() -> None:
    sets = (
        general_replies.TRAIN_PROMPTS,
        general_replies.VALIDATION_PROMPTS,
        general_replies.HELD_OUT_PROMPTS,
        general_replies.COMMUNITY_PROMPTS,
    )
    assert len({prompt for prompts in sets for prompt in prompts}) == sum(map(len, sets))
