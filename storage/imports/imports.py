"""Imports in the database: stored in batches, listed, and taken back whole.

An import's conversations are asked in the name of a member of its own, which is nobody (a negative id): so
everything that finds a member's words, and what was trained on them, finds an import's. Its anonymous raters
have the ids below. Real people of an export from Discord keep their ids, and with them their consent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlite_utils

from storage.admin import audit
from storage.chat import members
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import ImportFileError
from storage.feedback import prompt_bank, ratings
from storage.imports import batch
from storage.imports.batch import DISCORD, SOURCE
from storage.imports.examples import Author, Example, Prompt
from storage.imports.prompts import new_prompt, nobody_permits, permitted
from storage.learning import runs
from storage.privacy import erasure

State = Literal["running", "done", "removed"]
IDS_PER_IMPORT = 1_000


@dataclass(frozen=True, slots=True)
class Import:
    """One file that was brought in. `stored` examples are new, `known` were there already."""

    id: int
    name: str
    sha256: str
    format: str
    rights: str
    licence: str
    scope: str
    state: State
    stored: int
    known: int
    left_out: dict[str, int]
    actor: str
    created_ms: int
    ended_ms: int | None

    @property
    def member_id(self) -> int:
        """The member in whose name its prompts are asked."""
        return member_of(self.id)


def member_of(import_id: int) -> int:
    """Return the member in whose name the prompts of an import are asked."""
    return -import_id * IDS_PER_IMPORT


def begin(
    db: sqlite_utils.Database,
    *,
    name: str,
    sha256: str,
    format_name: str,
    rights: str,
    licence: str,
    scope: str,
    actor: str,
) -> Import:
    """Record that a file is being brought in; one that was interrupted goes on as the same import.

    Raises ImportFileError where the same file is in this scope already, or another import isn't finished:
    what both hold would belong to the one that trains nothing.
    """
    row = sql.one(
        db, "SELECT * FROM imports WHERE scope = ? AND sha256 = ? AND state <> 'removed'", (scope, sha256)
    )
    if row is not None and row["state"] == "done":
        raise ImportFileError(
            f"This file is import {row['id']} already ({row['name']}): nothing was changed."
        )
    if row is not None:
        # What is stored of it is met again; what others hold is counted anew.
        sql.change(db, "UPDATE imports SET known = 0 WHERE id = ?", (row["id"],))
        return expect(db, row["id"])
    unfinished = sql.one(db, "SELECT id, name FROM imports WHERE scope = ? AND state = 'running'", (scope,))
    if unfinished is not None:
        raise ImportFileError(
            f"Import {unfinished['id']} ({unfinished['name']}) is not finished: import that file again, or "
            f"take it back with `strop imports remove {unfinished['id']}`."
        )
    values = {
        "name": name,
        "sha256": sha256,
        "format": format_name,
        "rights": rights,
        "licence": licence,
        "scope": scope,
        "state": "running",
        "actor": actor,
        "created_ms": now_ms(),
    }
    import_id = sql.insert(db, "imports", values)
    audit.record(db, actor, "import.begin", {"import_id": import_id, "format": format_name, "scope": scope})
    return expect(db, import_id)


def store(
    db: sqlite_utils.Database, found: Import, examples: Sequence[Example], *, permission_reference: str
) -> int:
    """Store some examples and their ratings in the caller's transaction; return how many were new.

    They start no run by themselves: an operator asks for one when all of a file is in.
    """
    pending = runs.new_ratings(db, found.scope)
    new, known = batch.store(
        db,
        examples,
        import_id=found.id,
        member_id=found.member_id,
        scope=found.scope,
        permission_reference=permission_reference,
    )
    ratings.put_aside(db, found.scope, but=pending)
    sql.change(
        db, "UPDATE imports SET stored = stored + ?, known = known + ? WHERE id = ?", (new, known, found.id)
    )
    return new


def store_prompts(
    db: sqlite_utils.Database, found: Import, prompts: Iterable[Prompt], *, permission_reference: str
) -> dict[str, int]:
    """Put the prompts of a file without answers into the bank, from which tastings ask them.

    Returns how many could not be taken, by reason (checks.REASONS). Raises ImportFileError for messages from
    Discord without its recorded permission, or of which none may be asked.
    """
    allowed, reasons = permitted(db, prompts, permission_reference)
    if reasons and not allowed:
        raise ImportFileError(nobody_permits(reasons))
    members.ensure(db, found.member_id, f"Import {found.id}", SOURCE)
    for author in {each.author for each in allowed if each.author}:
        _person(db, author)
    added = prompt_bank.add(db, map(new_prompt, allowed), found.actor, import_id=found.id)
    sql.change(
        db,
        "UPDATE imports SET stored = stored + ?, known = known + ? WHERE id = ?",
        (added.new, added.known, found.id),
    )
    reasons.update({"prompt_too_long": added.too_long, "bank_full": added.over})
    return {reason: count for reason, count in reasons.items() if count}


def abandon(db: sqlite_utils.Database, import_id: int) -> None:
    """Forget an import that ended before anything of it was stored; another stays to be gone on with."""
    sql.change(db, "DELETE FROM imports WHERE id = ? AND stored = 0 AND state = 'running'", (import_id,))


def finish(db: sqlite_utils.Database, import_id: int, left_out: Mapping[str, int]) -> Import:
    """Record that all of a file is in."""
    sql.change(
        db,
        "UPDATE imports SET state = 'done', left_out_json = ?, ended_ms = ? WHERE id = ?",
        (json.dumps(dict(left_out)), now_ms(), import_id),
    )
    return expect(db, import_id)


def listing(db: sqlite_utils.Database) -> list[Import]:
    """Return every import, the newest first."""
    return [_import(row) for row in sql.many(db, "SELECT * FROM imports ORDER BY id DESC")]


def expect(db: sqlite_utils.Database, import_id: int) -> Import:
    """Return an import. Raises ImportFileError where there is none."""
    row = sql.one(db, "SELECT * FROM imports WHERE id = ?", (import_id,))
    if row is None:
        raise ImportFileError(f"There is no import {import_id}: `strop imports list` lists them.")
    return _import(row)


def remove(db: sqlite_utils.Database, import_id: int, actor: str) -> erasure.Erasure:
    """Take an import back: its words, its ratings, and the adapters that learned from it.

    The files of the returned erasure are still to be scrubbed. Raises ImportFileError where there is none.
    """
    found = expect(db, import_id)
    prompt_bank.remove_imported(db, import_id)
    erased = erasure.erase_member(db, found.member_id, actor)
    # Words of real people: they are authors of their own, and stand in its conversations and under its name.
    sql.change(
        db,
        """UPDATE messages SET content = '', deleted_ms = coalesce(deleted_ms, :now)
           WHERE conversation_id IN (SELECT id FROM conversations WHERE key >= :first AND key < :end)
              OR id IN (SELECT prompt_message_id FROM replies WHERE asker_id = :member)""",
        {
            "now": now_ms(),
            "first": f"import:{import_id}:",
            "end": f"import:{import_id};",
            "member": found.member_id,
        },
    )
    sql.change(db, "UPDATE imports SET state = 'removed', ended_ms = ? WHERE id = ?", (now_ms(), import_id))
    audit.record(db, actor, "import.remove", {"import_id": import_id, "adapters": erased.affected_adapters})
    return erased


def _person(db: sqlite_utils.Database, author: Author) -> int:
    return members.ensure(db, author.user_id, author.name, DISCORD).user_id


def _import(row: Mapping[str, Any]) -> Import:
    values = dict(row)
    left_out = json.loads(values.pop("left_out_json"))
    return Import(**values, left_out=left_out)
