"""From ratings to labels: who is to be believed, and how much each reply counts.

One-coin Dawid-Skene: every member rates rightly with some probability, their accuracy. It is estimated from
how often they agree with the *other* raters of the same replies (leave-one-out: nobody vouches for
themselves), under a Beta prior. A member at or below chance counts nothing; nobody counts negatively, or a
brigade could vote by proxy. As that fails once colluders are the majority, a member's share of all vote mass
is capped as well.
Most replies are rated by their asker only: there the prior decides. Who has said most of what they ever said
in one burst is doubted where hardly anybody else judged the same replies, and set aside where the account is
new.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from storage.db.clock import DAY_MS
from storage.learning.eligibility import GivenRating, RatedReply

# Beta(6, 2): an unknown member is right three times in four, and six contradictions outweigh that.
PRIOR_RIGHT = 6.0
PRIOR_WRONG = 2.0
MAX_SHARE = 0.10
SHARE_FACTOR = 1.5
CORRECTION_WEIGHT = 2.0
ROUNDS = 100
# A reply made mostly of its rater's own words proves little when only that rater likes it.
ECHO_SHARE = 0.6
ECHO_WORDS = 6

# So many ratings within so many minutes, and most of what the member ever rated, are a burst.
BURST_RATINGS = 15
BURST_MS = 10 * 60 * 1000
BURST_SHARE = 0.5
NEW_ACCOUNT_MS = 30 * DAY_MS
# A member of whose votes fewer than this share are on replies that others voted on too is unconfirmed.
CONFIRMED_SHARE = 0.1
UNCONFIRMED_FACTOR = 0.25
# Simulated members rate as fast as the machine, and imports keep no times of people.
TIMELESS_SOURCES = frozenset({"rehearsal", "sample", "playground", "import"})
# https://discord.com/developers/docs/reference#snowflakes: an id tells when its account was made.
DISCORD_EPOCH_MS = 1_420_070_400_000

# Corrections to this many different prompts that share this many words in a row plant a sentence, they do not
# correct: a payload behind a trigger has to be repeated to be learned.
PLANTED_GROUPS = 3
PLANTED_WORDS = 6
SHORTEST_PLANTED = 4

Verdict = Literal["liked", "disliked", "unclear"]
Doubt = Literal["", "a burst from a new account", "a burst that nobody else confirms"]
_FACTORS: Mapping[Doubt, float] = {
    "a burst from a new account": 0.0,
    "a burst that nobody else confirms": UNCONFIRMED_FACTOR,
}


@dataclass(frozen=True)
class Correction:
    """What a member would rather have read, and its weight in training."""

    text: str
    weight: float


@dataclass(frozen=True)
class ReplyLabel:
    """What the community thinks of one reply: `weight` is 0 (nobody knows) to 1 (certain), never negative."""

    reply_id: str
    verdict: Verdict
    weight: float
    corrections: tuple[Correction, ...] = ()


@dataclass(frozen=True)
class RaterTrust:
    """What is believed of one member: `accuracy` as a rater, `overlap` votes that others voted on too.

    `doubt` says why a member's weight is lower than their accuracy would have it.
    """

    user_id: int
    accuracy: float
    weight: float
    votes: int
    overlap: int
    doubt: Doubt = ""

    @property
    def quarantined(self) -> bool:
        """Whether this member's ratings count nothing."""
        return self.weight == 0.0


@dataclass(frozen=True)
class Labels:
    """The labels in the order of the replies, and the members behind them by id.

    `planted` corrections were set aside because the same words answer several prompts.
    """

    replies: tuple[ReplyLabel, ...]
    raters: tuple[RaterTrust, ...]
    planted: int = 0


Votes = Mapping[str, Mapping[int, int]]
"""Reply id to member to -1 or 1."""


def aggregate(rows: Sequence[RatedReply]) -> Labels:
    """Return one label per reply; the order of rows and ratings makes no difference to the values."""
    votes = {row.reply_id: _votes_on(row) for row in rows}
    trust = rater_trust(votes, doubts(rows, votes))
    by_id = {rater.user_id: rater for rater in trust}
    planted = planted_runs(rows)
    kept = [_without(row, planted) for row in rows]
    set_aside = sum(len(row.ratings) - len(own) for row, own in zip(rows, kept, strict=True))
    return Labels(
        tuple(_label(row, own, votes[row.reply_id], by_id) for row, own in zip(rows, kept, strict=True)),
        tuple(trust),
        set_aside,
    )


def planted_runs(rows: Sequence[RatedReply]) -> frozenset[tuple[str, ...]]:
    """Return the runs of words that corrections repeat in PLANTED_GROUPS groups of prompts or more."""
    groups: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in rows:
        for rating in row.ratings:
            for run in _correction_runs(rating):
                groups[run].add(row.group_key)
    return frozenset(run for run, where in groups.items() if len(where) >= PLANTED_GROUPS)


def _correction_runs(rating: GivenRating) -> list[tuple[str, ...]]:
    """Return a correction's runs of words; the whole of a short one; nothing of "thank you" and the like."""
    words = (rating.text or "").lower().split() if rating.kind == "correction" else []
    if len(words) < SHORTEST_PLANTED:
        return []
    size = min(PLANTED_WORDS, len(words))
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def _without(row: RatedReply, planted: frozenset[tuple[str, ...]]) -> list[GivenRating]:
    return [rating for rating in row.ratings if planted.isdisjoint(_correction_runs(rating))]


def doubts(rows: Sequence[RatedReply], votes: Votes) -> dict[int, Doubt]:
    """Return the members whose ratings came in one burst, with what speaks against believing it."""
    times: defaultdict[int, list[int]] = defaultdict(list)
    for row in rows:
        for rating in row.ratings:
            if rating.source not in TIMELESS_SOURCES:
                times[rating.user_id].append(rating.created_ms)
    by_member = _by_member(votes)
    found: dict[int, Doubt] = {}
    for user, given in times.items():
        size, began_ms = _densest(sorted(given))
        if size < BURST_RATINGS or size < BURST_SHARE * len(given):
            continue
        own = by_member.get(user, [])
        if began_ms - account_made_ms(user) < NEW_ACCOUNT_MS:
            found[user] = "a burst from a new account"
        elif sum(len(votes[reply]) > 1 for reply in own) < CONFIRMED_SHARE * len(own):
            found[user] = "a burst that nobody else confirms"
    return found


def account_made_ms(user_id: int) -> int:
    """Return when a Discord account was made; ids that Discord never gave out count as its first."""
    return (user_id >> 22) + DISCORD_EPOCH_MS


def _densest(times_ms: Sequence[int]) -> tuple[int, int]:
    """Return how many of the sorted times lie within BURST_MS at most, and when that burst began."""
    best, began_ms, first = 0, 0, 0
    for last, at_ms in enumerate(times_ms):
        while at_ms - times_ms[first] > BURST_MS:
            first += 1
        if last - first + 1 > best:
            best, began_ms = last - first + 1, times_ms[first]
    return best, began_ms


def rater_trust(votes: Votes, doubted: Mapping[int, Doubt] | None = None) -> list[RaterTrust]:
    """Estimate every member's accuracy and vote weight (log-odds, capped) by expectation maximisation.

    The weight of a doubted member is a fraction of what their accuracy would give.
    """
    by_member = _by_member(votes)
    doubted = doubted or {}
    factors = {user: _FACTORS[doubt] for user, doubt in doubted.items() if doubt}
    prior = PRIOR_RIGHT / (PRIOR_RIGHT + PRIOR_WRONG)
    accuracy = dict.fromkeys(sorted(by_member), prior)
    for _ in range(ROUNDS):
        weights = _capped_weights(accuracy, by_member, factors)
        updated = {user: _accuracy(user, by_member[user], votes, weights) for user in accuracy}
        change = max((abs(updated[user] - accuracy[user]) for user in accuracy), default=0.0)
        accuracy = updated
        if change < 1e-9:
            break
    weights = _capped_weights(accuracy, by_member, factors)
    return [
        RaterTrust(
            user_id=user,
            accuracy=accuracy[user],
            weight=weights[user],
            votes=len(by_member[user]),
            overlap=sum(len(votes[reply]) > 1 for reply in by_member[user]),
            doubt=doubted.get(user, ""),
        )
        for user in accuracy
    ]


def cap_shares(masses: Mapping[int, float]) -> dict[int, float]:
    """Return the masses, lowered so that nobody holds more than max(10 %, 1.5 / raters) of the whole."""
    positive = sorted((mass for mass in masses.values() if mass > 0), reverse=True)
    if not positive:
        return dict(masses)
    share = max(MAX_SHARE, SHARE_FACTOR / len(positive))
    ceiling = math.inf
    for capped in range(len(positive)):
        left = 1 - capped * share
        if left <= 0:
            break
        whole = sum(positive[capped:]) / left
        ceiling = share * whole
        if positive[capped] <= ceiling * (1 + 1e-12):
            break
    return {user: min(mass, ceiling) for user, mass in masses.items()}


def _votes_on(row: RatedReply) -> dict[int, int]:
    """Return each member's thumb; who corrects a reply without a thumb dislikes it.

    A vote between two candidates likes the one and dislikes the other, where its member gave no thumb.
    """
    thumbs = {
        rating.user_id: rating.value for rating in row.ratings if rating.kind == "thumb" and rating.value
    }
    for rating in row.ratings:
        if rating.kind == "correction":
            thumbs.setdefault(rating.user_id, -1)
        elif rating.kind == "vote" and rating.value:
            thumbs.setdefault(rating.user_id, rating.value)
    echoed = row.asker_id
    if echoed in thumbs and _echoes(row):
        seconded = any(user != echoed and value == thumbs[echoed] for user, value in thumbs.items())
        if not seconded:
            del thumbs[echoed]
    return dict(sorted(thumbs.items()))


def _echoes(row: RatedReply) -> bool:
    """Whether most of the reply repeats what was said to the bot, word for word."""
    said = {
        gram
        for message in row.prompt_messages
        if message["role"] == "user"
        for gram in _grams(message["content"])
    }
    own = _grams(row.text)
    return bool(own) and sum(gram in said for gram in own) / len(own) >= ECHO_SHARE


def _grams(text: str) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + ECHO_WORDS]) for i in range(len(words) - ECHO_WORDS + 1)]


def _by_member(votes: Votes) -> dict[int, list[str]]:
    by_member: defaultdict[int, list[str]] = defaultdict(list)
    for reply_id in sorted(votes):
        for user in votes[reply_id]:
            by_member[user].append(reply_id)
    return dict(by_member)


def _capped_weights(
    accuracy: Mapping[int, float], by_member: Mapping[int, Sequence[str]], factors: Mapping[int, float]
) -> dict[int, float]:
    """Return the log-odds of being right, 0 at or below chance, lowered by doubt and where over the cap."""
    raw = {
        user: factors.get(user, 1.0) * max(0.0, math.log(value / (1 - value)))
        for user, value in accuracy.items()
    }
    masses = {user: raw[user] * len(by_member[user]) for user in raw}
    capped = cap_shares(masses)
    return {user: raw[user] * capped[user] / masses[user] if masses[user] else 0.0 for user in raw}


def _accuracy(user: int, replies: Sequence[str], votes: Votes, weights: Mapping[int, float]) -> float:
    """Return the posterior mean accuracy, judged by what the other raters of the same replies think."""
    right, seen = PRIOR_RIGHT, PRIOR_RIGHT + PRIOR_WRONG
    for reply_id in replies:
        others = sum(weights[other] * value for other, value in votes[reply_id].items() if other != user)
        liked = _sigmoid(others)
        certainty = abs(2 * liked - 1)
        right += certainty * (liked if votes[reply_id][user] > 0 else 1 - liked)
        seen += certainty
    return right / seen


def _label(
    row: RatedReply,
    ratings: Sequence[GivenRating],
    votes: Mapping[int, int],
    trust: Mapping[int, RaterTrust],
) -> ReplyLabel:
    log_odds = sum(trust[user].weight * value for user, value in votes.items())
    weight = abs(2 * _sigmoid(log_odds) - 1)
    verdict: Verdict = "unclear" if weight == 0 else ("liked" if log_odds > 0 else "disliked")
    return ReplyLabel(row.reply_id, verdict, weight, _corrections(ratings, trust))


def _corrections(ratings: Sequence[GivenRating], trust: Mapping[int, RaterTrust]) -> tuple[Correction, ...]:
    """Return the corrections of members who are believed, with double the weight of such a member's thumb."""
    found = []
    for rating in sorted(ratings, key=lambda rating: rating.user_id):
        text = (rating.text or "").strip()
        rater = trust.get(rating.user_id)
        believed = PRIOR_WEIGHT if rater is None else rater.weight
        if rating.kind == "correction" and text and believed > 0:
            found.append(Correction(text, CORRECTION_WEIGHT * (2 * _sigmoid(believed) - 1)))
    return tuple(found)


def _sigmoid(value: float) -> float:
    return 0.5 * (1 + math.tanh(value / 2))


# A correction by a member whose own vote was set aside counts as an unknown member's.
PRIOR_WEIGHT = math.log(PRIOR_RIGHT / PRIOR_WRONG)
