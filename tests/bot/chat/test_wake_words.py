"""Wake words in every script: what calls, and what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.chat.content.wake_words import calls, spoken


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("strop", "Strop?"),
        ("strop", "ok STROP!"),
        ("strop", "**strop**, hello"),
        ("strop", "ＳＴＲＯＰ hello"),
        ("strop", "Stropって何？"),
        ("strop", "strop's turn"),
        ("hey strop", "Hey   Strop, are you there"),
        ("hey strop", "hey, strop!"),
        ("müller", "Herr Mu\u0308ller, bitte"),
        ("größe", "GRÖSSE?"),
        ("straße", "die Strasse"),
        ("ストロップ", "ストロップさん、元気？"),
        ("ストロップ", "ねえ、ｽﾄﾛｯﾌﾟ"),
        ("ストロップ", "今日ストロップは何をする"),
        ("すとろっぷ", "ねえすとろっぷさん"),
        ("革砥", "この革砥は何ですか"),
        ("磨刀石", "请问磨刀石在吗"),
        ("มีดโกน", "สวัสดีมีดโกนครับ"),
        ("ستروب", "مرحبا يا ستروب، كيف حالك؟"),
        ("ستروب", "سْتروب!"),
        ("يا ستروب", "قل لي يا ستروب"),
        ("스트롭", "스트롭아, 안녕"),
        ("스트롭", "스트롭님 계세요?"),
        ("бритва", "Бритва, привет"),
        ("क्षुर", "नमस्ते क्षुर!"),
        ("strop", "> a quote\nstrop, what is that?"),
        ("strop", "> strop, are you there?"),
    ],
)
def test_a_word_calls(word: str, text: str) -> None:
    assert calls(text, [word])


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("strop", "stropping takes patience"),
        ("strop", "the razorstrop"),
        ("strop", "strop-like"),
        ("hey strop", "hey everyone"),
        ("hey strop", "a strop says hey"),
        ("hey strop", "they strop"),
        ("strop", "`strop`"),
        ("strop", "run ``strop up`` now"),
        ("strop", "```sh\nstrop up\n```"),
        ("strop", "````\n```\nstrop\n```\n````"),
        ("strop", "> strop said so\nI don't think so"),
        ("strop", "no\n>>> strop said so\nand more of it"),
        ("strop", "https://example.org/strop"),
        ("strop", "see [this](https://strop.example) page"),
        ("strop", "<https://example.org/strop/>"),
        ("strop", "www.strop.example"),
        ("strop", "write to strop@example.org"),
        ("strop", "<:strop:123456789012345678>"),
        ("strop", "</strop:123456789012345678>"),
        ("ストロップ", "ストロップウォッチ"),
        ("ستروب", "ستروبنا"),
        ("스트롭", "스트롭스키"),
        ("क्ष", "क्षि"),
        ("strop", ""),
    ],
)
def test_what_only_looks_like_it_does_not(word: str, text: str) -> None:
    assert not calls(text, [word])


def test_without_wake_words_nothing_calls() -> None:
    assert not calls("strop", []) and not calls("strop", [""])


@given(st.text(max_size=200), st.text(min_size=2, max_size=20))
def test_no_text_breaks_the_search(text: str, word: str) -> None:
    calls(text, [word])
    assert len(spoken(text)) <= len(text) + text.count("`") + 1
