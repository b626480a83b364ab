"""What a base and a server can do, found by trying it once and named where it is missing (torch-free).

**Of a base.** Chat models differ in ways that no file of theirs declares. Some templates know no system
role and raise, or drop the text without a word; some demand that user and assistant alternate; some think
aloud unless a variable tells them not to. Assuming any of this works for one family and fails for the next
with every single reply. So a base is probed when it loads (:mod:`bot.serving.model.chat_template`), the
findings are a :class:`BaseCapabilities`, and everyone who builds a prompt, server and trainer alike,
follows it. What is missing for good (no template at all, one that renders nothing) is no capability: such a
base is refused by name.

**Of a server.** Many servers speak OpenAI's chat completions; what the loop needs beyond that is vLLM's or
ours: the length of a prompt in tokens, the log-probabilities of a prompt, adapters, priorities, and the
word on which base it serves. Whether that base sees pictures is asked as well. A server is probed once
(:mod:`bot.serving.server_probe`), the findings are a :class:`ServerCapabilities`. Where a substitute is
right it is used (an estimate of the prompt's length); where none is, the thing is said not to work, by name
and before somebody waits for it.

Both values are shown where an operator looks: in the start line, in ``/health``, by ``strop doctor`` and
``/status``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bot.serving.messages import Message

Turn = dict[str, str]
"""A turn of a conversation as templates take it: its role and its content."""


@dataclass(frozen=True, slots=True)
class BaseCapabilities:
    """How a base is spoken to.

    Attributes:
        system_role: the template takes system messages; without it they go into the next user turn.
        free_order: turns of the same role may follow each other; without it they are joined.
        thinking_switch: the template's variable that is set to have answers without thinking, or "".
        opens_thought: every prompt ends inside a thought, which nothing switches off.
        stop_tokens: the tokens that end a reply.
    """

    system_role: bool = True
    free_order: bool = True
    thinking_switch: str = ""
    opens_thought: bool = False
    stop_tokens: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Say it in a line for an operator."""
        parts = [
            "takes a system role"
            if self.system_role
            else "no system role: the persona goes into the first turn",
            "turns in any order" if self.free_order else "turns have to alternate: joined where they don't",
        ]
        if self.thinking_switch:
            parts.append(f"thinking switched off ({self.thinking_switch})")
        if self.opens_thought:
            parts.append("thinks before each answer, which can't be switched off: allow more tokens")
        if self.stop_tokens:
            parts.append(f"ends with {', '.join(self.stop_tokens)}")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class ServerCapabilities:
    """What a model server offers beyond OpenAI's chat completions, without which it is none.

    Attributes:
        describes_base: its ``/health`` says which base it serves, by hash.
        tokenize: it says how many tokens a chat takes (vLLM's ``/tokenize``).
        prompt_logprobs: it scores prompts (vLLM's ``prompt_logprobs``).
        adapters: it loads LoRA adapters by name (vLLM's ``/v1/load_lora_adapter``).
        priority: it takes a priority with a request.
        picture_tokens: what the largest picture beside a question takes of its context; 0: it sees none.
    """

    describes_base: bool = True
    tokenize: bool = True
    prompt_logprobs: bool = True
    adapters: bool = True
    priority: bool = True
    picture_tokens: int = 0

    @property
    def can_train(self) -> bool:
        """Whether an adapter could be judged and served here."""
        return self.describes_base and self.prompt_logprobs and self.adapters

    def missing(self) -> tuple[Message, ...]:
        """Name what is missing, each in a sentence with what follows from it."""
        found = (
            (
                self.adapters,
                Message("It can't load adapters (/v1/load_lora_adapter): only the base model answers."),
            ),
            (self.describes_base, Message("It doesn't say which base it serves, so nothing can be trained.")),
            (self.prompt_logprobs, Message("It has no prompt_logprobs: nothing can be evaluated.")),
            (self.tokenize, Message("It has no /tokenize: the length of prompts is estimated.")),
            (
                self.priority,
                Message("It has no priorities: background work waits in the same queue as people."),
            ),
        )
        return tuple(words for there, words in found if not there)

    def describe(self) -> Message:
        """Say in a sentence what can be done with this server."""
        if self.can_train:
            return Message("Chat, ratings and training work.")
        return Message("Chat and ratings work, training doesn't.")

    def remarks(self) -> tuple[Message, ...]:
        """Say it all, a sentence each."""
        seen = Message("It sees pictures, of up to {tokens} tokens each.", tokens=self.picture_tokens)
        return (self.describe(), *self.missing(), *((seen,) if self.picture_tokens else ()))

    def sentence(self) -> str:
        """Say it all in a line for an operator."""
        return " ".join(self.remarks())


def arrange(turns: Iterable[Turn], capabilities: BaseCapabilities) -> list[Turn]:
    """Put turns into the order that a template takes, losing none of their text.

    Without a system role a system message goes in front of the next user turn. Where turns have to alternate,
    those of one role are joined, and a reply that nobody asked for gets an empty question.
    """
    arranged: list[Turn] = []
    folded = False
    for turn in turns:
        fold = turn["role"] == "system" and not capabilities.system_role
        role = "user" if fold else turn["role"]
        same = bool(arranged) and arranged[-1]["role"] == role
        if same and (folded or not capabilities.free_order):
            arranged[-1] = turn_of(role, f"{arranged[-1]['content']}\n\n{turn['content']}")
        else:
            unasked = role == "assistant" and (not arranged or arranged[-1]["role"] == "system")
            if unasked and not capabilities.free_order:
                arranged.append(turn_of("user", ""))
            arranged.append(turn_of(role, turn["content"]))
        folded = fold
    return arranged


def turn_of(role: str, content: str) -> Turn:
    """Return one turn."""
    return {"role": role, "content": content}
