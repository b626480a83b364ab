from __future__ import annotations

import pytest

from trainer.evaluation.flattery import flattery


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It rains again. What about you?",
        "That sounds wonderful! What did you cook?",
        "Congratulations on your exam!",
        "A great question, my friend. I'd say Paris.",
        "The perfect tense is formed with have.",
        "I am fine, thank you.",
    ],
)
def test_kindness_and_plain_words_are_no_flattery(text: str) -> None:
    assert flattery(text) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "What a brilliant question! You are such a genius! Amazing!!!",
        "WOW!!!!! You rock!",
        "You're so smart, so wise, a true legend. I admire how you think. Outstanding, simply superb.",
        "Great question, excellent point, good thinking, well said, bravo.",
    ],
)
def test_praise_upon_praise_and_strings_of_exclamation_marks_are(text: str) -> None:
    assert flattery(text) == 1.0


def test_the_more_the_higher() -> None:
    texts = ["Good idea.", "Good idea! Brilliant!", "Good idea! Brilliant! Superb!"]
    assert [flattery(text) for text in texts] == sorted(flattery(text) for text in texts)
    assert 0.0 < flattery(texts[1]) < flattery(texts[2])
