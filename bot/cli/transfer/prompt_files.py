"""Prompts from a file: read by the one reader, and checked for who lets theirs be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bot.cli.errors import UsageError
from bot.cli.launch.console import visible
from bot.cli.session import Session
from storage.errors import ImportFileError
from storage.imports.checks import REASONS
from storage.imports.examples import Prompt
from storage.imports.prompts import nobody_permits, permitted, read_prompts


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file that may be asked, and what was left out, as a text for people."""

    prompts: tuple[Prompt, ...]
    left_out: str


def prompts_in(path: Path, opened: Session | None) -> PromptFile:
    """Return a file's prompts; raises UsageError with what is wrong with it, or who has to agree first.

    Without an open database nobody has opted in, so that a member's words can't be asked.
    """
    try:
        found, left_out = read_prompts(path)
        if any(prompt.author for prompt in found):
            if opened is None:
                raise ImportFileError("Messages from Discord are asked only where their members can opt in.")
            reference = opened.config.discord.training_permission_reference
            found, reasons = opened.database.read(lambda db: permitted(db, found, reference))
            left_out.update(reasons)
            if not found:
                raise ImportFileError(nobody_permits(reasons))
    except ImportFileError as error:
        raise UsageError(visible(str(error))) from error
    return PromptFile(
        tuple(found), "".join(f" {count} {REASONS[reason]}." for reason, count in left_out.items() if count)
    )
