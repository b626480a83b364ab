"""Preference pairs: a correction over the reply that it corrects, and what members voted for over what not.

A pair lies in the split of its group of prompts, like every row: a held-out conversation teaches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from storage.learning.preference_votes import VotedPair
from trainer.data import labels
from trainer.data.labels import RaterTrust
from trainer.data.rows import PreferencePair, Row


def pairs_from_votes(
    voted: Sequence[VotedPair], raters: Sequence[RaterTrust], splits: Mapping[str, str], digits: int
) -> list[PreferencePair]:
    """Return the pairs on which the votes, each with its member's weight, come out for one side."""
    trust = {rater.user_id: rater.weight for rater in raters}
    found = []
    for pair in sorted(voted, key=lambda pair: pair.pair_id):
        # Who only ever voted blindly is as yet unknown.
        odds = sum(trust.get(vote.user_id, labels.PRIOR_WEIGHT) * vote.choice for vote in pair.votes)
        weight = round(abs(math.tanh(odds / 2)), digits)
        if weight == 0:
            continue
        better, worse = (0, 1) if odds > 0 else (1, 0)
        found.append(
            PreferencePair(
                pair_id=pair.pair_id,
                reply_id=pair.reply_id,
                group_key=pair.group_key,
                split=splits[pair.group_key],
                prompt=tuple((message["role"], message["content"]) for message in pair.prompt_messages),
                chosen=pair.texts[better],
                rejected=pair.texts[worse],
                finished=(pair.finished[better], pair.finished[worse]),
                weight=weight,
                source=pair.source,
            )
        )
    return found


def from_json(value: Mapping[str, Any]) -> PreferencePair:
    """Return a pair from its fields as JSON has them."""
    prompt = tuple((role, content) for role, content in value["prompt"])
    first, second = value["finished"]
    return PreferencePair(**{**value, "prompt": prompt, "finished": (first, second)})


def pairs_from_corrections(rows: Sequence[Row]) -> list[PreferencePair]:
    """Return each correction over the reply that it corrects; a correction is a whole reply by a person."""
    return [
        PreferencePair(
            pair_id=f"{row.reply_id}/{number}",
            reply_id=row.reply_id,
            group_key=row.group_key,
            split=row.split,
            prompt=row.prompt,
            chosen=correction.text,
            rejected=row.text,
            finished=(True, row.finished),
            # In supervised training a correction counts double; a preference is certain at most.
            weight=min(1.0, correction.weight / labels.CORRECTION_WEIGHT),
            source=row.source,
        )
        for row in rows
        for number, correction in enumerate(row.corrections)
        if correction.text.strip() != row.text.strip()
    ]
