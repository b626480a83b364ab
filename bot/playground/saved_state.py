"""What must survive a restart of the playground alone, so that a running bot finds its way back by itself.

Messages are shown again from the database, and a run's as far as its word goes: the bot, which knows its card
and its buttons, edits it. But with a new token the bot would be turned away for good, and
without its commands (which it registers once, when it starts) the page would have none to offer.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from bot.playground.discord.backend import Payload
from bot.playground.server import TOKEN_PREFIX, new_token
from storage.chat import transcript
from storage.chat.transcript import Shown
from storage.db import key_values
from storage.db.database import Connection
from storage.learning import runs

STATE_FILE = "playground-state.json"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LastingState:
    """The bot's dummy token and the commands it registered."""

    token: str = field(repr=False)
    commands: list[Payload]


def read_chat(db: Connection, scope: str, limit: int) -> list[Shown]:
    """Return what the channels show since they were emptied: `limit` messages, and those of the runs."""
    after = int(key_values.get(db, key_values.SHOWN_AFTER) or 0)
    told = [
        Shown(
            run.report_message_id,
            run.report_channel_id,
            None,
            "",
            run.message or run.note or run.id,
            None,
        )
        for run in runs.latest(db, scope)
        if run.report_message_id is not None
        and run.report_channel_id is not None
        and run.report_message_id > after
    ]
    said = transcript.latest(db, limit, after=after)
    return sorted([*said, *told], key=lambda message: message.discord_id)


def read_state(run_dir: Path) -> LastingState:
    """The state of the last playground in this folder, or a fresh one."""
    try:
        found = json.loads((run_dir / STATE_FILE).read_text(encoding="utf-8"))
        state = LastingState(str(found["token"]), list(found["commands"]))
    except FileNotFoundError:
        return LastingState(new_token(), [])
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("playground.state_unreadable", error=str(error))
        return LastingState(new_token(), [])
    return state if state.token.startswith(TOKEN_PREFIX) else LastingState(new_token(), [])


def write_state(run_dir: Path, state: LastingState) -> None:
    """Replace the stored state."""
    write_private(run_dir / STATE_FILE, {"token": state.token, "commands": state.commands})


def write_private(path: Path, record: Payload) -> None:
    """Write a JSON file in one step, readable by this user only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}.tmp")
    half.unlink(missing_ok=True)
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(record, file)
    half.replace(path)
