"""What can go wrong in a page's call: RequestRefusedError, with one sentence and a status."""

from __future__ import annotations

from bot.errors import BotError


class RequestRefusedError(BotError):
    """A call of a page can't be carried out; the text says why."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
