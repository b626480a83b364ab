"""The forms: the reply that a member wishes for, a report, the prompts of an operator, and a setting's value.

A form that was opened before a restart can still be sent in: it is recognised by its custom id when it
arrives, not by an object of the process that opened it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import discord

from bot.language.texts import tr

FIELD = "text"
MAX_CORRECTION = 2000
MAX_REASON = 500
MAX_PROMPTS_TEXT = 4000
# Discord forgets a form's interaction after this long anyway.
_OPEN_S = 15 * 60.0
_CUSTOM_ID = re.compile(r"strop:form:(better|report|prompts|setting):([A-Za-z0-9_.\-]{1,64})")


class _Form(discord.ui.Modal):
    """A title and one field; what is sent in is handled by `parse_submission`'s caller."""

    def __init__(self, kind: str, reply_id: str, title: str, label: str, field: Any, hint: str) -> None:
        super().__init__(title=title, timeout=_OPEN_S, custom_id=f"strop:form:{kind}:{reply_id}")
        self.add_item(discord.ui.Label(text=label, description=hint or None, component=field))

    async def on_submit(self, interaction: discord.Interaction[Any], /) -> None:
        """Leave the answer to the handler that also knows the forms of earlier processes."""


def better_answer(reply_id: str, written: str) -> discord.ui.Modal:
    """Return the form for the reply that a member wishes for; `written` is what they wrote before."""
    field = discord.ui.TextInput[Any](
        custom_id=FIELD,
        style=discord.TextStyle.paragraph,
        required=False,
        max_length=MAX_CORRECTION,
        default=written[:MAX_CORRECTION] or None,
    )
    hint = tr("Send it empty to take an earlier one back.")
    return _Form("better", reply_id, tr("A better answer"), tr("What should I have said?"), field, hint)


def report(reply_id: str) -> discord.ui.Modal:
    """Return the form for a report."""
    field = discord.ui.TextInput[Any](
        custom_id=FIELD, style=discord.TextStyle.paragraph, required=True, max_length=MAX_REASON
    )
    hint = tr("Those who run me get your name, a link to the reply, and this.")
    return _Form("report", reply_id, tr("Report this reply"), tr("What is wrong with it?"), field, hint)


def prompts(title: str, label: str, hint: str) -> discord.ui.Modal:
    """Return the form for an operator's prompts, with its words in the language that is spoken."""
    field = discord.ui.TextInput[Any](
        custom_id=FIELD, style=discord.TextStyle.paragraph, required=True, max_length=MAX_PROMPTS_TEXT
    )
    return _Form("prompts", "bank", title, label, field, hint)


def setting(name: str, title: str, label: str, field: discord.ui.TextInput[Any]) -> discord.ui.Modal:
    """Return the form for a setting's value; `name` comes back with what was typed into `field`."""
    return _Form("setting", name, title, label, field, "")


def parse_submission(interaction: discord.Interaction[Any]) -> tuple[str, str, str] | None:
    """Return (kind, reply id, text) of a form that was sent in, or None for any other interaction."""
    if interaction.type is not discord.InteractionType.modal_submit:
        return None
    data: Mapping[str, Any] = interaction.data or {}
    found = _CUSTOM_ID.fullmatch(str(data.get("custom_id", "")))
    if found is None:
        return None
    return found[1], found[2], _text(data.get("components") or [])


def _text(components: Iterable[Mapping[str, Any]]) -> str:
    """Find the field's value, below labels or rows."""
    for component in components:
        if component.get("custom_id") == FIELD:
            return str(component.get("value") or "")
        inner = [component["component"]] if "component" in component else component.get("components") or []
        if found := _text(inner):
            return found
    return ""
