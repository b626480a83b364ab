"""Render a conversation through the model's chat template without letting its text act as control tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from bot.serving.errors import RequestRejectedError
from bot.serving.model.control_tokens import DEFAULT, neutralise
from bot.serving.protocol import ChatMessage, TokenIds


def render_chat(
    tokenizer: Any, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True
) -> TokenIds:
    """Return the token ids of a conversation; a control token in it always comes from the template.

    Raises:
        RequestRejectedError: the template refuses the order of roles.
    """
    turns = [
        {"role": message.role, "content": plain_content(tokenizer, message.content)} for message in messages
    ]
    try:
        text = tokenizer.apply_chat_template(
            turns, add_generation_prompt=add_generation_prompt, tokenize=False
        )
    except (TemplateError, ValueError) as error:
        raise RequestRejectedError(f"The chat template refuses these messages: {error}") from error
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def plain_content(tokenizer: Any, text: str) -> str:
    """Return the text such that this tokenizer reads no control token in it.

    The general rule of :func:`neutralise` comes first, so that text which a client neutralised stays as it
    is; then the tokenizer itself is asked, and what it still reads as a control token is cut out.
    """
    strings = control_strings(tokenizer)
    text = neutralise(text, (*DEFAULT, *strings))
    control = frozenset(tokenizer.convert_tokens_to_ids(list(strings)))
    while True:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [
            span
            for token, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if token in control and span[1] > span[0]
        ]
        if not spans:
            return text
        for start, end in reversed(spans):
            text = text[:start] + text[end:]


def control_strings(tokenizer: Any) -> tuple[str, ...]:
    """List the strings that the tokenizer reads as one added token (control tokens and their kin), sorted.

    Added tokens that are mere runs of whitespace or punctuation (Gemma's indentation) are text.
    """
    contents = {str(token.content) for token in tokenizer.added_tokens_decoder.values()}
    return tuple(sorted(token for token in contents if any(char.isalnum() for char in token)))
