"""Phrases that several prompts hear: what an answer made of them says would fit any question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from trainer.data import question_features, text_features

# Words of a phrase.
LENGTH = 3

Phrase = tuple[str, ...]


def of(text: str) -> list[Phrase]:
    """Return the runs of LENGTH word stems within a text's sentences; a shorter sentence is one."""
    sentences = (question_features.terms(sentence) for sentence in text_features.sentences(text))
    return [
        tuple(words[at : at + LENGTH])
        for words in sentences
        for at in range(max(1, len(words) - LENGTH + 1))
        if words
    ]


def prompts_that_hear(answers: Iterable[Sequence[str]]) -> Counter[Phrase]:
    """Return to how many prompts each phrase is said, in any of the answers to it."""
    return Counter(phrase for given in answers for phrase in {said for text in given for said in of(text)})


def share_of_others(text: str, prompts: Mapping[Phrase, int]) -> float:
    """Return the share of a text's phrases that another prompt hears too, 0 to 1."""
    said = of(text)
    return sum(prompts.get(phrase, 0) > 1 for phrase in said) / max(1, len(said))
