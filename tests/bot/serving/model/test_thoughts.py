"""Thoughts never come through, wherever a stream is cut, and nothing else is lost."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.serving.model.thoughts import CLOSING_TAGS, OPENING_TAGS, ThoughtFilter, without_thoughts


def stream(*pieces: str, inside: bool = False) -> str:
    thoughts = ThoughtFilter(inside=inside)
    return "".join([*(thoughts.push(piece) for piece in pieces), thoughts.finish()])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<think>\nLet me see.\n</think>\n\nHello!", "Hello!"),
        ("<think></think>Hello!", "Hello!"),
        ("<think>the limit came first", ""),
        ("Hello <think>secret</think> world", "Hello world"),
        ("One.\n<thinking>a < b</thinking>\nTwo.<thought>x", "One.\nTwo."),
        ("<THINK>a</Think>b[THINK]c[/THINK]d", "bd"),
        ("<think>a <think> b</think>c", "c"),
        ("Write `<think>` and `</think>` like this.", "Write `<think>` and `</think>` like this."),
        ("1 < 2, <thin, [TH and </thi", "1 < 2, <thin, [TH and </thi"),
        ("", ""),
    ],
)
def test_a_thought_is_left_out_at_every_cut(text: str, shown: str) -> None:
    assert without_thoughts(text) == shown
    assert stream(*text) == shown
    for cut in range(len(text)):
        assert stream(text[:cut], text[cut:]) == shown


def test_a_prompt_that_opened_a_thought_begins_within_it() -> None:
    assert stream("hidden</th", "ink>\n\nshown", inside=True) == "shown"
    assert stream("all hidden", inside=True) == ""


def test_a_whole_text_whose_thought_the_prompt_had_opened_loses_it() -> None:
    assert without_thoughts("Let me see.\n</think>\n\nHello!") == "Hello!"
    assert without_thoughts("The tag </think> ends it.") == "The tag ends it."


def test_what_can_be_shown_is_not_held_back() -> None:
    thoughts = ThoughtFilter()
    assert thoughts.push("Hello <b") == "Hello <b"
    assert thoughts.push(" <t") == " "
    assert thoughts.push("ea>") == "<tea>"


WORDS = st.sampled_from(["a", " ", "\n", "<", ">", "`x", "[", "tea", "1 < 2", "thin"])
TEXTS = st.lists(WORDS, max_size=8).map("".join)
TAGS = st.integers(0, len(OPENING_TAGS) - 1)


@given(TEXTS, TAGS, TEXTS, TEXTS, st.lists(st.integers(0, 80), max_size=6))
def test_whatever_the_cuts_the_thought_goes_and_the_rest_stays(
    before: str, tag: int, thought: str, after: str, cuts: list[int]
) -> None:
    before = before.removesuffix("`")
    text = f"{before}{OPENING_TAGS[tag]}SECRET{thought}{CLOSING_TAGS[tag]}{after}"
    places = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    shown = stream(*(text[start:end] for start, end in pairwise(places)))
    assert "SECRET" not in shown
    assert "".join(shown.split()) == "".join((before + after).split())
    assert shown == without_thoughts(text)


@given(TEXTS)
def test_a_text_without_tags_comes_through_as_it_is(text: str) -> None:
    assert stream(*text) == text == without_thoughts(text)
