"""What a run would find if it started now: what it would use and leave out, and whether it would start."""

from collections import Counter
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, get_args

import sqlite_utils

from storage.config_sections import TrainerConfig
from storage.feedback import tastings
from storage.learning import eligibility, run_summary, runs
from storage.learning.run_summary import Summary
from storage.sentences import Figure, Sentence

#: What a run may be told to train for.
OBJECTIVES: tuple[str, ...] = get_args(TrainerConfig.model_fields["objective"].annotation)


# So many of the newest runs that trained say how long the next one takes.
LEARNED_FROM = 5
LOOKED_AT = 50


@dataclass(frozen=True, slots=True)
class Forecast:
    """How long a run takes and what memory its process needs, as the last `runs` of this deployment took.

    Without runs it is an estimate for this machine; `seconds` is None where none can be made.
    """

    seconds: float | None
    peak_bytes: int
    runs: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return it for scripts, with where it is known from."""
        return asdict(self) | {"from": "runs" if self.runs else "estimate"}


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a run would find if it started now. `forecast` is None where nothing can be said."""

    eligible: eligibility.Eligibility
    active: runs.Run | None
    trainer_alive: bool
    forecast: Forecast | None = None


def look(
    db: sqlite_utils.Database,
    scope: str,
    *,
    permission_reference: str,
    trainer_alive: bool,
    estimate: Forecast | None = None,
) -> Prospect:
    """Return what a run of this scope would find; changes nothing.

    `estimate` says what it takes where no run has trained here yet.
    """
    eligible = eligibility.eligible_rows(db, scope, permission_reference=permission_reference)
    return Prospect(
        eligible, runs.active(db, scope), trainer_alive, _forecast(db, _to_train_on(eligible)) or estimate
    )


def _to_train_on(eligible: eligibility.Eligibility) -> int:
    return sum(row.split == "train" for row in eligible.rows)


def _forecast(db: sqlite_utils.Database, replies: int) -> Forecast | None:
    """Forecast a run on so many replies from the newest runs of any scope: they share the machine.

    The training grows with what is trained on; comparing replies takes the time that it is given.
    """
    past = [each for each in run_summary.page(db, None, limit=LOOKED_AT) if _tells(each)][:LEARNED_FROM]
    if not past:
        return None
    times = [each.seconds + each.training_s * (replies / _trained_on(each) - 1) for each in past]  # type: ignore[operator]
    return Forecast(max(median(times), 1.0), max(each.peak_bytes or 0 for each in past), len(past))


def _tells(run: Summary) -> bool:
    return run.seconds is not None and bool(run.steps) and _trained_on(run) > 0


def _trained_on(run: Summary) -> int:
    return 0 if run.train is None else run.train.liked + run.train.disliked + run.train.unclear


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
        _takes(prospect.forecast, settings),
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


def _takes(forecast: Forecast | None, settings: TrainerConfig) -> Sentence:
    """Say how long a run takes and what it needs, and from where that is known."""
    if forecast is None:
        return Sentence(
            "Time: at most about {minutes} min of training (trainer.max_train_minutes), then as long again "
            "to compare replies. No run has trained here yet, so that nothing better is known.",
            minutes=Figure(settings.max_train_minutes),
        )
    size = Figure(forecast.peak_bytes / 1e9, ".1f")
    if forecast.seconds is None:
        return Sentence("Memory: about {size} GB, estimated: no run has trained here yet", size=size)
    if not forecast.runs:
        return Sentence(
            "Time: about {minutes} min, with about {size} GB of memory, estimated: no run has trained here "
            "yet",
            minutes=max(round(forecast.seconds / 60), 1),
            size=size,
        )
    return Sentence(
        "Time: about {minutes} min, with {size} GB of memory at most, as the last runs here took (counted: "
        "{count})",
        minutes=max(round(forecast.seconds / 60), 1),
        size=size,
        count=forecast.runs,
    )


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
    train = _to_train_on(eligible)
    return {
        "verdict": _verdict(prospect, settings),
        "train": train,
        "held_out": len(eligible.rows) - train,
        "liked": eligible.liked,
        "raters": eligible.raters,
        "excluded": eligible.excluded,
        "forecast": prospect.forecast.as_json() if prospect.forecast else None,
    }


def find_unchanged_vote(db: sqlite_utils.Database, scope: str) -> runs.Run | None:
    """Return the run that members are judging where nothing was rated since it began: another makes the same.

    None where the newest run of the scope is another one, or was told to train otherwise.
    """
    newest = next(iter(runs.latest(db, scope, 1)), None)
    if newest is None or newest.outcome != "votes" or newest.settings:
        return None
    return None if runs.new_ratings(db, scope, with_set_aside=True) else newest
