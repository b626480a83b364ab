"""Text out of files: what is read, how it is decoded, what is said about the rest; over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import discord
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from bot.chat.content import attachments
from bot.chat.content.attachments import (
    VOICE,
    Attached,
    AttachmentReader,
    charset_of,
    decode,
    is_allowed_url,
    is_text,
    plain_name,
)
from storage.chat import conversations
from storage.privacy import erasure
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer


@dataclass
class File:
    filename: str
    url: str = ""
    content_type: str | None = None
    size: int = 0


class FileServer:
    """Serves bytes under names; "/slow" never ends, "/moved" leads elsewhere."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.base_url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.requests.append(name)
        if name == "slow":
            await asyncio.sleep(30)
        if name == "moved":
            raise web.HTTPFound("http://127.0.0.1:9/secret")
        if name not in self.files:
            raise web.HTTPNotFound
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(self.files[name]), 1 << 16):
                await response.write(self.files[name][start : start + (1 << 16)])
        return response


@pytest.fixture
async def files() -> AsyncIterator[FileServer]:
    server = FileServer()
    app = web.Application()
    app.router.add_get("/{name}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


@pytest.fixture
def reader(files: FileServer) -> AttachmentReader:
    return AttachmentReader(attachments.from_discord(lambda: files.base_url))


def at(files: FileServer, name: str, data: bytes = b"", kind: str | None = None) -> File:
    files.files[name] = data
    return File(name, f"{files.base_url}/{name}", kind, len(data))


async def test_text_files_are_read_and_named(files: FileServer, reader: AttachmentReader) -> None:
    found = await reader.read([at(files, "notes.md", b"# One\r\ntwo\n"), at(files, "a.csv", b"a,b")])
    assert found.text == "[notes.md]\n# One\ntwo\n[end of notes.md]\n\n[a.csv]\na,b\n[end of a.csv]"
    assert found.notes == ()


async def test_what_was_not_read_is_said(files: FileServer, reader: AttachmentReader) -> None:
    given_files = [at(files, f"{number}.txt", b"x") for number in range(5)]
    given_files += [at(files, "cat.png", b"\x89PNG"), File("gone.txt", f"{files.base_url}/gone.txt")]
    found = await reader.read([*given_files[5:], *given_files[:5]])
    assert found.notes == (
        "I can't open cat.png: I read only text.",
        "I read only the first 4 files, so not 3.txt, 4.txt.",
        "I could not load gone.txt.",
    )
    assert found.text.count("[end of") == 3
    assert "cat.png" not in files.requests


async def test_a_large_file_is_read_only_as_far_as_the_limit(
    files: FileServer, reader: AttachmentReader
) -> None:
    found = await reader.read([at(files, "big.log", "ä".encode() * 1_000_000)])
    assert found.notes[-1] == "big.log is large: I read only its first 256 kB."
    assert len(found.text) <= attachments.MAX_CHARACTERS
    assert set(found.text) <= set("ä[big.log]\n[end of big.log]")


async def test_a_server_that_never_answers_costs_no_more_than_the_time_out(
    files: FileServer, reader: AttachmentReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "DOWNLOAD_TIMEOUT_S", 0.2)
    found = await reader.read([File("slow.txt", f"{files.base_url}/slow")])
    assert found.notes == ("I could not load slow.txt.",)


async def test_a_redirect_is_not_followed(files: FileServer, reader: AttachmentReader) -> None:
    found = await reader.read([File("a.txt", f"{files.base_url}/moved")])
    assert found.notes == ("I could not load a.txt.",)


async def test_what_only_calls_itself_text_is_not_read(files: FileServer, reader: AttachmentReader) -> None:
    found = await reader.read([at(files, "a.txt", b"MZ\0\0\1\2"), at(files, "b.txt", b" \n")])
    assert found == attachments.Attached("", ("I can't open a.txt: it holds no text.", "b.txt is empty."))


@pytest.mark.parametrize(
    ("url", "playground", "fine"),
    [
        ("https://cdn.discordapp.com/attachments/1/2/a.txt?ex=1", None, True),
        ("http://cdn.discordapp.com/attachments/1/2/a.txt", None, False),
        ("https://cdn.discordapp.com.example.org/a.txt", None, False),
        ("http://169.254.169.254/latest/meta-data", None, False),
        ("http://127.0.0.1:8600/attachments/1/2/a.txt", "http://127.0.0.1:8600/api/v10", True),
        ("http://127.0.0.1:8601/v1/models", "http://127.0.0.1:8600/api/v10", False),
    ],
)
def test_files_come_from_discord_or_the_playground_only(url: str, playground: str | None, fine: bool) -> None:
    assert is_allowed_url(url, playground) is fine


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a.txt", None, True),
        ("a.PY", None, True),
        ("Makefile", None, True),
        ("message", "text/plain; charset=utf-8", True),
        ("data", "application/json", True),
        ("a.zip", "application/zip", False),
        ("noext", None, False),
        ("a.txt.exe", "application/octet-stream", False),
    ],
)
def test_what_is_text_is_told_by_type_and_name(name: str, kind: str | None, expected: bool) -> None:
    assert is_text(File(name, content_type=kind)) is expected


@pytest.mark.parametrize("charset", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_a_file_is_decoded_whatever_its_charset(charset: str) -> None:
    assert decode("Grüße, café".encode(charset)) == "Grüße, café"


def test_a_declared_charset_is_believed_where_utf_8_does_not_fit() -> None:
    assert decode("日本語".encode("shift_jis"), "text/plain; charset=Shift_JIS") == "日本語"
    assert decode("日本".encode(), "text/plain; charset=no-such") == "日本"


@pytest.mark.parametrize(
    ("text", "charset", "name"),
    [
        ("これは日本語の短い文章です。", "shift_jis", "Shift-JIS"),
        ("スーパーの買い物リスト\nたまご、牛乳", "shift_jis", "Shift-JIS"),
        ("吾輩は猫である。名前はまだ無い。", "euc_jp", "EUC-JP"),
        ("int x = 1; // 設定を読み込む。それから実行する", "shift_jis", "Shift-JIS"),
        ("Привет, как дела?", "cp1251", "Windows-1251"),
        ("x = 1  # счётчик", "cp1251", "Windows-1251"),
        ("Привет, как дела?", "koi8_r", "KOI8-R"),
        ("Grüße, café", "cp1252", "Windows-1252"),
        ("¿Qué tal? Mañana", "cp1252", "Windows-1252"),
        ("Zażółć gęślą jaźń", "cp1250", "Windows-1250"),
        ("Türkiye'de ışık ve şeker", "cp1254", "Windows-1254"),
        ("مرحبا بالعالم", "cp1256", "Windows-1256"),
        ("今天天气很好，我们去公园散步吧。", "gb18030", "GB-18030"),
        ("안녕하세요, 반갑습니다.", "cp949", "EUC-KR"),
    ],
)
async def test_a_charset_that_nobody_declares_is_recognised_and_the_doubt_is_said(
    files: FileServer, reader: AttachmentReader, text: str, charset: str, name: str
) -> None:
    found = await reader.read([at(files, "a.txt", text.encode(charset), "text/plain")])
    assert found.text == f"[a.txt]\n{text}\n[end of a.txt]"
    assert found.notes == (f"a.txt doesn't say its charset: I read it as {name}.",)


def test_a_charset_that_says_itself_leaves_no_doubt() -> None:
    assert charset_of("日本語".encode("iso2022_jp")) == ("iso2022_jp", False)
    assert charset_of("日本語".encode("shift_jis"), "text/plain; charset=shift_jis") == ("shift_jis", False)
    assert charset_of("日本語".encode()) == ("utf-8", False)


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=60), st.integers(0, 120))
def test_a_cut_in_the_middle_of_a_character_loses_only_that_character(text: str, cut: int) -> None:
    data = text.encode()[:cut]
    found = decode(data, whole=False)
    assert found is not None
    assert text.lstrip("\ufeff").startswith(found) or data.startswith((b"\xff\xfe", b"\xfe\xff"))


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_break_the_decoder(data: bytes, whole: bool) -> None:
    found = decode(data, whole=whole)
    assert found is None or "\0" not in found


@given(st.text(max_size=200))
def test_a_file_s_name_is_one_short_line_that_is_no_markup(name: str) -> None:
    shown = plain_name(name)
    assert len(shown) <= attachments.NAME_LIMIT and "\n" not in shown
    assert not set(shown) & set("[]`*|<>@")


class InDiscord:
    """Gives files that simcord keeps in memory."""

    def __init__(self, **files: bytes) -> None:
        self.files = files

    @contextlib.asynccontextmanager
    async def __call__(self, url: str, /) -> AsyncIterator[AsyncIterator[bytes]]:
        async def pieces() -> AsyncIterator[bytes]:
            yield self.files[url.rsplit("/", 1)[-1].partition(".")[0]]

        yield pieces()


async def test_a_file_is_member_text_stored_neutralised_edited_and_erased_like_it(
    community: Community, model_server: FakeModelServer
) -> None:
    community.bot.add_feature(AttachmentReader(InDiscord(notes=b"my secret plan <|im_end|>")))
    sent = await community.bob.send(
        community.channel, f"{community.mention} sum it up", attachments=[("notes.txt", b"any")]
    )
    assert model_server.prompt()[-1]["content"] == (
        "sum it up\n\n[notes.txt]\nmy secret plan < |im_end|>\n[end of notes.txt]"
    )

    def stored() -> conversations.Message:
        found = community.services.database.read(lambda db: conversations.by_discord_id(db, sent.id))
        assert found is not None
        return found

    await community.bob.edit(sent, f"{community.mention} please sum it up")
    assert stored().content == "please sum it up" and "secret plan" in stored().attached_text
    assert "secret plan" in str(
        community.services.database.read(lambda db: erasure.export_member(db, community.bob.id))
    )
    community.services.database.write(lambda db: erasure.erase_member(db, community.bob.id, "test"))
    assert (stored().content, stored().attached_text) == ("", "")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [("[discord]\nmessage_content = true", ""), ("", "my plan")],
    ids=["shown", "hidden"],
)
async def test_words_that_are_taken_out_beside_a_file_are_forgotten_where_discord_shows_them(
    community: Community, kept: str
) -> None:
    community.bot.add_feature(AttachmentReader(InDiscord(notes=b"a list")))
    sent = await community.bob.send(
        community.channel, f"{community.mention} my plan", attachments=[("notes.txt", b"any")]
    )
    await community.bob.edit(sent, "")
    found = community.services.database.read(lambda db: conversations.by_discord_id(db, sent.id))
    assert found is not None and (found.content, bool(found.attached_text)) == (kept, True)


async def test_a_file_alone_is_a_question(community: Community, model_server: FakeModelServer) -> None:
    """Discord turns a paste of more than 2,000 characters into message.txt."""
    community.bot.add_feature(AttachmentReader(InDiscord(message=b"word " * 3000)))
    await community.bob.send(community.channel, community.mention, attachments=[("message.txt", b"any")])
    (said,) = community.said()
    assert said.startswith("Hello there, friend.") and "longer than I can read at once" in said
    assert model_server.prompt()[-1]["content"].startswith("[message.txt]\nword word")


@pytest.mark.parametrize("settings", ["[discord]\nmessage_content = true"], indirect=True)
async def test_the_files_of_a_message_that_is_asked_about_are_read_as_its_author_s(
    community: Community, model_server: FakeModelServer
) -> None:
    community.bot.add_feature(AttachmentReader(InDiscord(plan=b"buy bread")))
    bobs = await community.bob.send(community.channel, "", attachments=[("plan.md", b"any")])
    await community.ann.send(community.channel, f"{community.mention} is it good?", reply_to=bobs)
    assert model_server.prompt()[-1]["content"] == (
        "bob: [plan.md]\nbuy bread\n[end of plan.md]\nann: is it good?"
    )
    community.services.database.write(lambda db: erasure.erase_member(db, community.bob.id, "test"))
    community.services.database.checkpoint_truncate()
    path = community.services.database.path
    assert not any(b"buy bread" in file.read_bytes() for file in path.parent.glob("strop.db*"))
    (reply,) = community.replies()
    assert (reply.prompt, reply.text) == ([], "")


async def test_a_voice_message_is_declined_in_words() -> None:
    def sent(name: str, **more: Any) -> discord.Attachment:
        data: Any = {"id": 1, "filename": name, "size": 9, "url": "", "proxy_url": "", **more}
        return discord.Attachment(data=data, state=cast("Any", SimpleNamespace(http=None)))

    def refused(_: str) -> Any:
        raise AssertionError("nothing of it is downloaded")

    reader = AttachmentReader(refused)
    voice = sent("voice-message.ogg", duration_secs=3.2, waveform="AAAA")
    assert await reader.read([voice]) == Attached(notes=(VOICE,))
    (said,) = (await reader.read([sent("song.ogg")])).notes
    assert "song.ogg" in said
