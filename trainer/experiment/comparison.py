"""Which setting is best, and whether that is more than noise. Pure: from what was measured and said.

Scores are predicted P(liked) by a reward model of the training ratings, on replies to development prompts.
Every setting has learned from the same ratings, those that rank their own replies most of all: what wins here
still has to win before the gate, whose reward model knows none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.config_sections import GateConfig
from storage.experiments import AS_CONFIGURED
from storage.sentences import Figure, Sentence
from trainer.data.question_features import Exchange
from trainer.evaluation import statistics
from trainer.evaluation.reward_model import RatedText, RewardModel
from trainer.evaluation.scores import Prompt
from trainer.evaluation.statistics import Estimate
from trainer.experiment.measured import Measured


@dataclass(frozen=True)
class Standing:
    """One setting beside the configured ones: mean P(liked), and the paired difference from theirs.

    `surely` says that the difference is none of chance, for all settings at once; `forgetful` that it forgot
    more than the gate lets pass.
    """

    measured: Measured
    liked: float | None = None
    difference: Estimate | None = None
    surely: str = ""
    forgetful: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return its figures for the run's record."""
        return {
            **self.measured.as_json(),
            "liked": self.liked,
            "difference": self.difference.as_json() if self.difference else None,
            "surely": self.surely,
            "forgetful": self.forgetful,
        }


@dataclass(frozen=True)
class Comparison:
    """All settings, the best first, bases last; `winner` is one that is surely better than the configured.

    `judge_auc` says how well the reward model predicts development ratings, None with too few of them.
    """

    standings: tuple[Standing, ...]
    winner: Measured | None
    sentence: Sentence
    prompts: int
    judge_auc: Estimate | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values for the run's record."""
        return {
            "standings": [each.as_json() for each in self.standings],
            "winner": dict(self.winner.changes) if self.winner else None,
            "winner_name": self.winner.name if self.winner else None,
            "winner_revision": self.winner.revision if self.winner else None,
            "prompts": self.prompts,
            "judge_auc": self.judge_auc.as_json() if self.judge_auc else None,
        }


def compare(
    measured: Sequence[Measured],
    prompts: Sequence[Prompt],
    judge: RewardModel | None,
    rated: Sequence[RatedText],
    development: Sequence[RatedText],
    gate: GateConfig,
    seed: int,
) -> Comparison:
    """Put settings side by side; `rated` are the ratings that the judge was fitted on."""
    if judge is None:
        standings = tuple(Standing(each, forgetful=_forgetful(each, gate)) for each in measured)
        return Comparison(standings, None, _unjudged(), len(prompts))
    tried = [each for each in measured if not each.is_base]
    configured = next(each for each in tried if each.name == AS_CONFIGURED)
    others = max(1, len(tried) - 1)
    standings = tuple(
        _standing(each, configured, prompts, judge, rated, gate, seed, others) for each in measured
    )
    ordered = sorted(standings, key=_rank)
    auc = _auc(judge, development, gate, seed)
    best = ordered[0]
    winner = best.measured if best.surely == "better" else None
    return Comparison(tuple(ordered), winner, _sentence(ordered, winner), len(prompts), auc)


def _rank(standing: Standing) -> tuple[bool, bool, float]:
    return standing.measured.is_base, standing.forgetful, -(standing.liked or 0.0)


def _standing(
    one: Measured,
    configured: Measured,
    prompts: Sequence[Prompt],
    judge: RewardModel,
    rated: Sequence[RatedText],
    gate: GateConfig,
    seed: int,
    others: int,
) -> Standing:
    new, old = _exchanges(one, prompts), _exchanges(configured, prompts)
    after, before, error = judge.compare(rated, new, old)
    liked, forgetful = float(after.mean()), _forgetful(one, gate)
    if one.name == configured.name:
        return Standing(one, liked, forgetful=forgetful)
    # As many comparisons as there are other settings: each is held to its share of the error (Bonferroni).
    confidence = 1 - (1 - gate.confidence) / others
    difference = statistics.clustered_mean(
        (after - before).tolist(),
        [prompt.cluster for prompt in prompts],
        resamples=gate.bootstrap,
        confidence=confidence,
        seed=seed,
        further_error=error,
    )
    surely = "better" if difference.low > 0 else "worse" if difference.high < 0 else ""
    return Standing(one, liked, difference, "" if surely == "better" and forgetful else surely, forgetful)


def _exchanges(one: Measured, prompts: Sequence[Prompt]) -> list[Exchange]:
    return [Exchange(prompt.question, said.text) for prompt, said in zip(prompts, one.answers, strict=True)]


def _forgetful(one: Measured, gate: GateConfig) -> bool:
    return one.general_rise > gate.max_general_nll_increase


def _auc(
    judge: RewardModel, development: Sequence[RatedText], gate: GateConfig, seed: int
) -> Estimate | None:
    liked = [item.liked for item in development]
    if not any(liked) or all(liked):
        return None
    return statistics.auc_estimate(
        judge.probability([item.exchange for item in development]).tolist(),
        liked,
        [item.group for item in development],
        resamples=gate.bootstrap,
        confidence=gate.confidence,
        seed=seed,
    )


def _unjudged() -> Sentence:
    return Sentence(
        "The settings can't be told apart: no reward model of the training ratings could be shown to predict "
        "others. Perplexity and accuracy are in the table. Nothing was promoted."
    )


def _sentence(ordered: Sequence[Standing], winner: Measured | None) -> Sentence:
    count = sum(not each.measured.is_base for each in ordered)
    if winner is not None:
        difference = ordered[0].difference
        assert difference is not None
        return Sentence(
            "Of {count} settings {name} scored best: {gain} ({low} to {high}) beside the configured ones, "
            "more than noise. Nothing was promoted.",
            count=count,
            name=winner.name,
            gain=Figure(difference.value, "+.2f"),
            low=Figure(difference.low, ".2f"),
            high=Figure(difference.high, ".2f"),
        )
    if count == 1:
        return Sentence("Only the configured settings were trained. Nothing was promoted.")
    return Sentence(
        "Of {count} settings none is better than the configured ones by more than noise. Nothing was "
        "promoted.",
        count=count,
    )
