"""What a call of the page carries, checked."""

import base64
import json
import re
from typing import Any

from aiohttp import web

from bot.playground.discord.backend import Payload
from bot.playground.discord.rest import MAX_FILE_BYTES
from bot.playground.errors import ActionRefusedError
from bot.playground.simulation.rehearsal import Cast

MAX_FILES = 10
_FILE_NAME = re.compile(r"[^/\\\x00-\x1f?#%]+")


async def body_of(request: web.Request) -> Payload:
    """Return the request's JSON object; raises ActionRefusedError."""
    if request.content_type != "application/json":
        raise ActionRefusedError("The request needs the content type application/json.", 415)
    try:
        body = json.loads(await request.text())
    except (ValueError, RecursionError) as error:
        raise ActionRefusedError("The request's body isn't JSON.") from error
    if not isinstance(body, dict):
        raise ActionRefusedError("The request's body must be a JSON object.")
    return body


def files_of(body: Payload) -> list[tuple[str, bytes]]:
    """Return the files of a message, each {"name", "data" in base64}.

    Raises ActionRefusedError for too many.
    """
    given = body.get("files") or []
    if not isinstance(given, list) or len(given) > MAX_FILES:
        raise ActionRefusedError(f"A message takes at most {MAX_FILES} files.")
    return [file_of(each) for each in given]


def options_of(body: Payload) -> Payload:
    """Return a command's options; one that takes a file has it as {"name", "data" in base64}."""
    given = object_of(body, "options")
    return {key: file_of(value) if isinstance(value, dict) else value for key, value in given.items()}


def file_of(given: Any) -> tuple[str, bytes]:
    """Return the name and the bytes of a file; raises ActionRefusedError."""
    name = given.get("name") if isinstance(given, dict) else None
    try:
        data = base64.b64decode(given["data"], validate=True) if isinstance(given, dict) else b""
    except (KeyError, TypeError, ValueError) as error:
        raise ActionRefusedError("A file needs “data” in base64.") from error
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not _FILE_NAME.fullmatch(name):
        raise ActionRefusedError("A file needs a name without a path.")
    if len(data) > MAX_FILE_BYTES:
        raise ActionRefusedError("A file holds at most 10 MB.", 413)
    return name, data


def id_of(body: Payload, key: str) -> int:
    """Return an id; raises ActionRefusedError where the key holds none."""
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).isdecimal():
        raise ActionRefusedError(f"“{key}” must be an id.")
    if int(value) >= 1 << 63:
        raise ActionRefusedError(f"“{key}” must be an id.")
    return int(value)


def text_of(body: Payload, key: str, default: str | None = None) -> str:
    """Return a text, or the default; raises ActionRefusedError."""
    value = body.get(key)
    value = default if value is None else value
    if not isinstance(value, str):
        raise ActionRefusedError(f"“{key}” must be a text.")
    return value


def object_of(body: Payload, key: str) -> Payload:
    """Return an object, empty where there is none; raises ActionRefusedError."""
    value = body.get(key) or {}
    if not isinstance(value, dict):
        raise ActionRefusedError(f"“{key}” must be an object.")
    return value


def cast_of(body: Payload) -> Cast:
    """Return who rehearses, and what is said; what the body doesn't name is as usual.

    Raises ActionRefusedError for a value of another type.
    """
    usual = Cast()
    prompts = body.get("prompts") or usual.prompts
    if not isinstance(prompts, list | tuple) or not all(isinstance(each, str) for each in prompts):
        raise ActionRefusedError("“prompts” must be a list of texts.")
    noise = body.get("noise", usual.noise)
    if isinstance(noise, bool) or not isinstance(noise, int | float):
        raise ActionRefusedError("“noise” must be a number.")
    counts = [body.get(name, getattr(usual, name)) for name in ("members", "trolls", "voters")]
    if any(isinstance(each, bool) or not isinstance(each, int) for each in counts):
        raise ActionRefusedError("“members”, “trolls” and “voters” must be whole numbers.")
    members, trolls, voters = counts
    return Cast(tuple(prompts), members, float(noise), trolls, voters)


def path_ids(request: web.Request) -> tuple[int, int]:
    """Return the channel's and the message's id of the request's path."""
    return id_of(dict(request.match_info), "channel_id"), id_of(dict(request.match_info), "message_id")
