"""Importing on the page: a file is looked at first, then taken in; imports are listed and taken back.

As `strop import` does it, for files that fit into one call. A file lies in a private folder between the look
and the import, and goes with the next one, or with the playground.
"""

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aiohttp import web

from bot.dashboard.responses import json_answer
from bot.playground.discord import community
from bot.playground.discord.backend import Payload
from bot.playground.errors import ActionRefusedError
from bot.playground.page.requests import body_of, file_of, id_of, text_of
from bot.serving.client import ModelClient
from bot.serving.errors import ServingError
from storage.db.database import Database
from storage.errors import ImportFileError
from storage.imports import files, importing, imports
from storage.imports.checks import REASONS, Summary
from storage.imports.examples import Example, Prompt
from storage.imports.files import ImportFile, State
from storage.imports.importing import Statement
from storage.privacy import file_scrubbing

SHOWN = 400
UNLOAD_S = 3.0


@dataclass(frozen=True)
class ImportSettings:
    """What an import needs to know of its deployment."""

    database: Database
    client: ModelClient
    scope: str
    data: Path
    rating_up: tuple[str, ...]
    rating_down: tuple[str, ...]
    permission_reference: str = ""


@dataclass(frozen=True)
class _Looked:
    """A file that was looked at and may be taken in."""

    token: str
    found: ImportFile
    before: State
    summary: Summary
    folder: "tempfile.TemporaryDirectory[str]" = field(repr=False)


class PageImports:
    """The page's calls for imports; one file at a time is looked at."""

    def __init__(self, settings: ImportSettings | None) -> None:
        self._settings = settings
        self._looked: _Looked | None = None
        self._busy = asyncio.Lock()

    def routes(self) -> tuple[tuple[str, str, Callable[[web.Request], Awaitable[web.Response]]], ...]:
        """Return the calls: method, path, handler."""
        return (
            ("GET", "/playground/imports", self._list),
            ("POST", "/playground/imports/look", self._look),
            ("POST", "/playground/imports", self._take_in),
            ("DELETE", "/playground/imports/{import_id}", self._remove),
        )

    def close(self) -> None:
        """Delete the file that is waiting, if there is one."""
        if self._looked is not None:
            self._looked.folder.cleanup()
            self._looked = None

    async def _list(self, _: web.Request) -> web.Response:
        found = await self._parts().database.aread(imports.listing)
        return json_answer({"imports": [_import(each) for each in found]})

    async def _look(self, request: web.Request) -> web.Response:
        body = await _operators(request)
        settings = self._parts()
        name, data = file_of(body.get("file"))
        encoding = text_of(body, "encoding", "").strip()
        async with self._busy:
            self.close()
            with _sentences():
                self._looked = await asyncio.to_thread(_looked, settings, name, data, encoding)
        return json_answer(_preview(self._looked))

    async def _take_in(self, request: web.Request) -> web.Response:
        body = await _operators(request)
        settings = self._parts()
        statement = Statement(
            settings.scope,
            text_of(body, "rights", ""),
            text_of(body, "licence", ""),
            str(id_of(body, "user_id")),
            settings.permission_reference,
        )
        async with self._busy:
            looked = self._looked
            if looked is None or looked.token != body.get("token"):
                raise ActionRefusedError("Choose the file again: another one was looked at since.")
            with _sentences():
                done = await asyncio.to_thread(
                    importing.take_in,
                    settings.database,
                    looked.found,
                    looked.before,
                    looked.summary,
                    statement,
                )
            self.close()
        return json_answer({"import": _import(done)})

    async def _remove(self, request: web.Request) -> web.Response:
        body = await _operators(request)
        settings = self._parts()
        import_id, actor = id_of(dict(request.match_info), "import_id"), str(id_of(body, "user_id"))
        with _sentences():
            erased = await settings.database.awrite(lambda db: imports.remove(db, import_id, actor))
        for adapter_id in erased.affected_adapters:
            with contextlib.suppress(ServingError, TimeoutError):
                async with asyncio.timeout(UNLOAD_S):
                    await settings.client.unload_adapter(adapter_id)
        await asyncio.to_thread(file_scrubbing.complete, settings.database, settings.data, erased)
        return json_answer({"adapters": len(erased.affected_adapters)})

    def _parts(self) -> ImportSettings:
        if self._settings is None:
            raise ActionRefusedError("This playground runs without a database.", 503)
        return self._settings


async def _operators(request: web.Request) -> Payload:
    """Return the body of a call that only an operator may make."""
    body = await body_of(request)
    if id_of(body, "user_id") != community.OWNER.user_id:
        raise ActionRefusedError("Only an operator imports: act as one, at the bottom left.", 403)
    return body


@contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except ImportFileError as error:
        raise ActionRefusedError(str(error)) from error


def _looked(settings: ImportSettings, name: str, data: bytes, encoding: str) -> _Looked:
    folder = tempfile.TemporaryDirectory(prefix="strop-import-")
    try:
        path = Path(folder.name) / name
        path.write_bytes(data)
        found = files.recognise(
            path, encoding=encoding, rating_up=settings.rating_up, rating_down=settings.rating_down
        )
        before = found.state()
        return _Looked(secrets.token_urlsafe(16), found, before, importing.look(found), folder)
    except ImportFileError as error:
        folder.cleanup()
        # The visitor knows the file by its name, and not where it lies here.
        raise ImportFileError(str(error).replace(f"{folder.name}/", "")) from error


def _preview(looked: _Looked) -> Payload:
    summary, source = looked.summary, looked.found.source
    return {
        "token": looked.token,
        "title": looked.found.title,
        "layout": source.layout,
        "encoding": source.encoding,
        "encoding_guessed": source.encoding_guessed,
        "prompts_only": looked.found.prompts_only,
        "usable": summary.usable,
        "imitated": summary.imitated,
        "liked": summary.liked,
        "disliked": summary.disliked,
        "pairs": summary.pairs,
        "splits": dict(summary.splits),
        "left_out": [
            {"count": count, "reason": REASONS[reason], "first": summary.first_left_out.get(reason, "")}
            for reason, count in summary.left_out.most_common()
        ],
        "samples": [_sample(each) for each in summary.samples],
    }


def _sample(sample: Example | Prompt) -> Payload:
    """Return a sample as the model will see it."""
    if isinstance(sample, Prompt):
        return {"turns": [{"role": "user", "content": sample.text[:SHOWN]}], "better": None}
    turns = [{"role": turn.role, "content": turn.content[:SHOWN]} for turn in (*sample.prompt, sample.answer)]
    return {"turns": turns, "better": sample.better and sample.better[:SHOWN]}


def _import(found: imports.Import) -> Payload:
    shown = ("id", "name", "format", "rights", "licence", "state", "stored", "known", "created_ms")
    return {key: value for key, value in asdict(found).items() if key in shown}
