"""Chat put together: what hears a message, what answers it, and /ask."""

from __future__ import annotations

import discord

from bot.chat import ask
from bot.chat.answerer import Answerer, IsDeleted, ReplyControls
from bot.chat.complaints import Complaints
from bot.chat.content import attachments
from bot.chat.content.attachments import AttachmentReader
from bot.chat.content.pictures import most_at_once
from bot.chat.content.references import ReferenceReader
from bot.chat.listener import MessageListener
from bot.chat.missed_questions import MissedQuestions
from bot.client import StropClient
from bot.gateway.unstored_events import UnstoredEvents


def setup(app: StropClient, controls: ReplyControls, is_deleted: IsDeleted) -> None:
    """Add what answers; ``controls`` stand below replies, ``is_deleted`` knows questions that are gone."""
    services = app.services

    async def sight() -> int:
        picture_tokens = await services.model.picture_tokens()
        return most_at_once(picture_tokens, services.config.model.context_tokens)

    complaints = Complaints(app)
    answerer = app.add_feature(Answerer(services, controls, is_deleted, complaints.report_refusal))
    listener = app.add_feature(MessageListener(app, answerer, complaints))
    proxy_for = services.config.network.proxy_for
    app.add_feature(
        AttachmentReader(
            attachments.from_discord(
                lambda: discord.http.Route.BASE if services.playground else None, proxy_for
            ),
            sight,
        )
    )
    app.add_feature(
        ReferenceReader(
            services, lambda: app.feature(AttachmentReader), sees_content=app.intents.message_content
        )
    )
    app.tree.add_command(ask.ask)
    app.listen("message", listener.handle_message, apology=listener.apologise)
    app.listen("raw_message_edit", app.feature(UnstoredEvents).kept(listener.handle_edit))
    missed = MissedQuestions(app, listener)
    app.at_session(missed.look)
    app.at_shutdown(answerer.drain)
