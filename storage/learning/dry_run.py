"""What a run would find if it started now: what it would use and leave out, and whether it would start."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

import sqlite_utils

from storage.config_sections import TrainerConfig
from storage.feedback import tastings
from storage.learning import eligibility, runs

#: What a run may be told to train for.
OBJECTIVES: tuple[str, ...] = get_args(TrainerConfig.model_fields["objective"].annotation)
_LIMIT = 1900


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
    """Say what a run would use and leave out, and whether it would start."""
    eligible = prospect.eligible
    splits = Counter(row.split for row in eligible.rows)
    lines = [
        "**Dry run**: nothing was changed.",
        _verdict(prospect, settings),
        f"Used: {len(eligible.rows)} rated replies, {splits['train']} to train on and "
        f"{splits['development'] + splits['gate']} held out to judge on",
        f"Liked or corrected: {eligible.liked} (needs {settings.min_liked}); "
        f"raters: {eligible.raters} (needs {settings.min_raters})",
    ]
    lines += [
        f"Left out: {n} because {eligibility.REASONS.get(why, why)}" for why, n in eligible.excluded.items()
    ]
    if not eligible.excluded:
        lines.append("Left out: nothing")
    if not eligible.rows:
        lines.append(tastings.OFFER)
    return "\n".join(lines)[:_LIMIT]


def _verdict(prospect: Prospect, settings: TrainerConfig) -> str:
    eligible, active = prospect.eligible, prospect.active
    if active is not None:
        return f"A run would not start: `{active.id}` is {active.state} already."
    if eligible.liked < settings.min_liked or eligible.raters < settings.min_raters:
        return 'A run would end at once with "not yet": there are too few ratings that may train.'
    trained_on = eligibility.Eligibility([row for row in eligible.rows if row.split == "train"], {})
    if not trained_on.liked:
        return 'A run would end at once with "not yet": all liked replies lie in held-out conversations.'
    if not prospect.trainer_alive:
        return "A run would wait: the trainer is not running right now."
    return "A run would start now."


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
