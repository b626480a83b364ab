"""The one reader of prompts: a text with one a line, or any file that an import understands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from storage.errors import ImportFileError
from storage.feedback import tastings
from storage.imports import discord_export, formats, reading
from storage.imports.examples import Example
from storage.imports.reading import Record

MAX_TEXT_BYTES = 4 * 1024 * 1024


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return a file's prompts, each once: its lines, or of data each conversation's first question.

    Raises ImportFileError where the file can't be read, or is data without prompts.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if is_data(start.lstrip(b"\xef\xbb\xbf").decode("latin-1")):
            return tuple(dict.fromkeys(_questions(path)))
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ImportFileError(f"{path} is larger than {MAX_TEXT_BYTES // 1024**2} MB.")
        return tuple(dict.fromkeys(tastings.lines_of(path.read_text(encoding="utf-8-sig"))))
    except OSError as error:
        raise ImportFileError(f"{path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ImportFileError(f"{path} is not a text file in UTF-8.") from error


def is_data(start: str) -> bool:
    """Return whether a text begins as JSON or as a packed file does: then its lines are no prompts."""
    text = start.lstrip()
    after = text[1:].lstrip()
    return (
        start.startswith("\x1f\x8b")
        or (text[:1] in ("{", "[", '"') and after[:1] in ('"', "{", "[", ""))
        or (text.startswith('"') and '"' in text[1:].splitlines()[0])
    )


def _questions(path: Path) -> list[str]:
    source = reading.open_source(path)
    if discord_export.matches(reading.outline(source)):
        export = discord_export.DiscordExport((), ())
        found = [each for record in reading.records(source) for each in export.read(record)]
        return [each.prompt[0].content for each in found if isinstance(each, Example)]
    return [_question(record) for record in reading.records(source)]


def _question(record: Record) -> str:
    value = record.value
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, Mapping):
        turns = value.get("messages", value.get("prompt"))
        try:
            asked = [turn.content for turn in formats.turns_of(turns) if turn.role == "user"]
        except ValueError:
            asked = _asked(record)
        if asked and asked[0].strip():
            return asked[0].strip()
    raise ImportFileError(f'There is no prompt in {record.place}: it needs a text, a "prompt" or "messages".')


def _asked(record: Record) -> list[str]:
    try:
        found = list(formats.recognise(record.value).read(record))
    except ImportFileError:
        return []
    examples = [each for each in found if isinstance(each, Example)]
    return [turn.content for each in examples[:1] for turn in each.prompt if turn.role == "user"]
