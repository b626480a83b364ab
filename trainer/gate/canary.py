"""Compares two adapters that answer side by side by their ratings, with an anytime-valid sequential test.

The newcomer is the treatment arm and the incumbent the control arm. The null hypothesis of a canary:
whatever was rated before, members like the newcomer's next rated conversation no better than the
incumbent's, and prefer neither reply in a blind vote. The unit is the *conversation*, because conversations
are what is randomised. The replies of one share a member, a mood and a topic, so ten likes in it are one
piece of evidence, not ten. A conversation's score is the mean of its raters' means, -1 to 1: each member
counts once in it.

Conversations are taken in the order in which they were first rated and cut into *blocks*: a block ends as
soon as both sides are in it, and bets on half the difference of their mean scores, a number from -1 to 1.
Under the null its expectation, given everything before, is at most 0. A gambler's wealth is then a
supermartingale whatever the stakes, and by Ville's inequality it ever reaches 1 / alpha with probability at
most alpha. So the test may be evaluated after every rating. What both sides share within a block cancels:
drifting taste, a generous or a grumpy hour. It doesn't matter which side is rated more often.

The guarantee has two limits. First, scores are the ratings as they stand *now*. A member who changes or
retracts a rating, or adds one to an old conversation, changes a settled bet, which a martingale doesn't
allow; the test is exact only while such changes favour neither side. Second, members are not randomised
units: one who finds out which side answers can rate by that. So a decision must also hold without any
single member's ratings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlite_utils

from storage.config_sections import GateConfig
from storage.db import sql
from storage.db.clock import now_ms
from storage.feedback import ratings
from storage.learning import trials
from storage.learning.trials import PairVote, Side, Trial, TrialRating
from storage.sentences import NOTHING, Figure, Sentence, percent
from trainer.data import labels
from trainer.evaluation import statistics
from trainer.evaluation.evidence import MIN_PROMPTS, alpha_for_attempt

Judgement = Literal["better", "worse", "undecided"]

# The latest thumbs of the scope, from which it is judged whose ratings contradict everybody else's.
THUMBS_FOR_TRUST = 2_000
# What is hoped for, a win rate of 70 %, counts like ten outcomes when the rest is estimated.
HOPED = (7.0, 3.0)
MOST_FORETOLD = 999
QUARTILES = (0.25, 0.75)
# What ratings don't change (blocks, consent) is looked at again this often.
LOOK_AGAIN_MS = 60_000


@dataclass(frozen=True)
class Conversation:
    """What the members think of one conversation's replies: -1 (everybody dislikes them all) to 1."""

    side: Side
    score: float


@dataclass(frozen=True)
class TrialEvidence:
    """The evidence of a trial: ratings, votes on pairs in the chat, and outcomes of blind votes."""

    ratings: tuple[TrialRating, ...] = ()
    pairs: tuple[PairVote, ...] = ()
    votes: tuple[int, ...] = ()

    @property
    def members(self) -> set[int]:
        """Return the members behind the ratings and the votes on pairs."""
        return {each.user_id for each in self.ratings} | {each.user_id for each in self.pairs}

    def without(self, members: Collection[int]) -> TrialEvidence:
        """Return the evidence without these members' ratings and votes on pairs."""
        return TrialEvidence(
            tuple(each for each in self.ratings if each.user_id not in members),
            tuple(each for each in self.pairs if each.user_id not in members),
            self.votes,
        )


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial so far: scores of each side, outcomes bet on, evidence for and against."""

    newcomer: tuple[float, ...]
    incumbent: tuple[float, ...]
    outcomes: tuple[float, ...]
    raters: int
    evidence_for: float
    evidence_against: float

    def like_rate(self, side: Side) -> float:
        """Return the share of a side's rated conversations that was liked, halves counted as halves."""
        scores = self.newcomer if side == "newcomer" else self.incumbent
        return (1 + sum(scores) / len(scores)) / 2 if scores else 0.0

    def sentence(self) -> Sentence:
        """Say the ratings: "liked in 71 % of 34 rated conversations, … in 52 % of 310 (e = 41)"."""
        e = max(self.evidence_for, self.evidence_against)
        return Sentence(
            "liked in {newcomer} of {rated} rated conversations, the one before it in {incumbent} of {count} "
            "(e = {evidence})",
            newcomer=percent(self.like_rate("newcomer")),
            rated=len(self.newcomer),
            incumbent=percent(self.like_rate("incumbent")),
            count=len(self.incumbent),
            evidence=Figure(e, ".0f"),
        )

    def as_json(self, needed: tuple[int, int] | None) -> dict[str, Any]:
        """Return what people are shown while it goes on: counts, never who is ahead."""
        return {
            "newcomer": len(self.newcomer),
            "incumbent": len(self.incumbent),
            "raters": self.raters,
            "needed": needed and list(needed),
        }

    def figures(self) -> dict[str, Any]:
        """Return everything, for a run's metrics."""
        return {
            "newcomer": len(self.newcomer),
            "incumbent": len(self.incumbent),
            "newcomer_liked": round(self.like_rate("newcomer"), 4),
            "incumbent_liked": round(self.like_rate("incumbent"), 4),
            "raters": self.raters,
            "evidence_for": self.evidence_for,
            "evidence_against": self.evidence_against,
        }


def conversations(given: Sequence[TrialRating]) -> list[Conversation]:
    """Return each rated conversation's score, in the order of the first ratings."""
    said: dict[tuple[int, Side], dict[int, list[int]]] = {}
    for each in given:
        voices = said.setdefault((each.conversation_id, each.side), {})
        voices.setdefault(each.user_id, []).append(each.value)
    return [
        Conversation(side, _mean(_mean(values) for values in voices.values()))
        for (_, side), voices in said.items()
    ]


def blocks(rated: Sequence[Conversation]) -> list[float]:
    """Return the outcome of each block: half the difference of the sides' mean scores, -1 to 1."""
    return [(_mean_of(block, "newcomer") - _mean_of(block, "incumbent")) / 2 for block in cut(rated)]


def cut(rated: Sequence[Conversation]) -> list[list[Conversation]]:
    """Cut conversations into blocks, each as short as it can be with both sides in it; a rest is left out."""
    found: list[list[Conversation]] = []
    begun: list[Conversation] = []
    for each in rated:
        begun.append(each)
        if each.side != begun[0].side:
            found.append(begun)
            begun = []
    return found


def _mean_of(block: Sequence[Conversation], side: Side) -> float:
    return _mean(each.score for each in block if each.side == side)


def count_evidence(material: TrialEvidence) -> TrialResult:
    """Score a trial's evidence and compute its e-values."""
    rated = conversations(material.ratings)
    pairs: defaultdict[str, list[int]] = defaultdict(list)
    for vote in material.pairs:
        pairs[vote.pair_id].append(vote.outcome)
    outcomes = [*blocks(rated), *(_mean(votes) for votes in pairs.values()), *material.votes]
    gain, loss = statistics.e_values(outcomes) if outcomes else (1.0, 1.0)
    return TrialResult(
        newcomer=tuple(each.score for each in rated if each.side == "newcomer"),
        incumbent=tuple(each.score for each in rated if each.side == "incumbent"),
        outcomes=tuple(outcomes),
        raters=len(material.members),
        evidence_for=gain,
        evidence_against=loss,
    )


def holds_without_any_member(material: TrialEvidence, direction: Literal["better", "worse"]) -> bool:
    """Whether the evidence points in a direction without any single member's ratings too."""
    for member in material.members:
        rest = count_evidence(material.without({member}))
        if (rest.evidence_for if direction == "better" else rest.evidence_against) <= 1:
            return False
    return True


def judge_canary(
    material: TrialEvidence,
    found: TrialResult,
    settings: GateConfig,
    *,
    challenger_number: int,
    alone_suffices: bool = False,
) -> Literal["better", "worse"] | None:
    """Return what a canary has shown, None while it may go on; evidence against comes first.

    Refusing takes the same evidence every time; promoting takes more with every challenger of a champion.
    `alone_suffices` lets a single member decide, where a community is that small.
    """
    if len(found.outcomes) < settings.min_votes:
        return None
    if found.evidence_against >= 1 / settings.evote_alpha:
        return "worse" if alone_suffices or holds_without_any_member(material, "worse") else None
    if settings.policy == "canary-first" and len(found.newcomer) < MIN_PROMPTS:
        return None
    if found.evidence_for >= 1 / alpha_for_attempt(settings.evote_alpha, challenger_number):
        return "better" if alone_suffices or holds_without_any_member(material, "better") else None
    return None


def judge_holdback(
    material: TrialEvidence, found: TrialResult, settings: GateConfig, *, alone_suffices: bool = False
) -> Literal["better", "worse"] | None:
    """Return whether a new champion is liked better or worse than the one before it, None while it is open.

    Going back is wrong with a chance of at most `gate.evote_alpha`: then the new champion was no worse.
    """
    if len(found.outcomes) < settings.min_votes:
        return None
    if found.evidence_against >= 1 / settings.evote_alpha:
        return "worse" if alone_suffices or holds_without_any_member(material, "worse") else None
    return "better" if found.evidence_for >= 1 / settings.evote_alpha else None


def reason_to_end(trial: Trial, found: TrialResult, settings: GateConfig) -> Sentence:
    """Return why a trial ends undecided, or an empty sentence while it may go on."""
    exception = found.newcomer if trial.exception == "newcomer" else found.incumbent
    if now_ms() >= trial.until_ms:
        return Sentence("its time ran out")
    if len(exception) >= settings.canary_most_ratings:
        return Sentence("{count} rated conversations did not decide", count=len(exception))
    return NOTHING


def still_needed(found: TrialResult, settings: GateConfig, challenger_number: int = 1) -> tuple[int, int]:
    """Return between how many and how many more outcomes decide in half of all cases, MOST_FORETOLD at most.

    One number would pretend: from the same beginning one vote takes 20 more and another 200, as how far apart
    the two are is as good as unknown, and luck does the rest (EXPERIMENTS, 24).
    """
    low, high = statistics.outcomes_to_decide(
        found.outcomes,
        HOPED,
        (1 / alpha_for_attempt(settings.evote_alpha, challenger_number), 1 / settings.evote_alpha),
        shares=QUARTILES,
        limit=MOST_FORETOLD,
    )
    missing = settings.min_votes - len(found.outcomes)
    return max(low, missing, 1), max(high, missing, 1)


def read_evidence(db: sqlite_utils.Database, trial: Trial, votes: Sequence[int] = ()) -> TrialEvidence:
    """Return a trial's ratings and votes without those of members whom the others' ratings contradict."""
    material = TrialEvidence(
        tuple(trials.ratings(db, trial.id)), tuple(trials.pair_votes(db, trial)), tuple(votes)
    )
    return material.without(_quarantined(db, trial.scope)) if material.members else material


def mark(db: sqlite_utils.Database, trial: Trial, votes: Sequence[int] = ()) -> str:
    """Return what tells one state of a trial's ratings and votes from another."""
    return f"{ratings.changes(db, trial.scope)}/{votes.count(1)}/{votes.count(-1)}/{votes.count(0)}"


def due(trial: Trial, seen: str) -> bool:
    """Whether a trial has to be judged again."""
    now = now_ms()
    return trial.seen != seen or now - trial.judged_ms >= LOOK_AGAIN_MS or now >= trial.until_ms


def _quarantined(db: sqlite_utils.Database, scope: str) -> set[int]:
    """Return the members whose thumbs the others contradict so much that they count nothing."""
    rows = sql.many(
        db,
        """SELECT reply_id, user_id, value FROM ratings
           WHERE scope = ? AND kind = 'thumb' AND retracted = 0 AND value <> 0
           ORDER BY updated_ms DESC LIMIT ?""",
        (scope, THUMBS_FOR_TRUST),
    )
    thumbs: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for row in rows:
        thumbs[row["reply_id"]][row["user_id"]] = row["value"]
    return {rater.user_id for rater in labels.rater_trust(thumbs) if rater.quarantined}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
