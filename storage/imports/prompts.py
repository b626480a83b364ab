"""Prompts of any file that an import understands, and who of Discord's members lets theirs be asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import sqlite_utils

from storage.chat import members
from storage.errors import ImportFileError
from storage.imports import files
from storage.imports.examples import Prompt, Unusable

# What is read from standard input at most.
MAX_TEXT_BYTES = 4 * 1024 * 1024
NO_PERMISSION = (
    "These are messages from Discord: they may only be asked, and trained on, with Discord's recorded "
    "permission (discord.training_permission_reference), whoever exported them."
)


def read_prompts(path: Path) -> tuple[list[Prompt], Counter[str]]:
    """Return a file's prompts, each once, and how many records were left out by reason (checks.REASONS).

    Raises ImportFileError where the file can't be read, or holds none.
    """
    prompts: list[Prompt] = []
    left_out: Counter[str] = Counter()
    for each in files.recognise(path).prompts():
        if isinstance(each, Unusable):
            left_out[each.reason] += 1
        else:
            prompts.append(each)
    if not prompts:
        raise ImportFileError(f"There are no prompts in {path}.")
    return prompts, left_out


def permitted(
    db: sqlite_utils.Database, prompts: Iterable[Prompt], permission_reference: str
) -> tuple[list[Prompt], int]:
    """Return the prompts that may be asked, and how many are of members who have not opted in.

    What a member wrote on Discord needs Discord's recorded permission and that member's own. Raises
    ImportFileError where there is no permission.
    """
    allowed: list[Prompt] = []
    unwilling = 0
    for prompt in prompts:
        if prompt.author is None:
            allowed.append(prompt)
            continue
        if not permission_reference:
            raise ImportFileError(NO_PERMISSION)
        member = members.get(db, prompt.author.user_id)
        if member is not None and member.consent == "in":
            allowed.append(prompt)
        else:
            unwilling += 1
    return allowed, unwilling


def is_data(start: str) -> bool:
    """Return whether a text begins as JSON or as a packed file does: then its lines are no prompts."""
    text = start.lstrip()
    after = text[1:].lstrip()
    return (
        start.startswith(("\x1f\x8b", "PK\x03\x04"))
        or (text[:1] in ("{", "[", '"') and after[:1] in ('"', "{", "[", ""))
        or (text.startswith('"') and '"' in text[1:].splitlines()[0])
    )


def holds_json(text: str) -> bool:
    """Return whether a text that somebody typed or pasted is JSON: its first line is an object or a list."""
    first = next(iter(text.strip().splitlines()), "").strip()
    if first in ("{", "["):
        return True
    try:
        return isinstance(json.loads(first), dict | list)
    except (ValueError, RecursionError):
        return False
