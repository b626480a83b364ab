"""From stored scores to evidence: pure, so that a verdict can be repeated, and simulated, without a model.

A run asks the model server once and writes down what it heard (`Scores`). Everything after that, the reward
model, its proof, the intervals and the guardrails' figures, is a function of those scores and the labels.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bot.serving.protocol import ChatMessage
from storage.config_sections import GateConfig
from trainer.data import text_features
from trainer.evaluation import learned, regressions, reward_model, safety, statistics
from trainer.evaluation.flattery import flattery
from trainer.evaluation.learned import TaughtReply
from trainer.evaluation.regressions import ScoredCase
from trainer.evaluation.reward_model import RatedText
from trainer.evaluation.safety import Probed
from trainer.evaluation.statistics import Estimate
from trainer.gate.decision import Evidence, ReplyTraits, spent

REPLIES = "replies.jsonl"
SCORES = "scores.json"
RECITED_WORDS = 12


@dataclass(frozen=True)
class Prompt:
    """What both models are asked. `group` is the held-out conversation, None for a general prompt."""

    messages: tuple[ChatMessage, ...]
    group: str | None
    reply_id: str | None = None

    @property
    def cluster(self) -> str:
        """Return what its answers are resampled with: the conversation, or the general prompt itself."""
        return self.group or f"general {stable_hash(self.messages[-1].content)}"


@dataclass(frozen=True)
class Answer:
    """One generated reply; `finished` says that it ended by itself."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Pair:
    """Both models' answers to one prompt, drawn with the same seed.

    `base` is the base's, to the first prompts where the champion is an adapter; None elsewhere.
    """

    prompt: Prompt
    challenger: Answer
    champion: Answer
    base: Answer | None = None


@dataclass(frozen=True)
class GeneralLoss:
    """Summed loss, in nats, of base and challenger on one of the base's own replies of `tokens` tokens."""

    tokens: int
    base: float
    challenger: float


@dataclass(frozen=True)
class ScoredReply:
    """Log-probability per token, in nats, of one rated held-out reply under both models."""

    reply_id: str
    group: str
    liked: bool
    challenger: float
    champion: float


@dataclass(frozen=True)
class Scores:
    """All that a run heard from the model server about its challenger."""

    pairs: tuple[Pair, ...]
    general: tuple[GeneralLoss, ...]
    rated: tuple[ScoredReply, ...]
    corrections: tuple[ScoredCase, ...] = ()
    safety: tuple[Probed, ...] = ()
    taught: tuple[TaughtReply, ...] = ()


@dataclass(frozen=True)
class Ratings:
    """What the members said, as the reward model needs it: training ratings, held-out ones, corrections."""

    train: tuple[RatedText, ...]
    held_out: tuple[RatedText, ...]
    corrections: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weighed:
    """The evidence for the gate, and the figures that are reported with it."""

    evidence: Evidence
    figures: dict[str, Any]


def weigh(scores: Scores, ratings: Ratings, settings: GateConfig, seed: int, look: int = 1) -> Weighed:
    """Turn scores and ratings into evidence; the same input gives the same evidence.

    `look` counts the challengers that this champion has been compared with: the later, the more is asked.

    Raises ValueError without pairs or without general replies.
    """
    judge: dict[str, Any] = {
        "resamples": settings.bootstrap,
        "confidence": settings.confidence,
        "seed": seed,
    }
    # Fitted on what the trainer never saw, and proven on what it was not fitted on: whatever the challenger
    # has learned of the training ratings' accidents, this judge knows nothing of them.
    model, proof = reward_model.prove(ratings.held_out, ratings.train, **judge)
    tokens = sum(loss.tokens for loss in scores.general)
    if not tokens or not scores.pairs:
        raise ValueError("there is nothing to compare on")
    base_nll = sum(loss.base for loss in scores.general) / tokens
    new_nll = sum(loss.challenger for loss in scores.general) / tokens
    asked = list(dict.fromkeys(pair.prompt for pair in scores.pairs))
    fawning, plain = _flattery(scores.pairs)
    evidence = Evidence(
        preference=(
            preference(model, ratings.held_out, proof.penalty, scores.pairs, judge, look)
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
        look=look,
        flattery=fawning,
        base_flattery=plain,
        trained_corrections=regressions.judged(scores.corrections, trained=True, **judge),
        held_out_corrections=regressions.judged(scores.corrections, trained=False, **judge),
        safety=safety.judged(scores.safety),
        learned=learned.judged(scores.taught),
    )
    general = {"base": base_nll, "challenger": new_nll}
    held_out = {"held_out_replies": _held_out_figures(scores.rated)}
    return Weighed(evidence, {"general_nll": general, **held_out, **_figures(evidence, model)})


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


def write(scores: Scores, folder: Path) -> None:
    """Keep the scores in the run's folder, where an erasure scrubs them with the rest."""
    lines = [json.dumps(_pair_json(pair)) for pair in scores.pairs]
    (folder / REPLIES).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    figures = {
        "general": [asdict(loss) for loss in scores.general],
        "rated": [asdict(reply) for reply in scores.rated],
        "corrections": [asdict(case) for case in scores.corrections],
        "safety": [asdict(probe) for probe in scores.safety],
        "taught": [asdict(reply) for reply in scores.taught],
    }
    (folder / SCORES).write_text(json.dumps(figures, indent=1), encoding="utf-8")


def read(folder: Path) -> Scores:
    """Read a run's scores back; raises OSError where they are gone (an erasure scrubs them).

    Runs of before there were safety prompts, checks of corrections and of what was taught have none.
    """
    figures = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    return Scores(
        pairs=read_pairs(folder),
        general=tuple(GeneralLoss(**loss) for loss in figures["general"]),
        rated=tuple(ScoredReply(**reply) for reply in figures["rated"]),
        corrections=tuple(ScoredCase(**case) for case in figures.get("corrections", [])),
        safety=tuple(_probed(probe) for probe in figures.get("safety", [])),
        taught=tuple(TaughtReply(**reply) for reply in figures.get("taught", [])),
    )


def _probed(value: dict[str, Any]) -> Probed:
    return Probed(value["name"], *(tuple(value[who]) for who in ("base", "challenger", "champion")))


def read_pairs(folder: Path) -> tuple[Pair, ...]:
    """Read only the pairs of replies back; raises OSError where they are gone."""
    lines = (folder / REPLIES).read_text(encoding="utf-8").splitlines()
    return tuple(_pair(json.loads(line)) for line in lines)


def stable_hash(key: str) -> int:
    """Return a number that only depends on the text."""
    return zlib.crc32(key.encode())


def _pair_json(pair: Pair) -> dict[str, Any]:
    return {
        "group": pair.prompt.group,
        "reply_id": pair.prompt.reply_id,
        "messages": [message.as_json() for message in pair.prompt.messages],
        "challenger": asdict(pair.challenger),
        "champion": asdict(pair.champion),
        "base": asdict(pair.base) if pair.base else None,
    }


def _pair(value: dict[str, Any]) -> Pair:
    messages = tuple(ChatMessage(message["role"], message["content"]) for message in value["messages"])
    prompt = Prompt(messages, value["group"], value.get("reply_id"))
    base = Answer(**value["base"]) if value.get("base") else None
    return Pair(prompt, Answer(**value["challenger"]), Answer(**value["champion"]), base)


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
    penalty: float,
    pairs: Sequence[Pair],
    judge: dict[str, Any],
    look: int,
) -> Estimate:
    """Return the paired difference in predicted P(liked), challenger minus champion.

    Its interval covers both samples that it hangs on: the prompts, and the ratings that the model was fitted
    on, `rated` with `penalty`.
    """
    new = [pair.challenger.text for pair in pairs]
    old = [pair.champion.text for pair in pairs]
    liked_new, liked_old, error = model.compared(rated, penalty, new, old)
    return statistics.clustered_mean(
        (liked_new - liked_old).tolist(),
        [pair.prompt.cluster for pair in pairs],
        bound_confidence=1 - spent(1 - judge["confidence"], look),
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
        "learned": asdict(evidence.learned) if evidence.learned else None,
        "same_replies": evidence.same_replies,
        "look": evidence.look,
        "prompts": evidence.prompts,
        "extra_prompts": evidence.extra_prompts,
    }


def _runs(text: str) -> set[tuple[str, ...]]:
    """Return every run of RECITED_WORDS words."""
    words = text.lower().split()
    return {tuple(words[i : i + RECITED_WORDS]) for i in range(len(words) - RECITED_WORDS + 1)}
