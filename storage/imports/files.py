"""A file as checked examples: its format recognised or named, its records read, each example judged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.errors import ImportFileError
from storage.imports import discord_export, formats, reading
from storage.imports.checks import checked
from storage.imports.examples import Example, Unusable
from storage.imports.reading import Record

DISCORD_TITLE = "a channel's export by DiscordChatExporter"


@dataclass(frozen=True)
class ImportFile:
    """A file that was recognised. `title` names its format for people."""

    source: reading.Source
    format: str
    title: str
    reader: Callable[[], Callable[[Record], Iterator[Example | Unusable]]]

    def examples(self) -> Iterator[Example | Unusable]:
        """Read the file from its beginning. Raises ImportFileError at a record that can't be read."""
        return checked(self._found())

    def sha256(self) -> str:
        """Return the hash of the file's bytes."""
        try:
            with self.source.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ImportFileError(f"{self.source.path} can't be read: {error.strerror}.") from error

    def _found(self) -> Iterator[Example | Unusable]:
        # A new reader for each reading: that of a channel's export remembers what it has seen.
        read = self.reader()
        for record in reading.records(self.source):
            yield from read(record)


def recognise(
    path: Path,
    *,
    encoding: str = "",
    columns: Mapping[str, str] | None = None,
    rating_up: Collection[str] = (),
    rating_down: Collection[str] = (),
) -> ImportFile:
    """Return a file with its format. Raises ImportFileError with what is wrong with it, or what it holds."""
    source = reading.open_source(path, encoding)
    outline = reading.outline(source)
    if discord_export.matches(outline):
        return ImportFile(
            source,
            "discord",
            DISCORD_TITLE,
            lambda: discord_export.DiscordExport(rating_up, rating_down).read,
        )
    if columns:
        named = formats.columns_reader(**columns)
        return ImportFile(source, "columns", "a table with columns", lambda: named)
    known = formats.recognise(next(reading.records(source)).value)
    return ImportFile(source, known.name, known.title, lambda: known.read)
