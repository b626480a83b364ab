"""What a challenger was taught is told apart by it, or it goes no further."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from storage.config_sections import GateConfig
from tests.bench.learning import resampling
from tests.trainer.test_bench import stored
from trainer.evaluation import evidence, scores, training_fit
from trainer.evaluation.training_fit import ScoredTrainingReply, TrainingFit
from trainer.gate import decision


def replies(liked_gain: float, disliked_gain: float, count: int = 10) -> tuple[ScoredTrainingReply, ...]:
    """Replies whose gains beside the base are spread by half a nat."""
    return tuple(
        ScoredTrainingReply(f"{kind}{n}", kind, -2.0 + gain + n / (2 * count), -2.0)
        for kind, gain in ((True, liked_gain), (False, disliked_gain))
        for n in range(count)
    )


@pytest.mark.parametrize(
    ("liked_gain", "disliked_gain", "share"),
    [(0.8, -0.1, 1.0), (-0.1, 0.8, 0.0), (0.0, 0.0, 0.5)],
)
def test_what_gained_more_is_counted_by_pairs(liked_gain: float, disliked_gain: float, share: float) -> None:
    assert training_fit.summarise(replies(liked_gain, disliked_gain)) == TrainingFit(10, 10, share)


def test_a_few_replies_of_a_kind_say_nothing() -> None:
    assert training_fit.summarise(replies(0.8, 0.0, count=4)) is None
    assert training_fit.summarise(()) is None


def weighed_with(lessons: tuple[ScoredTrainingReply, ...]) -> decision.Verdict:
    """The verdict on a challenger whose replies please, and who was taught these."""
    pleasing = stored()
    scores = replace(pleasing.scores, training_replies=lessons)
    return decision.decide(
        evidence.build_evidence(scores, pleasing.ratings, GateConfig(), seed=0).evidence, GateConfig()
    )


def test_replies_that_please_don_t_excuse_a_challenger_that_learned_something_else() -> None:
    assert weighed_with(()).decision == weighed_with(replies(0.8, 0.0)).decision == "promote"
    shuffled = weighed_with(replies(0.05, 0.0))
    assert shuffled.decision == "refuse"
    assert "did not learn its training data" in shuffled.reason


def test_what_was_taught_is_kept_with_the_scores(tmp_path: Path) -> None:
    kept = replace(stored().scores, training_replies=replies(0.8, 0.0))
    scores.write(kept, tmp_path)
    assert scores.read(tmp_path).training_replies == kept.training_replies


def test_ratings_that_mean_nothing_are_learned_all_the_same() -> None:
    """In histories without signal the veto must not help: real challengers learn labels that mean nothing."""
    confused = replace(stored(), scores=replace(stored().scores, training_replies=replies(0.0, 0.8)))
    dealt = resampling.without_signal(resampling.resampled(confused, random.Random(1)), random.Random(1))
    assert dealt.scores.training_replies == ()
    assert len(resampling.resampled(confused, random.Random(1)).scores.training_replies) == 20
