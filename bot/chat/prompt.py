"""Build the prompt of a reply from its conversation, within the model's token budget.

The core is pure: turns in, messages out, with the caller's measure of a text's length in tokens. The system
prompt and the newest turn always stay; the oldest turns go first, whole; a newest turn that is too long on
its own loses its middle, and so does what a member said right before it, where nothing else fits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bot.errors import ContextError
from bot.language.texts import mark
from bot.serving.model.control_tokens import escape_control_tokens
from bot.serving.model.thoughts import without_thoughts
from bot.serving.model.token_estimate import (
    MESSAGE_OVERHEAD,
    Measure,
    byte_measure,
    prompt_length,
    typical_measure,
)
from bot.serving.protocol import ChatMessage, Role

OMISSION = "\n[… the middle of this message was too long and was left out …]\n"
NAME_LIMIT = 32
LEAST_KEPT = 64
"""Characters of a cut message above the newest one; less of it would say nothing."""
# No measure here puts more characters into a token: what is longer than the budget by this can't fit.
MOST_CHARACTERS_PER_TOKEN = 3
_MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the conversation; ``speaker_id`` is None for the bot."""

    content: str
    speaker_id: int | None = None
    speaker_name: str = ""

    @property
    def role(self) -> Role:
        """Whose message it is, in the model's terms."""
        return "assistant" if self.speaker_id is None else "user"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages for the model; the newest turn (``truncated``) or the one above it (``shortened``) is cut."""

    messages: tuple[ChatMessage, ...]
    truncated: bool = False
    dropped_turns: int = 0
    shortened: bool = False


def build(
    system: str,
    turns: Sequence[Turn],
    budget_tokens: int,
    measure: Measure = byte_measure,
    special_tokens: Sequence[str] = (),
) -> Prompt:
    """Return the longest recent part of the conversation that ``measure`` puts within ``budget_tokens``.

    Raises ContextError when the system prompt leaves no room for the newest turn.
    """
    return _build(system, _Written(turns, budget_tokens, special_tokens), budget_tokens, measure)


def _build(system: str, written: _Written, budget_tokens: int, measure: Measure) -> Prompt:
    head = [ChatMessage("system", system)] if system.strip() else []
    room = budget_tokens - prompt_length(head, measure)
    newest = len(written) - 1
    room -= _length(written[newest], measure)
    if room < 0:
        shortened = _shortened(written[newest], head, budget_tokens, measure)
        return Prompt((*head, shortened), True, newest)
    first = newest
    while first > 0 and not written.too_long(first - 1):
        room -= _length(written[first - 1], measure)
        if room < 0:
            break
        first -= 1
    # What somebody says right before a question is mostly what it is about.
    if first == newest and newest > 0 and written[newest - 1].role == "user":
        beside = [*head, written[newest]]
        above = _without_middle(written[newest - 1], beside, budget_tokens, measure, LEAST_KEPT)
        if above is not None:
            return Prompt((*head, *_joined([above, written[newest]])), False, newest - 1, shortened=True)
    # A conversation that begins with the bot's own words confuses templates that expect people to begin.
    while first < newest and written[first].role == "assistant":
        first += 1
    kept = [written[index] for index in range(first, newest + 1)]
    return Prompt((*head, *_joined(kept)), False, first)


async def build_within(
    system: str,
    turns: Sequence[Turn],
    budget_tokens: int,
    count: Callable[[Sequence[ChatMessage]], Awaitable[int]],
    special_tokens: Sequence[str] = (),
) -> tuple[Prompt, int]:
    """Return a prompt that ``count`` (the model's own tokenizer) puts within the budget, and its token count.

    Usually one call of ``count``: the first guess is a typical length, corrected by what the tokenizer says.

    Raises ContextError where not even the shortest prompt fits.
    """
    written = _Written(turns, budget_tokens, special_tokens)
    await written.prepare(budget_tokens)
    scale = 1.0
    for _ in range(_MAX_ROUNDS):
        prompt = _build(system, written, budget_tokens, _scaled(typical_measure, scale))
        tokens = await count(prompt.messages)
        if tokens <= budget_tokens:
            return prompt, tokens
        estimate = prompt_length(prompt.messages, typical_measure)
        scale = max(scale * 1.15, tokens / estimate * 1.02)
    raise ContextError(mark("This conversation does not fit into my model's context."))


def _scaled(measure: Measure, scale: float) -> Measure:
    return lambda text: int(measure(text) * scale) + 1


class _Plain:
    """Breaks control tokens: those of every known tokenizer, and those of the model that reads the text."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        self._special_tokens = special_tokens

    def __call__(self, text: str) -> str:
        text = escape_control_tokens(text)
        return escape_control_tokens(text, self._special_tokens) if self._special_tokens else text


class _Written:
    """The turns as messages, with their speakers' names where several people speak.

    Each is written when it is first asked for: of a long chain most never is. What is longer than any budget
    is cut before anything else is done with it.
    """

    def __init__(self, turns: Sequence[Turn], budget_tokens: int, special_tokens: Sequence[str]) -> None:
        if not turns:
            raise ContextError(mark("There is no message to answer."))
        self._plain = _Plain(special_tokens)
        self._turns = turns
        self._several = len({turn.speaker_id for turn in turns if turn.speaker_id is not None}) > 1
        self._limit = max(budget_tokens, 1) * MOST_CHARACTERS_PER_TOKEN
        self._messages: dict[int, ChatMessage] = {}

    def __len__(self) -> int:
        return len(self._turns)

    def __getitem__(self, index: int) -> ChatMessage:
        """Return one turn as a message; one that fits into no budget without its middle."""
        if index not in self._messages:
            self._messages[index] = self._write(self._turns[index])
        return self._messages[index]

    def too_long(self, index: int) -> bool:
        """Whether a turn fits into no prompt."""
        return len(self._turns[index].content) > self._limit

    async def prepare(self, budget_tokens: int) -> None:
        """Write what may fit, a turn at a time, so that nothing else waits for all of it."""
        length = 0
        for index in reversed(range(len(self))):
            if length > budget_tokens or (index < len(self) - 1 and self.too_long(index)):
                return
            length += _length(self[index], typical_measure)
            await asyncio.sleep(0)

    def _write(self, turn: Turn) -> ChatMessage:
        # The bot's own come without thoughts, which an earlier version or another server may have stored.
        content = without_thoughts(turn.content) if turn.role == "assistant" else turn.content
        if len(content) > self._limit:
            # Twice as much as can fit on either side of the middle that it loses.
            content = content[: self._limit] + content[-self._limit :]
        if self._several and turn.role == "user":
            content = f"{speaker_label(turn.speaker_name)}: {content}"
        return ChatMessage(turn.role, self._plain(content))


def _length(message: ChatMessage, measure: Measure) -> int:
    return MESSAGE_OVERHEAD + measure(message.content)


def _joined(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Join neighbours of one role: many chat templates accept only alternating roles."""
    joined: list[ChatMessage] = []
    for message in messages:
        if joined and joined[-1].role == message.role:
            message = ChatMessage(message.role, f"{joined.pop().content}\n{message.content}")
        joined.append(message)
    return joined


def speaker_label(name: str) -> str:
    """Return a name that can't be mistaken for anything but a name: one line, no colon, not too long."""
    words = " ".join(name.replace(":", " ").split())
    return words[:NAME_LIMIT].strip() or "Someone"


def _shortened(newest: ChatMessage, head: list[ChatMessage], budget: int, measure: Measure) -> ChatMessage:
    """Keep as much of the beginning and the end of ``newest`` as fits, if anything does."""
    best = _without_middle(newest, head, budget, measure)
    if best is None:
        raise ContextError(
            mark("My system prompt leaves no room for your message: whoever wrote it has to make it shorter.")
        )
    return best


def _without_middle(
    message: ChatMessage, beside: Sequence[ChatMessage], budget: int, measure: Measure, least: int = 2
) -> ChatMessage | None:
    """Return a message with as much of its beginning and its end as fits ``beside`` others, by bisection."""
    low, high, best = least, len(message.content), None
    while low <= high:
        kept = (low + high) // 2
        # What was made plain stays so: only the joints are new, and OMISSION begins and ends with a line.
        content = message.content[: kept - kept // 2] + OMISSION + message.content[-(kept // 2) :]
        candidate = ChatMessage(message.role, content)
        if prompt_length([*beside, candidate], measure) <= budget:
            low, best = kept + 1, candidate
        else:
            high = kept - 1
    return best
