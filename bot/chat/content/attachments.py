"""Text out of the files that come with a message: what is text, downloaded within limits, decoded with care.

The text belongs to the member like the message itself. Pictures are for a model that sees: only their names
are stored. Nothing is ever unpacked or run, and nothing is downloaded from anywhere but Discord's own file
servers (or the playground, which stands in for them).
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

import aiohttp
import discord
import structlog
from yarl import URL

from bot.chat.content import pictures
from bot.chat.content.charsets import charset_name, guess_charset
from bot.chat.content.pictures import UnreadablePictureError, is_picture
from bot.language.texts import mark, tr

MAX_FILES = 4
MAX_FILE_BYTES = 256 * 1024
#: Of all files of one message; more would fill the database with what no context can hold.
MAX_CHARACTERS = 100_000
DOWNLOAD_TIMEOUT_S = 10.0
#: So many pictures are in memory at once, of all questions.
PICTURES_AT_ONCE = 2
NAME_LIMIT = 60
_MOST_NAME = 1_000
FILE_HOSTS = frozenset({"cdn.discordapp.com", "media.discordapp.net"})

_SUFFIX_WORDS = """
    txt md markdown rst log json jsonl ndjson csv tsv yaml yml toml ini cfg conf env xml html htm css
    svg tex py pyi ipynb js mjs ts tsx jsx java kt c h cc cpp hpp cs go rs rb php pl lua r jl swift
    scala sh bash zsh fish ps1 bat sql diff patch srt vtt po properties gradle cmake dockerfile makefile
    vue svelte dart ex exs erl hs clj lisp el vim nix zig asm proto graphql tf
"""
_SUFFIXES = frozenset(_SUFFIX_WORDS.split())
_TYPES = frozenset(
    {
        "application/json",
        "application/xml",
        "application/javascript",
        "application/x-yaml",
        "application/toml",
    }
    | {"application/x-sh", "application/sql", "application/x-python", "application/x-ndjson"}
)
# What text comes in. Python knows more codecs: some unpack archives, some take quadratic time.
_CHARSET_WORDS = """
    ascii utf-8 utf-8-sig utf-16 utf-16-le utf-16-be utf-32 utf-32-le utf-32-be iso8859-1 iso8859-2 iso8859-3
    iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-9 iso8859-10 iso8859-11 iso8859-13 iso8859-14
    iso8859-15 iso8859-16 cp437 cp850 cp852 cp855 cp857 cp858 cp860 cp861 cp862 cp863 cp865 cp866 cp869 cp874
    cp932 cp949 cp950 cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 koi8-r koi8-u kz1048
    mac-cyrillic mac-greek mac-roman mac-turkish mac-latin2 big5 big5hkscs gb2312 gbk gb18030 euc_jp euc_kr
    shift_jis shift_jisx0213 euc_jisx0213 johab iso2022_jp iso2022_kr tis-620 hz
"""
_CHARSETS = frozenset(_CHARSET_WORDS.split())
# A byte-order mark decides; UTF-32's begins like UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = frozenset(map(chr, [*range(9), *range(14, 27), *range(28, 32), 127]))
_MOST_CONTROLS = 0.02
_CHARSET_NAME = 40
_SAFE = str.maketrans({"[": "(", "]": ")", **dict.fromkeys("`*|<>@", " ")})

UNDRAWN = mark(
    "I can't look at {name}: I take PNG, JPEG, WebP and GIF of up to {size} MB and {pixels} megapixels."
)
VOICE = mark("I can't listen to voice messages: please write to me instead.")

_log = structlog.get_logger(__name__)


class File(Protocol):
    """A file as Discord describes it."""

    @property
    def filename(self) -> str:
        """Its name as its sender gave it."""

    @property
    def content_type(self) -> str | None:
        """Its media type, as far as Discord knows it."""

    @property
    def size(self) -> int:
        """Its size in bytes."""

    @property
    def url(self) -> str:
        """Where its bytes are."""


class Download(Protocol):
    """Gives the bytes behind an address, a piece at a time."""

    def __call__(self, url: str, /) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the address; raises OSError or aiohttp.ClientError."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What was read: the text, and for each kind of loss one sentence."""

    text: str = ""
    notes: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()


async def sees_nothing() -> int:
    """Return how many pictures may be shown to a model that sees none."""
    return 0


class AttachmentReader:
    """Reads the text files of a message, and draws its pictures for a model that sees.

    ``sight`` says how many pictures may go with a question.
    """

    def __init__(self, download: Download, sight: Callable[[], Awaitable[int]] = sees_nothing) -> None:
        self._download = download
        self._sight = sight
        self._drawing = asyncio.Semaphore(PICTURES_AT_ONCE)

    async def read(self, files: Sequence[File], *, looks: bool = False) -> Attached:
        """Return the text of the first few text files, and honest words on all that was not read.

        With ``looks`` the first few pictures too, where the model sees.
        """
        spoken, files = [file for file in files if _is_voice(file)], [f for f in files if not _is_voice(f)]
        wanted = [file for file in files if is_text(file)]
        found = await asyncio.gather(*(self._read(file) for file in wanted[:MAX_FILES]))
        unread = [file for file in files if not is_text(file)]
        drawable = [file for file in unread if looks and is_picture(file.content_type, file.filename)]
        most = await self._sight() if drawable else 0
        if most:
            unread = [file for file in unread if file not in drawable]
        seen = await self._look(drawable, most) if most else Attached()
        notes = [_unopened(unread, looked=bool(most))] if unread else []
        notes += [tr(VOICE)] if spoken else []
        if wanted[MAX_FILES:]:
            left = _names(wanted[MAX_FILES:])
            notes.append(
                tr("I read only the first {count} files, so not {names}.", count=MAX_FILES, names=left)
            )
        text, whole = _within(MAX_CHARACTERS, [piece for piece, _ in found if piece])
        if not whole:
            notes.append(tr("Your files are longer than I can keep: I left out the rest."))
        said = (*notes, *(note for _, each in found for note in each), *seen.notes)
        return Attached("\n\n".join(filter(None, (text, seen.text))), said, seen.pictures)

    async def _look(self, files: Sequence[File], most: int) -> Attached:
        """Return the first few pictures, their names as the text that stands for them, and what to say."""
        found = await asyncio.gather(*(self._draw(file) for file in files[:most]))
        drawn = [(file, url) for file, (url, _) in zip(files, found, strict=False) if url]
        notes = [note for _, note in found if note]
        if left := _names(files[most:]):
            notes.append(tr("These are too many pictures at once: I did not look at {names}.", names=left))
        names = "\n".join(f"[picture: {plain_name(file.filename)}]" for file, _ in drawn)
        return Attached(names, tuple(notes), tuple(url for _, url in drawn))

    async def _draw(self, file: File) -> tuple[str, str]:
        """Return a picture as a data URL, or why there is none."""
        name = plain_name(file.filename)
        size, pixels = pictures.MAX_BYTES // 1024**2, pictures.MAX_PIXELS // 1_000_000
        refused = tr(UNDRAWN, name=name, size=size, pixels=pixels)
        if file.size > pictures.MAX_BYTES:
            return "", refused
        async with self._drawing:
            try:
                async with asyncio.timeout(DOWNLOAD_TIMEOUT_S):
                    data, whole = await self._bytes(file.url, pictures.MAX_BYTES)
                return (await asyncio.to_thread(pictures.draw, data), "") if whole else ("", refused)
            except UnreadablePictureError as error:
                _log.info("picture.not_drawn", error=str(error), size_bytes=file.size)
                return "", refused
            except (TimeoutError, OSError, aiohttp.ClientError) as error:
                _log.info("attachment.not_read", error=type(error).__name__, size_bytes=file.size)
                return "", tr("I could not load {name}.", name=name)

    async def read_one(self, file: File) -> Attached:
        """Return the text of one file as it is, or honest words on why there is none."""
        if not is_text(file):
            return Attached(notes=(_unopened([file]),))
        text, notes = await self._text(file)
        return Attached(text[:MAX_CHARACTERS], notes)

    async def _read(self, file: File) -> tuple[str, tuple[str, ...]]:
        """Return one file's block of text and what to say about it; either may be empty."""
        text, notes = await self._text(file)
        name = plain_name(file.filename)
        return f"[{name}]\n{text}\n[end of {name}]" if text else "", notes

    async def _text(self, file: File) -> tuple[str, tuple[str, ...]]:
        """Return one file's text and what to say about it; either may be empty."""
        name = plain_name(file.filename)
        try:
            async with asyncio.timeout(DOWNLOAD_TIMEOUT_S):
                data, whole = await self._bytes(file.url, MAX_FILE_BYTES)
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            _log.info("attachment.not_read", error=type(error).__name__, size_bytes=file.size)
            return "", (tr("I could not load {name}.", name=name),)
        # Guessing a charset takes up to a tenth of a second, which the event loop hasn't got.
        charset, doubtful = await asyncio.to_thread(charset_of, data, file.content_type, whole=whole)
        text = _decoded(data, charset, whole=whole)
        if text is None:
            return "", (tr("I can't open {name}: it holds no text.", name=name),)
        if not text.strip():
            return "", (tr("{name} is empty.", name=name),)
        size = MAX_FILE_BYTES // 1024
        large = tr("{name} is large: I read only its first {size} kB.", name=name, size=size)
        guess = tr(
            "{name} doesn't say its charset: I read it as {charset}.",
            name=name,
            charset=charset_name(charset),
        )
        return text.strip(), (*([] if whole else [large]), *([guess] if doubtful else []))

    async def _bytes(self, url: str, limit: int) -> tuple[bytes, bool]:
        """Download up to the limit; say whether that was all."""
        data = bytearray()
        async with self._download(url) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > limit:
                    return bytes(data[:limit]), False
        return bytes(data), True


def _is_voice(file: File) -> bool:
    return isinstance(file, discord.Attachment) and file.is_voice_message()


def is_text(file: File) -> bool:
    """Whether a file can be read as text, as far as its type and name tell."""
    kind = (file.content_type or "").partition(";")[0].strip().lower()
    path = PurePosixPath(file.filename.lower())
    return kind.startswith("text/") or kind in _TYPES or (path.suffix or path.name).lstrip(".") in _SUFFIXES


def decode(data: bytes, content_type: str | None = None, *, whole: bool = True) -> str | None:
    """Return a file's text whatever its charset, or None if it holds none.

    A byte-order mark decides, then UTF-8 where it fits, then the declared charset, then its letters.
    """
    return _decoded(data, charset_of(data, content_type, whole=whole)[0], whole=whole)


def charset_of(data: bytes, content_type: str | None = None, *, whole: bool = True) -> tuple[str, bool]:
    """Return the charset of a file, as Python calls it, and whether that is only the likeliest one."""
    marked = next((charset for mark, charset in _MARKS if data.startswith(mark)), None)
    for charset in filter(None, (marked, "utf-8", _declared(content_type))):
        if _fits(data, charset, whole=whole):
            # Seven-bit bytes are UTF-8 too, but this charset's own escapes say what they are.
            escaped = charset == "utf-8" and b"\x1b$" in data and _fits(data, "iso2022_jp", whole=whole)
            return ("iso2022_jp" if escaped else charset), False
    guess = guess_charset(data)
    return (guess if _fits(data, guess, whole=whole) else "cp1252"), True


def _fits(data: bytes, charset: str, *, whole: bool) -> bool:
    try:
        # Cut off in the middle of a character, an incomplete end is no error.
        codecs.getincrementaldecoder(charset)().decode(data, final=whole)
    except UnicodeDecodeError:
        return False
    return True


def _decoded(data: bytes, charset: str, *, whole: bool) -> str | None:
    text = codecs.getincrementaldecoder(charset)("replace").decode(data, final=whole)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    controls = sum(character in _CONTROLS for character in text)
    return None if "\0" in text or controls > len(text) * _MOST_CONTROLS else text


def plain_name(filename: str) -> str:
    """Return a file's name on one line, without what could be mistaken for markup or a bracket."""
    name = "".join(character if character.isprintable() else " " for character in filename[:_MOST_NAME])
    name = " ".join(name.translate(_SAFE).split())
    return name if len(name) <= NAME_LIMIT else f"{name[: NAME_LIMIT - 13]}…{name[-12:]}"


def from_discord(
    playground: Callable[[], str | None], proxy_for: Callable[[str], str | None] = lambda _: None
) -> Download:
    """Return a download from Discord's file servers, or from the playground's address where it is used."""

    @contextlib.asynccontextmanager
    async def download(url: str, /) -> AsyncIterator[AsyncIterator[bytes]]:
        if not is_allowed_url(url, playground()):
            raise PermissionError("not an address of Discord's file servers")
        timeout = aiohttp.ClientTimeout(total=DOWNLOAD_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, allow_redirects=False, raise_for_status=True, proxy=proxy_for(url)) as response,
        ):
            if response.status != 200:
                raise aiohttp.ClientError(f"status {response.status}")
            yield response.content.iter_chunked(1 << 14)

    return download


def is_allowed_url(url: str, playground: str | None) -> bool:
    """Whether a file may be fetched from an address."""
    address = URL(url)
    if playground is not None and address.origin() == URL(playground).origin():
        return True
    return address.scheme == "https" and address.host in FILE_HOSTS


def _declared(content_type: str | None) -> str | None:
    _, _, charset = (content_type or "").lower().partition("charset=")
    name = charset.partition(";")[0].strip(" \"'")[:_CHARSET_NAME]
    try:
        known = codecs.lookup(name).name if name else None
    except (LookupError, ValueError):
        return None
    return known if known in _CHARSETS else None


def _within(limit: int, pieces: Sequence[str]) -> tuple[str, bool]:
    text = "\n\n".join(pieces)
    return (text, True) if len(text) <= limit else (text[:limit], False)


def _unopened(files: Sequence[File], *, looked: bool = False) -> str:
    """Say which files were not opened; beside pictures that were ``looked`` at, that those are no text."""
    if looked:
        return tr("I can't open {names}: I read only text, and look at pictures.", names=_names(files))
    return tr("I can't open {names}: I read only text.", names=_names(files))


def _names(files: Sequence[File]) -> str:
    shown = ", ".join(plain_name(file.filename) for file in files[:3])
    return shown + tr(" and {count} more", count=len(files) - 3) if len(files) > 3 else shown
