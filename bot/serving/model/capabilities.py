"""What a base can do, found by trying it once and named where it is missing (torch-free).

Chat models differ in ways that no file of theirs declares. Some templates know no system role and raise, or
drop the text without a word; some demand that user and assistant alternate; some think aloud unless a
variable tells them not to. Assuming any of this works for one family and fails for the next with every single
reply. So a base is probed when it loads (:mod:`bot.serving.model.chat_template`), the findings are this
value, and everyone who builds a prompt, server and trainer alike, follows it. It is shown in the server's
start line, in ``/health`` and by ``strop doctor``, so that an operator sees how a base is spoken to before a
member does.

What is missing for good (no template at all, one that renders nothing) is no capability: such a base is
refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass


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
