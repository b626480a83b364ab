"""The data set as lines of JSON that other tools read: chat messages, or the KTO format of TRL."""

import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from storage.dataset import RatedReply


class Shape(StrEnum):
    """The shapes of a line: `chat` for supervised training and reading, `kto` for TRL's KTOTrainer."""

    CHAT = "chat"
    KTO = "kto"


def lines_of(row: RatedReply, shape: Shape) -> list[dict[str, Any]]:
    """Return the lines that one rated reply makes: one as chat; as KTO its label and each correction."""
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
            "liked": liked,
            "disliked": disliked,
            "corrections": corrections,
            "split": row.split,
            "source": row.source,
            "reply_id": row.reply_id,
            "adapter_id": row.adapter_id,
        }
    ]


def as_jsonl(lines: Iterable[dict[str, Any]]) -> str:
    """Return the lines as JSONL: one object a line, text as it is."""
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
