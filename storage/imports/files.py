"""A file as checked examples or prompts: its format recognised or named, its records read, each judged."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from storage.errors import ImportFileError
from storage.imports import data_package, discord_export, formats, reading
from storage.imports.checks import checked, checked_prompts
from storage.imports.data_package import DataPackage
from storage.imports.examples import Example, Prompt, Unusable
from storage.imports.formats import Found
from storage.imports.reading import Record, Source

DISCORD_TITLE = "a channel's export by DiscordChatExporter"
# (size, time of change) of each file that is read.
State = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ImportFile:
    """A file that was recognised. `title` names its format for people; `parts` are the files that are read.

    `prompts_only` holds nothing to imitate: there are no answers in it, or it can't be told what they answer.
    """

    source: Source
    format: str
    title: str
    reader: Callable[[], Callable[[Record], Found]]
    records: Callable[[], Iterator[Record]]
    parts: tuple[Path, ...]
    prompts_only: bool = False

    def examples(self) -> Iterator[Example | Unusable]:
        """Read the file from its beginning. Raises ImportFileError at a record that can't be read."""
        return checked(each for each in self._found() if not isinstance(each, Prompt))

    def prompts(self) -> Iterator[Prompt | Unusable]:
        """Read what the file asks: of each conversation the first question. Raises ImportFileError."""
        read = self.reader()
        return checked_prompts(formats.prompt_of(each, list(read(each))) for each in self.records())

    def sha256(self) -> str:
        """Return the hash of the file's bytes; of a folder, of its parts' names and bytes.

        Raises ImportFileError.
        """
        digest = hashlib.sha256()
        for part in self.parts:
            try:
                if len(self.parts) > 1:
                    digest.update(str(part.relative_to(self.source.path)).encode())
                with part.open("rb") as file:
                    for chunk in iter(partial(file.read, 1 << 20), b""):
                        digest.update(chunk)
            except OSError as error:
                raise ImportFileError(f"{part} can't be read: {error.strerror}.") from error
        return digest.hexdigest()

    def state(self) -> State:
        """Return what changes when somebody writes into the file. Raises ImportFileError."""
        try:
            stats = [part.stat() for part in self.parts]
        except OSError as error:
            raise ImportFileError(f"{self.source.path} can't be read: {error.strerror}.") from error
        return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)

    def _found(self) -> Found:
        # A new reader for each reading: that of a channel's export remembers what it has seen.
        read = self.reader()
        for record in self.records():
            yield from self._told_apart(record, list(read(record)))

    def _told_apart(self, record: Record, found: list[Example | Prompt | Unusable]) -> Found:
        """Say of a record that nothing was found in whether it is one of another format."""
        if [getattr(each, "reason", "") for each in found] == ["not_messages"] and isinstance(
            record.value, Mapping
        ):
            other = formats.known_format(record.value)
            if other is not None and other.name != self.format:
                found = [Unusable(record.place, "other_format")]
        yield from found


def recognise(
    path: Path,
    *,
    encoding: str = "",
    columns: Mapping[str, str] | None = None,
    rating_up: Collection[str] = (),
    rating_down: Collection[str] = (),
) -> ImportFile:
    """Return a file with its format. Raises ImportFileError with what is wrong with it, or what it holds."""
    if path.is_dir() or (path.is_file() and zipfile.is_zipfile(path)):
        return _package(path)
    source = reading.open_source(path, encoding)
    outline = reading.outline(source) if source.layout == "json-object" else {}
    if source.layout == "json-object" and not discord_export.matches(outline):
        # One record that takes many lines, or a first line that is too long to be known as one.
        source = replace(source, layout="json-values")
    one = partial(ImportFile, source, records=partial(reading.records, source), parts=(path,))
    if source.layout == "json-object":
        discord_export.check_public(outline)
        channel = discord_export.channel_of(outline)
        return one(
            "discord",
            DISCORD_TITLE,
            lambda: discord_export.DiscordExport(rating_up, rating_down, channel).read,
        )
    if columns:
        named = formats.columns_reader(**columns)
        return one("columns", "a table with columns", lambda: named)
    first = reading.first_record(source)
    if discord_export.matches_table(first):
        read = partial(discord_export.read_table, discord_export.channel_of_name(path))
        return one("discord-csv", DISCORD_TITLE, lambda: read, prompts_only=True)
    known = formats.recognise(first)
    return one(known.name, known.title, lambda: known.read, prompts_only=known is formats.PROMPTS)


def _package(path: Path) -> ImportFile:
    package = DataPackage(path)
    if not package.is_package:
        kind = "folder" if path.is_dir() else "zip file"
        raise ImportFileError(
            f"{path} is a {kind} without the messages of a Discord data package: name a file in it."
        )
    owner = package.owner()
    read = partial(data_package.read, owner)
    source = Source(path, "package", "utf-8", encoding_guessed=False, gzipped=False)
    title = f"{data_package.TITLE} of {owner.name or owner.user_id}"
    return ImportFile(
        source, "discord-package", title, lambda: read, package.records, package.parts, prompts_only=True
    )
