"""Reports: a member tells the operators what is wrong with a reply. They get a link, never a copy."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import discord
import structlog

from bot.client import StropClient
from bot.delivery.targets import translate_errors
from bot.errors import DeliveryError
from bot.feedback import reply_view
from bot.feedback.reply_view import ReplyRecord
from bot.language.names import adapter_name
from bot.language.texts import mark, speaking, tr
from bot.services import Services
from bot.ui import modals
from bot.ui.channel_language import language_in
from bot.ui.interactions import Interaction, say
from storage.admin import audit
from storage.db.database import Connection
from storage.feedback import reply_reports

UNKNOWN = mark("That is not a reply of mine that I still know.")
THANKS = mark("Thank you: the people who run me have your report.")
TWICE = mark("You have reported this reply already; the people who run me have it.")
TOO_MANY = mark("You have reported a lot today. Please tell the people who run me directly.")
UNREACHABLE = mark(
    "I noted your report, but I could not reach the people who run me. Please tell them directly."
)
MOST_A_DAY = 10
_DAY_MS = 24 * 60 * 60 * 1000

_log = structlog.get_logger(__name__)


async def open_form(interaction: Interaction, services: Services, reply_id: str) -> None:
    """Ask for the reason."""
    if await services.database.aread(lambda db: reply_view.find(db, reply_id)) is None:
        return await say(interaction, tr(UNKNOWN))
    await interaction.response.send_modal(modals.report(reply_id))
    return None


async def store_report(interaction: Interaction, services: Services, reply_id: str, reason: str) -> None:
    """Audit the report and tell the operators."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    user_id = interaction.user.id

    def work(db: Connection) -> ReplyRecord | str:
        known = reply_view.find_in_server(db, reply_id, interaction.guild_id)
        if known is None:
            return UNKNOWN
        if reply_reports.count_reports(db, user_id, reply_id=reply_id):
            return TWICE
        if reply_reports.count_reports(db, user_id, within_ms=_DAY_MS) >= MOST_A_DAY:
            return TOO_MANY
        audit.record(db, str(user_id), reply_reports.ACTION, {"reply_id": reply_id})
        return known

    noted = await services.database.awrite(work)
    if isinstance(noted, str):
        return await say(interaction, tr(noted))
    channel_id = services.config.discord.operators_channel
    # Private messages to operators follow nobody's settings: they are in English.
    with speaking(await language_in(services, interaction.client, channel_id) if channel_id else "en"):
        text = _text(interaction, noted, reason)
    reached = await _tell_operators(interaction.client, text)
    _log.info("reply.reported", reply_id=reply_id, reached=reached)
    return await say(interaction, tr(THANKS if reached else UNREACHABLE))


def _text(interaction: Interaction, known: ReplyRecord, reason: str) -> str:
    guild_id = known.conversation.guild_id
    place = "@me" if guild_id is None else str(guild_id)
    link = tr("its message is gone")
    if known.parts:
        last = known.parts[-1]
        link = f"https://discord.com/channels/{place}/{last.channel_id}/{last.discord_id}"
    quoted = "\n".join(f"> {line}" for line in reason.strip().splitlines())
    head = tr("**A reply was reported** by {member}", member=interaction.user.mention)
    tail = tr("-# reply `{reply}` by {who}", reply=known.reply.id, who=adapter_name(known.reply.adapter_id))
    return f"{head}\n{link}\n{quoted}\n{tail}"


async def _tell_operators(client: StropClient, text: str) -> int:
    """Send to the operators' channel, else to each operator; return how many messages arrived."""
    config = client.services.config.discord
    if config.operators_channel:
        channel = client.get_partial_messageable(config.operators_channel)
        return await _arrives(channel.send(text))
    reached = 0
    for operator_id in sorted(client.operators()):
        reached += await _send_privately(client, operator_id, text)
    return reached


async def _send_privately(client: StropClient, user_id: int, text: str) -> int:
    try:
        user = client.get_user(user_id) or await translate_errors(client.fetch_user(user_id))
    except DeliveryError as error:
        _log.warning("report.operator_unknown", error=type(error).__name__)
        return 0
    return 0 if user is None else await _arrives(user.send(text))


async def _arrives(sending: Coroutine[Any, Any, discord.Message]) -> int:
    try:
        await translate_errors(sending)
    except DeliveryError as error:
        _log.warning("report.not_delivered", error=type(error).__name__)
        return 0
    return 1
