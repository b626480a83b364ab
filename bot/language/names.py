"""What an adapter is called in a sentence."""

from __future__ import annotations

from bot.language.texts import tr


def adapter_name(adapter_id: str | None) -> str:
    """Return an adapter's name within a sentence on Discord; None is the base model."""
    return tr("the base model") if adapter_id is None else tr("adapter `{adapter}`", adapter=adapter_id)


def short_adapter_name(adapter_id: str | None) -> str:
    """Return the same where the sentence is about adapters anyway."""
    return tr("the base model") if adapter_id is None else f"`{adapter_id}`"
