"""What stands in the way of an answer, told in private to who can put it right; once an hour a channel."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

import structlog

from bot.chat.question import Question
from bot.client import StropClient
from bot.language.texts import mark, tr
from bot.ui.channels import missing_permissions

NO_PERMISSION = mark(
    "I can't answer you in <#{channel}>: I lack the permission {names}. Please tell an admin."
)
_EVERY_S = 3600.0
_REMEMBERED = 1000

_log = structlog.get_logger(__name__)


class Complaints:
    """Remembers for each channel when somebody was last told what the bot lacks there."""

    def __init__(self, app: StropClient) -> None:
        self._app = app
        self._told_at: OrderedDict[int, float] = OrderedDict()

    async def report_refusal(self, question: Question) -> None:
        """A channel stopped taking a reply that was being written, though nothing was missing before."""
        if question.guild_id is None:
            return
        channel, guild = self._app.get_channel(question.channel_id), self._app.get_guild(question.guild_id)
        missing = missing_permissions(channel, guild) or [mark("View Channel"), mark("Send Messages")]
        await self.missing(question.channel_id, question.author.user_id, missing, NO_PERMISSION)

    async def missing(
        self, channel_id: int, user_id: int | None, missing: Sequence[str], sentence: str
    ) -> None:
        """Tell one person in private which permissions the channel doesn't give the bot."""
        _log.warning("channel.permission_missing", channel_id=channel_id, missing=missing)
        if user_id is None or not self.may_tell(channel_id):
            return
        names = ", ".join(f"**{tr(name)}**" for name in missing)
        await self._app.tell(user_id, tr(sentence, channel=channel_id, names=names))

    def may_tell(self, channel_id: int) -> bool:
        """Whether an hour has passed since the last complaint about this channel; this is one."""
        now = asyncio.get_running_loop().time()
        if now - self._told_at.get(channel_id, -_EVERY_S) < _EVERY_S:
            return False
        self._told_at[channel_id] = now
        if len(self._told_at) > _REMEMBERED:
            self._told_at.popitem(last=False)
        return True
