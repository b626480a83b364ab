"""More to reject than a model's worst answers: good ones to other questions, and the question itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bot.serving.model.control_tokens import escape_control_tokens
from trainer.data.rows import PreferencePair

# Every so many-th pair is learned from once more with the question as the rejected reply.
ECHO_EVERY = 4


def with_contrasts(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return ranked pairs, each of them against a reply to another question, and some against their own."""
    return [*pairs, *to_other_questions(pairs), *echoes(pairs)]


def to_other_questions(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return every pair once more, its rejected reply one that was chosen for another question.

    What fits any question is chosen in one place and rejected in another, so that it gains nothing; what says
    something of its question gains in both. Style cancels in the same way: each of these replies is chosen
    once and rejected once.
    """
    found = []
    for at, pair in enumerate(pairs):
        turned = (pairs[(at + len(pairs) // 2 + step) % len(pairs)] for step in range(len(pairs)))
        other = next((each for each in turned if each.group_key != pair.group_key), None)
        if other is not None and other.chosen != pair.chosen:
            finished = (pair.finished[0], other.finished[0])
            found.append(
                replace(pair, pair_id=f"{pair.pair_id}/other", rejected=other.chosen, finished=finished)
            )
    return found


def echoes(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return every ECHO_EVERY-th pair once more, its rejected reply the question, word for word.

    Where members like answers that speak of the question, a model learns to take up its words; who takes up
    all of them says it back, which is worst where somebody is in distress (EXPERIMENTS, 33).
    """
    asked = ((pair, escape_control_tokens(pair.prompt[-1][1])) for pair in pairs[::ECHO_EVERY] if pair.prompt)
    return [
        replace(pair, pair_id=f"{pair.pair_id}/echo", rejected=question, finished=(pair.finished[0], True))
        for pair, question in asked
        if question and question != pair.chosen
    ]
