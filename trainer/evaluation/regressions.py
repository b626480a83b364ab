"""Corrections as regression tests: what members once wished for must not be lost by a later adapter.

A case is a correction and the reply that it corrects. Its margin is how much likelier, per token, a model
finds the correction, under the same prompt. The base always finds its own reply likelier, by some nats, so
what counts is the margin beyond the base's: has a model moved towards what was wished for? Such a figure
has no sampling noise, but every new adapter moves every text a little, so that single cases turn both ways
by chance. A challenger is therefore refused only if it loses more cases of the champion's than it gains
beyond chance (an exact sign test), or if the preference clearly falls on average. Preference saturates (as
SimPO's does, https://arxiv.org/abs/2405.14734): a champion that knows its corrections by heart sets no bar
that a fresh adapter can't reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.data.rows import Row
from trainer.data.snapshot import Snapshot
from trainer.evaluation import statistics
from trainer.evaluation.statistics import Estimate, most_by_chance

# Each case costs two scored texts of each model: half a minute of a CPU in all. The newest ones count.
MAX_TRAINED = 12
MAX_HELD_OUT = 8
# SimPO's beta, which is 2 to 10 there: a quarter of a nat per token is a preference of 88 %.
SHARPNESS = 8.0
# A model within this of the base, in nat per token, has moved neither way: training on a case moves it by one
# or two, and others by up to a third (EXPERIMENTS, 8).
UNMOVED = 0.3
# The sign test's error rate: held-out figures of good challengers wander, so that only the clear case counts.
CHANCE = 0.01
# With fewer conversations than this an average says nothing.
MIN_GROUPS = 6


@dataclass(frozen=True)
class Case:
    """One correction of one reply of a snapshot; `number` counts the corrections of that reply."""

    row: Row
    number: int

    @property
    def trained(self) -> bool:
        """Whether the challenger was trained on it: then it tests forgetting, else generalisation."""
        return self.row.split == "train"


@dataclass(frozen=True)
class ScoredCase:
    """How much likelier, in nat per token, each model finds a correction than what it corrects."""

    reply_id: str
    number: int
    group: str
    trained: bool
    challenger: float
    champion: float
    base: float

    @property
    def name(self) -> str:
        """Return how reports call it: the reply's id, and which correction of it."""
        return self.reply_id if self.number == 0 else f"{self.reply_id}, correction {self.number + 1}"

    @property
    def towards(self) -> int:
        """Whether the challenger moved from the base towards it (1), away from it (-1), or not."""
        return _direction(self.challenger - self.base)

    @property
    def lost(self) -> bool:
        """Whether the champion is on a better side of the base than the challenger."""
        return self.towards < _direction(self.champion - self.base)

    @property
    def gained(self) -> bool:
        """Whether the challenger is on a better side of the base than the champion."""
        return self.towards > _direction(self.champion - self.base)

    @property
    def gain(self) -> float:
        """Return the change of the preference, -1 to 1."""
        return _preference(self.challenger - self.base) - _preference(self.champion - self.base)


@dataclass(frozen=True)
class Kept:
    """How the corrections of one kind fare.

    `towards` counts those towards which the challenger has moved from the base; `gain` is the mean change of
    preference beside the champion, None with few conversations.
    """

    cases: int
    towards: int
    lost: tuple[str, ...]
    gained: int
    gain: Estimate | None

    @property
    def most_lost(self) -> int:
        """The most lost cases that chance explains, given those gained."""
        return most_by_chance(self.gained, CHANCE)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "lost": list(self.lost), "gain": self.gain.as_json() if self.gain else None}


def cases(snapshot: Snapshot) -> list[Case]:
    """Return the newest corrections, at most MAX_TRAINED and MAX_HELD_OUT of them.

    A snapshot holds only what may be used today: no correction of a member who erased or opted out, of one
    who is not believed, and none that was planted. Conversations that were looked at too often to prove a
    gain go on testing for losses.
    """
    rows = (*snapshot.rows, *snapshot.retired_corrections)
    found = [Case(row, number) for row in rows for number in range(len(row.corrections))]
    newest = sorted(found, key=lambda case: (-case.row.created_ms, case.row.reply_id, case.number))
    trained = [case for case in newest if case.trained]
    return trained[:MAX_TRAINED] + [case for case in newest if not case.trained][:MAX_HELD_OUT]


def summarise(scored: Sequence[ScoredCase], *, trained: bool, **judge: Any) -> Kept | None:
    """Return how the corrections of one kind fare; None without any."""
    own = [case for case in scored if case.trained == trained]
    if not own:
        return None
    gain = None
    groups = [case.group for case in own]
    if len(set(groups)) >= MIN_GROUPS:
        gain = statistics.clustered_mean([case.gain for case in own], groups, **judge)
    return Kept(
        cases=len(own),
        towards=sum(case.towards > 0 for case in own),
        lost=tuple(case.name for case in own if case.lost),
        gained=sum(case.gained for case in own),
        gain=gain,
    )


def _direction(beyond: float) -> int:
    return 0 if abs(beyond) <= UNMOVED else 1 if beyond > 0 else -1


def _preference(margin: float) -> float:
    return 0.5 * (1 + math.tanh(SHARPNESS * margin / 2))
