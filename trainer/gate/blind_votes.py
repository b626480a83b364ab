"""Blind votes: the duels that a run opens, the votes on them, and what they decide."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlite_utils

from storage.config_sections import GateConfig
from storage.db import sql
from storage.db.database import Database
from storage.feedback import duels
from storage.learning import runs, trials
from storage.learning.adapters import Adapter
from storage.learning.run_summary import may_be_shown
from storage.learning.runs import Run
from storage.sentences import Figure, Sentence, Value, percent
from trainer.evaluation import statistics
from trainer.evaluation.evidence import MIN_PROMPTS, alpha_for_attempt
from trainer.evaluation.scores import Pair
from trainer.gate.decision import Decision

# One member decides no vote alone: later votes of the same member in a run count nothing.
MAX_VOTES_PER_MEMBER = 20
# The number needed is announced for a true win rate of 70 %: so many in half of all cases.
TYPICAL_WIN_RATE = 0.7
QUARTILES = (0.25, 0.75)
MAX_DUELS = 64

# (prompt, challenger's text, champion's text, id of the reply whose prompt it is) of each pair.
DuelPairs = Sequence[tuple[Sequence[Mapping[str, str]], str, str, str | None]]


@dataclass(frozen=True)
class VoteCount:
    """The votes of a run that count, and the evidence for and against its challenger.

    `full` says that no pair takes any more votes.
    """

    wins: int
    losses: int
    ties: int
    voters: int
    evidence_for: float
    evidence_against: float
    duels: int
    offered: int
    full: bool
    outcomes: tuple[int, ...] = ()

    @property
    def on_enough_duels(self) -> bool:
        """Whether the votes are on so many different prompts that they say something of others."""
        return self.duels >= min(MIN_PROMPTS, self.offered)

    def sentence(self, evidence: float, *, lost: bool = False) -> Sentence:
        """Say the votes: "it won 12 of 12 blind votes (e = 40)"; "it won only" of a loser."""
        votes = self.wins + self.losses
        values: dict[str, Value] = {"wins": self.wins, "votes": votes, "evidence": Figure(evidence, ".0f")}
        if lost:
            return Sentence("it won only {wins} of {votes} blind votes (e = {evidence})", **values)
        return Sentence("it won {wins} of {votes} blind votes (e = {evidence})", **values)

    def undecided_reason(self) -> Sentence:
        """Say that there are no more votes to come, and that they were not enough."""
        return Sentence(
            "every pair has all its votes and the result is undecided: it won {wins} of {votes}",
            wins=self.wins,
            votes=self.wins + self.losses,
        )

    def as_json(self) -> dict[str, int]:
        """Return the counts."""
        return {"wins": self.wins, "losses": self.losses, "ties": self.ties}

    @property
    def votes(self) -> int:
        """Return all counted votes, ties included."""
        return self.wins + self.losses + self.ties


def votes_needed(settings: GateConfig, challenger_number: int = 1) -> tuple[int, int]:
    """Return between how many and how many blind votes decide on the n-th challenger in half of all cases."""
    alpha = alpha_for_attempt(settings.evote_alpha, challenger_number)
    low, high = (
        max(settings.min_votes, statistics.votes_to_decide(alpha, TYPICAL_WIN_RATE, share))
        for share in QUARTILES
    )
    return low, high


def pairs_of(pairs: Sequence[Pair]) -> DuelPairs:
    """Return what a vote can be held on: two different replies with something in them.

    Those that reports and cards may show under their writers' names only fill up what few others there are.
    """
    found = [
        pair
        for pair in pairs
        if pair.challenger.text.strip()
        and pair.champion.text.strip()
        and pair.challenger.text.strip() != pair.champion.text.strip()
    ]
    shown = [pair for pair in found if may_be_shown(pair.prompt.question)]
    unknown = [pair for pair in found if not may_be_shown(pair.prompt.question)]
    return [
        (
            [message.as_json() for message in pair.prompt.messages],
            pair.challenger.text,
            pair.champion.text,
            pair.prompt.reply_id,
        )
        for pair in [*unknown, *shown[: max(0, MIN_PROMPTS - len(unknown))]][:MAX_DUELS]
    ]


async def open_vote(
    database: Database,
    settings: GateConfig,
    *,
    run: Run,
    adapter: Adapter,
    champion_id: str | None,
    pairs: DuelPairs,
    why: Sentence,
    challenger_number: int,
    metrics: Mapping[str, Any],
) -> Run:
    """Leave a run's decision to the members: store blind duels, and let its canary answer where that may be.

    `pairs` are (prompt, challenger's text, champion's text, id of the reply whose prompt it is); without any,
    the canary's ratings decide alone. Which text comes first is a stable coin: hash of run and number. `why`
    is a whole sentence.
    """
    low, high = votes_needed(settings, challenger_number)
    sentence = why
    if pairs:
        sentence = Sentence(
            "{before}; where one answer wins 7 times in 10, {low} to {high} blind votes decide in half of "
            "all cases; where they are closer it takes more",
            before=sentence,
            low=low,
            high=high,
        )
    if has_canary(settings):
        sentence = Sentence(
            "{before}; it answers {share} of new conversations as a canary",
            before=sentence,
            share=percent(settings.canary_share),
        )

    def work(db: sqlite_utils.Database) -> Run:
        _add_duels(db, run, adapter, champion_id, pairs)
        if has_canary(settings):
            trials.begin(
                db,
                "canary",
                scope=run.scope,
                base_hash=adapter.base_hash,
                run_id=run.id,
                newcomer_id=adapter.id,
                incumbent_id=champion_id,
                share=settings.canary_share,
                days=settings.canary_days,
            )
        return runs.finish(
            db,
            run.id,
            outcome="votes",
            message=sentence,
            metrics={**metrics, "votes_needed": [low, high]},
            adapter_id=adapter.id,
            champion_id=champion_id,
        )

    return await database.awrite(work)


def has_canary(settings: GateConfig) -> bool:
    """Whether a challenger may answer before it is champion: never where an operator is asked first."""
    return settings.policy != "ask" and settings.canary_share > 0


def _add_duels(
    db: sqlite_utils.Database,
    run: Run,
    adapter: Adapter,
    champion_id: str | None,
    pairs: DuelPairs,
) -> None:
    for number, (prompt, challenger, champion, reply_id) in enumerate(pairs):
        first = hashlib.sha256(f"{run.id}/{number}".encode()).digest()[0] % 2 == 0
        duels.add(
            db,
            duel_id=f"{run.id}-{number:03d}",
            run_id=run.id,
            scope=run.scope,
            challenger_id=adapter.id,
            champion_id=champion_id,
            prompt=prompt,
            first_text=challenger if first else champion,
            second_text=champion if first else challenger,
            first_is_challenger=first,
            reply_id=reply_id,
        )


def count_votes(db: sqlite_utils.Database, run_id: str) -> VoteCount:
    """Count a run's votes in the order they were cast, at most MAX_VOTES_PER_MEMBER of each member."""
    cast: Counter[int] = Counter()
    outcomes, judged = [], set()
    for vote in duels.votes_of(db, run_id):
        cast[vote.user_id] += 1
        if cast[vote.user_id] <= MAX_VOTES_PER_MEMBER:
            outcomes.append(vote.outcome)
            judged.add(vote.duel_id)
    gain, loss = statistics.e_values(outcomes) if outcomes else (1.0, 1.0)
    offered = int(sql.value(db, "SELECT count(*) FROM duels WHERE run_id = ?", (run_id,)))
    still_open = int(
        sql.value(db, "SELECT count(*) FROM duels WHERE run_id = ? AND closed_ms IS NULL", (run_id,))
    )
    ties = outcomes.count(0)
    return VoteCount(
        outcomes.count(1),
        outcomes.count(-1),
        ties,
        len(cast),
        gain,
        loss,
        len(judged),
        offered,
        offered > 0 and not still_open,
        tuple(outcomes),
    )


def verdict_of(
    evidence_for: float, evidence_against: float, votes: int, settings: GateConfig, challenger_number: int = 1
) -> Decision | None:
    """Return what blind votes decide, None while they are too few; evidence against comes first.

    Refusing is safe and takes the same evidence every time; promoting takes more with every challenger.
    """
    if votes < settings.min_votes:
        return None
    if evidence_against >= 1 / settings.evote_alpha:
        return "refuse"
    return (
        "promote" if evidence_for >= 1 / alpha_for_attempt(settings.evote_alpha, challenger_number) else None
    )
