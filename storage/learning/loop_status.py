"""The loop at a glance: one JSON object for /status, `strop status` and the playground's page."""

from dataclasses import dataclass
from typing import Any

import sqlite_utils

from storage.db import sql
from storage.feedback import duels, ratings, side_by_side
from storage.learning import adapters, eligibility, runs, trials
from storage.learning.trials import Trial
from storage.sentences import Sentence, percent

# Below so many rated replies it is too early to say who rates them.
FEW_REPLIES = 10
# Up to here the rows that may train are counted live; beyond, the last snapshot's counts are shown.
LIVE_REPLIES = 1_000
HISTORY = 20


def glance(
    db: sqlite_utils.Database,
    scope: str,
    base_hash: str,
    *,
    min_liked: int = 25,
    min_raters: int = 5,
    min_votes: int = 10,
    permission_reference: str = "",
) -> dict[str, Any]:
    """Return where the loop of a scope stands, as plain JSON values."""
    counts = ratings.counts(db, scope)
    past = runs.finished(db, scope, HISTORY)
    active = runs.active(db, scope)
    ready = _readiness(db, scope, permission_reference, counts, past)
    return {
        "scope": scope,
        "champion": _champion(db, scope, base_hash),
        "ratings": {
            "liked": counts.liked,
            "disliked": counts.disliked,
            "corrections": counts.corrections,
            "raters": counts.raters,
            "new_since_run": runs.new_ratings(db, scope),
        },
        "needs": {"liked": [ready.liked, min_liked], "raters": [ready.raters, min_raters]},
        "by_asker_only": [ready.by_asker_only, ready.replies],
        "run": _run(active),
        "last_run": _run(past[0] if past else None),
        "history": [_past(run) for run in past],
        "promotions": [
            {
                "adapter_id": promotion.adapter_id,
                "previous_id": promotion.previous_id,
                "kind": promotion.kind,
                "reason": promotion.reason,
                "created_ms": promotion.created_ms,
            }
            for promotion in adapters.recent_promotions(db, scope, base_hash, HISTORY)
        ],
        "excluded": ready.excluded,
        "duels": _duels(db, scope, past, min_votes),
        "comparisons": dict(zip(("pairs", "votes"), side_by_side.totals(db, scope), strict=True)),
        "trials": {trial.kind: _trial(trial) for trial in trials.active(db, scope, base_hash)},
    }


def status_text(glance: dict[str, Any]) -> str:
    """Say a glance in a few lines, in English."""
    return "\n".join(status_lines(glance))


def status_lines(glance: dict[str, Any]) -> list[Sentence]:
    """Say a glance in a few lines for people."""
    counts, needs = glance["ratings"], glance["needs"]
    champion = glance["champion"]["id"]
    lines = [
        Sentence(
            "Answering: {answering}",
            answering=(adapters.called(champion) if champion else Sentence("the base model, no adapter yet")),
        ),
        Sentence(
            "Ratings: {liked} liked, {disliked} disliked, {corrections} corrected by {raters} members "
            "({new} new or changed since the last run)",
            liked=counts["liked"],
            disliked=counts["disliked"],
            corrections=counts["corrections"],
            raters=counts["raters"],
            new=counts["new_since_run"],
        ),
        _readiness_text(needs),
    ]
    alone, rated = glance.get("by_asker_only", (0, 0))
    if rated >= FEW_REPLIES and alone > rated / 2:
        lines.append(
            Sentence(
                "Most replies ({share}) are rated by their asker only: whose ratings to trust shows where "
                "several members rate the same reply",
                share=percent(alone / rated),
            )
        )
    if glance["run"]:
        lines.append(_run_text(glance["run"]))
    if glance["last_run"]:
        lines.append(
            Sentence(
                "Last run: {message}",
                message=glance["last_run"]["message"] or Sentence(glance["last_run"]["outcome"]),
            )
        )
    lines += [trial["text"] for trial in glance.get("trials", {}).values()]
    if glance["duels"]["open"]:
        lines.append(
            Sentence(
                "Blind votes: {votes} cast, {pairs} pairs open",
                votes=glance["duels"]["votes"],
                pairs=glance["duels"]["open"],
            )
        )
    if glance.get("comparisons", {}).get("pairs"):
        compared = glance["comparisons"]
        lines.append(
            Sentence(
                "Side by side in the chat: {pairs} pairs, {votes} votes",
                pairs=compared["pairs"],
                votes=compared["votes"],
            )
        )
    lines += [
        Sentence("Not trained on: {count} because {reason}", count=n, reason=eligibility.reason(why))
        for why, n in glance["excluded"].items()
    ]
    return lines


def trial_text(trial: Trial) -> Sentence:
    """Say how a trial goes: what was counted and about how much is missing, never who is ahead."""
    counted = trial.standing
    newcomer, incumbent = counted.get("newcomer", 0), counted.get("incumbent", 0)
    if trial.kind == "holdback":
        return Sentence(
            "Holdback: {who} keeps {share} of new conversations; rated: {incumbent} of its conversations, "
            "{newcomer} of the champion's",
            who=adapters.called(trial.incumbent_id),
            share=percent(trial.share),
            incumbent=incumbent,
            newcomer=newcomer,
        )
    said = Sentence(
        "Canary: {who} answers {share} of new conversations; rated: {newcomer} of its conversations, "
        "{incumbent} of the champion's",
        who=adapters.called(trial.newcomer_id),
        share=percent(trial.share),
        newcomer=newcomer,
        incumbent=incumbent,
    )
    needed = counted.get("needed")
    return Sentence("{before}; about {needed} more needed", before=said, needed=needed) if needed else said


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "adapter_id": trial.exception_id,
        "share": trial.share,
        "until_ms": trial.until_ms,
        "rated": [trial.standing.get("newcomer", 0), trial.standing.get("incumbent", 0)],
        "needed": trial.standing.get("needed"),
        "text": trial_text(trial),
    }


def _readiness_text(needs: dict[str, list[int]]) -> Sentence:
    (liked, min_liked), (raters, min_raters) = needs["liked"], needs["raters"]
    counts = {"liked": liked, "min_liked": min_liked, "raters": raters, "min_raters": min_raters}
    if liked >= min_liked and raters >= min_raters:
        return Sentence(
            "Ready to train: {liked} of {min_liked} liked or corrected replies, "
            "{raters} of {min_raters} raters",
            **counts,
        )
    return Sentence(
        "Not enough to train yet: {liked} of {min_liked} liked or corrected replies, "
        "{raters} of {min_raters} raters",
        **counts,
    )


def _run_text(run: dict[str, Any]) -> Sentence:
    if run["state"] == "queued":
        return Sentence("Run {run}: waiting for the trainer", run=run["id"])
    values: dict[str, Any] = {
        "run": run["id"],
        "phase": Sentence(run["phase"] or "starting"),
        "progress": percent(run["progress"]),
    }
    note = run["note"]
    if run["eta_s"] is None:
        if note:
            return Sentence("Run {run}: {phase} {progress} {note}", note=note, **values)
        return Sentence("Run {run}: {phase} {progress}", **values)
    values["minutes"] = max(round(run["eta_s"] / 60), 1)
    if note:
        return Sentence("Run {run}: {phase} {progress}, about {minutes} min left {note}", note=note, **values)
    return Sentence("Run {run}: {phase} {progress}, about {minutes} min left", **values)


def _champion(db: sqlite_utils.Database, scope: str, base_hash: str) -> dict[str, Any]:
    row = sql.one(
        db,
        """SELECT champions.adapter_id AS id, promotions.created_ms AS since_ms FROM champions
           JOIN promotions ON promotions.id = champions.promotion_id
           WHERE champions.scope = ? AND champions.base_hash = ?""",
        (scope, base_hash),
    )
    return row or {"id": None, "since_ms": None}


@dataclass(frozen=True, slots=True)
class _Readiness:
    """Liked or corrected replies and raters that may train, who rated, and the replies that may not."""

    liked: int
    raters: int
    replies: int
    by_asker_only: int
    excluded: dict[str, int]


def _readiness(
    db: sqlite_utils.Database,
    scope: str,
    permission_reference: str,
    counts: ratings.RatingCounts,
    past: list[runs.Run],
) -> _Readiness:
    """Count what may train: live, or in a large database as the last snapshot counted it."""
    if counts.liked + counts.disliked + counts.corrections <= LIVE_REPLIES:
        eligible = eligibility.eligible_rows(db, scope, permission_reference=permission_reference)
        return _Readiness(
            eligible.liked, eligible.raters, len(eligible.rows), eligible.by_asker_only, eligible.excluded
        )
    last = next((run.metrics for run in past if "excluded" in run.metrics), {})
    data = last.get("data", {})
    return _Readiness(
        counts.liked + counts.corrections,
        counts.raters,
        data.get("replies", 0),
        data.get("rated_by_asker_only", 0),
        last.get("excluded", {}),
    )


def _run(run: runs.Run | None) -> dict[str, Any] | None:
    if run is None:
        return None
    fields = ("id", "state", "phase", "progress", "eta_s", "note", "message", "outcome")
    return {field: getattr(run, field) for field in fields}


def _past(run: runs.Run) -> dict[str, Any]:
    headline = run.metrics.get("headline") or {}
    return {
        "run_id": run.id,
        "adapter_id": run.adapter_id,
        "outcome": run.outcome,
        **{key: headline.get(key) for key in ("value", "low", "high", "n")},
        "message": run.message,
        "finished_ms": run.finished_ms,
    }


def _duels(db: sqlite_utils.Database, scope: str, past: list[runs.Run], min_votes: int) -> dict[str, Any]:
    voting = next((run for run in past if run.outcome == "votes"), None)
    if voting is None:
        return {"open": 0, "votes": 0, "needed": None}
    return {
        "open": duels.count_open(db, scope),
        "votes": duels.tally(db, voting.id).votes,
        "needed": voting.metrics.get("votes_needed", min_votes),
    }
