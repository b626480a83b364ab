"""Prompts of any file that an import understands, and who of Discord's members lets theirs be asked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import sqlite_utils

from storage.chat import channels, members
from storage.errors import ImportFileError
from storage.feedback.prompt_bank import NewPrompt
from storage.imports import files
from storage.imports.checks import REASONS
from storage.imports.examples import Channel, Prompt, Unusable

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
) -> tuple[list[Prompt], Counter[str]]:
    """Return the prompts that may be asked, and how many may not, by reason (checks.REASONS).

    What a member wrote on Discord needs Discord's recorded permission and that member's own, and a channel
    whose words may train. Raises ImportFileError where there is no permission.
    """
    allowed: list[Prompt] = []
    left_out: Counter[str] = Counter()
    for prompt in prompts:
        if prompt.author is None:
            allowed.append(prompt)
            continue
        if not permission_reference:
            raise ImportFileError(NO_PERMISSION)
        member = members.get(db, prompt.author.user_id)
        if member is None or member.consent != "in":
            left_out["no_consent"] += 1
        elif (objection := _objection_to_place(db, prompt.channel)) is not None:
            left_out[objection] += 1
        else:
            allowed.append(prompt)
    return allowed, left_out


def nobody_permits(left_out: Counter[str]) -> str:
    """Return the sentence for prompts of members none of which may be asked."""
    if left_out.keys() == {"no_consent"}:
        return "Nobody whose messages these are has opted in with /privacy: nothing was taken."
    reasons = "; ".join(f"{count} {REASONS[reason]}" for reason, count in left_out.most_common())
    return f"None of these messages may be asked: {reasons}."


def new_prompt(prompt: Prompt) -> NewPrompt:
    """Return a prompt as the bank takes it, with where it was written."""
    author_id = None if prompt.author is None else prompt.author.user_id
    where = prompt.channel
    return NewPrompt(
        prompt.text,
        author_id,
        where.guild_id if where else None,
        where.channel_id if where else None,
        where.parent_channel_id if where else None,
        prompt.discord_id,
    )


def _objection_to_place(db: sqlite_utils.Database, where: Channel | None) -> str | None:
    if where is None:
        return None
    return channels.objection(db, where.channel_id, where.guild_id, where.parent_channel_id)


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
