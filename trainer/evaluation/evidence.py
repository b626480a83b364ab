"""From stored scores to evidence: pure, so that a verdict can be repeated, and simulated, without a model.

A run asks the model server once and writes down what it heard (`Scores`). Everything after that, the reward
model, its proof, the intervals and the guardrails' figures, is a function of those scores and the labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from storage.config_sections import GateConfig
from trainer.data import text_features
from trainer.data.question_features import Exchange
from trainer.evaluation import regressions, reward_model, safety, statistics, to_the_point, training_fit
from trainer.evaluation.feature_blocks import StatesOf
from trainer.evaluation.flattery import flattery
from trainer.evaluation.regressions import Kept
from trainer.evaluation.reward_model import Proof, RatedText
from trainer.evaluation.safety import Safety
from trainer.evaluation.scores import Answer, Pair, ScoredReply, Scores
from trainer.evaluation.statistics import Estimate
from trainer.evaluation.to_the_point import ToThePoint
from trainer.evaluation.training_fit import TrainingFit

# Fewer held-out prompts than this decide nothing, however clear they look.
MIN_PROMPTS = 12
RECITED_WORDS = 12


@dataclass(frozen=True)
class ReplyTraits:
    """What the generated replies of one model look like, as shares of all its replies.

    `repetition` is the mean share of repeated word 4-grams; `recited` the share that contains twelve words in
    a row from a member's correction; `flattery` the mean of `flattery.flattery`.
    """

    unfinished: float
    repetition: float
    duplicates: float
    empty: float
    recited: float
    mean_words: float
    flattery: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """All that was measured of a challenger beside its champion.

    `preference` is the paired difference in predicted P(liked), None where the reward model could not be
    fitted; `margin` the challenger's gain of log-probability per token on liked over disliked held-out
    replies, which is reported and decides nothing (EXPERIMENTS, 17);
    `general_nll_increase` relative to the base, on the base's own held-out replies to general prompts, and
    `general_divergence` the same in nats per token: an estimate of KL(base || challenger).
    `challenger_number` counts the challengers compared with this champion, this one included.

    `base_flattery` is the base's own on the prompts that it answered too, and `flattery` the challenger's on
    the same: measured against the base, so that small steps don't add up. `trained_corrections` and
    `held_out_corrections` say how past corrections fare, `training_fit` how the replies it was trained on,
    and `to_the_point` how many answers would fit another question as well.
    """

    preference: Estimate | None
    proof: Proof
    margin: Estimate | None
    general_nll_increase: float
    general_divergence: float
    challenger: ReplyTraits
    champion: ReplyTraits
    same_replies: float
    prompts: int
    extra_prompts: int
    challenger_number: int = 1
    flattery: float = 0.0
    base_flattery: float = 0.0
    trained_corrections: Kept | None = None
    held_out_corrections: Kept | None = None
    safety: Safety | None = None
    training_fit: TrainingFit | None = None
    to_the_point: ToThePoint | None = None

    @property
    def proven_preference(self) -> Estimate | None:
        """Return the preference where the reward model that it comes from has proven itself."""
        return self.preference if self.proof.holds else None


@dataclass(frozen=True)
class Ratings:
    """What the members said, as the reward model needs it: training ratings, held-out ones, corrections."""

    train: tuple[RatedText, ...]
    held_out: tuple[RatedText, ...]
    corrections: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportedEvidence:
    """The evidence for the gate, and the figures that are reported with it."""

    evidence: Evidence
    figures: dict[str, Any]


def alpha_for_attempt(alpha: float, challenger_number: int) -> float:
    """Return the error rate that the n-th challenger of one champion may use: alpha / (n (n + 1)).

    They add up to `alpha` over as many retrains as there will ever be. Without that, thirty retrains that
    change nothing end with a lucky challenger more often than not (EXPERIMENTS, 5).
    """
    return alpha / (challenger_number * (challenger_number + 1))


def build_evidence(
    scores: Scores,
    ratings: Ratings,
    settings: GateConfig,
    seed: int,
    challenger_number: int = 1,
    states_of: StatesOf | None = None,
) -> ReportedEvidence:
    """Turn scores and ratings into evidence; the same input gives the same evidence.

    `challenger_number` counts the challengers that this champion has been compared with: the later, the more
    is asked. With `states_of` the judge may use hidden states.

    Raises ValueError without pairs or without general replies.
    """
    judge: dict[str, Any] = {
        "resamples": settings.bootstrap,
        "confidence": settings.confidence,
        "seed": seed,
    }
    # Fitted on what the trainer never saw, and proven on what it was not fitted on: whatever the challenger
    # has learned of the training ratings' accidents, this judge knows nothing of them.
    model, proof = reward_model.prove(ratings.held_out, ratings.train, states_of=states_of, **judge)
    tokens = sum(loss.tokens for loss in scores.general)
    if not tokens or not scores.pairs:
        raise ValueError("there is nothing to compare on")
    base_nll = sum(loss.base for loss in scores.general) / tokens
    new_nll = sum(loss.challenger for loss in scores.general) / tokens
    asked = list(dict.fromkeys(pair.prompt for pair in scores.pairs))
    fawning, plain = _flattery(scores.pairs)
    evidence = Evidence(
        preference=(
            preference(model, ratings.held_out, scores.pairs, judge, challenger_number)
            if model is not None
            else None
        ),
        proof=proof,
        margin=_margin(scores.rated, judge),
        general_nll_increase=new_nll / base_nll - 1,
        general_divergence=new_nll - base_nll,
        challenger=traits([pair.challenger for pair in scores.pairs], ratings.corrections),
        champion=traits([pair.champion for pair in scores.pairs], ratings.corrections),
        same_replies=sum(p.challenger.text == p.champion.text for p in scores.pairs) / len(scores.pairs),
        prompts=len(asked),
        extra_prompts=sum(prompt.group is None for prompt in asked),
        challenger_number=challenger_number,
        flattery=fawning,
        base_flattery=plain,
        trained_corrections=regressions.summarise(scores.corrections, trained=True, **judge),
        held_out_corrections=regressions.summarise(scores.corrections, trained=False, **judge),
        safety=safety.summarise(scores.safety),
        training_fit=training_fit.summarise(scores.training_replies),
        to_the_point=to_the_point.summarise(scores.tied, **judge),
    )
    general = {"base": base_nll, "challenger": new_nll}
    held_out = {"held_out_replies": _held_out_figures(scores.rated)}
    return ReportedEvidence(evidence, {"general_nll": general, **held_out, **_figures(evidence, model)})


def traits(answers: Sequence[Answer], corrections: Sequence[str]) -> ReplyTraits:
    """Describe generated replies for the guardrails."""
    texts = [answer.text.strip() for answer in answers]
    spoken = [text for text in texts if text]
    own_words = {gram for correction in corrections for gram in _runs(correction)}
    count = max(1, len(texts))
    return ReplyTraits(
        unfinished=sum(not answer.finished for answer in answers) / count,
        repetition=sum(text_features.repetition(text) for text in texts) / count,
        duplicates=1 - len({text_features.gist(text) for text in spoken}) / len(spoken) if spoken else 0.0,
        empty=1 - len(spoken) / count,
        recited=sum(not own_words.isdisjoint(_runs(text)) for text in texts) / count,
        mean_words=sum(len(text.split()) for text in texts) / count,
        flattery=sum(flattery(text) for text in texts) / count,
    )


def _margin(rated: Sequence[ScoredReply], judge: dict[str, Any]) -> Estimate | None:
    """Return how much more the challenger gains on liked than on disliked replies; None without both."""
    liked = [reply.liked for reply in rated]
    if not any(liked) or all(liked):
        return None
    return statistics.clustered_difference(
        [reply.challenger - reply.champion for reply in rated],
        liked,
        [reply.group for reply in rated],
        **judge,
    )


def preference(
    model: reward_model.RewardModel,
    rated: Sequence[RatedText],
    pairs: Sequence[Pair],
    judge: dict[str, Any],
    challenger_number: int,
) -> Estimate:
    """Return the paired difference in predicted P(liked), challenger minus champion.

    Its interval covers both samples that it hangs on: the prompts, and the ratings that the model was fitted
    on.
    """
    new = [Exchange(pair.prompt.question, pair.challenger.text) for pair in pairs]
    old = [Exchange(pair.prompt.question, pair.champion.text) for pair in pairs]
    liked_new, liked_old, error = model.compare(rated, new, old)
    return statistics.clustered_mean(
        (liked_new - liked_old).tolist(),
        [pair.prompt.cluster for pair in pairs],
        bound_confidence=1 - alpha_for_attempt(1 - judge["confidence"], challenger_number),
        further_error=error,
        **judge,
    )


def _flattery(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Return the flattery of challenger and base on the prompts that the base answered, else the champion."""
    answered = [pair for pair in pairs if pair.base is not None]
    compared = answered or pairs
    old = [pair.base or pair.champion for pair in compared]
    return _mean_flattery([pair.challenger for pair in compared]), _mean_flattery(old)


def _mean_flattery(answers: Sequence[Answer]) -> float:
    return sum(flattery(answer.text) for answer in answers) / len(answers)


def _held_out_figures(rated: Sequence[ScoredReply]) -> dict[str, Any] | None:
    """Return perplexity of liked held-out replies, and how often a liked one is likelier than a disliked one.

    People expect them; they decide nothing. None without both kinds.
    """
    liked = [reply for reply in rated if reply.liked]
    if not liked or len(liked) == len(rated):
        return None
    kinds = [reply.liked for reply in rated]

    def figures(scores: Sequence[float], of_liked: Sequence[float]) -> dict[str, float]:
        perplexity = math.exp(-sum(of_liked) / len(of_liked))
        return {"perplexity_of_liked": perplexity, "accuracy": statistics.auc(scores, kinds)}

    return {
        "replies": len(rated),
        "challenger": figures([r.challenger for r in rated], [r.challenger for r in liked]),
        "champion": figures([r.champion for r in rated], [r.champion for r in liked]),
    }


def _figures(evidence: Evidence, model: reward_model.RewardModel | None) -> dict[str, Any]:
    """Return what is reported with every run, also what does not decide."""
    proof = evidence.proof
    return {
        "general_nll_increase": evidence.general_nll_increase,
        "margin": evidence.margin.as_json() if evidence.margin else None,
        "reward_auc": {
            "cross_validated": proof.cross_validated.as_json() if proof.cross_validated else None,
            "unseen": proof.unseen.as_json() if proof.unseen else None,
        },
        "reward_features": dict(model.strongest()) if model else {},
        "judge_sees": {name: round(share, 3) for name, share in model.weight_of_blocks.items()}
        if model
        else {},
        "replies": {"challenger": asdict(evidence.challenger), "champion": asdict(evidence.champion)},
        "flattery": {"challenger": evidence.flattery, "base": evidence.base_flattery},
        "corrections": {
            kind: kept.as_json() if kept else None
            for kind, kept in (
                ("trained", evidence.trained_corrections),
                ("held_out", evidence.held_out_corrections),
            )
        },
        "safety": asdict(evidence.safety) if evidence.safety else None,
        "learned": asdict(evidence.training_fit) if evidence.training_fit else None,
        "to_the_point": evidence.to_the_point.as_json() if evidence.to_the_point else None,
        "same_replies": evidence.same_replies,
        "look": evidence.challenger_number,
        "prompts": evidence.prompts,
        "extra_prompts": evidence.extra_prompts,
    }


def _runs(text: str) -> set[tuple[str, ...]]:
    """Return every run of RECITED_WORDS words."""
    words = text.lower().split()
    return {tuple(words[i : i + RECITED_WORDS]) for i in range(len(words) - RECITED_WORDS + 1)}
