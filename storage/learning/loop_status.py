"""Where the loop stands: for /status, `strop status` and the playground's page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlite_utils

from storage.db import sql
from storage.feedback import duels, ratings, side_by_side
from storage.feedback.ratings import RatingCounts
from storage.learning import adapters, eligibility, runs, trials
from storage.learning.adapters import Promotion
from storage.learning.evaluations import Metrics
from storage.learning.runs import Run
from storage.learning.trials import Trial
from storage.sentences import Sentence, Value, percent

# Below so many rated replies it is too early to say who rates them.
FEW_REPLIES = 10
# Up to here the rows that may train are counted live; beyond, the last snapshot's counts are shown.
LIVE_REPLIES = 1_000
HISTORY = 20


@dataclass(frozen=True, slots=True)
class Champion:
    """Who answers since when; an id of None is the base model, and a time of None says always."""

    id: str | None = None
    since_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Readiness:
    """What may train beside what a run needs, who rated it, and the replies that may not, by reason.

    `replies` may train, `by_asker_only` of them are rated by nobody but their asker.
    """

    liked: int
    raters: int
    min_liked: int
    min_raters: int
    replies: int = 0
    by_asker_only: int = 0
    excluded: Mapping[str, int] = field(default_factory=dict)

    @property
    def enough(self) -> bool:
        """Whether a run would have enough to train on."""
        return self.liked >= self.min_liked and self.raters >= self.min_raters


@dataclass(frozen=True, slots=True)
class BlindVotes:
    """The vote that is on: its open pairs, the votes cast, and how many it takes (None without a vote).

    `needed` is between how many and how many votes decide in half of all cases, at a win rate of 70 %.
    """

    open: int = 0
    votes: int = 0
    needed: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """The pairs that stood side by side in the chat, and the votes on them."""

    pairs: int = 0
    votes: int = 0


@dataclass(frozen=True, slots=True)
class LoopStatus:
    """Where the loop of a scope stands. `past` holds the latest runs that are over, the newest first."""

    scope: str
    champion: Champion
    ratings: RatingCounts
    new_ratings: int
    ready: Readiness
    run: Run | None = None
    past: tuple[Run, ...] = ()
    promotions: tuple[Promotion, ...] = ()
    blind_votes: BlindVotes = BlindVotes()
    compared: Compared = Compared()
    trials: tuple[Trial, ...] = ()

    @property
    def last_run(self) -> Run | None:
        """The latest run that is over."""
        return self.past[0] if self.past else None

    def as_json(self) -> dict[str, Any]:
        """Return plain values for scripts and the playground's page."""
        ready = self.ready
        return {
            "scope": self.scope,
            "champion": asdict(self.champion),
            "ratings": {**asdict(self.ratings), "new_since_run": self.new_ratings},
            "needs": {"liked": [ready.liked, ready.min_liked], "raters": [ready.raters, ready.min_raters]},
            "by_asker_only": [ready.by_asker_only, ready.replies],
            "run": _run(self.run),
            "last_run": _run(self.last_run),
            "history": [_past(run) for run in self.past],
            "promotions": [_promotion(promotion) for promotion in self.promotions],
            "excluded": dict(ready.excluded),
            "duels": asdict(self.blind_votes),
            "comparisons": asdict(self.compared),
            "trials": {trial.kind: _trial(trial) for trial in self.trials},
        }


def read(
    db: sqlite_utils.Database,
    scope: str,
    base_hash: str,
    *,
    min_liked: int = 25,
    min_raters: int = 5,
    min_votes: int = 10,
    permission_reference: str = "",
) -> LoopStatus:
    """Return where the loop of a scope stands."""
    counts = ratings.counts(db, scope)
    past = runs.list_finished(db, scope, HISTORY)
    liked, raters, replies, alone, excluded = _may_train(db, scope, permission_reference, counts, past)
    return LoopStatus(
        scope,
        _champion(db, scope, base_hash),
        counts,
        runs.new_ratings(db, scope),
        Readiness(liked, raters, min_liked, min_raters, replies, alone, excluded),
        runs.active(db, scope),
        tuple(past),
        tuple(adapters.recent_promotions(db, scope, base_hash, HISTORY)),
        _blind_votes(db, scope, past, min_votes),
        Compared(*side_by_side.totals(db, scope)),
        tuple(trials.active(db, scope, base_hash)),
    )


def status_text(status: LoopStatus) -> str:
    """Say where the loop stands in a few lines, in English."""
    return "\n".join(status_lines(status))


def status_lines(status: LoopStatus) -> list[Sentence]:
    """Say where the loop stands in a few lines for people."""
    counts, ready = status.ratings, status.ready
    lines = [
        Sentence(
            "Answering: {answering}",
            answering=_answering(status),
        ),
        Sentence(
            "Ratings by {members}: {likes}, {dislikes}, {corrections}; "
            "new or changed since the last run: {new}",
            members=Sentence.counted("{count} member", "{count} members", counts.raters),
            likes=Sentence.counted("{count} like", "{count} likes", counts.liked),
            dislikes=Sentence.counted("{count} dislike", "{count} dislikes", counts.disliked),
            corrections=Sentence.counted("{count} correction", "{count} corrections", counts.corrections),
            new=status.new_ratings,
        ),
        _readiness_text(ready),
    ]
    if ready.replies >= FEW_REPLIES and ready.by_asker_only > ready.replies / 2:
        lines.append(
            Sentence(
                "Most replies ({share}) are rated by their asker only: whose ratings to trust shows where "
                "several members rate the same reply",
                share=percent(ready.by_asker_only / ready.replies),
            )
        )
    if status.run is not None:
        lines.append(_run_text(status.run))
    if (last := status.last_run) is not None:
        lines.append(
            Sentence("Last run: {message}", message=last.message or Sentence(last.outcome or last.state))
        )
    lines += map(trial_text, status.trials)
    votes, compared = status.blind_votes, status.compared
    if votes.open:
        lines.append(
            Sentence(
                "Blind votes: {votes} so far, {pairs} open",
                votes=_votes(votes.votes),
                pairs=Sentence.counted("{count} pair", "{count} pairs", votes.open),
            )
        )
    if compared.pairs:
        lines.append(
            Sentence(
                "Side by side in the chat: {pairs}, {votes}",
                pairs=Sentence.counted("{count} pair", "{count} pairs", compared.pairs),
                votes=_votes(compared.votes),
            )
        )
    lines += [
        Sentence("Not trained on: {count} because {reason}", count=n, reason=eligibility.reason(why))
        for why, n in ready.excluded.items()
    ]
    return lines


def _answering(status: LoopStatus) -> Sentence:
    if status.champion.id is not None:
        return adapters.display_name(status.champion.id)
    if any(each.adapter_id is not None for each in status.promotions):
        return Sentence("the base model; /promote puts an adapter in service again")
    return Sentence("the base model, no adapter yet")


def trial_text(trial: Trial) -> Sentence:
    """Say how a trial goes: what was counted and about how much is missing, never who is ahead."""
    counted = trial.standing
    newcomer, incumbent = counted.get("newcomer", 0), counted.get("incumbent", 0)
    if trial.kind == "holdback":
        return Sentence(
            "Holdback: {who} keeps {share} of new conversations; rated: {incumbent} of its conversations, "
            "{newcomer} of the champion's",
            who=adapters.display_name(trial.incumbent_id),
            share=percent(trial.share),
            incumbent=incumbent,
            newcomer=newcomer,
        )
    said = Sentence(
        "Canary: {who} answers {share} of new conversations; rated: {newcomer} of its conversations, "
        "{incumbent} of the champion's",
        who=adapters.display_name(trial.newcomer_id),
        share=percent(trial.share),
        newcomer=newcomer,
        incumbent=incumbent,
    )
    needed = _needed(trial)
    if needed is None:
        return said
    return Sentence(
        "{before}; in half of all cases {low} to {high} more decide (reckoned anew with each)",
        before=said,
        low=needed[0],
        high=needed[1],
    )


def _needed(trial: Trial) -> tuple[int, int] | None:
    """Return between how many and how many more outcomes are likely to decide.

    Earlier versions kept one number, until the trial is judged again.
    """
    stored = trial.standing.get("needed")
    return (int(stored[0]), int(stored[1])) if isinstance(stored, list) else None


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "adapter_id": trial.exception_id,
        "share": trial.share,
        "until_ms": trial.until_ms,
        "rated": [trial.standing.get("newcomer", 0), trial.standing.get("incumbent", 0)],
        "needed": _needed(trial),
        "text": trial_text(trial),
    }


def _readiness_text(ready: Readiness) -> Sentence:
    counts = Sentence(
        "replies liked or corrected {liked} (needed: {min_liked}), raters {raters} (needed: {min_raters})",
        liked=ready.liked,
        min_liked=ready.min_liked,
        raters=ready.raters,
        min_raters=ready.min_raters,
    )
    if ready.enough:
        return Sentence("Enough to train on: {counts}", counts=counts)
    return Sentence("Too little to train on yet: {counts}", counts=counts)


def _votes(count: int) -> Sentence:
    return Sentence.counted("{count} vote", "{count} votes", count)


def _run_text(run: Run) -> Sentence:
    if run.state == "queued":
        return Sentence("Run {run}: waiting for the trainer", run=run.id)
    values: dict[str, Value] = {
        "run": run.id,
        "phase": Sentence(run.phase or "starting"),
        "progress": percent(run.progress),
    }
    if run.eta_s is None:
        if run.note:
            return Sentence("Run {run}: {phase} {progress} ({note})", note=run.note, **values)
        return Sentence("Run {run}: {phase} {progress}", **values)
    values["minutes"] = max(round(run.eta_s / 60), 1)
    if run.note:
        return Sentence(
            "Run {run}: {phase} {progress}, about {minutes} min left ({note})", note=run.note, **values
        )
    return Sentence("Run {run}: {phase} {progress}, about {minutes} min left", **values)


def _champion(db: sqlite_utils.Database, scope: str, base_hash: str) -> Champion:
    row = sql.one(
        db,
        """SELECT champions.adapter_id AS id, promotions.created_ms AS since_ms FROM champions
           JOIN promotions ON promotions.id = champions.promotion_id
           WHERE champions.scope = ? AND champions.base_hash = ?""",
        (scope, base_hash),
    )
    return Champion(**(row or {}))


def _may_train(
    db: sqlite_utils.Database,
    scope: str,
    permission_reference: str,
    counts: RatingCounts,
    past: list[Run],
) -> tuple[int, int, int, int, dict[str, int]]:
    """Count what may train: live, or in a large database as the last snapshot counted it.

    Returns liked or corrected replies, raters, replies, those that only their asker rated, and the replies
    that may not train by reason.
    """
    if counts.liked + counts.disliked + counts.corrections <= LIVE_REPLIES:
        found = eligibility.eligible_rows(db, scope, permission_reference=permission_reference)
        return found.liked, found.raters, len(found.rows), found.by_asker_only, found.excluded
    last = next((run.metrics for run in past if run.metrics.excluded is not None), Metrics())
    replies, alone = last.data.replies, last.data.rated_by_asker_only
    return counts.liked + counts.corrections, counts.raters, replies, alone, dict(last.excluded or {})


def _run(run: Run | None) -> dict[str, Any] | None:
    if run is None:
        return None
    fields = ("id", "state", "phase", "progress", "eta_s", "note", "message", "outcome")
    return {field: getattr(run, field) for field in fields}


def _past(run: Run) -> dict[str, Any]:
    headline = run.metrics.headline
    return {
        "run_id": run.id,
        "adapter_id": run.adapter_id,
        "outcome": run.outcome,
        **{key: getattr(headline, key, None) for key in ("value", "low", "high", "n")},
        "message": run.message,
        "finished_ms": run.finished_ms,
    }


def _promotion(promotion: Promotion) -> dict[str, Any]:
    fields = ("adapter_id", "previous_id", "kind", "reason", "created_ms")
    return {field: getattr(promotion, field) for field in fields}


def _blind_votes(db: sqlite_utils.Database, scope: str, past: list[Run], min_votes: int) -> BlindVotes:
    voting = next((run for run in past if run.outcome == "votes"), None)
    if voting is None:
        return BlindVotes()
    needed = voting.metrics.votes_needed or (min_votes, min_votes)
    return BlindVotes(duels.count_open(db, scope), duels.tally(db, voting.id).votes, needed)
