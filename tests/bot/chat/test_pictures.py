"""Pictures beside a question: drawn anew within bounds, shown to a model that sees, stored nowhere."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bot.chat.content import pictures
from bot.chat.content.attachments import AttachmentReader
from bot.chat.content.pictures import UnreadablePictureError, draw, is_picture, most_at_once
from bot.serving.protocol import MAX_PICTURE_SIDE
from storage.chat import conversations
from storage.feedback import ratings
from storage.learning.eligibility import eligible_rows
from tests.bot.chat.test_attachments import File, FileServer, InDiscord, at, files, reader
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer, count_pictures
from tests.bot.feedback.test_reply_buttons import press

__all__ = ("files", "reader")

RED, BLUE = (200, 30, 30), (20, 40, 200)
ORIENTATION, CAMERA = 0x0112, 0x010F


def written(picture: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, **more)
    return data.getvalue()


def plain(color: tuple[int, ...] = RED, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, color)


def seen(url: str) -> Image.Image:
    """The picture that a model gets."""
    kind, _, data = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def close(one: Any, other: tuple[int, ...]) -> bool:
    return all(abs(a - b) < 12 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_every_format_is_drawn_in_its_colours(kind: str) -> None:
    shown = seen(draw(written(plain(), kind)))
    assert shown.size == (64, 48) and close(shown.getpixel((30, 20)), RED)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_a_moving_picture_the_first_frame_is_shown(kind: str) -> None:
    moving = written(plain(), kind, save_all=True, append_images=[plain(BLUE)])
    assert close(seen(draw(moving)).getpixel((30, 20)), RED)


def test_a_large_picture_is_made_small_and_a_tiny_one_is_put_on_white() -> None:
    assert seen(draw(written(plain(size=(3000, 1000))))).size == (MAX_PICTURE_SIDE, MAX_PICTURE_SIDE // 3)
    tiny = seen(draw(written(plain(size=(8, 8)))))
    assert tiny.size == (32, 32) and close(tiny.getpixel((28, 28)), (255, 255, 255))


def test_what_is_transparent_is_white() -> None:
    shown = seen(draw(written(plain((200, 30, 30, 0), mode="RGBA"))))
    assert close(shown.getpixel((30, 20)), (255, 255, 255))


def test_a_photo_stands_upright_and_says_nothing_of_its_camera() -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[CAMERA] = 6, "a camera of my own"
    url = draw(written(plain(), "JPEG", exif=exif))
    shown = seen(url)
    assert shown.size == (48, 64) and not shown.getexif()
    assert b"camera" not in base64.b64decode(url.partition(",")[2])


@pytest.mark.parametrize("size", [(6000, 4001), (30_000, 30_000)])
def test_more_pixels_than_the_bound_are_not_decoded(size: tuple[int, int]) -> None:
    # Its header alone says so: the rest of the file isn't there.
    sides = struct.pack(">II", *size)
    kind = b"IHDR" + sides + written(plain())[24:29]
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + kind + struct.pack(">I", zlib.crc32(kind))
    with pytest.raises(UnreadablePictureError, match=r"6000 x 4001|DecompressionBombError"):
        draw(header + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        written(plain(), "TIFF"),
        written(plain())[:-30],
        written(Image.new("I;16", (64, 64))),
    ],
    ids=["nothing", "a header", "svg", "tiff", "cut off", "sixteen bits"],
)
def test_what_is_no_picture_that_is_known_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadablePictureError):
        draw(data)


WHOLE = [written(plain(size=(16, 16)), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")]


@given(st.sampled_from(WHOLE), st.integers(0, 400), st.binary(max_size=12))
def test_no_broken_bytes_break_more_than_themselves(whole: bytes, place: int, junk: bytes) -> None:
    with contextlib.suppress(UnreadablePictureError):
        assert draw(whole[:place] + junk + whole[place + len(junk) :]).startswith("data:")


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("image/png", "a", True),
        ("image/webp; charset=x", "a.bin", True),
        (None, "a.JPG", True),
        ("image/svg+xml", "a.svg", False),
        ("application/zip", "a.png", False),
        (None, "a.txt", False),
    ],
)
def test_what_is_a_picture_is_told_by_its_type_or_else_its_name(
    kind: str | None, name: str, expected: bool
) -> None:
    assert is_picture(kind, name) is expected


def test_pictures_take_half_of_the_context_at_most() -> None:
    assert [most_at_once(tokens, 2048) for tokens in (0, 100, 700, 1500)] == [0, 4, 1, 0]


async def two() -> int:
    return 2


async def test_pictures_are_looked_at_within_bounds_and_the_rest_is_said(
    files: FileServer, reader: AttachmentReader
) -> None:
    seeing = AttachmentReader(reader._download, two)
    given_files: list[Any] = [
        at(files, "a.png", written(plain())),
        at(files, "b.png", b"no picture"),
        at(files, "c.png", written(plain(BLUE))),
        at(files, "notes.txt", b"words"),
        at(files, "x.zip", b"PK"),
    ]
    found = await seeing.read(given_files, looks=True)
    assert found.text == "[notes.txt]\nwords\n[end of notes.txt]\n\n[picture: a.png]"
    assert len(found.pictures) == 1 and close(seen(found.pictures[0]).getpixel((9, 9)), RED)
    assert found.notes == (
        "I can't open x.zip: I read only text, and look at pictures.",
        "I can't look at b.png: I take PNG, JPEG, WebP and GIF of up to 10 MB and 24 megapixels.",
        "These are too many pictures at once: I did not look at c.png.",
    )
    assert not {"c.png", "x.zip"} & set(files.requests)


async def test_a_picture_of_too_many_bytes_is_not_loaded(
    files: FileServer, reader: AttachmentReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeing = AttachmentReader(reader._download, two)
    large = File("large.png", f"{files.base_url}/large.png", "image/png", pictures.MAX_BYTES + 1)
    assert (await seeing.read([large], looks=True)).pictures == () and files.requests == []
    # Of one that says less than it has, no more is read than the bound.
    monkeypatch.setattr(pictures, "MAX_BYTES", 1000)
    lying = at(files, "lying.png", written(plain()) + b"\0" * 5000)
    lying.size = 10
    found = await seeing.read([lying], looks=True)
    assert found.pictures == () and found.notes[0].startswith("I can't look at lying.png")


# The server is somebody else's, as it says nothing of its base.
PICTURES_OF = {"cat": written(plain()), "dog": written(plain(BLUE))}


@pytest.fixture
def elsewhere(model_server: FakeModelServer, community: Community) -> FakeModelServer:
    model_server.describes_base = False
    community.bot.add_feature(AttachmentReader(InDiscord(**PICTURES_OF), reader_of(community)._sight))
    return model_server


def reader_of(community: Community) -> AttachmentReader:
    return community.bot.feature(AttachmentReader)


def shown(server: FakeModelServer) -> list[dict[str, Any]]:
    """The questions of members that a server was sent, without the trials of what it can do."""
    return [each for each in server.requests if each.get("stream")]


async def test_a_picture_is_shown_to_a_model_that_sees_and_kept_nowhere(
    community: Community, elsewhere: FakeModelServer
) -> None:
    elsewhere.picture_tokens = 300
    sent = await community.bob.send(
        community.channel, f"{community.mention} what is it?", attachments=[("cat.png", b"any")]
    )
    (asked,) = shown(elsewhere)
    *_, last = asked["messages"]
    picture, words = last["content"]
    assert words == {"type": "text", "text": "what is it?\n\n[picture: cat.png]"}
    assert close(seen(picture["image_url"]["url"]).getpixel((9, 9)), RED)
    assert community.said() == ["Hello there, friend."]

    (reply,) = community.replies()
    assert json.dumps(reply.prompt).count("[picture: cat.png]") == 1
    path = community.services.database.path
    community.services.database.checkpoint_truncate()
    assert not any(b"base64" in file.read_bytes() for file in path.parent.rglob("*") if file.is_file())
    stored = community.services.database.read(lambda db: conversations.by_discord_id(db, sent.id))
    assert stored is not None and stored.pictures == 1

    # What comes later knows of it by its name, and by what was said of it.
    await community.bob.send(community.channel, "and its colour?", reply_to=community.messages()[0])
    assert count_pictures(shown(elsewhere)[-1]["messages"]) == 0
    assert "[picture: cat.png]" in json.dumps(elsewhere.prompt())


async def test_a_picture_alone_is_a_question_to_a_model_that_sees(
    community: Community, elsewhere: FakeModelServer
) -> None:
    elsewhere.picture_tokens = 300
    await community.bob.send(community.channel, community.mention, attachments=[("cat.png", b"any")])
    assert count_pictures(shown(elsewhere)[0]["messages"]) == 1
    assert community.said() == ["Hello there, friend."]


async def test_answers_to_pictures_and_what_follows_from_them_never_train(
    community: Community, elsewhere: FakeModelServer
) -> None:
    elsewhere.picture_tokens = 300
    for name in ("cat.png", "notes.zip"):
        await community.bob.send(
            community.channel, f"{community.mention} what is {name}?", attachments=[(name, b"any")]
        )
    await community.bob.send(community.channel, "and its colour?", reply_to=community.messages()[0])
    about_cat, about_zip, colour = community.replies()

    def rate(db: Any) -> Any:
        for reply in (about_cat, about_zip, colour):
            ratings.rate(
                db, reply_id=reply.id, user_id=community.ann.id, kind="thumb", means="reaction", value=1
            )
        return eligible_rows(db, about_cat.scope, permission_reference="")

    found = community.services.database.write(rate)
    assert [row.reply_id for row in found.rows] == [about_zip.id]
    assert found.excluded == {"picture": 2}


async def test_another_version_is_written_without_the_picture_and_says_so(
    community: Community, elsewhere: FakeModelServer
) -> None:
    elsewhere.picture_tokens = 300
    await community.bob.send(
        community.channel, f"{community.mention} what is it?", attachments=[("cat.png", b"any")]
    )
    elsewhere.answer = "I can't say."
    (first,) = community.replies()
    await community.bob.click(community.messages()[0], **press("regenerate", first.id))
    assert [count_pictures(each["messages"]) for each in shown(elsewhere)] == [1, 0]
    note = "-# I don't keep pictures: this answer is to your words alone."
    assert community.said() == [f"I can't say.\n\n{note}"]


@pytest.mark.parametrize(
    "refusal", ["At most 0 image(s) may be provided in one prompt.", "content must be a string"]
)
async def test_a_server_that_refuses_the_pictures_answers_the_words(
    community: Community, elsewhere: FakeModelServer, refusal: str
) -> None:
    elsewhere.picture_tokens = 300
    assert await community.services.model.picture_tokens() == 300
    elsewhere.refuses_pictures = refusal
    await community.bob.send(
        community.channel, f"{community.mention} what is it?", attachments=[("cat.png", b"any")]
    )
    refused, answered = shown(elsewhere)
    assert [count_pictures(each["messages"]) for each in (refused, answered)] == [1, 0]
    note = "-# My model could not look at your picture: this answer is to your words alone."
    assert community.said() == [f"Hello there, friend.\n\n{note}"]


@pytest.mark.parametrize("drops", [False, True], ids=["refuses them", "drops them"])
async def test_a_model_that_sees_nothing_gets_no_pictures_and_it_is_said(
    community: Community, elsewhere: FakeModelServer, drops: bool
) -> None:
    elsewhere.drops_pictures = drops
    await community.bob.send(
        community.channel, f"{community.mention} what is it?", attachments=[("cat.png", b"any")]
    )
    (asked,) = shown(elsewhere)
    assert asked["messages"][-1]["content"] == "what is it?"
    assert community.said() == ["Hello there, friend.\n\n-# I can't open cat.png: I read only text."]


async def test_strop_s_own_server_is_asked_for_no_sight(
    community: Community, model_server: FakeModelServer
) -> None:
    assert await community.services.model.picture_tokens() == 0
    assert model_server.requests == []
