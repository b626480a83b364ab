"""Splitting loses nothing, fits Discord's limit, and tears nothing apart."""

from __future__ import annotations

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bot.splitting import Part, split, visible_parts, width

PIECES = st.sampled_from(
    [
        "word ",
        "a",
        "\n",
        "\n\n",
        "sentence. ",
        "```",
        "```py\n",
        "```\n",
        "`",
        "👩‍👩‍👧‍👦",
        "é",
        "\u0301",
        "日本語。",
        "- item\n",
        "\r\n",
        " ",
    ]
)
TEXTS = st.one_of(
    st.text(max_size=600),
    st.lists(PIECES, max_size=300).map("".join),
    st.tuples(st.lists(PIECES, min_size=1, max_size=6), st.integers(1, 60)).map(
        lambda p: "".join(p[0]) * p[1]
    ),
)


@given(TEXTS, st.integers(64, 200))
@settings(max_examples=75, deadline=None)
@example("```py\n" + "x = 1\n" * 100 + "```", 64)
@example("`" * 500, 64)
@example("e" + "\u0301" * 500, 64)
def test_bodies_join_to_the_text_and_every_part_fits(text: str, limit: int) -> None:
    parts = split(text, limit)

    assert "".join(part.body for part in parts) == text
    assert all(0 < width(part.content) <= limit for part in parts)
    assert all(part.body for part in parts)


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_added_text_is_nothing_but_code_fences(text: str) -> None:
    for part in split(text, 80):
        assert regex.fullmatch(r"(```[A-Za-z0-9_+#.\-]{0,20}\n)?", part.prefix)
        assert part.suffix in ("", "```", "\n```")


@given(st.lists(st.sampled_from(["👩‍👩‍👧‍👦", "🇩🇪", "e\u0301", "한", "x", "👍🏽"]), min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_cut_goes_through_a_character(graphemes: list[str]) -> None:
    text = "".join(graphemes)
    whole = regex.findall(r"\X", text)
    assert [piece for part in split(text, 64) for piece in regex.findall(r"\X", part.body)] == whole


def test_a_short_text_is_one_untouched_part() -> None:
    assert split("Hello.\n\n```py\nx\n```\n") == [Part("Hello.\n\n```py\nx\n```\n")]
    assert split("") == []


def test_cuts_prefer_paragraphs_then_lines_then_sentences_then_words() -> None:
    paragraphs = "a" * 50 + "\n\n" + "b" * 60
    assert [part.body for part in split(paragraphs, 64)] == ["a" * 50 + "\n\n", "b" * 60]
    lines = "a" * 50 + "\n" + "b" * 60
    assert [part.body for part in split(lines, 64)] == ["a" * 50 + "\n", "b" * 60]
    sentences = "Word word word word word word word word. " + "c" * 60
    assert split(sentences, 64)[0].body == "Word word word word word word word word. "
    assert split("word " * 20, 64)[0].body == "word " * 12


def test_a_code_block_is_closed_and_reopened_with_its_language() -> None:
    code = "Look:\n```python\n" + "print('hello')\n" * 10 + "```\nDone."
    parts = split(code, 100)

    assert len(parts) > 1
    assert parts[0].content.endswith("\n```")
    assert all(part.content.startswith("```python\n") for part in parts[1:-1])
    for part in parts:
        assert part.content.count("```") % 2 == 0


def test_a_block_that_is_still_being_written_is_shown_closed() -> None:
    assert split("```js\nlet a")[0].content == "```js\nlet a\n```"


def test_a_fence_is_never_torn_apart() -> None:
    text = "x" * 62 + "```rust\nfn main() {}\n```"
    assert split(text, 64)[0].body == "x" * 62


def test_parts_without_visible_text_are_not_sent() -> None:
    assert visible_parts("\n" * 5000) == []
    assert visible_parts("a" + "\n" * 5000 + "b", 64)[0].startswith("a")
    assert "".join(visible_parts("a" + " " * 5000 + "b")).split() == ["a", "b"]


def test_a_limit_without_room_for_fences_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 64"):
        split("text", 10)
