"""A file of any size as records, one at a time: JSON, JSON lines, CSV or lines of text, plain or gzipped.

Memory stays flat: an array is read element by element, and no record may be longer than MAX_RECORD.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

from charset_normalizer import from_bytes

from storage.errors import ImportFileError
from storage.feedback import prompt_bank
from storage.imports.json_scanner import MAX_RECORD, JsonScanner

Layout = Literal["json-array", "json-object", "json-values", "json-lines", "csv", "text", "package"]

MAX_FILE_BYTES = 20 * 1024**3
# Compressed text shrinks to a tenth; a thousandth is a file that was made to fill a disk.
MAX_EXPANSION = 200
_SAMPLE_BYTES = 256 * 1024
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(slots=True)
class Position:
    """How far a file was read, in bytes as they lie on the disk."""

    read: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """A file whose layout is known. `encoding_guessed` says that nothing declared it."""

    path: Path
    layout: Layout
    encoding: str
    encoding_guessed: bool
    gzipped: bool
    position: Position = field(default_factory=lambda: Position(), compare=False, repr=False)

    def share_read(self) -> float | None:
        """Return the share of the file that the present reading has behind it; None where that is unknown."""
        return self.position.read / self.position.size if self.position.size else None


@dataclass(frozen=True, slots=True)
class Record:
    """One record with its place in the file, as people count: "line 3", "record 3"."""

    value: Any
    place: str


def open_source(path: Path, encoding: str = "") -> Source:
    """Find out how a file is written. Raises ImportFileError with what is wrong with it."""
    _check_size(path)
    with translated(path):
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        with _bytes(path, gzipped) as stream:
            head = stream.read(_SAMPLE_BYTES)
    if not head.strip():
        raise ImportFileError(f"{path} is empty.")
    found, guessed = (encoding, False) if encoding else _encoding_of(head, path)
    try:
        text = codecs.getincrementaldecoder(found)().decode(head)
    except (UnicodeDecodeError, LookupError) as error:
        raise ImportFileError(f"{path} is not {found} text: name its encoding with --encoding.") from error
    return Source(path, _layout_of(text, path), found, guessed, gzipped)


def records(source: Source) -> Iterator[Record]:
    """Yield the records of a file. Raises ImportFileError at the first that can't be read."""
    with translated(source.path), _text(source) as stream:
        if source.layout == "csv":
            yield from _rows(stream)
        elif source.layout == "json-lines":
            yield from _json_lines(stream)
        elif source.layout == "text":
            yield from _prompt_lines(stream)
        else:
            scanner = JsonScanner(stream)
            if source.layout == "json-object":
                scanner.enter_list()
            values = scanner.values() if source.layout == "json-values" else scanner.elements()
            for number, value in enumerate(values, 1):
                yield Record(value, f"record {number}")


def first_record(source: Source) -> Any:
    """Return the value of the first record. Raises ImportFileError where there is none."""
    first = next(records(source), None)
    if first is None:
        raise ImportFileError(f"{source.path} holds no records.")
    return first.value


def outline(source: Source) -> dict[str, Any]:
    """Return what an object holds before its first list, and of that the name; nothing without a list."""
    with translated(source.path), _text(source) as stream:
        try:
            before, name = JsonScanner(stream).enter_list()
        except json.JSONDecodeError:
            return {}
    return {**before, name: []}


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ImportFileError(f"{path} can't be read: {error.strerror}.") from error
    if not path.is_file():
        raise ImportFileError(f"{path} is not a file.")
    if size > MAX_FILE_BYTES:
        raise ImportFileError(f"{path} is larger than {MAX_FILE_BYTES // 1024**3} GB: split it.")


def _encoding_of(head: bytes, path: Path) -> tuple[str, bool]:
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name, False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        best = from_bytes(head[: 64 * 1024]).best()
        if best is None:
            raise ImportFileError(
                f"{path} is not text, or its encoding can't be told: name it with --encoding."
            ) from None
        return best.encoding, True
    return "utf-8", False


def _layout_of(text: str, path: Path) -> Layout:
    start = text.lstrip()
    if start.startswith("["):
        return "json-array"
    if start.startswith("{"):
        return "json-lines" if _is_whole(start.splitlines()[0]) else "json-object"
    if start.startswith('"') and _is_whole(start.splitlines()[0]):
        return "json-lines"
    if path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):
        return "csv"
    if not path.name.lower().removesuffix(".gz").endswith((".json", ".jsonl", ".ndjson")) and _is_text(text):
        return "text"
    raise ImportFileError(
        f"{path} is neither JSON, nor JSON lines, nor CSV, nor a text with a prompt in each line: "
        "`strop import --help` lists the formats."
    )


def _is_text(text: str) -> bool:
    return not any(unicodedata.category(character) == "Cc" and not character.isspace() for character in text)


def _is_whole(line: str) -> bool:
    """Return whether a line is a record by itself; a channel's export in one line is a file of many."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, str) or (isinstance(value, dict) and not {"guild", "messages"} <= value.keys())


def _rows(stream: IO[str]) -> Iterator[Record]:
    sample = stream.read(64 * 1024)
    stream.seek(0)
    try:
        dialect: Any = csv.Sniffer().sniff(sample, delimiters=",;\t")
    except csv.Error:
        dialect = csv.excel
    for number, row in enumerate(csv.DictReader(stream, dialect=dialect), 2):
        yield Record({key: value for key, value in row.items() if isinstance(key, str)}, f"row {number}")


def _json_lines(stream: IO[str]) -> Iterator[Record]:
    for number, line in _lines(stream):
        try:
            yield Record(json.loads(line), f"line {number}")
        except (ValueError, RecursionError) as error:
            raise ImportFileError(f"Line {number} is not valid JSON, and the lines before it are.") from error


def _prompt_lines(stream: IO[str]) -> Iterator[Record]:
    """Yield the lines of a text that holds a prompt in each; what begins with # is a comment."""
    for number, line in _lines(stream):
        for text in prompt_bank.lines_of(line):
            yield Record(text, f"line {number}")


def _lines(stream: IO[str]) -> Iterator[tuple[int, str]]:
    for number in itertools.count(1):
        line = stream.readline(MAX_RECORD + 1)
        if not line:
            return
        if len(line) > MAX_RECORD:
            raise ImportFileError(f"Line {number} is longer than {MAX_RECORD:,} characters.")
        if line.strip():
            yield number, line


@contextmanager
def _text(source: Source) -> Iterator[IO[str]]:
    with _bytes(source.path, source.gzipped, source.position) as stream:
        yield io.TextIOWrapper(
            stream, encoding=source.encoding, newline="" if source.layout == "csv" else None
        )


@contextmanager
def _bytes(path: Path, gzipped: bool, position: Position | None = None) -> Iterator[IO[bytes]]:
    size = path.stat().st_size
    with io.BufferedReader(_Counted(path, position or Position())) as file:
        if not gzipped:
            yield file
            return
        limit = max(size * MAX_EXPANSION, 64 * 1024 * 1024)
        with _BoundedGzip(file, limit) as unpacked:
            yield cast(IO[bytes], unpacked)


class _Counted(io.FileIO):
    """A file that says how far it was read."""

    def __init__(self, path: Path, position: Position) -> None:
        super().__init__(path, "rb")
        self._position = position
        position.read, position.size = 0, path.stat().st_size

    def readinto(self, buffer: Any, /) -> int | None:
        """Read once, and count."""
        count = super().readinto(buffer)
        self._position.read += count or 0
        return count


class _BoundedGzip(gzip.GzipFile):
    """A gzip file that ends in an error where it unpacks to far more than text does."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._limit = limit

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes; all of the file is never read at once."""
        return self._counted(super().read(1 << 20 if size is None or size < 0 else size))

    def read1(self, size: int = -1) -> bytes:
        """Read up to `size` bytes with one read of the packed file at most."""
        return self._counted(super().read1(size))

    def _counted(self, found: bytes) -> bytes:
        if self.tell() > self._limit:
            raise ImportFileError(f"The file unpacks to more than {MAX_EXPANSION} times its size.")
        return found


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Say what can't be read of a file in one sentence: foreign errors become ImportFileError."""
    try:
        yield
    except (json.JSONDecodeError, RecursionError) as error:
        raise ImportFileError(f"{path} is not valid JSON.") from error
    except UnicodeDecodeError as error:
        raise ImportFileError(
            f"{path} is not {error.encoding} text: name its encoding with --encoding."
        ) from error
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ImportFileError(f"{path} is a damaged gzip file.") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        # What zipfile raises for a damaged, an unknown and an encrypted entry.
        raise ImportFileError(f"{path} is a zip file that can't be read: {error}.") from error
    except csv.Error as error:
        raise ImportFileError(f"{path} is not valid CSV: {error}.") from error
    except OSError as error:
        raise ImportFileError(f"{path} can't be read: {error.strerror or error}.") from error
