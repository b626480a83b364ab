"""What goes wrong with a reply, in the one sentence that whoever asked is told."""

from __future__ import annotations

import structlog

from bot.chat.draft import Draft
from bot.errors import ContextError
from bot.language.durations import duration
from bot.language.texts import mark, tr
from bot.serving.errors import (
    ServerBusyError,
    ServerLoadingError,
    ServerUnavailableError,
    UnknownModelError,
)
from bot.ui.interactions import NO_SUCH_MODEL
from storage.errors import DiskFullError

UNREACHABLE = mark("My model server is not reachable right now; I'll be back by myself when it is.")
BROKE_OFF = mark("-# My model server stopped in the middle of this. Ask me again in a moment.")
BUSY = mark("I have more questions than I can take right now. Please ask me again in {time}.")
DISK_FULL = mark("My disk is full, so I can't keep this conversation. Please tell whoever runs me.")
UNEXPECTED = mark("Something went wrong on my side (error `{id}`). It is in my log; please try again.")

_log = structlog.get_logger(__name__)


def explanation(error: Exception, draft: Draft) -> str:
    """Return the one sentence for whoever asked; what nobody expected also goes to the log, with its id."""
    if isinstance(error, ServerBusyError):
        return tr(BUSY, time=duration(error.retry_after_s))
    if isinstance(error, ServerUnavailableError | ServerLoadingError):
        _log.warning("reply.server_away", reply_id=draft.reply_id, error=str(error))
        return tr(BROKE_OFF if draft.progress.has_words else UNREACHABLE)
    if isinstance(error, UnknownModelError):
        _log.error("reply.no_such_model", reply_id=draft.reply_id, error=str(error))
        return tr(NO_SUCH_MODEL)
    if isinstance(error, ContextError):
        _log.warning("reply.refused", reply_id=draft.reply_id, error=str(error))
        return tr(str(error))
    if isinstance(error, DiskFullError):
        _log.error("reply.disk_full", reply_id=draft.reply_id)
        return tr(DISK_FULL)
    _log.error("reply.failed", reply_id=draft.reply_id, exc_info=error)
    return tr(UNEXPECTED, id=draft.reply_id)
