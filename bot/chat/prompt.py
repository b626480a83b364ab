"""Build the prompt of a reply from its conversation, within the model's token budget.

The core is pure: turns in, messages out, with the caller's measure of a text's length in tokens. The system
prompt and the newest turn always stay; the oldest turns go first, whole; a newest turn that is too long on
its own loses its middle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bot.errors import ContextError
from bot.language.texts import mark
from bot.serving.model.control_tokens import neutralise
from bot.serving.model.thoughts import without_thoughts
from bot.serving.model.token_estimate import Measure, byte_measure, prompt_length, typical_measure
from bot.serving.protocol import ChatMessage, Role

OMISSION = "\n[… the middle of this message was too long and was left out …]\n"
NAME_LIMIT = 32
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
    """Messages for the model; ``truncated`` tells that the newest turn lost its middle."""

    messages: tuple[ChatMessage, ...]
    truncated: bool = False
    dropped_turns: int = 0


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
    if not turns:
        raise ContextError(mark("There is no message to answer."))
    plain = _Plain(special_tokens)
    written = _written(turns, plain)
    head = [ChatMessage("system", system)] if system.strip() else []
    if prompt_length([*head, written[-1]], measure) > budget_tokens:
        newest = _shortened(written[-1], head, budget_tokens, measure, plain)
        return Prompt((*head, newest), True, len(written) - 1)
    first = len(written) - 1
    while first > 0 and prompt_length([*head, *written[first - 1 :]], measure) <= budget_tokens:
        first -= 1
    # A conversation that begins with the bot's own words confuses templates that expect people to begin.
    while first < len(written) - 1 and written[first].role == "assistant":
        first += 1
    return Prompt((*head, *_joined(written[first:])), False, first)


async def build_within(
    system: str,
    turns: Sequence[Turn],
    budget_tokens: int,
    count: Callable[[Sequence[ChatMessage]], Awaitable[int]],
    special_tokens: Sequence[str] = (),
) -> tuple[Prompt, int]:
    """Return a prompt that ``count`` (the model's own tokenizer) puts within the budget, and its token count.

    Usually one call of ``count``: the first guess is a typical length, corrected by what the tokenizer says.
    """
    scale = 1.0
    for _ in range(_MAX_ROUNDS):
        prompt = build(system, turns, budget_tokens, _scaled(typical_measure, scale), special_tokens)
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
        text = neutralise(text)
        return neutralise(text, self._special_tokens) if self._special_tokens else text


def _written(turns: Sequence[Turn], plain: _Plain) -> list[ChatMessage]:
    """Write each turn as a message, with its speaker's name where several people speak.

    The bot's own come without thoughts, which an earlier version or another server may have stored.
    """
    several = len({turn.speaker_id for turn in turns if turn.speaker_id is not None}) > 1
    messages = []
    for turn in turns:
        named = several and turn.role == "user"
        content = without_thoughts(turn.content) if turn.role == "assistant" else turn.content
        text = f"{speaker_label(turn.speaker_name)}: {content}" if named else content
        messages.append(ChatMessage(turn.role, plain(text)))
    return messages


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


def _shortened(
    newest: ChatMessage, head: list[ChatMessage], budget: int, measure: Measure, plain: _Plain
) -> ChatMessage:
    """Keep as much of the beginning and the end of ``newest`` as fits, found by bisection."""
    low, high, best = 2, len(newest.content), None
    while low <= high:
        kept = (low + high) // 2
        content = plain(newest.content[: kept - kept // 2] + OMISSION + newest.content[-(kept // 2) :])
        candidate = ChatMessage(newest.role, content)
        if prompt_length([*head, candidate], measure) <= budget:
            low, best = kept + 1, candidate
        else:
            high = kept - 1
    if best is None:
        raise ContextError(
            mark(
                "My system prompt leaves no room for your message: chat.system_prompt has to be shorter, "
                "or chat.context_tokens larger."
            )
        )
    return best
