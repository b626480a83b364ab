"""An erased member's name in other people's words: the words stay theirs, the name goes.

The bot stores a mention as people see it (`@Ada`), so a name outlives its member's own messages.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import sqlite_utils

from storage.db import sql

SOMEONE = "@someone"
_MESSAGE_COLUMNS = ("content", "attached_text")


def redact_names(db: sqlite_utils.Database, name: str) -> list[str]:
    """Replace every mention of `name` by "@someone"; return the replies whose stored prompt held it."""
    if not name.strip():
        return []
    without = _replacing(name.strip())
    # The first condition is an index's, so that messages without any "@" aren't looked at.
    found = sql.many(
        db,
        """SELECT id, content, attached_text FROM messages
           WHERE (instr(content, '@') OR instr(attached_text, '@'))
                 AND (instr(content, :mention) OR instr(attached_text, :mention))""",
        {"mention": f"@{name.strip()}"},
    )
    for row in found:
        texts = [None if row[column] is None else without(row[column]) for column in _MESSAGE_COLUMNS]
        sql.change(db, "UPDATE messages SET content = ?, attached_text = ? WHERE id = ?", (*texts, row["id"]))
    _in_json(db, "duels", without, name)
    return _in_json(db, "replies", without, name)


def _in_json(db: sqlite_utils.Database, table: str, without: Callable[[str], str], name: str) -> list[str]:
    """Take the name out of the stored prompts of a table; return the ids of the rows that held it."""
    # As JSON writes it: beyond ASCII a name is escaped there.
    written = f"@{json.dumps(name.strip())[1:-1]}"
    found = sql.many(
        db,
        f"""SELECT id, prompt_json FROM {table}
            WHERE instr(prompt_json, '@') AND instr(prompt_json, ?) ORDER BY id""",
        (written,),
    )
    changed = []
    for row in found:
        prompt = _in_all(json.loads(row["prompt_json"]), without)
        if prompt != json.loads(row["prompt_json"]):
            sql.change(
                db, f"UPDATE {table} SET prompt_json = ? WHERE id = ?", (json.dumps(prompt), row["id"])
            )
            changed.append(str(row["id"]))
    return changed


def _in_all(prompt: list[dict[str, Any]], without: Callable[[str], str]) -> list[dict[str, Any]]:
    return [
        {key: without(value) if isinstance(value, str) else value for key, value in message.items()}
        for message in prompt
    ]


def _replacing(name: str) -> Callable[[str], str]:
    # "@Al" is not in "@Alfred".
    pattern = re.compile(rf"@{re.escape(name)}(?!\w)")
    return lambda text: pattern.sub(SOMEONE, text)
