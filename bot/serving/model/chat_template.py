"""Render a conversation through the model's chat template without letting its text act as control tokens.

The template is probed first: :class:`BaseCapabilities` says what for. Server and trainer render with the same
:class:`ChatTemplate`, so that a base is trained on the very prompts that it is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from bot.serving.errors import BaseRefusedError, RequestRejectedError
from bot.serving.model.capabilities import BaseCapabilities, Turn, arrange, turn_of
from bot.serving.model.control_tokens import DEFAULT, escape_control_tokens
from bot.serving.model.thoughts import OPENING_TAGS, without_thoughts
from bot.serving.protocol import ChatMessage, TokenIds

# What a template does instead of rendering: raise_exception, or trip over what it did not expect.
_REFUSALS = (TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError)
# The variables by which templates are told not to think, each with the values for on and off.
# enable_thinking: Qwen, GLM, SmolLM3; thinking: Granite, DeepSeek; thinking_budget: Seed.
_THINKING_SWITCHES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", True, False),
    ("thinking", True, False),
    ("enable_reasoning", True, False),
    ("thinking_budget", 512, 0),
)
# Words that stand in no template; a probe looks for them in what was rendered.
_PERSONA, _QUESTION, _REPLY = "zephyrian persona", "zephyrian question", "zephyrian reply"
# A chat model that starts another turn, or another document, has ended its own.
_TURN_ENDS = ("<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<|endoftext|>")


class ChatTemplate:
    """A tokenizer's chat template, probed once when it is made.

    Raises:
        BaseRefusedError: there is none, or it doesn't render a plain question.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._variables: dict[str, Any] = {}
        self.capabilities = self._probe()

    def render(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True) -> TokenIds:
        """Return the token ids of a conversation; a control token in it always comes from the template.

        Raises:
            RequestRejectedError: the template refuses the order of roles.
        """
        turns = [self._plain_turn(message) for message in messages]
        try:
            text = self._apply(arrange(turns, self.capabilities), generation=add_generation_prompt)
        except _REFUSALS as error:
            raise RequestRejectedError(f"The chat template refuses these messages: {error}") from error
        return [int(token) for token in self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def end_token(self) -> int | None:
        """Return the control token that the template writes behind a reply, or None where it writes none."""
        turns = [turn_of("user", _QUESTION), turn_of("assistant", _REPLY)]
        text = self._try(turns, generation=False) or ""
        behind = text.rpartition(_REPLY)[2]
        ids = self._tokenizer(behind, add_special_tokens=False)["input_ids"]
        control = frozenset(self._tokenizer.convert_tokens_to_ids(list(control_strings(self._tokenizer))))
        return next((int(token) for token in ids if token in control), None)

    def _plain_turn(self, message: ChatMessage) -> Turn:
        content = message.content
        if message.role == "assistant":
            content = without_thoughts(content)
        return turn_of(message.role, plain_content(self._tokenizer, content))

    def _apply(self, turns: Sequence[Turn], *, generation: bool, **variables: Any) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                list(turns), add_generation_prompt=generation, tokenize=False, **self._variables | variables
            )
        )

    def _try(self, turns: Sequence[Turn], *, generation: bool = True, **variables: Any) -> str | None:
        """Return what is rendered, or None where the template refuses or drops what a turn says."""
        try:
            text = self._apply(turns, generation=generation, **variables)
        except _REFUSALS:
            return None
        return text if all(turn["content"] in text for turn in turns) else None

    def _probe(self) -> BaseCapabilities:
        question = [turn_of("user", _QUESTION)]
        if not self._tokenizer.chat_template:
            raise BaseRefusedError("The base has no chat template; choose an instruct model.")
        try:
            self._apply(question, generation=True)
        except _REFUSALS as error:
            raise BaseRefusedError(f"The base's chat template renders no question: {error}") from error
        switch = self._find_thinking_switch(question)
        plain = self._try(question) or ""
        repeated = [turn_of("user", _QUESTION), turn_of("user", _QUESTION + " again")]
        begun = [turn_of("assistant", _REPLY), *question]
        return BaseCapabilities(
            system_role=self._try([turn_of("system", _PERSONA), *question]) is not None,
            free_order=self._try(repeated) is not None and self._try(begun) is not None,
            thinking_switch=switch,
            opens_thought=plain.rstrip().endswith(OPENING_TAGS),
            stop_tokens=tuple(self._tokenizer.convert_ids_to_tokens(sorted(self.end_tokens()))),
        )

    def _find_thinking_switch(self, question: Sequence[Turn]) -> str:
        """Find the variable that turns thinking off, by what it changes; from here on it is set."""
        template = str(self._tokenizer.chat_template)
        for name, on, off in _THINKING_SWITCHES:
            if name not in template:
                continue
            without = self._try(question, **{name: off})
            if without is not None and without != self._try(question, **{name: on}):
                self._variables = {name: off}
                return name
        return ""

    def end_tokens(self) -> frozenset[int]:
        """Return the tokens that end a reply as far as tokenizer and template tell."""
        tokenizer = self._tokenizer
        known = tokenizer.get_vocab()
        named = [known[token] for token in _TURN_ENDS if token in known]
        # A tokenizer's token for what it doesn't know ends nothing, whatever its name.
        named = [token for token in named if token != tokenizer.unk_token_id]
        ends = (tokenizer.eos_token_id, self.end_token(), *named)
        return frozenset(int(token) for token in ends if token is not None)


def plain_reply(tokenizer: Any, text: str) -> str:
    """Return a reply's text as it is trained on: without thoughts and without control tokens."""
    return plain_content(tokenizer, without_thoughts(text))


def plain_content(tokenizer: Any, text: str) -> str:
    """Return the text such that this tokenizer reads no control token in it.

    The general rule of :func:`escape_control_tokens` comes first, so text that a client escaped stays as it
    is; then the tokenizer itself is asked, and what it still reads as a control token is cut out.
    """
    strings = control_strings(tokenizer)
    text = escape_control_tokens(text, (*DEFAULT, *strings))
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


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return every token that ends a reply, by generation configuration, tokenizer and chat template."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured, model.config.eos_token_id]
    return (
        frozenset(int(token) for token in ids if isinstance(token, int))
        | ChatTemplate(tokenizer).end_tokens()
    )
