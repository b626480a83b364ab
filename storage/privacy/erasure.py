"""A member's data: everything that is stored about them, and its erasure.

Erasing is one transaction in the database (`erase_member`), then files (`scrub_files`), then the write-ahead
log (`Database.checkpoint_truncate`). `secure_delete` overwrites what the database frees.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlite_utils

from storage.admin import audit
from storage.chat import members
from storage.db import sql
from storage.db.clock import now_ms
from storage.feedback import duels
from storage.learning import adapters, runs, trials, unregistered_adapters
from storage.privacy import name_redaction
from storage.sentences import Sentence

STARTS_AGAIN = Sentence("A member erased their data: the run starts again without it.")


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure touched: the files of `runs` and `affected_adapters` are still to be scrubbed."""

    id: int
    user_id: int
    affected_adapters: tuple[str, ...]
    runs: tuple[str, ...]
    retrains: tuple[str, ...]
    deposed: tuple[str, ...]


def export_member(db: sqlite_utils.Database, user_id: int) -> dict[str, Any]:
    """Return everything stored on a member as plain JSON values."""
    return {
        "user_id": str(user_id),
        "exported_ms": now_ms(),
        "member": sql.one(db, "SELECT * FROM members WHERE user_id = ?", (user_id,)),
        **{name: sql.many(db, question, (user_id,)) for name, question in _EXPORTS.items()},
    }


_EXPORTS = {
    "messages": "SELECT * FROM messages WHERE author_id = ? ORDER BY id",
    "replies_to_me": """
        SELECT replies.id, replies.conversation_id, replies.adapter_id, replies.base_hash, replies.created_ms,
               messages.content AS text
        FROM replies JOIN messages ON messages.id = replies.message_id
        WHERE replies.asker_id = ? ORDER BY replies.created_ms""",
    "ratings": "SELECT * FROM ratings WHERE user_id = ? ORDER BY id",
    "prompts": "SELECT * FROM tasting_prompts WHERE author_id = ? ORDER BY id",
    "blind_votes": "SELECT * FROM duel_votes WHERE user_id = ? ORDER BY created_ms",
    "trained_in": """
        SELECT DISTINCT run_rows.run_id, run_rows.reply_id, run_rows.split, run_rows.label, run_rows.weight
        FROM (SELECT reply_id FROM reply_context WHERE user_id = ?1
              UNION SELECT reply_id FROM ratings WHERE user_id = ?1
              UNION SELECT duels.reply_id FROM duel_votes JOIN duels ON duels.id = duel_votes.duel_id
                    WHERE duel_votes.user_id = ?1) AS mine
        JOIN run_rows ON run_rows.reply_id = mine.reply_id ORDER BY run_rows.run_id, run_rows.reply_id""",
    "blocks": "SELECT guild_id, reason, created_ms FROM blocks WHERE user_id = ? ORDER BY guild_id",
    "erasures": "SELECT id, requested_ms, done_ms FROM erasures WHERE user_id = ? ORDER BY id",
    "audit": """
        SELECT id, action, detail_json, created_ms FROM audit WHERE actor = CAST(?1 AS TEXT)
        UNION SELECT id, action, detail_json, created_ms FROM audit WHERE detail_json ->> 'user_id' = ?1
        ORDER BY id""",
}


def erase_member(db: sqlite_utils.Database, user_id: int, actor: str) -> Erasure:
    """Erase a member's words and ratings, and undo what was trained on them.

    Replies made from their words lose prompt and text; adapters trained on their rows are tainted and stop
    answering at once; runs that used them can't be repeated; each touched scope queues one clean retrain.
    What the member writes from now on trains after 30 days at the earliest. Safe to repeat.
    """
    touched = _touched_rows(db, user_id)
    used_by = list_runs_of_member(db, user_id)
    trained = list_adapters_of_member(db, user_id)
    tainted = _taint(db, trained)
    reason = Sentence("a member erased words that it was trained on")
    trials.end_with(db, [adapter.id for adapter in tainted], reason, actor=actor)
    member = members.get(db, user_id)
    named = name_redaction.redact_names(db, member.display_name if member else "")
    # Files of runs that name them, or compare with an adapter that knew their words, may hold some too.
    used_by = sorted({*used_by, *_runs_of(db, named), *_judged_against(db, trained)})
    cancelled = _cancel_running(db, user_id, used_by, touched, actor)
    _erase_words(db, user_id, touched)
    _erase_evidence(db, [*used_by, *cancelled])
    deposed = _revoke_champions(db, actor)
    retrains = _queue_retrains(db, {adapter.scope for adapter in tainted} | set(cancelled.values()), actor)
    erasure = Erasure(
        id=_record(db, user_id, retrains),
        user_id=user_id,
        affected_adapters=tuple(adapter.id for adapter in tainted),
        runs=tuple(sorted({*used_by, *cancelled})),
        retrains=tuple(retrains),
        deposed=tuple(deposed),
    )
    _remember_files(db, erasure)
    detail = {"erasure_id": erasure.id, "adapters": erasure.affected_adapters, "runs": erasure.runs}
    audit.record(db, actor, "member.erase", detail)
    return erasure


def pending(db: sqlite_utils.Database) -> list[Erasure]:
    """Return the erasures whose files have not been scrubbed yet (a process died in between)."""
    rows = sql.many(db, "SELECT id, user_id, scrub_json FROM erasures WHERE done_ms IS NULL ORDER BY id")
    return [_pending(row) for row in rows]


def mark_scrubbed(db: sqlite_utils.Database, erasure_id: int) -> None:
    """Record that the files of an erasure are gone."""
    sql.change(db, "UPDATE erasures SET done_ms = ? WHERE id = ? AND done_ms IS NULL", (now_ms(), erasure_id))


def scrub_files(data_dir: Path, run_ids: Iterable[str], adapter_ids: Iterable[str]) -> list[Path]:
    """Delete the folders of these runs and tainted adapters; return those that existed."""
    folders = [data_dir / "runs" / run_id for run_id in run_ids]
    adapter_ids = [
        *adapter_ids,
        *(name for folder in folders for name in unregistered_adapters.list_unregistered(folder)),
    ]
    folders += [data_dir / "adapters" / adapter_id for adapter_id in adapter_ids]
    existing = [folder for folder in folders if folder.is_dir()]
    for folder in existing:
        _remove(folder)
    return existing


def _remove(folder: Path) -> None:
    """Delete a folder into which a run that is being cancelled may write once more."""
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
    shutil.rmtree(folder)


# Replies made from the member's words: asked by them, with their messages in the prompt, or with an answer in
# it that was itself made from their words (their message may have been left out by then, its echo was not).
_MADE_FROM = """
WITH RECURSIVE mine (reply_id) AS (
    SELECT reply_id FROM reply_context WHERE user_id = ?1
    UNION
    SELECT id FROM replies WHERE asker_id = ?1
    UNION
    SELECT reply_context.reply_id FROM mine
    JOIN replies ON replies.id = mine.reply_id
    JOIN reply_context ON reply_context.message_id = replies.message_id
)"""


def _touched_rows(db: sqlite_utils.Database, user_id: int) -> list[str]:
    """Replies made from the member's words."""
    return [row["reply_id"] for row in sql.many(db, f"{_MADE_FROM} SELECT reply_id FROM mine", (user_id,))]


# Rows of runs that hold the member's words, or the member's ratings as far as they stood when the run ended.
# A vote on a duel makes a preference pair for the runs after the one that it decided.
_MY_RUN_ROWS = f"""{_MADE_FROM}
SELECT run_rows.run_id, run_rows.split FROM mine CROSS JOIN run_rows ON run_rows.reply_id = mine.reply_id
UNION
SELECT run_rows.run_id, run_rows.split FROM ratings
JOIN run_rows ON run_rows.reply_id = ratings.reply_id JOIN runs ON runs.id = run_rows.run_id
WHERE ratings.user_id = ?1 AND ratings.created_ms <= coalesce(runs.finished_ms, ratings.created_ms)
UNION
SELECT run_rows.run_id, run_rows.split FROM duel_votes
JOIN duels ON duels.id = duel_votes.duel_id JOIN run_rows ON run_rows.reply_id = duels.reply_id
JOIN runs ON runs.id = run_rows.run_id AND runs.id <> duels.run_id
WHERE duel_votes.user_id = ?1
      AND duel_votes.created_ms <= coalesce(runs.finished_ms, duel_votes.created_ms)"""


def list_runs_of_member(db: sqlite_utils.Database, user_id: int) -> list[str]:
    """Return the runs that used a member's words or ratings, by id."""
    rows = sql.many(db, f"SELECT DISTINCT run_id FROM ({_MY_RUN_ROWS}) ORDER BY run_id", (user_id,))
    return [row["run_id"] for row in rows]


def list_adapters_of_member(db: sqlite_utils.Database, user_id: int) -> list[str]:
    """Return the adapters that learned from a member, by id; the gate's rows judge and teach nothing."""
    rows = sql.many(
        db,
        f"""SELECT id FROM adapters
            WHERE run_id IN (SELECT run_id FROM ({_MY_RUN_ROWS}) WHERE split <> 'gate') ORDER BY id""",
        (user_id,),
    )
    return [row["id"] for row in rows]


def _judged_against(db: sqlite_utils.Database, adapter_ids: list[str]) -> list[str]:
    """Runs that kept replies of these adapters, as champions of their time."""
    rows = sql.many(
        db,
        """SELECT DISTINCT run_id FROM evaluations WHERE champion_id IN (SELECT value FROM json_each(?1))
           UNION SELECT id FROM runs WHERE champion_id IN (SELECT value FROM json_each(?1))
           UNION SELECT DISTINCT run_id FROM duels WHERE champion_id IN (SELECT value FROM json_each(?1))""",
        (json.dumps(adapter_ids),),
    )
    return [row["run_id"] for row in rows]


def _runs_of(db: sqlite_utils.Database, reply_ids: list[str]) -> list[str]:
    """Runs that hold one of these replies."""
    rows = sql.many(
        db,
        """SELECT DISTINCT run_id FROM json_each(?) AS wanted
           CROSS JOIN run_rows ON run_rows.reply_id = wanted.value""",
        (json.dumps(reply_ids),),
    )
    return [row["run_id"] for row in rows]


def _taint(db: sqlite_utils.Database, adapter_ids: list[str]) -> list[adapters.Adapter]:
    found = [adapter for adapter in (adapters.get(db, adapter_id) for adapter_id in adapter_ids) if adapter]
    for adapter in found:
        adapters.set_state(db, adapter.id, "tainted")
    return [adapter for adapter in found if adapter.state != "tainted"]


def _cancel_running(
    db: sqlite_utils.Database, user_id: int, touched_runs: list[str], touched: list[str], actor: str
) -> dict[str, str]:
    """End the running runs that may hold the member's words, also unrecorded ones; return {run id: scope}."""
    rows = sql.many(
        db,
        """SELECT scope FROM replies WHERE id IN (SELECT value FROM json_each(?))
           UNION SELECT scope FROM ratings WHERE user_id = ?""",
        (json.dumps(touched), user_id),
    )
    mine = {row["scope"] for row in rows}
    cancelled = {
        run.id: run.scope
        for run in runs.list_running(db)
        if run.id in touched_runs or (run.snapshot_hash is None and run.scope in mine)
    }
    for run_id in cancelled:
        runs.cancel(db, run_id, actor, STARTS_AGAIN)
    return cancelled


def _erase_words(db: sqlite_utils.Database, user_id: int, touched: list[str]) -> None:
    parameters = {"user": user_id, "now": now_ms(), "replies": json.dumps(touched)}
    for statement in _ERASE_WORDS.split("\n\n"):
        sql.change(db, statement, parameters)


# In this order. What others wrote as corrections of these replies may quote them, so it goes as well.
_ERASE_WORDS = """
UPDATE messages SET content = '', attached_text = '', deleted_ms = coalesce(deleted_ms, :now)
WHERE author_id = :user

UPDATE messages SET content = '', deleted_ms = coalesce(deleted_ms, :now)
WHERE id IN (SELECT message_id FROM replies WHERE id IN (SELECT value FROM json_each(:replies)))

UPDATE replies SET prompt_json = '[]', error = NULL WHERE id IN (SELECT value FROM json_each(:replies))

UPDATE ratings SET text = NULL, retracted = 1
WHERE kind = 'correction' AND reply_id IN (SELECT value FROM json_each(:replies))

DELETE FROM ratings WHERE user_id = :user

DELETE FROM duel_votes WHERE user_id = :user

DELETE FROM tasting_prompts WHERE author_id = :user

UPDATE blocks SET reason = '' WHERE user_id = :user OR actor = CAST(:user AS TEXT)

UPDATE duels SET prompt_json = '[]', first_text = '', second_text = '', closed_ms = coalesce(closed_ms, :now)
WHERE reply_id IN (SELECT value FROM json_each(:replies))

UPDATE members SET display_name = '', erased_ms = :now, consent = iif(consent = 'out', 'out', 'unset')
WHERE user_id = :user"""


def _erase_evidence(db: sqlite_utils.Database, run_ids: list[str]) -> None:
    """Keep a touched run's figures, drop every text it may have kept, end its vote."""
    for run_id in set(run_ids):
        run = runs.expect(db, run_id)
        if run.outcome == "votes":
            runs.finish(
                db,
                run_id,
                outcome="cancelled",
                message=Sentence("A member erased their data: the vote ended."),
            )
        _drop_texts(db, run_id, run.metrics.as_json())
        duels.close(db, run_id)


def _drop_texts(db: sqlite_utils.Database, run_id: str, metrics: dict[str, Any]) -> None:
    for statement in _DROP_TEXTS.split("\n\n"):
        sql.change(db, statement, {"run": run_id, "metrics": json.dumps(_figures(metrics))})


_DROP_TEXTS = """
UPDATE runs SET repeatable = 0, metrics_json = :metrics, error = NULL WHERE id = :run

UPDATE evaluations SET detail_json = '{}' WHERE run_id = :run

UPDATE duels SET prompt_json = '[]', first_text = '', second_text = '' WHERE run_id = :run"""


def _figures(value: Any) -> Any:
    """Return nested metrics without their texts."""
    if isinstance(value, dict):
        return {key: _figures(inner) for key, inner in value.items() if not isinstance(inner, str)}
    if isinstance(value, list):
        return [_figures(inner) for inner in value if not isinstance(inner, str)]
    return value


def _revoke_champions(db: sqlite_utils.Database, actor: str) -> list[str]:
    """Switch every scope with a tainted champion to its newest clean adapter, else to the base."""
    tainted = sql.many(
        db,
        """SELECT champions.scope, champions.base_hash, champions.adapter_id FROM champions
           JOIN adapters ON adapters.id = champions.adapter_id WHERE adapters.state = 'tainted'""",
    )
    for row in tainted:
        adapters.revoke_champion(
            db,
            scope=row["scope"],
            base_hash=row["base_hash"],
            actor=actor,
            reason=Sentence("a member whose words it was trained on erased their data"),
        )
    return [row["adapter_id"] for row in tainted]


def _queue_retrains(db: sqlite_utils.Database, scopes: set[str], actor: str) -> list[str]:
    return [
        runs.enqueue(db, scope=scope, trigger="erasure", requested_by=actor).id for scope in sorted(scopes)
    ]


def _record(db: sqlite_utils.Database, user_id: int, retrains: list[str]) -> int:
    if members.get(db, user_id) is None:
        members.ensure(db, user_id, "", members.UNKNOWN)
        sql.change(db, "UPDATE members SET erased_ms = ? WHERE user_id = ?", (now_ms(), user_id))
    values = {"user_id": user_id, "requested_ms": now_ms(), "run_id": retrains[0] if retrains else None}
    return sql.insert(db, "erasures", values)


def _remember_files(db: sqlite_utils.Database, erasure: Erasure) -> None:
    files = {
        "affected_adapters": erasure.affected_adapters,
        "runs": erasure.runs,
        "retrains": erasure.retrains,
        "deposed": erasure.deposed,
    }
    sql.change(db, "UPDATE erasures SET scrub_json = ? WHERE id = ?", (json.dumps(files), erasure.id))


def _pending(row: sql.Row) -> Erasure:
    files = {key: tuple(ids) for key, ids in json.loads(row["scrub_json"]).items()}
    return Erasure(id=row["id"], user_id=row["user_id"], **files)
