"""Rated replies as storage hands them out, for tests that need no database."""

from __future__ import annotations

from storage.learning.eligibility import GivenRating, RatedReply
from trainer.data.labels import Correction, Verdict
from trainer.data.rows import PreferencePair, Row


def thumb(user_id: int, value: int) -> GivenRating:
    return GivenRating(user_id, value, "thumb", None, "playground", 1)


def correction(user_id: int, text: str) -> GivenRating:
    return GivenRating(user_id, 0, "correction", text, "playground", 1)


def reply(
    name: str,
    *ratings: GivenRating,
    text: str = "Sure.",
    asked: str = "How are you?",
    asker: int = 1,
    split: str = "train",
    group: str | None = None,
) -> RatedReply:
    return RatedReply(
        reply_id=name,
        conversation_id=1,
        split=split,  # type: ignore[arg-type]
        group_key=group or name,
        prompt_messages=[{"role": "user", "content": asked}],
        text=text,
        source="playground",
        ratings=list(ratings),
        asker_id=asker,
        adapter_id=None,
        base_hash="b" * 64,
        created_ms=1,
    )


def row(
    name: str,
    verdict: Verdict = "liked",
    *,
    text: str = "Sure, why not?",
    asked: str = "How are you?",
    split: str = "train",
    weight: float = 0.5,
    finished: bool = True,
    corrections: tuple[Correction, ...] = (),
    group: str | None = None,
) -> Row:
    return Row(
        reply_id=name,
        conversation_id=1,
        group_key=group or name,
        split=split,
        prompt=(("user", asked),),
        text=text,
        finished=finished,
        verdict=verdict,
        weight=weight,
        corrections=corrections,
        source="playground",
    )


def pair(
    name: str,
    *,
    chosen: str = "Tea, please. And you?",
    rejected: str = "There is much to say.",
    split: str = "train",
    weight: float = 0.8,
) -> PreferencePair:
    return PreferencePair(
        pair_id=name,
        reply_id=name,
        group_key=name,
        split=split,
        prompt=(("user", f"Question {name}?"),),
        chosen=chosen,
        rejected=rejected,
        finished=(True, True),
        weight=weight,
        source="playground",
    )
