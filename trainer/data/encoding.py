"""From a rated reply to token ids: the chat template, left truncation, and a mask on the completion only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bot.serving.protocol import ChatMessage


class Codec(Protocol):
    """What encoding needs of a base model: exactly the rendering that serves."""

    @property
    def stop_id(self) -> int:
        """The token that ends a turn."""

    def prompt_ids(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return a chat up to and including the header of the assistant's turn."""

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of plain text, in which no control token can arise."""


@dataclass(frozen=True)
class Example:
    """One completion to learn from or to score.

    `ids` is prompt and completion; `start` is the index of the completion's first token, never 0. `weight`
    is never negative; `liked` says which way to push.
    """

    ids: tuple[int, ...]
    start: int
    weight: float = 1.0
    liked: bool = True

    @property
    def completion_length(self) -> int:
        """Return how many tokens carry loss."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class PreferenceExample:
    """Two completions of one prompt, and how much the preference of the first counts."""

    chosen: Example
    rejected: Example
    weight: float = 1.0

    @property
    def joined(self) -> Example:
        """Return both sides as one example, to count their tokens: they go through the model together."""
        return Example(ids=(*self.chosen.ids, *self.rejected.ids), start=self.chosen.start)


def encode(
    codec: Codec,
    messages: Sequence[ChatMessage],
    text: str,
    *,
    finished: bool,
    max_length: int,
    weight: float = 1.0,
    liked: bool = True,
) -> Example:
    """Encode one reply with its prompt in at most `max_length` tokens.

    The stop token follows the reply only if the model wrote one (`finished`): a reply that was cut off by its
    length limit must not teach the model to stop in the middle of a sentence. Whole old messages are dropped
    first, then tokens from the left; the completion is kept, and the prompt keeps at least one token.
    """
    completion = codec.text_ids(text)
    if finished:
        completion = [*completion, codec.stop_id]
    completion = completion[: max_length - 1]
    room = max_length - len(completion)
    prompt = _fit(codec, list(messages), room)
    return Example(ids=(*prompt, *completion), start=len(prompt), weight=weight, liked=liked)


def _fit(codec: Codec, messages: list[ChatMessage], room: int) -> list[int]:
    """Return the newest part of the prompt that fits; the system message goes last."""
    prompt = codec.prompt_ids(messages)
    while len(prompt) > room:
        oldest = next((i for i, message in enumerate(messages[:-1]) if message.role != "system"), None)
        if oldest is None:
            return prompt[-room:]
        del messages[oldest]
        prompt = codec.prompt_ids(messages)
    return prompt
