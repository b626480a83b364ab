"""Discord's own data package: what one member wrote, channel by channel, without what others answered.

Read are `<any folder>/c<channel id>/channel.json` with `messages.json` or, in packages of before 2024,
`messages.csv` beside it, and the `user.json` of the account: a zip as Discord sends it, or the folder that it
unpacks to. Folders are found by their files, since newer packages name them in the account's language.
https://support.discord.com/hc/en-us/articles/360004957991
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from storage.errors import ImportFileError
from storage.imports.discord_export import discord_id, discord_prompt
from storage.imports.examples import Author, Channel, Prompt, Unusable
from storage.imports.json_scanner import JsonScanner
from storage.imports.reading import MAX_EXPANSION, Record, translated

TITLE = "Discord's data package"
_CHANNEL = re.compile(r"(?P<folder>(?:.*/)?c?(?P<id>\d{1,20}))/channel\.json")
_ACCOUNT = re.compile(r"(?:[^/]+/){0,3}user\.json")
# Channels of a server that can be open to everybody, by number and by name: the packages have had both.
_OPEN = frozenset(
    {"0", "2", "5", "10", "11", "13", "15"}
    | {"GUILD_TEXT", "GUILD_VOICE", "GUILD_ANNOUNCEMENT", "GUILD_NEWS", "GUILD_STAGE_VOICE", "GUILD_FORUM"}
    | {"ANNOUNCEMENT_THREAD", "NEWS_THREAD", "PUBLIC_THREAD"}
)
_MAX_SMALL_BYTES = 4 * 1024 * 1024
_MOST_FREE_BYTES = 64 * 1024 * 1024


class DataPackage:
    """A package that was found at a path; `names` are its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with translated(path):
            self.names = sorted(_names(path))
        self._channels = [found for name in self.names if (found := _CHANNEL.fullmatch(name))]

    @property
    def is_package(self) -> bool:
        """Whether it holds a folder of messages."""
        return bool(self._channels)

    @property
    def parts(self) -> tuple[Path, ...]:
        """The files that are read."""
        if not self.path.is_dir():
            return (self.path,)
        folders = {found["folder"] for found in self._channels}
        return tuple(
            self.path / name
            for name in self.names
            if name.rpartition("/")[0] in folders or _ACCOUNT.fullmatch(name)
        )

    def owner(self) -> Author:
        """Return whose messages these are. Raises ImportFileError where the package doesn't say."""
        for name in filter(_ACCOUNT.fullmatch, self.names):
            account = self._small(name)
            owner_id = discord_id(account.get("id")) if isinstance(account, dict) else None
            if owner_id is not None:
                return Author(owner_id, str(account.get("global_name") or account.get("username") or ""))
        raise ImportFileError(
            f"{self.path} has no user.json of the account: whose messages these are isn't known, "
            "so nobody's consent can be asked."
        )

    def records(self) -> Iterator[Record]:
        """Yield each message with its channel, and `private`: whether not everybody reads that."""
        with translated(self.path):
            for channel in self._channels:
                facts = self._small(channel[0])
                private = not isinstance(facts, dict) or not facts.get("guild") or _kind(facts) not in _OPEN
                channel_id = discord_id(channel["id"])
                where = None if channel_id is None else Channel(_guild_id(facts), channel_id)
                for number, message in enumerate(self._messages(channel["folder"]), 1):
                    place = f"channel {channel['id']}, message {number}"
                    yield Record({"message": message, "private": private, "channel": where}, place)

    def _messages(self, folder: str) -> Iterator[Any]:
        if f"{folder}/messages.json" in self.names:
            with self._text(f"{folder}/messages.json") as stream:
                yield from JsonScanner(stream).elements()
        elif f"{folder}/messages.csv" in self.names:
            with self._text(f"{folder}/messages.csv") as stream:
                yield from csv.DictReader(stream)

    def _small(self, name: str) -> Any:
        with translated(self.path), self._text(name) as stream:
            return json.loads(stream.read(_MAX_SMALL_BYTES))

    @contextmanager
    def _text(self, name: str) -> Iterator[IO[str]]:
        if self.path.is_dir():
            with (self.path / name).open(encoding="utf-8-sig", newline="") as stream:
                yield stream
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(name) as packed:
            yield io.TextIOWrapper(packed, encoding="utf-8-sig", newline="")


def read(owner: Author, record: Record) -> Iterator[Prompt | Unusable]:
    """Yield a message as a prompt of the package's owner."""
    message = record.value["message"]
    if record.value["private"]:
        yield Unusable(record.place, "private")
    elif not isinstance(message, dict) or not isinstance(message.get("Contents"), str):
        yield Unusable(record.place, "no_prompt")
    else:
        where, message_id = record.value["channel"], discord_id(message.get("ID"))
        yield discord_prompt(message["Contents"], record.place, owner, where, message_id)


def _kind(channel: dict[str, Any]) -> str:
    return str(channel.get("type"))


def _guild_id(channel: object) -> int | None:
    guild = channel.get("guild") if isinstance(channel, dict) else None
    return discord_id(guild.get("id")) if isinstance(guild, dict) else None


def _names(path: Path) -> Iterator[str]:
    """Yield the files of a folder or a zip. Raises ImportFileError for a zip that was made to fill a disk."""
    if path.is_dir():
        # No deeper than a package is, and nothing that a link leads to.
        for pattern in ("*", "*/*", "*/*/*", "*/*/*/*"):
            yield from (
                each.relative_to(path).as_posix()
                for each in path.glob(pattern)
                if each.is_file() and not each.is_symlink()
            )
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    # No entry is read beyond the size that it declares.
    if sum(each.file_size for each in entries) > max(path.stat().st_size * MAX_EXPANSION, _MOST_FREE_BYTES):
        raise ImportFileError(f"{path} unpacks to more than {MAX_EXPANSION} times its size.")
    yield from (each.filename for each in entries)
