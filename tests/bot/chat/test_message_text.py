"""A Discord message as plain text: ids put into words, and what lies outside its content."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import discord
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.chat.content.message_links import MessageLink, links_in
from bot.chat.content.message_text import EMBED_LIMIT, Names, flatten, replace_ids

NAMES = Names({7: "ann"}.get, {8: "mods"}.get, {9: "general"}.get, own_id=1)


@dataclass
class Content:
    content: str = ""
    embeds: list[discord.Embed] = field(default_factory=list)
    stickers: list[Any] = field(default_factory=list)
    components: list[Any] = field(default_factory=list)
    poll: discord.Poll | None = None
    type: discord.MessageType = discord.MessageType.default
    system_content: str = ""


@dataclass
class Sticker:
    name: str


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("<@7> and <@!7>, hi", "@ann and @ann, hi"),
        ("<@99> hi", "@someone hi"),
        ("<@1> hello <@!1>", "hello"),
        ("<@&8> <@&80>", "@mods @role"),
        ("<#9> <#90>", "#general #channel"),
        ("<id:customize> <id:guide>", "#Channels & Roles #Server Guide"),
        ("<:strop:123456789012345678><a:dance:1>", ":strop::dance:"),
        ("at <t:1700000000:R>", "at 2023-11-14 22:13 UTC"),
        ("<t:1700000000>", "2023-11-14 22:13 UTC"),
        ("<t:-1:d>", "1969-12-31 23:59 UTC"),
        ("<t:9999999999999:f>", "an unknown time"),
        ("use </adapters list:123>", "use /adapters list"),
        ("a < b and c > d, <nothing:1>", "a < b and c > d, <nothing:1>"),
        ("half \ud83d a smile \ud83d\ude00", "half \ufffd a smile 😀"),
    ],
)
def test_ids_are_put_into_words(raw: str, words: str) -> None:
    assert replace_ids(raw, NAMES) == words


@given(st.text(st.characters(), max_size=200))
def test_every_text_can_be_stored_afterwards(text: str) -> None:
    replace_ids(text, Names()).encode()


def test_an_embed_is_read_line_by_line_as_it_is_shown() -> None:
    embed = discord.Embed(title="Build 7 failed", description="On <#9>, by <@7>")
    embed.set_author(name="CI").set_footer(text="12:00").add_field(name="Step", value="lint")
    assert flatten(Content("", [embed]), NAMES).text == (
        "CI\nBuild 7 failed\nOn #general, by @ann\nStep: lint\n12:00"
    )


def test_previews_of_addresses_are_read_only_where_they_are_asked_for() -> None:
    preview = discord.Embed.from_dict({"type": "article", "title": "News", "description": "Of today"})
    content = Content("https://example.org", [preview])
    assert flatten(content, NAMES).text == "https://example.org"
    assert flatten(content, NAMES, previews=True).text == "https://example.org\nNews\nOf today"


def test_a_very_long_embed_is_cut_visibly() -> None:
    text = flatten(Content("", [discord.Embed(description="x" * 4000)]), NAMES).text
    assert text.endswith("[…]") and len(text) <= EMBED_LIMIT + 10


def test_a_poll_is_read_with_its_votes() -> None:
    poll = discord.Poll("Lunch?", timedelta(hours=1))
    poll.add_answer(text="Soup").add_answer(text="Bread")
    assert flatten(Content(poll=poll), NAMES).text == "Poll: Lunch?\n1. Soup (0 votes)\n2. Bread (0 votes)"


def test_a_sticker_is_named_as_something_that_was_not_seen() -> None:
    flat = flatten(Content("look", stickers=[Sticker("Wave")]), NAMES)
    assert flat.text == "look\n[sticker: Wave]" and flat.unread == ("Wave",)


def test_what_discord_says_itself_is_read_where_there_are_no_words() -> None:
    joined = Content(type=discord.MessageType.new_member, system_content="ann joined the party.")
    assert flatten(joined, NAMES).text == "ann joined the party."
    assert flatten(Content(system_content="x"), NAMES).text == ""


def test_a_message_laid_out_in_components_is_read_in_its_order() -> None:
    data = {
        "type": 17,
        "components": [
            {"type": 10, "content": "# Title", "id": 1},
            {
                "type": 9,
                "components": [{"type": 10, "content": "for <@7>", "id": 2}],
                "accessory": {"type": 11, "media": {"url": "https://example.org/a.png"}},
            },
        ],
    }
    container = discord.components._component_factory(data)  # type: ignore[arg-type]
    assert flatten(Content(components=[container]), NAMES).text == "# Title\nfor @ann"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("https://ptb.discord.com/channels/1/2/3 and https://discordapp.com/channels/1/2/3", [(1, 2, 3)]),
        ("<https://canary.discord.com/channels/@me/2/3>", [(None, 2, 3)]),
        ("https://discord.com/channels/1/2 https://discord.com.evil.org/channels/1/2/3", []),
        ("https://evil.org/https//discord.com/channels/1/2/3", []),
    ],
)
def test_links_are_told_from_what_only_looks_like_one(
    text: str, found: list[tuple[int | None, int, int]]
) -> None:
    assert links_in(text) == [MessageLink(*each) for each in found]
