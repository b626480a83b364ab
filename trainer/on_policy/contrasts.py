"""More to reject than a model's worst answers: pleasing ones to other questions, and the question itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bot.serving.model.control_tokens import escape_control_tokens
from trainer.data import text_features
from trainer.data.rows import PreferencePair
from trainer.evaluation.scores import Answer

# Every so many-th pair is learned from once more with the question as the rejected reply.
ECHO_EVERY = 4
# One of so many answers that please is rejected for other questions, and fewest of them (EXPERIMENTS, 33).
GENERIC_PART = 4
LEAST_GENERIC = 8
# Longer questions are no echoes; about as long as the replies that are ranked.
MOST_WORDS = 40


@dataclass(frozen=True)
class Checked:
    """An answer to a prompt of `group_key`, and how far it fits another question as well, 0 to 1."""

    group_key: str
    answer: Answer
    beside: float


def with_contrasts(pairs: Sequence[PreferencePair], checked: Sequence[Checked]) -> list[PreferencePair]:
    """Return ranked pairs, each of them against an answer to another question, and some against their own."""
    return [*pairs, *to_other_questions(pairs, checked), *echoes(pairs)]


def to_other_questions(pairs: Sequence[PreferencePair], checked: Sequence[Checked]) -> list[PreferencePair]:
    """Return every pair once more, its rejected reply a pleasing answer to another question.

    All of the `checked` answers please, so that both sides have the style that is liked. Those are taken in
    turns that fit other questions best, for what is told easily teaches little.
    """
    generic = sorted(checked, key=lambda each: -each.beside)
    count = max(LEAST_GENERIC, len(checked) // GENERIC_PART)
    generic, rest = generic[:count], generic[count:]
    found = []
    for at, pair in enumerate(pairs):
        turned = [generic[(at + step) % len(generic)] for step in range(len(generic))]
        other = next((each for each in (*turned, *rest) if _contrasts(pair, each)), None)
        if other is not None:
            finished = (pair.finished[0], other.answer.finished)
            found.append(
                replace(pair, pair_id=f"{pair.pair_id}/other", rejected=other.answer.text, finished=finished)
            )
    return found


def _contrasts(pair: PreferencePair, other: Checked) -> bool:
    return other.group_key != pair.group_key and other.answer.text not in (pair.chosen, pair.rejected)


def echoes(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return every ECHO_EVERY-th pair once more, its rejected reply the question, word for word.

    Where members like answers that speak of the question, a model learns to take up its words; who takes up
    all of them says it back, which is worst where somebody is in distress (EXPERIMENTS, 33). A long question
    is no reply that anybody would give, and to a greeting the same words are a fair one.
    """
    asked = [(pair, escape_control_tokens(pair.prompt[-1][1])) for pair in pairs[::ECHO_EVERY] if pair.prompt]
    return [
        replace(pair, pair_id=f"{pair.pair_id}/echo", rejected=question, finished=(pair.finished[0], True))
        for pair, question in asked
        if 0 < len(question.split()) <= MOST_WORDS
        and text_features.gist(question) != text_features.gist(pair.chosen)
    ]
