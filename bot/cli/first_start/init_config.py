"""`strop init`: turns a few answers into a commented strop.toml that load_config accepts."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bot.errors import BotError
from storage.config_text import bare_token
from storage.cron import CronLine
from storage.errors import CronError

# A Discord token: three base64url parts. Checked only to catch a pasted client secret or application id.
TOKEN_SHAPE = re.compile(r"^[\w-]{18,}\.[\w-]{4,}\.[\w-]{20,}$")


class InitialiseError(BotError):
    """The configuration can't be written like this; the text says what to do."""


@dataclass(frozen=True)
class Answers:
    """What `strop init` asks. `schedule` is "" (only on demand), a number of hours, or a cron line."""

    operators: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    scope: Literal["guild", "deployment"] = "guild"
    schedule: str = "24"
    min_new_ratings: int = 50
    time_zone: str = "UTC"


def parse_ids(text: str) -> tuple[int, ...]:
    """Discord ids separated by spaces or commas; mentions such as <@123> count too.

    Raises InitialiseError naming what is no id.
    """
    ids = []
    for word in re.split(r"[\s,]+", text.strip()):
        if not word:
            continue
        found = re.fullmatch(r"<?[@#!&]*(\d{15,20})>?", word)
        if found is None:
            raise InitialiseError(
                f"{word!r} is no Discord id: right-click the member or channel and copy its ID."
            )
        ids.append(int(found[1]))
    return tuple(dict.fromkeys(ids))


def parse_schedule(text: str) -> tuple[str, float]:
    """Return (cron, interval in hours), of which at most one is set. Raises InitialiseError."""
    text = text.strip()
    if text in ("", "0", "off", "never"):
        return "", 0.0
    try:
        hours = float(text)
    except ValueError:
        return _cron_line(text), 0.0
    if not 0 < hours < 24 * 366:
        raise InitialiseError(f"{text} hours is no interval: choose a number from 0 (off) to 8784.")
    return "", hours


def _cron_line(text: str) -> str:
    try:
        CronLine.parse(text)
    except CronError as error:
        wanted = 'a number of hours, a cron line such as "0 4 * * *", or "off"'
        raise InitialiseError(f"{text!r} is no schedule ({error}): {wanted}.") from None
    return text


def render(answers: Answers) -> str:
    """The text of strop.toml: what was asked, commented, and nothing secret."""
    cron, hours = parse_schedule(answers.schedule)
    return f"""\
# Strop's configuration. Every key is optional; `strop doctor` checks the result.
# Secrets never belong here: set DISCORD_TOKEN or DISCORD_TOKEN_FILE in the environment.
# Data is kept under STROP_HOME (default: the folder `data` where Strop is started).

[discord]
# Who may retrain, promote and roll back. Empty: the owner (or the team) of the Discord application.
operators = {_list(answers.operators)}
# Channels in which the bot answers without being mentioned. Needs the Message Content intent.
channels = {_list(answers.channels)}
# Discord forbids training on its messages without its express permission. Once you have that, record it here;
# members must still opt in with /privacy.
training_permission_reference = ""
training_permission_date = ""

[chat]
system_prompt = "You are a friendly member of this community. Answer briefly."

[model]
# "auto": the largest base that this machine carries (`strop models`). Or a Hugging Face id, or a folder.
base = "auto"

[trainer]
# "guild": every community trains its own adapter. "deployment": one for all.
scope = {_text(answers.scope)}
# When to retrain: a cron line, an interval in hours (0: off), or after so many new ratings (0: off).
cron = {_text(cron)}
time_zone = {_text(answers.time_zone)}
interval_hours = {hours!r}
min_new_ratings = {answers.min_new_ratings}
# Less than this and a retrain politely waits. Lower both for a private server; the evidence is then weak.
min_liked = 25
min_raters = 5

[gate]
# "auto": a proven challenger replaces the champion by itself. "ask": an operator promotes it.
policy = "auto"
"""


def write_configuration(path: Path, answers: Answers, *, force: bool = False) -> None:
    """Write strop.toml whole or not at all. Raises InitialiseError if it exists and `force` is off."""
    if path.exists() and not force:
        raise InitialiseError(
            f"{path} exists already: pass --force to replace it, or --config for another file."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(render(answers), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InitialiseError(f"{path} can't be written: {error.strerror}.") from error


def check_token(token: str) -> str:
    """Return the bare token; raise InitialiseError if this can't be one. It is never echoed."""
    token = bare_token(token)
    if not TOKEN_SHAPE.fullmatch(token):
        raise InitialiseError(
            "That is no bot token: copy it from discord.com/developers → your app → Bot → Reset Token."
        )
    return token


def write_token(path: Path, token: str, *, force: bool = False) -> None:
    """Write the token to a file that only this user can read. Raises InitialiseError."""
    token = check_token(token)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if force:
            path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
    except FileExistsError as error:
        raise InitialiseError(
            f"{path} exists already: pass --force to replace it, or --token-file."
        ) from error
    except OSError as error:
        raise InitialiseError(f"{path} can't be written: {error.strerror}.") from error


def _list(ids: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, ids)) + "]"


def _text(value: str) -> str:
    # JSON's escapes for a one-line text are TOML's.
    return json.dumps(value, ensure_ascii=False)
