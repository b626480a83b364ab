"""What a drawing makes: the picture, and the same in words."""

from __future__ import annotations

import io
from dataclasses import dataclass

import discord

# Discord's limit of an attachment's description.
_ALT_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished PNG and its alt text; `name` is the file's, without its ending."""

    name: str
    png: bytes
    alt: str

    def as_file(self) -> discord.File:
        """Return it as an attachment, to be sent once."""
        return discord.File(
            io.BytesIO(self.png), filename=f"{self.name}.png", description=self.alt[:_ALT_LIMIT]
        )
