"""Estimate how many tokens a prompt takes, where no tokenizer has been asked or none can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bot.serving.protocol import ChatMessage

# What a chat template adds around one message (role, delimiters, line breaks), and around the whole prompt.
MESSAGE_OVERHEAD = 12
PROMPT_OVERHEAD = 24

Measure = Callable[[str], int]


def byte_measure(text: str) -> int:
    """Return an upper bound for tokenizers that start from bytes: no token covers less than one."""
    return len(text.encode("utf-8", "replace"))


def typical_measure(text: str) -> int:
    """Return a usual length in tokens: three characters of Latin text each, other scripts by their bytes."""
    ascii_characters = len(text.encode("ascii", "ignore"))
    return ascii_characters // 3 + byte_measure(text) - ascii_characters + 1


def prompt_length(messages: Sequence[ChatMessage], measure: Measure = typical_measure) -> int:
    """Return the length of a whole prompt in tokens, template included, by ``measure``."""
    return PROMPT_OVERHEAD + sum(MESSAGE_OVERHEAD + measure(message.content) for message in messages)
