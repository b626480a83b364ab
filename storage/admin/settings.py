"""What a server's admins set for their server and single channels; strop.toml holds below them.

A setting's value is settled in this order: the channel's own, the server's, the file's. A thread has the
settings of the channel that it hangs on. Direct messages have the file's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import sqlite_utils

from storage.admin import audit
from storage.admin.setting_values import KINDS, Kind
from storage.config import Config
from storage.db import sql
from storage.db.clock import now_ms
from storage.errors import SettingError

Origin = Literal["file", "server", "channel"]
#: Texts whose changes the audit log counts instead of quoting.
_LONG = frozenset({"system_prompt"})
#: What decides which way a rating counts: where all servers train one model, no single server decides it.
_COUNTS_EVERYWHERE = frozenset({"rating_up", "rating_down"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a setting holds: a server, or (with `channel_id`) one of its channels."""

    guild_id: int
    channel_id: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings in force at one place. `language` "auto" follows Discord's; 0 switches a number off."""

    system_prompt: str
    temperature: float
    max_new_tokens: int
    triggers: tuple[str, ...]
    auto_thread: bool
    follow_up_s: int
    rating_up: tuple[str, ...]
    rating_down: tuple[str, ...]
    training: bool
    language: str
    wake_words: tuple[str, ...]
    two_answers: bool
    messages_per_minute: int
    role_limits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InForce:
    """The settings at one place, and for each of them where it comes from."""

    settings: Settings
    origins: Mapping[str, Origin]
    actors: Mapping[str, str]


def defaults(config: Config, channel_id: int | None = None) -> Settings:
    """Return what strop.toml says for a channel."""
    everywhere = channel_id is not None and channel_id in config.discord.channels
    return Settings(
        system_prompt=config.chat.system_prompt,
        temperature=config.chat.temperature,
        max_new_tokens=config.chat.max_new_tokens,
        triggers=("mention", "reply", "thread", *(("every",) if everywhere else ())),
        auto_thread=False,
        follow_up_s=0,
        rating_up=config.discord.rating_up,
        rating_down=config.discord.rating_down,
        training=True,
        language="auto",
        wake_words=(),
        two_answers=True,
        messages_per_minute=0,
        role_limits=(),
    )


def kind(key: str) -> Kind:
    """Return what a setting can be. Raises SettingError naming those that there are."""
    if key not in KINDS:
        raise SettingError(
            "There is no setting {key}; there are {keys}.", key=repr(key), keys=", ".join(KINDS)
        )
    return KINDS[key]


def resolve(
    db: sqlite_utils.Database, config: Config, guild_id: int | None, channel_id: int | None
) -> InForce:
    """Return the settings that hold in a channel (or, without one, in a server), with their origins.

    A stored value that this version can't use any more is passed over: the next one below it holds.
    """
    base = defaults(config, channel_id)
    values: dict[str, Any] = {field.name: getattr(base, field.name) for field in fields(Settings)}
    origins: dict[str, Origin] = dict.fromkeys(values, "file")
    actors: dict[str, str] = {}
    rows = [] if guild_id is None else _rows(db, guild_id, channel_id)
    for row in rows:
        value = _usable(row["key"], row["value_json"])
        if value is not None and not _is_shared(config, row["key"]):
            values[row["key"]] = value
            origins[row["key"]] = "channel" if row["channel_id"] else "server"
            actors[row["key"]] = row["actor"]
    return InForce(Settings(**values), origins, actors)


def own(db: sqlite_utils.Database, place: Place) -> dict[str, Any]:
    """Return what is set at exactly this place, by key."""
    rows = sql.many(
        db,
        "SELECT key, value_json FROM settings WHERE guild_id = ? AND channel_id = ? ORDER BY key",
        (place.guild_id, place.channel_id or 0),
    )
    return {row["key"]: json.loads(row["value_json"]) for row in rows}


def places(db: sqlite_utils.Database) -> list[Place]:
    """Return every place that has a setting of its own."""
    rows = sql.many(db, "SELECT DISTINCT guild_id, channel_id FROM settings ORDER BY guild_id, channel_id")
    return [Place(row["guild_id"], row["channel_id"] or None) for row in rows]


def put(db: sqlite_utils.Database, config: Config, place: Place, key: str, value: object, actor: str) -> bool:
    """Set one setting at one place and audit it; return whether it changed.

    Raises SettingError for a value that the setting can't have, also together with the others in force, and
    for one that would decide what counts in other servers.
    """
    checked = kind(key).parse(value)
    if _is_shared(config, key):
        raise SettingError(
            "All servers train one model here, so {key} is the same for all: whoever runs me sets it.",
            key=key,
        )
    if own(db, place).get(key) == _plain(checked):
        return False
    sql.change(
        db,
        """INSERT INTO settings VALUES (?, ?, ?, ?, ?, ?)
           ON CONFLICT DO UPDATE SET value_json = excluded.value_json, actor = excluded.actor,
                                     updated_ms = excluded.updated_ms""",
        (place.guild_id, place.channel_id or 0, key, json.dumps(_plain(checked)), actor, now_ms()),
    )
    _agree(resolve(db, config, place.guild_id, place.channel_id).settings)
    shown = f"{len(str(checked))} characters" if key in _LONG else _plain(checked)
    audit.record(db, actor, "settings.change", {**_where(place), "key": key, "to": shown})
    return True


def reset(db: sqlite_utils.Database, place: Place, actor: str, key: str | None = None) -> list[str]:
    """Take back one setting of a place, or all; audit it and return which were set."""
    if key is not None:
        kind(key)
    found = [each for each in own(db, place) if key in (None, each)]
    for each in found:
        sql.change(
            db,
            "DELETE FROM settings WHERE guild_id = ? AND channel_id = ? AND key = ?",
            (place.guild_id, place.channel_id or 0, each),
        )
    if found:
        audit.record(db, actor, "settings.reset", {**_where(place), "keys": found})
    return found


def guild_of(db: sqlite_utils.Database, channel_id: int) -> int | None:
    """Return the server of a channel that has settings of its own, or None."""
    found: int | None = sql.value(
        db, "SELECT guild_id FROM settings WHERE channel_id = ? LIMIT 1", (channel_id,)
    )
    return found


def read_closed_places(db: sqlite_utils.Database) -> "ClosedPlaces":
    """Return where training is switched off today."""
    rows = sql.many(db, "SELECT guild_id, channel_id, value_json FROM settings WHERE key = 'training'")
    return ClosedPlaces({(row["guild_id"], row["channel_id"]): json.loads(row["value_json"]) for row in rows})


@dataclass(frozen=True, slots=True)
class ClosedPlaces:
    """Servers and channels with a word of their own on training, by (guild, channel or 0)."""

    decided: Mapping[tuple[int, int], bool]

    def __contains__(self, place: tuple[int, int]) -> bool:
        """Whether training is off in (guild, channel)."""
        guild_id, channel_id = place
        server = self.decided.get((guild_id, 0), True)
        return not self.decided.get((guild_id, channel_id), server)


def _is_shared(config: Config, key: str) -> bool:
    return config.trainer.scope == "deployment" and key in _COUNTS_EVERYWHERE


def _rows(db: sqlite_utils.Database, guild_id: int, channel_id: int | None) -> Sequence[sql.Row]:
    return sql.many(
        db,
        """SELECT key, channel_id, value_json, actor FROM settings
           WHERE guild_id = ? AND channel_id IN (0, ?) ORDER BY channel_id""",
        (guild_id, channel_id or 0),
    )


def _usable(key: str, value_json: str) -> Any:
    try:
        return kind(key).parse(json.loads(value_json))
    except SettingError:
        return None


def _agree(settings: Settings) -> None:
    both = set(settings.rating_up) & set(settings.rating_down)
    if both:
        raise SettingError("{emoji} can't mean both a like and a dislike.", emoji=" ".join(sorted(both)))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _where(place: Place) -> dict[str, str | None]:
    channel = None if place.channel_id is None else str(place.channel_id)
    return {"guild_id": str(place.guild_id), "channel_id": channel}
