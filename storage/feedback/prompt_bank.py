"""The prompt bank: what tastings ask, an operator's own prompts and those of imports."""

import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import sqlite_utils

from storage.admin import audit
from storage.chat import channels
from storage.chat.splits import near_duplicate_key
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import UnknownRowError

MAX_PROMPT = 2000
MAX_PROMPTS = 2000


@dataclass(frozen=True, slots=True)
class NewPrompt:
    """A prompt to add. `author_id` names whose words it is, where it is a member's of Discord.

    The other ids are of the message that it was there and of where it was written, if that is known.
    """

    text: str
    author_id: int | None = None
    guild_id: int | None = None
    channel_id: int | None = None
    parent_channel_id: int | None = None
    discord_id: int | None = None


@dataclass(frozen=True, slots=True)
class BankPrompt:
    """One prompt of the bank; `asked` says how often it was asked, anywhere.

    With an `author_id` it is a member's words, and with an `import_id` it came in a file.
    """

    id: int
    text: str
    key: str
    created_ms: int
    author_id: int | None = None
    import_id: int | None = None
    asked: int = 0
    guild_id: int | None = None
    channel_id: int | None = None
    parent_channel_id: int | None = None
    discord_id: int | None = None


@dataclass(frozen=True, slots=True)
class Added:
    """What became of prompts that were handed in."""

    new: int
    known: int
    too_long: int
    over: int


def lines_of(text: str) -> list[str]:
    """Return the prompts of a text that holds one a line; empty lines and comments (#) are none."""
    plain = (
        "".join(c for c in line if c == "\t" or unicodedata.category(c) != "Cc") for line in text.splitlines()
    )
    return [stripped for line in plain if (stripped := line.strip()) and not stripped.startswith("#")]


def add_prompts(db: sqlite_utils.Database, texts: Iterable[str], actor: str) -> Added:
    """Add an operator's own prompts to the bank; see `add`."""
    return add(db, map(NewPrompt, texts), actor)


def add(
    db: sqlite_utils.Database, found: Iterable[NewPrompt], actor: str, *, import_id: int | None = None
) -> Added:
    """Add prompts to the bank. One that differs from another only in case or punctuation is known already."""
    new = known = too_long = over = 0
    held = int(sql.value(db, "SELECT count(*) FROM tasting_prompts"))
    for each in found:
        if len(each.text) > MAX_PROMPT:
            too_long += 1
            continue
        key = near_duplicate_key(each.text)
        if sql.value(db, "SELECT 1 FROM tasting_prompts WHERE key = ?", (key,)):
            known += 1
        elif held + new >= MAX_PROMPTS:
            over += 1
        else:
            values = asdict(each) | {"key": key, "created_ms": now_ms(), "import_id": import_id}
            sql.insert(db, "tasting_prompts", values)
            new += 1
    if new:
        audit.record(db, actor, "tasting.add", {"prompts": new})
    return Added(new, known, too_long, over)


def remove_prompt(db: sqlite_utils.Database, prompt_id: int, actor: str) -> BankPrompt:
    """Take a prompt out of the bank; what was asked and rated stays. Raises UnknownRowError."""
    found = next((prompt for prompt in prompts(db) if prompt.id == prompt_id), None)
    if found is None:
        raise UnknownRowError("There is no prompt {prompt}.", prompt=prompt_id)
    sql.change(db, "DELETE FROM tasting_prompts WHERE id = ?", (prompt_id,))
    audit.record(db, actor, "tasting.remove", {"prompt": prompt_id})
    return found


def remove_all_prompts(db: sqlite_utils.Database, actor: str) -> int:
    """Empty the bank; return how many prompts were in it."""
    gone = sql.change(db, "DELETE FROM tasting_prompts")
    if gone:
        audit.record(db, actor, "tasting.remove", {"prompts": gone})
    return gone


def remove_imported(db: sqlite_utils.Database, import_id: int) -> int:
    """Take the prompts of an import out of the bank; return how many there were."""
    return sql.change(db, "DELETE FROM tasting_prompts WHERE import_id = ?", (import_id,))


def remove_by_author(db: sqlite_utils.Database, user_id: int) -> int:
    """Take a member's words out of the bank; return how many prompts they were."""
    return sql.change(db, "DELETE FROM tasting_prompts WHERE author_id = ?", (user_id,))


def remove_by_channel(db: sqlite_utils.Database, channel_id: int) -> int:
    """Take what was written in a channel that is gone out of the bank; return how many prompts it was."""
    return sql.change(db, "DELETE FROM tasting_prompts WHERE channel_id = ?", (channel_id,))


def remove_by_message(db: sqlite_utils.Database, discord_id: int) -> int:
    """Take what was a message that is deleted out of the bank; return how many prompts it was."""
    return sql.change(db, "DELETE FROM tasting_prompts WHERE discord_id = ?", (discord_id,))


def prompts(db: sqlite_utils.Database) -> list[BankPrompt]:
    """Return the bank, in the order in which prompts were added."""
    rows = sql.many(
        db,
        """SELECT tasting_prompts.*,
                  (SELECT count(*) FROM tasting_turns WHERE tasting_turns.key = tasting_prompts.key) AS asked
           FROM tasting_prompts ORDER BY id""",
    )
    return [BankPrompt(**row) for row in rows]


def askable(db: sqlite_utils.Database) -> list[BankPrompt]:
    """Return the prompts of the bank but for those out of channels whose words don't train today."""
    found = prompts(db)
    places = {(each.guild_id, each.channel_id, each.parent_channel_id) for each in found}
    closed = {
        (guild_id, channel_id, parent_id)
        for guild_id, channel_id, parent_id in places
        if channel_id is not None and channels.objection(db, channel_id, guild_id, parent_id)
    }
    return [each for each in found if (each.guild_id, each.channel_id, each.parent_channel_id) not in closed]
