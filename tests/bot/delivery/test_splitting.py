"""Splitting loses nothing, fits Discord's limit, and tears nothing apart."""

from __future__ import annotations

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bot.delivery.splitting import Part, split, visible_parts, width

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


# What people write, in pieces that a cut could spoil.
SCRIPTS = {
    "emoji": ("👩‍👩‍👧‍👦", "🏳️‍🌈", "❤️‍🔥", "🧑🏽‍🚀", "👍🏿", "🇩🇪", "🇯🇵", "1️⃣", "#️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🙂"),
    "combined": (
        "e\u0301",
        "a\u0308\u0323",
        "n\u0303",
        "葛\U000e0100",
        "\u1112\u1161\u11ab",
        "한",
        "x\u200d",
    ),
    "right to left": ("مرحبا ", "بُ", "שָׁלוֹם ", "כן. ", "؟ ", "\u2067abc\u2069 ", "\u200f"),
    "indic": ("क्षि", "नी", "ক্ষ", "ക്ത", "கௌ", "। ", " "),
    "cjk": ("日本語", "です。", "、", "「はい」", "中文，", "한국어 ", "！"),
    "thai": ("กำ", "ลัง", "ที่"),
}
SCRIPT_TEXTS = st.sampled_from(sorted(SCRIPTS)).flatmap(
    lambda name: st.lists(st.sampled_from(SCRIPTS[name]), min_size=1, max_size=150).map("".join)
)
MIXED_TEXTS = st.lists(
    st.sampled_from(
        [*(each for pieces in SCRIPTS.values() for each in pieces), "word ", "\n", "```", "```py\n"]
    ),
    min_size=1,
    max_size=150,
).map("".join)


def graphemes(text: str) -> list[str]:
    return regex.findall(r"\X", text)


@given(st.one_of(SCRIPT_TEXTS, MIXED_TEXTS), st.integers(64, 120))
@settings(max_examples=200, deadline=None)
def test_no_script_is_cut_inside_a_grapheme_and_none_loses_one(text: str, limit: int) -> None:
    parts = split(text, limit)
    assert "".join(part.body for part in parts) == text
    assert [each for part in parts for each in graphemes(part.body)] == graphemes(text)
    assert all(width(part.content) <= limit for part in parts)


@pytest.mark.parametrize(
    "one",
    ["👩‍👩‍👧‍👦", "🏳️‍🌈", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "क्षि", "ക്ത", "ক্ষ", "\u1112\u1161\u11ab", "\r\n", "\u0600\u0661", "กำ"],
)
def test_what_a_reader_takes_for_one_character_is_one(one: str) -> None:
    """Unicode's rules as the installed library knows them, the newest (GB9c: Indic conjuncts) among them."""
    assert graphemes(one) == [one]


def test_a_single_grapheme_beyond_the_limit_is_still_delivered() -> None:
    tower = "e" + "\u0301" * 300
    assert "".join(part.body for part in split(tower, 64)) == tower


@given(st.lists(st.integers(1, 25), min_size=1, max_size=40), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_rows_of_tables_and_items_of_lists_stay_whole(lengths: list[int], depth: int) -> None:
    """Whatever is shorter than half a message, as such lines are: a part ends where a line ends."""
    tables = [f"| {'x' * length} | {number} |" for number, length in enumerate(lengths)]
    items = [f"{'  ' * depth}{number}. {'y' * length}" for number, length in enumerate(lengths)]
    for lines in (tables, items):
        text = "\n".join(lines)
        parts = split(text, 80)
        assert all(part.body.endswith("\n") for part in parts[:-1])
        assert [line for part in parts for line in part.body.splitlines()] == lines


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.sampled_from(["", "py", "objective-c"]))
@example(lengths=[28, 0, 40], language="objective-c")
@settings(max_examples=100, deadline=None)
def test_code_is_in_a_block_of_its_language_in_every_part(lengths: list[int], language: str) -> None:
    code = [f"{'    ' * (number % 3)}{'z' * length}" for number, length in enumerate(lengths)]
    text = f"```{language}\n" + "\n".join(code) + "\n```"
    shown = []
    for part in split(text, 100):
        assert part.content.startswith(f"```{language}\n") and part.content.endswith("```")
        assert part.content.count("```") == 2
        inner = part.content.removeprefix(f"```{language}\n").removesuffix("```").removesuffix("\n")
        shown += inner.split("\n")
    # A part may end behind a line break of its own: the lines are the same, and in their order.
    assert [line for line in shown if line] == [line for line in code if line]


def test_a_very_long_word_is_cut_only_where_a_message_ends() -> None:
    word = "Donaudampfschifffahrtsgesellschaft" * 40
    parts = split(f"short {word} end", 200)
    assert "".join(part.body for part in parts) == f"short {word} end"
    assert len(parts) <= len(word) // 200 + 2


def test_chinese_and_japanese_break_behind_their_punctuation() -> None:
    text = "吾輩は猫である。名前はまだ無い。「どこで生れたか」とんと見当がつかぬ。" * 10
    assert all(part.body[-1] in "。」" for part in split(text, 64)[:-1])


@given(st.one_of(TEXTS, MIXED_TEXTS), st.integers(1, 400))
@settings(max_examples=100, deadline=None)
def test_while_a_reply_grows_only_its_last_two_parts_change(text: str, step: int) -> None:
    """An edit costs a call: what stands in earlier messages is not written again."""
    limit, before = 64, [""]
    for end in range(0, len(text) + step, step):
        now = [part.body for part in split(text[:end], limit)]
        # A cut looks at most a message and a long grapheme ahead.
        settled = 0
        while settled < len(before) and len("".join(before[settled:])) > 2 * limit + 256:
            settled += 1
        assert now[:settled] == before[:settled]
        before = now
