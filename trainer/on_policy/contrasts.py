"""More to reject than a model's worst answers: pleasing ones to other questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.data.rows import PreferencePair
from trainer.evaluation.scores import Answer

# One of so many answers that please is rejected for other questions, and fewest of them (EXPERIMENTS, 33).
GENERIC_PART = 4
LEAST_GENERIC = 8


@dataclass(frozen=True)
class Checked:
    """An answer to a prompt of `group_key`, and how far it fits another question as well, 0 to 1."""

    group_key: str
    answer: Answer
    beside: float


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
