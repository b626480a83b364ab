"""Replies that an earlier process left half written: their messages must not stay as they are."""

from __future__ import annotations

import structlog

from bot.chat.answerer import STOPPED, ReplyControls
from bot.client import StropClient
from bot.delivery.targets import translated
from bot.errors import DeliveryError
from bot.feedback.reply_actions import ReplyActions
from bot.language.texts import speaking, tr
from bot.ui.channel_language import language_in
from storage.chat import replies, reply_versions
from storage.chat.replies import Part, Reply
from storage.db.database import Connection
from storage.errors import StorageError

_log = structlog.get_logger(__name__)


class InterruptedReplies:
    """Ends them in storage before the gateway is there, and on the screen as soon as it is."""

    def __init__(self, app: StropClient, controls: ReplyControls, actions: ReplyActions) -> None:
        self._app = app
        self._database = app.services.database
        self._controls = controls
        self._actions = actions
        self._found: list[Reply] = []

    async def find(self) -> None:
        """Note what no process writes any more."""
        self._found = await self._database.awrite(replies.abandon_streaming)

    async def settle(self) -> None:
        """Tidy the messages of what was found, once."""
        found, self._found = self._found, []
        for reply in found:
            try:
                await self._settle(reply)
            except (DeliveryError, StorageError) as error:
                _log.info("reply.not_marked", reply_id=reply.id, error=type(error).__name__)

    async def _settle(self, reply: Reply) -> None:
        """Let a version give way to the earlier one beside it; any other keeps its words, with a note.

        Raises DeliveryError where Discord refuses.
        """
        if reply.status == "streaming":
            # It was written to its end: only its last edit may be missing.
            await self._actions.redraw(reply.id)
            await self._database.awrite(lambda db: replies.settle(db, reply.id, "complete"))
            return
        parts, earlier = await self._database.awrite(lambda db: _put_back(db, reply))
        if earlier is not None:
            await self._actions.redraw(earlier)
        elif parts:
            channel = self._app.get_partial_messageable(parts[-1].channel_id)
            message = await translated(channel.fetch_message(parts[-1].discord_id))
            buttons = self._controls.finished(reply.id, has_text=False)
            with speaking(await language_in(self._app.services, self._app, channel.id)):
                content = f"{message.content[:1900]}\n\n{tr(STOPPED)}"
            await translated(message.edit(content=content, view=buttons))


def _put_back(db: Connection, reply: Reply) -> tuple[list[Part], str | None]:
    """Take an unfinished version out; return the reply's messages and the version to show instead."""
    left = reply_versions.drop(db, reply.id)
    if left is not None:
        return [], left.shown_id
    parts = replies.parts(db, reply.id)
    # A version without a word has no message of its own yet, but those of the earlier one may say it waits.
    shown_id = None if parts else replies.shown_for_prompt(db, reply.prompt_message_id)
    shown = replies.get(db, shown_id) if shown_id is not None else None
    return parts, shown.id if shown is not None and shown.text.strip() else None
