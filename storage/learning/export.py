"""The data set as lines of JSON that other tools read: chat messages, or what TRL's trainers take.

`chat` is the common format of supervised training (`messages` with roles, as in OpenAI's fine-tuning files
and TRL's SFTTrainer) with the ratings beside it; `kto` and `dpo` are TRL's conversational formats.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

from storage.learning.eligibility import RatedReply


class Shape(StrEnum):
    """The shapes of a line: `chat` for supervised training and reading, `kto` and `dpo` for TRL."""

    CHAT = "chat"
    KTO = "kto"
    DPO = "dpo"


def lines(rows: Iterable[RatedReply], shape: Shape) -> list[dict[str, Any]]:
    """Return the lines that rated replies make.

    One a reply as chat; as KTO its label and each correction; as DPO each correction over what it corrects,
    and of two answers side by side the one that more members preferred.
    """
    if shape is Shape.DPO:
        return list(_pairs(rows))
    return [line for row in rows for line in _lines_of(row, shape)]


def _pairs(rows: Iterable[RatedReply]) -> Iterator[dict[str, Any]]:
    asked: defaultdict[tuple[int, str], list[tuple[int, RatedReply]]] = defaultdict(list)
    for row in rows:
        for rating in row.ratings:
            if rating.kind == "correction" and rating.text:
                yield _pair(row, rating.text, row.text)
        votes = [rating.value for rating in row.ratings if rating.kind == "vote"]
        if votes:
            asked[row.conversation_id, json.dumps(row.prompt_messages)].append((sum(votes), row))
    for candidates in asked.values():
        # Two answers to one question; a vote is a rating on each of them, so that their sums are opposite.
        (most, liked), (_, other) = max(candidates, key=_votes), min(candidates, key=_votes)
        if most > 0 and liked is not other:
            yield _pair(liked, liked.text, other.text)


def _votes(candidate: tuple[int, RatedReply]) -> int:
    return candidate[0]


def _pair(row: RatedReply, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": row.prompt_messages,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "split": row.split,
    }


def _lines_of(row: RatedReply, shape: Shape) -> list[dict[str, Any]]:
    liked = sum(rating.value > 0 for rating in row.ratings if rating.kind != "correction")
    disliked = sum(rating.value < 0 for rating in row.ratings if rating.kind != "correction")
    corrections = [rating.text for rating in row.ratings if rating.kind == "correction" and rating.text]
    if shape is Shape.KTO:
        given = [(row.text, liked > disliked)] if liked != disliked else []
        return [
            {
                "prompt": row.prompt_messages,
                "completion": [{"role": "assistant", "content": text}],
                "label": label,
                "split": row.split,
            }
            for text, label in [*given, *((text, True) for text in corrections)]
        ]
    return [
        {
            "messages": [*row.prompt_messages, {"role": "assistant", "content": row.text}],
            "rating": (liked > disliked) - (liked < disliked),
            "liked": liked,
            "disliked": disliked,
            "corrections": corrections,
            "split": row.split,
            "source": row.source,
            "reply_id": row.reply_id,
            "adapter_id": row.adapter_id,
        }
    ]


def as_jsonl(made: Iterable[dict[str, Any]]) -> str:
    """Return the lines as JSONL: one object a line, text as it is."""
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in made)
