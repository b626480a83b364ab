"""The resampled tier: thousands of verdicts by the product's gate, on bootstrapped real scores.

A stored run is resampled as a whole: its conversations (training ratings, held-out ratings and the pairs of
replies to them), its general replies and its general prompts. `build_evidence` and `decision.decide` then
judge the resample as they would a run, and simulated members vote where the gate asks for votes.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from storage.config_sections import GateConfig
from storage.db.database import Database
from storage.feedback import duels
from storage.learning import runs
from tests.bench.learning.members import Member
from tests.bench.learning.tastes import Community
from trainer.data import snapshot
from trainer.data.question_features import Exchange
from trainer.evaluation import evaluate, evidence, scores, statistics
from trainer.evaluation.evidence import Ratings
from trainer.evaluation.reward_model import RatedText
from trainer.evaluation.scores import Pair, ScoredReply, Scores
from trainer.evaluation.to_the_point import TiedAnswers
from trainer.gate import blind_votes
from trainer.gate import decision as gate
from trainer.gate.decision import Decision

T = TypeVar("T")

# Fewer votes than this are cast on a challenger before the next one takes its place.
MAX_VOTES = 120
RETRAINS = 30


@dataclass(frozen=True)
class Stored:
    """One real challenger's scores, and what the members really said."""

    kind: str
    scores: Scores
    ratings: Ratings


def load(home: Path, found: Mapping[str, str]) -> list[Stored]:
    """Read a history's runs back: `found` names the run of each kind. One without scores is left out."""
    stored = []
    data = home / "playground"
    with Database.open(data / "strop.db") as database:
        for kind, run_id in found.items():
            run = database.read(lambda db, run_id=run_id: runs.expect(db, run_id))  # type: ignore[misc]
            folder = data / "runs" / run_id
            if run.snapshot_hash and (folder / scores.SCORES).exists():
                rows = snapshot.read(folder, run.snapshot_hash)
                stored.append(Stored(kind, scores.read(folder), evaluate.ratings_of(rows)))
    return stored


def verdicts(
    stored: Stored, settings: GateConfig, people: Sequence[Member], count: int, seed: int
) -> dict[str, int]:
    """Count how so many resamples of one challenger end, votes included."""
    ends: Counter[str] = Counter()
    for number in range(count):
        dice = random.Random(f"resample {stored.kind} {seed} {number}")
        resample = resampled(stored, dice)
        ends[judge(resample, settings, people, f"votes {stored.kind} {seed} {number}")] += 1
    return dict(ends)


def judge(
    stored: Stored, settings: GateConfig, people: Sequence[Member], seed: str, challenger_number: int = 1
) -> str:
    """Return "promote", "refuse" or "undecided", and by which way: "promote by votes" and so on.

    `challenger_number` counts the challengers of its champion; the same seed always gives the same votes.
    """
    measured = evidence.build_evidence(stored.scores, stored.ratings, settings, 0, challenger_number)
    verdict = gate.decide(measured.evidence, settings)
    if verdict.decision != "votes":
        return verdict.decision
    decision = voted(stored.scores.pairs, settings, people, random.Random(seed), challenger_number)
    return f"{decision} by votes" if decision else "undecided"


def reach(stored: Stored, settings: GateConfig, people: Sequence[Member], seed: str) -> tuple[str, int]:
    """Return how it ends as a champion's first challenger, and the last look that still promotes it."""
    first = judge(stored, settings, people, seed)
    if not first.startswith("promote"):
        return first, 0
    low, high = 1, RETRAINS
    while low < high:
        middle = (low + high + 1) // 2
        if judge(stored, settings, people, seed, middle).startswith("promote"):
            low = middle
        else:
            high = middle - 1
    return first, low


def voted(
    pairs: Sequence[Pair],
    settings: GateConfig,
    people: Sequence[Member],
    dice: random.Random,
    challenger_number: int,
) -> Decision | None:
    """Let members vote blindly until the product's rule decides; None if MAX_VOTES do not."""
    different = [pair for pair in pairs if pair.challenger.text.strip() != pair.champion.text.strip()]
    if not different:
        return "refuse"
    outcomes: list[float] = []
    judged: set[str] = set()
    turns = [pair for pair in different for _ in range(duels.MOST_VOTES)]
    for pair in dice.sample(turns, min(MAX_VOTES, len(turns))):
        judged.add(pair.prompt.cluster)
        texts = pair.challenger.text, pair.champion.text
        outcomes.append(float(dice.choice(people).prefers(pair.prompt.question, *texts)))
        decision = blind_votes.verdict_of(
            *statistics.e_values(outcomes), len(outcomes), settings, challenger_number
        )
        if decision == "refuse" or (decision and len(judged) >= evidence.MIN_PROMPTS):
            return decision
    return None


# ------------------------------------------------------------------------------------------------- resampling
def resampled(stored: Stored, dice: random.Random) -> Stored:
    """Draw conversations, general prompts and replies with replacement; a conversation stays whole."""
    scores, ratings = stored.scores, stored.ratings
    held_out = _by_group(ratings.held_out, lambda item: str(item.group))
    own = _by_group([p for p in scores.pairs if p.prompt.group], lambda pair: str(pair.prompt.group))
    scored = _by_group(scores.rated, lambda reply: reply.group)
    tied = _by_group(scores.tied, lambda answers: answers.cluster)
    texts: list[RatedText] = []
    pairs: list[Pair] = []
    ties: list[TiedAnswers] = []
    rated: list[ScoredReply] = []
    for number, group in enumerate(_drawn(sorted(held_out.keys() | own.keys()), dice)):
        name = f"{group}#{number}"
        texts += [replace(item, group=name) for item in held_out.get(group, [])]
        pairs += [replace(p, prompt=replace(p.prompt, group=name)) for p in own.get(group, [])]
        rated += [replace(reply, group=name) for reply in scored.get(group, [])]
        ties += [replace(answers, cluster=name) for answers in tied.get(group, [])]
    ties += _drawn([answers for answers in scores.tied if answers.cluster not in own], dice)
    general = [pair for pair in scores.pairs if pair.prompt.group is None]
    pairs += _drawn(general, dice)
    return replace(
        stored,
        scores=replace(
            scores,
            pairs=tuple(pairs),
            general=tuple(_drawn(scores.general, dice)),
            rated=tuple(rated),
            corrections=tuple(_drawn(scores.corrections, dice)),
            training_replies=tuple(_drawn(scores.training_replies, dice)),
            tied=tuple(ties),
        ),
        ratings=replace(ratings, train=tuple(_drawn_groups(ratings.train, dice)), held_out=tuple(texts)),
    )


def without_signal(stored: Stored, dice: random.Random) -> Stored:
    """Deal the labels out at random, in training and among the held-out: nobody's rating means a thing."""
    ratings = stored.ratings
    labels = dice.sample([reply.liked for reply in stored.scores.rated], len(stored.scores.rated))
    rated = tuple(
        replace(reply, liked=label) for reply, label in zip(stored.scores.rated, labels, strict=True)
    )
    # Whatever the labels mean, a challenger learns them: that it did not learn these must not refuse it.
    return replace(
        stored,
        scores=replace(stored.scores, rated=rated, training_replies=()),
        ratings=replace(ratings, train=_dealt(ratings.train, dice), held_out=_dealt(ratings.held_out, dice)),
    )


def against(challenger: Stored, champion: Stored | None) -> Stored:
    """Return a contest of two stored challengers, on the prompts that both answered; None is the base."""
    if champion is None:
        return challenger
    texts = {_key(pair): pair.challenger for pair in champion.scores.pairs}
    logs = {reply.reply_id: reply.challenger for reply in champion.scores.rated}
    margins = {(case.reply_id, case.number): case.challenger for case in champion.scores.corrections}
    # Both were judged against the base, whose replies stay what flattery is measured by.
    pairs = tuple(
        replace(pair, champion=texts[_key(pair)], base=pair.champion)
        for pair in challenger.scores.pairs
        if _key(pair) in texts
    )
    corrections = tuple(
        replace(case, champion=margins[case.reply_id, case.number])
        for case in challenger.scores.corrections
        if (case.reply_id, case.number) in margins
    )
    rated = tuple(
        replace(reply, champion=logs[reply.reply_id])
        for reply in challenger.scores.rated
        if reply.reply_id in logs
    )
    scores = replace(challenger.scores, pairs=pairs, rated=rated, corrections=corrections)
    return replace(challenger, scores=scores)


# -------------------------------------------------------------------------------------------- many retrains
def retrains_without_signal(
    pool: Sequence[Stored],
    settings: GateConfig,
    people: Sequence[Member],
    community: Community,
    *,
    verdicts_each: int,
    histories: int,
    seed: int,
) -> dict[str, Any]:
    """Simulate histories of RETRAINS retrains on ratings that mean nothing; return how they end.

    Every contest (challenger, champion) of the pool is judged `verdicts_each` times on resamples with labels
    dealt at random; histories then draw a challenger at a time and follow those frequencies, which depend on
    how many challengers the champion has seen. Votes follow the members' true opinions. A
    history ends worse if the true utility of its last champion is below the base's.
    """
    names: list[Stored | None] = [None, *pool]
    truth = _utilities(pool, community)
    promoted = np.zeros((len(names), len(names), RETRAINS + 1))
    ends: Counter[str] = Counter()
    for row, challenger in enumerate(names):
        for column, champion in enumerate(names):
            if challenger is None or row == column:
                continue
            contest = against(challenger, champion)
            for number in range(verdicts_each):
                dice = random.Random(f"null {seed} {row} {column} {number}")
                drawn = without_signal(resampled(contest, dice), dice)
                end, last = reach(drawn, settings, people, f"votes {seed} {row} {column} {number}")
                ends[end] += 1
                promoted[row, column, : last + 1] += 1 / verdicts_each
    worse, swapped = _histories(promoted, truth, histories, seed)
    return {
        "retrains": RETRAINS,
        "histories": histories,
        "verdicts": sum(ends.values()),
        "ends": dict(ends),
        "pool": ["base" if member is None else member.kind for member in names],
        "true_utility": [round(value, 4) for value in truth],
        "promoted_share": np.round(promoted[:, :, 1], 4).tolist(),
        "ends_worse": worse,
        "ever_swapped": swapped,
    }


def _histories(promoted: Any, truth: Sequence[float], histories: int, seed: int) -> tuple[float, float]:
    """Return the share of histories that end below the base, and of those that ever changed champion."""
    dice = np.random.default_rng(seed)
    champion, challenger_number = np.zeros(histories, dtype=int), np.ones(histories, dtype=int)
    swapped = np.zeros(histories, dtype=bool)
    for _ in range(RETRAINS):
        challenger = dice.integers(1, len(truth), size=histories)
        chance = promoted[challenger, champion, challenger_number]
        wins = (dice.random(histories) < chance) & (challenger != champion)
        swapped |= wins
        champion = np.where(wins, challenger, champion)
        challenger_number = np.where(wins, 1, np.minimum(challenger_number + 1, RETRAINS))
    values = np.asarray(truth)
    return float((values[champion] < truth[0] - 1e-9).mean()), float(swapped.mean())


def _utilities(pool: Sequence[Stored], community: Community) -> list[float]:
    """Return the true utility of the base, then of each challenger, on the prompts that all have answered."""
    answers = [{_key(pair): pair for pair in member.scores.pairs} for member in pool]
    shared = sorted(set.intersection(*(set(each) for each in answers)), key=str)
    given = [[answers[0][key].champion.text for key in shared]]
    given += [[each[key].challenger.text for key in shared] for each in answers]
    exchanges = [[Exchange(key[1], text) for key, text in zip(shared, texts, strict=True)] for texts in given]
    return [float(np.mean([community.utility(each) for each in column])) for column in exchanges]


def _key(pair: Pair) -> tuple[str | None, str]:
    return pair.prompt.reply_id, pair.prompt.messages[-1].content


def _dealt(items: Sequence[RatedText], dice: random.Random) -> tuple[RatedText, ...]:
    labels = dice.sample([(item.liked, item.weight) for item in items], len(items))
    return tuple(
        replace(item, liked=liked, weight=weight) for item, (liked, weight) in zip(items, labels, strict=True)
    )


def _drawn(items: Sequence[T], dice: random.Random) -> list[T]:
    return dice.choices(items, k=len(items)) if items else []


def _drawn_groups(items: Sequence[RatedText], dice: random.Random) -> list[RatedText]:
    groups = _by_group(items, lambda item: str(item.group))
    drawn = _drawn(sorted(groups), dice)
    return [
        replace(item, group=f"{group}#{number}")
        for number, group in enumerate(drawn)
        for item in groups[group]
    ]


def _by_group(items: Sequence[T], group_of: Any) -> dict[str, list[T]]:
    found: defaultdict[str, list[T]] = defaultdict(list)
    for item in items:
        found[group_of(item)].append(item)
    return dict(found)
