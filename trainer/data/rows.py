"""What a run learns from: the rated replies of a snapshot, and pairs of a better and a worse answer."""

from __future__ import annotations

from dataclasses import dataclass

from bot.serving.model.control_tokens import escape_control_tokens
from bot.serving.protocol import ChatMessage
from trainer.data.labels import Correction, Verdict


@dataclass(frozen=True)
class Row:
    """One reply of a snapshot. `finished` says that the model wrote the stop token itself."""

    reply_id: str
    conversation_id: int
    group_key: str
    split: str
    prompt: tuple[tuple[str, str], ...]
    text: str
    finished: bool
    verdict: Verdict
    weight: float
    corrections: tuple[Correction, ...]
    source: str
    created_ms: int = 0

    @property
    def question(self) -> str:
        """Return what the reply answers."""
        return self.prompt[-1][1] if self.prompt else ""

    @property
    def liked(self) -> bool:
        """Whether this reply counts towards the minimum: liked, or corrected."""
        return self.verdict == "liked" or bool(self.corrections)


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, the better one first; `weight` is 0 (nobody knows) to 1 (certain).

    `reply_id` names the reply whose prompt it is, `finished` says of each answer whether the model ended it.
    """

    pair_id: str
    reply_id: str
    group_key: str
    split: str
    prompt: tuple[tuple[str, str], ...]
    chosen: str
    rejected: str
    finished: tuple[bool, bool]
    weight: float
    source: str


@dataclass(frozen=True)
class WeakLabel:
    """An unrated reply and what its free signals say (`trainer/on_policy/signals.py`).

    `log_ratio` is log P(signals | liked) / P(signals | disliked); `weight` is the part of a rating that it
    counts.
    """

    reply_id: str
    group_key: str
    question: str
    text: str
    log_ratio: float
    weight: float
    source: str


def messages_of(row: Row) -> tuple[ChatMessage, ...]:
    """Return a row's prompt as chat messages in which no control token can arise."""
    return tuple(ChatMessage(role, escape_control_tokens(content)) for role, content in row.prompt)  # type: ignore[arg-type]
