"""The buttons below a reply by name: their faces, and the custom ids under which they outlast a restart."""

from __future__ import annotations

EMOJI = {
    "regenerate": "🔄",
    "stop": "⏹️",
    "better": "✏️",
    "why": "ℹ️",
    "back": "◀️",
    "forward": "▶️",
    "up": "👍",
    "down": "👎",
}
"""The actions on a reply and their faces."""

FINISHED = ("regenerate", "better", "why")
"""What can stand below a reply that is done, from the reader's left to right."""


def custom_id(action: str, reply_id: str) -> str:
    """Return the custom id of a reply's button."""
    return f"strop:reply:{action}:{reply_id}"
