"""Training runs: a queue in the database, of which so many are on at once, held by leases and heartbeats.

Which run is newer is told by their rows: a clock that was ahead once must not keep one the newest.
"""

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlite_utils

from storage import sentences
from storage.admin import audit
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import RunNotActiveError, UnknownRowError
from storage.feedback import duels, ratings
from storage.learning import trials
from storage.learning.evaluations import Metrics
from storage.sentences import NOTHING, Sentence

Trigger = Literal["manual", "schedule", "ratings", "erasure"]
RunState = Literal["queued", "running", "finished", "failed", "cancelled"]
Phase = Literal["snapshot", "train", "evaluate", "decide", "swap", "votes"]
Outcome = Literal["promoted", "refused", "not_yet", "votes", "failed", "cancelled"]

MAX_ATTEMPTS = 2

FAILED = Sentence("The run failed; the champion was not changed.")
CANCELLED = Sentence("The run was cancelled; the champion was not changed.")
INTERRUPTED = Sentence("the trainer stopped in the middle of it")


@dataclass(frozen=True, slots=True)
class Run:
    """One training run. `progress` is of the phase, 0 to 1; `message` is the one sentence for people."""

    id: str
    scope: str
    trigger: Trigger
    requested_by: str
    state: RunState
    phase: Phase | None
    progress: float
    eta_s: float | None
    note: Sentence
    lease_owner: str | None
    lease_until_ms: int | None
    lease_ms: int | None
    heartbeat_ms: int | None
    attempts: int
    ratings_seen: int | None
    snapshot_hash: str | None
    settings: dict[str, Any]
    metrics: Metrics
    outcome: Outcome | None
    message: Sentence
    error: str | None
    adapter_id: str | None
    champion_id: str | None
    report_channel_id: int | None
    report_message_id: int | None
    report_outcome: Outcome | None
    repeatable: bool
    created_ms: int
    started_ms: int | None
    finished_ms: int | None


@dataclass(frozen=True, slots=True)
class RunRow:
    """One reply as a run used it."""

    reply_id: str
    split: str
    label: str
    weight: float


def enqueue(
    db: sqlite_utils.Database,
    *,
    scope: str,
    trigger: Trigger,
    requested_by: str,
    settings: Mapping[str, Any] | None = None,
    report_channel_id: int | None = None,
) -> Run:
    """Queue a run, or return the one of this scope that is queued or running already."""
    waiting = active(db, scope)
    if waiting is not None:
        return waiting
    run_id = f"r{secrets.token_hex(6)}"
    values = {
        "id": run_id,
        "scope": scope,
        "trigger": trigger,
        "requested_by": requested_by,
        "state": "queued",
        "settings_json": json.dumps(dict(settings or {})),
        "report_channel_id": report_channel_id,
        "created_ms": now_ms(),
    }
    sql.insert(db, "runs", values)
    audit.record(db, requested_by, "run.enqueue", {"run_id": run_id, "scope": scope, "trigger": trigger})
    return expect(db, run_id)


def lease_next(
    db: sqlite_utils.Database, owner: str, lease_ms: int, *, at_once: int = 1, busy_scopes: Iterable[str] = ()
) -> Run | None:
    """Take the oldest queued run for `owner`, or return None: nothing may start.

    At most `at_once` runs are on, never two of one scope, and none of `busy_scopes`, where the process of a
    run that is over has not ended yet.
    """
    expire_leases(db)
    if len(list_running(db)) >= at_once:
        return None
    queued = sql.one(
        db,
        """SELECT id, scope FROM runs
           WHERE state = 'queued' AND scope NOT IN (SELECT value FROM json_each(?))
                 AND scope NOT IN (SELECT scope FROM runs WHERE state = 'running')
           ORDER BY trigger = 'erasure' DESC, rowid""",
        (json.dumps(list(busy_scopes)),),
    )
    if queued is None:
        return None
    now = now_ms()
    _forget_erased(db, queued["id"])
    # Repeats, experiments and judgings train no challenger: the run that new ratings bring about stays due.
    sql.change(
        db,
        """UPDATE runs SET state = 'running', attempts = attempts + 1, progress = 0, eta_s = NULL,
                  phase = NULL, lease_owner = ?, lease_until_ms = ?, lease_ms = ?, heartbeat_ms = ?,
                  started_ms = ?, ratings_seen = iif(coalesce(settings_json -> 'repeat',
                  settings_json -> 'experiment', settings_json -> 'judge') IS NULL, ?, NULL) WHERE id = ?""",
        (owner, now + lease_ms, lease_ms, now, now, ratings.changes(db, queued["scope"]), queued["id"]),
    )
    return expect(db, queued["id"])


def _forget_erased(db: sqlite_utils.Database, run_id: str) -> None:
    """Let a run that an erasure touched while it waited to go on begin anew, with rows of its own."""
    touched = sql.change(
        db,
        "UPDATE runs SET snapshot_hash = NULL, repeatable = 1 WHERE id = ? AND repeatable = 0",
        (run_id,),
    )
    if touched:
        sql.change(db, "DELETE FROM run_rows WHERE run_id = ?", (run_id,))


def heartbeat(
    db: sqlite_utils.Database,
    run_id: str,
    owner: str,
    phase: Phase | None = None,
    progress: float = 0.0,
    eta_s: float | None = None,
    note: Sentence = NOTHING,
) -> bool:
    """Renew the lease and show where the run is; False means that it was cancelled or taken: stop at once."""
    now, share = now_ms(), min(max(progress, 0.0), 1.0)
    return bool(
        sql.change(
            db,
            """UPDATE runs SET heartbeat_ms = ?, lease_until_ms = ? + lease_ms, phase = coalesce(?, phase),
                      progress = ?, eta_s = ?, note = ?, note_sentence = ?
               WHERE id = ? AND lease_owner = ? AND state = 'running'""",
            (now, now, phase, share, eta_s, note, sentences.dump(note), run_id, owner),
        )
    )


def record_snapshot(
    db: sqlite_utils.Database, run_id: str, *, snapshot_hash: str, rows: Iterable[RunRow]
) -> None:
    """Store exactly which replies a run uses, so that each can be traced and erased.

    Raises RunNotActiveError if an erasure overtook the run: its snapshot must not be used.
    """
    _require(expect(db, run_id), "running")
    sql.change(db, "DELETE FROM run_rows WHERE run_id = ?", (run_id,))
    db.conn.executemany(
        "INSERT INTO run_rows VALUES (?, ?, ?, ?, ?)",
        [(run_id, row.reply_id, row.split, row.label, row.weight) for row in rows],
    )
    sql.change(db, "UPDATE runs SET snapshot_hash = ? WHERE id = ?", (snapshot_hash, run_id))


def got_further(db: sqlite_utils.Database, run_id: str) -> None:
    """Count a run's attempts anew: this one keeps more than the one before left behind."""
    sql.change(db, "UPDATE runs SET attempts = 1 WHERE id = ? AND state = 'running'", (run_id,))


def rows_of(db: sqlite_utils.Database, run_id: str) -> list[RunRow]:
    """Return the replies that a run used, by id."""
    rows = sql.many(
        db,
        "SELECT reply_id, split, label, weight FROM run_rows WHERE run_id = ? ORDER BY reply_id",
        (run_id,),
    )
    return [RunRow(**row) for row in rows]


def finish(
    db: sqlite_utils.Database,
    run_id: str,
    *,
    outcome: Outcome,
    message: Sentence,
    metrics: Mapping[str, Any] | None = None,
    adapter_id: str | None = None,
    champion_id: str | None = None,
) -> Run:
    """End a run with its one sentence. Outcome "votes" leaves the word to the members, who vote on its duels

    and rate the replies of its canary, if it has them; finish it again to decide.

    Raises RunNotActiveError, UnknownRowError.
    """
    run = expect(db, run_id)
    if not (run.state == "finished" and run.outcome == "votes"):
        _require(run, "running")
    state = {"failed": "failed", "cancelled": "cancelled"}.get(outcome, "finished")
    sql.change(
        db,
        """UPDATE runs SET state = :state, outcome = :outcome, message = :message,
                  message_sentence = :message_sentence, metrics_json = :metrics,
                  phase = iif(:outcome = 'votes', 'votes', phase), progress = 1, eta_s = NULL, note = '',
                  note_sentence = '', lease_owner = NULL, lease_until_ms = NULL, finished_ms = :now,
                  adapter_id = coalesce(:adapter_id, adapter_id),
                  champion_id = coalesce(:champion_id, champion_id)
           WHERE id = :id""",
        {
            "id": run_id,
            "state": state,
            "outcome": outcome,
            "message": message,
            "message_sentence": sentences.dump(message),
            "metrics": json.dumps({**run.metrics.as_json(), **(metrics or {})}),
            "adapter_id": adapter_id,
            "champion_id": champion_id,
            "now": now_ms(),
        },
    )
    if outcome != "votes":
        duels.close(db, run_id)
        trials.end_canary_of(db, run_id, Sentence("the run is decided"))
    return expect(db, run_id)


def fail(db: sqlite_utils.Database, run_id: str, *, error: str, message: Sentence | None = None) -> Run:
    """End a queued or running run as failed; `error` is technical, `message` is for people."""
    run = expect(db, run_id)
    _require(run, "running", "queued")
    return _end(db, run, "failed", message or FAILED, error)


def cancel(db: sqlite_utils.Database, run_id: str, actor: str, reason: Sentence = CANCELLED) -> bool:
    """End a queued or running run; its process notices at the next heartbeat. False if it was over."""
    run = expect(db, run_id)
    if run.state not in ("queued", "running"):
        return False
    _end(db, run, "cancelled", reason, None)
    audit.record(db, actor, "run.cancel", {"run_id": run_id})
    return True


def requeue(db: sqlite_utils.Database, run_id: str, reason: Sentence) -> Run:
    """Put a running run back in the queue (its trainer died), or fail it after the second attempt.

    Attempts that leave a newer checkpoint don't count (`got_further`).
    """
    run = expect(db, run_id)
    _require(run, "running")
    another = sql.one(db, "SELECT id FROM runs WHERE scope = ? AND state = 'queued'", (run.scope,))
    if run.attempts >= MAX_ATTEMPTS or another is not None:
        message = Sentence("The run failed: {reason}. The champion was not changed.", reason=reason)
        return _end(db, run, "failed", message, reason)
    note = Sentence("Starts again: {reason}.", reason=reason)
    sql.change(
        db,
        """UPDATE runs SET state = 'queued', lease_owner = NULL, lease_until_ms = NULL, phase = NULL,
                  progress = 0, eta_s = NULL, note = ?, note_sentence = ? WHERE id = ?""",
        (note, sentences.dump(note), run_id),
    )
    return expect(db, run_id)


def expire_leases(db: sqlite_utils.Database) -> list[Run]:
    """Requeue (or fail) runs whose trainer gave no sign of life for its lease, and return them."""
    late = sql.many(db, "SELECT id FROM runs WHERE state = 'running' AND lease_until_ms < ?", (now_ms(),))
    return [requeue(db, row["id"], INTERRUPTED) for row in late]


def set_report(
    db: sqlite_utils.Database, run_id: str, *, channel_id: int, message_id: int, said: Outcome | None = None
) -> None:
    """Remember the latest message about this run, and which outcome it says (None: its progress only)."""
    values = {"report_channel_id": channel_id, "report_message_id": message_id, "report_outcome": said}
    db.table("runs").update(run_id, values)


def get(db: sqlite_utils.Database, run_id: str) -> Run | None:
    """Return the run, or None."""
    row = sql.one(db, "SELECT * FROM runs WHERE id = ?", (run_id,))
    return None if row is None else _run(row)


def expect(db: sqlite_utils.Database, run_id: str) -> Run:
    """Return the run. Raises UnknownRowError."""
    run = get(db, run_id)
    if run is None:
        raise UnknownRowError("There is no run {run}.", run=run_id)
    return run


def active(db: sqlite_utils.Database, scope: str) -> Run | None:
    """Return the scope's running run, else its queued one, else None."""
    row = sql.one(
        db,
        """SELECT * FROM (SELECT * FROM runs WHERE state = 'running' AND scope = :scope
                          UNION ALL SELECT * FROM runs WHERE state = 'queued' AND scope = :scope) LIMIT 1""",
        {"scope": scope},
    )
    return None if row is None else _run(row)


def list_running(db: sqlite_utils.Database) -> list[Run]:
    """Return the runs that are on, one for a scope at most."""
    return [_run(row) for row in sql.many(db, "SELECT * FROM runs WHERE state = 'running' ORDER BY rowid")]


def latest(db: sqlite_utils.Database, scope: str, limit: int = 20) -> list[Run]:
    """Return the runs of a scope, the newest first."""
    rows = sql.many(db, "SELECT * FROM runs WHERE scope = ? ORDER BY rowid DESC LIMIT ?", (scope, limit))
    return [_run(row) for row in rows]


def list_finished(db: sqlite_utils.Database, scope: str, limit: int = 20) -> list[Run]:
    """Return the runs of a scope that are over, the last finished first."""
    rows = sql.many(
        db,
        """SELECT * FROM runs WHERE scope = ? AND finished_ms IS NOT NULL
           ORDER BY finished_ms DESC, rowid DESC LIMIT ?""",
        (scope, limit),
    )
    return [_run(row) for row in rows]


def awaiting_votes(db: sqlite_utils.Database, scope: str) -> list[Run]:
    """Return the runs of a scope whose decision waits for blind votes."""
    return [run for run in list_finished(db, scope) if run.outcome == "votes"]


def new_ratings(db: sqlite_utils.Database, scope: str, *, with_set_aside: bool = False) -> int:
    """Return how many ratings changed since the last run of the scope started, less those set aside."""
    seen = """SELECT ratings_seen FROM runs WHERE scope = ? AND ratings_seen IS NOT NULL
              ORDER BY rowid DESC LIMIT 1"""
    aside = 0 if with_set_aside else ratings.set_aside(db, scope)
    return max(ratings.changes(db, scope) - max(sql.value(db, seen, (scope,)) or 0, aside), 0)


def _end(db: sqlite_utils.Database, run: Run, outcome: Outcome, message: Sentence, error: str | None) -> Run:
    sql.change(
        db,
        """UPDATE runs SET state = ?, outcome = ?, message = ?, message_sentence = ?, error = ?,
                  lease_owner = NULL, lease_until_ms = NULL, eta_s = NULL, note = '', note_sentence = '',
                  finished_ms = ? WHERE id = ?""",
        (outcome, outcome, message, sentences.dump(message), error, now_ms(), run.id),
    )
    duels.close(db, run.id)
    return expect(db, run.id)


def _require(run: Run, *states: RunState) -> None:
    if run.state not in states:
        raise RunNotActiveError(
            "Run {run} is {state}: {message}",
            run=run.id,
            state=Sentence(run.state),
            message=run.message or Sentence("it is not on"),
        )


def _run(row: dict[str, Any]) -> Run:
    row["settings"] = json.loads(row.pop("settings_json"))
    row["metrics"] = Metrics.from_json(json.loads(row.pop("metrics_json")))
    for name in ("message", "note"):
        row[name] = sentences.load(row[name], row.pop(f"{name}_sentence"))
    return Run(**{**row, "repeatable": bool(row["repeatable"])})
