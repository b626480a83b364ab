"""What a run would find if it started now: what it would use and leave out, and whether it would start."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

import sqlite_utils

from storage.config_sections import TrainerConfig
from storage.feedback import tastings
from storage.learning import eligibility, runs
from storage.sentences import Sentence

#: What a run may be told to train for.
OBJECTIVES: tuple[str, ...] = get_args(TrainerConfig.model_fields["objective"].annotation)


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a run would find if it started now."""

    eligible: eligibility.Eligibility
    active: runs.Run | None
    trainer_alive: bool


def look(
    db: sqlite_utils.Database, scope: str, *, permission_reference: str, trainer_alive: bool
) -> Prospect:
    """Return what a run of this scope would find; changes nothing."""
    eligible = eligibility.eligible_rows(db, scope, permission_reference=permission_reference)
    return Prospect(eligible, runs.active(db, scope), trainer_alive)


def text(prospect: Prospect, settings: TrainerConfig) -> str:
    """Say what a run would use and leave out, and whether it would start, in English."""
    return "\n".join(lines(prospect, settings))


def lines(prospect: Prospect, settings: TrainerConfig) -> list[Sentence]:
    """Say what a run would use and leave out, and whether it would start."""
    eligible = prospect.eligible
    splits = Counter(row.split for row in eligible.rows)
    found = [
        Sentence("**Dry run**: nothing was changed."),
        _verdict(prospect, settings),
        Sentence(
            "Used: {count} rated replies, {train} to train on and {held_out} held out to judge on",
            count=len(eligible.rows),
            train=splits["train"],
            held_out=splits["development"] + splits["gate"],
        ),
        Sentence(
            "Liked or corrected: {liked} (needs {min_liked}); raters: {raters} (needs {min_raters})",
            liked=eligible.liked,
            min_liked=settings.min_liked,
            raters=eligible.raters,
            min_raters=settings.min_raters,
        ),
    ]
    found += [
        Sentence("Left out: {count} because {reason}", count=n, reason=eligibility.reason(why))
        for why, n in eligible.excluded.items()
    ]
    if not eligible.excluded:
        found.append(Sentence("Left out: nothing"))
    if not eligible.rows:
        found.append(tastings.OFFER)
    return found


def _verdict(prospect: Prospect, settings: TrainerConfig) -> Sentence:
    eligible, active = prospect.eligible, prospect.active
    if active is not None:
        return Sentence(
            "A run would not start: `{run}` is {state} already.", run=active.id, state=Sentence(active.state)
        )
    if eligible.liked < settings.min_liked or eligible.raters < settings.min_raters:
        return Sentence('A run would end at once with "not yet": there are too few ratings that may train.')
    trained_on = eligibility.Eligibility([row for row in eligible.rows if row.split == "train"], {})
    if not trained_on.liked:
        return Sentence(
            'A run would end at once with "not yet": all liked replies lie in held-out conversations.'
        )
    if not prospect.trainer_alive:
        return Sentence("A run would wait: the trainer is not running right now.")
    return Sentence("A run would start now.")


def as_json(prospect: Prospect, settings: TrainerConfig) -> dict[str, Any]:
    """Return the same for scripts."""
    eligible = prospect.eligible
    train = sum(row.split == "train" for row in eligible.rows)
    return {
        "verdict": _verdict(prospect, settings),
        "train": train,
        "held_out": len(eligible.rows) - train,
        "liked": eligible.liked,
        "raters": eligible.raters,
        "excluded": eligible.excluded,
    }


def unchanged_since_vote(db: sqlite_utils.Database, scope: str) -> runs.Run | None:
    """Return the run that members are judging where nothing was rated since it began: another makes the same.

    None where the newest run of the scope is another one, or was told to train otherwise.
    """
    newest = next(iter(runs.latest(db, scope, 1)), None)
    if newest is None or newest.outcome != "votes" or newest.settings or runs.new_ratings(db, scope):
        return None
    return newest
