"""Corrections as regression tests: what members once wished for must not be lost by a later adapter.

A case is a correction and the reply that it corrects. A model *prefers* the correction if it finds it more
likely, per token, under the same prompt. Such a figure has no sampling noise, but every new adapter moves
every text a little, so that single cases flip both ways by chance. A challenger is therefore refused only if
it loses more cases of the champion's than it gains beyond chance (an exact sign test), or if the preference
falls clearly on average. Preference saturates (as SimPO's does, https://arxiv.org/abs/2405.14734): a champion
that knows its corrections by heart is no better at them than one that merely holds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer import statistics
from trainer.snapshot import Row, Snapshot
from trainer.statistics import Estimate, most_by_chance

# Each case costs two scored texts of each model: some seconds of a CPU. The newest count: tastes drift.
MAX_TRAINED = 16
MAX_HELD_OUT = 8
# SimPO's beta: a quarter of a nat per token is a preference of 73 %.
SHARPNESS = 4.0
# A case within this of even, in nat per token, is neither lost nor gained: kernels differ by less than 1e-4.
EVEN = 0.01
# With fewer conversations than this an average says nothing.
MIN_GROUPS = 5


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
    """How much likelier, in nat per token, each model finds a correction than the reply that it corrects."""

    reply_id: str
    number: int
    group: str
    trained: bool
    challenger: float
    champion: float

    @property
    def name(self) -> str:
        """Return how reports call it: the reply's id, and which correction of it."""
        return self.reply_id if self.number == 0 else f"{self.reply_id}, correction {self.number + 1}"

    @property
    def lost(self) -> bool:
        """Whether the champion prefers the correction and the challenger the reply that was corrected."""
        return self.champion > EVEN and self.challenger < -EVEN

    @property
    def gained(self) -> bool:
        """Whether the challenger prefers the correction and the champion did not."""
        return self.champion < -EVEN and self.challenger > EVEN

    @property
    def gain(self) -> float:
        """Return the change of the preference, -1 to 1."""
        return _preference(self.challenger) - _preference(self.champion)


@dataclass(frozen=True)
class Kept:
    """How the corrections of one kind fare; `gain` is the mean change of preference, None with few groups."""

    cases: int
    held: int
    lost: tuple[str, ...]
    gained: int
    gain: Estimate | None

    @property
    def most_lost(self) -> int:
        """The most lost cases that chance explains, given those gained."""
        return most_by_chance(self.gained)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "lost": list(self.lost), "gain": self.gain.as_json() if self.gain else None}


def cases(snapshot: Snapshot) -> list[Case]:
    """Return the newest corrections, at most MAX_TRAINED and MAX_HELD_OUT of them.

    A snapshot holds only what may be used today: no correction of a member who erased or opted out, of one
    who is not believed, and none that was planted.
    """
    found = [Case(row, number) for row in snapshot.rows for number in range(len(row.corrections))]
    newest = sorted(found, key=lambda case: (-case.row.created_ms, case.row.reply_id, case.number))
    trained = [case for case in newest if case.trained]
    return trained[:MAX_TRAINED] + [case for case in newest if not case.trained][:MAX_HELD_OUT]


def judged(scored: Sequence[ScoredCase], *, trained: bool, **judge: Any) -> Kept | None:
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
        held=sum(case.challenger > 0 for case in own),
        lost=tuple(case.name for case in own if case.lost),
        gained=sum(case.gained for case in own),
        gain=gain,
    )


def _preference(margin: float) -> float:
    return 0.5 * (1 + math.tanh(SHARPNESS * margin / 2))
