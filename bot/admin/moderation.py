"""/forget, /block, /unblock and /blocked."""

from __future__ import annotations

import discord
from discord import app_commands

from bot.chat.listener import BLOCKED
from bot.language.durations import duration
from bot.language.texts import mark, speaking, tr
from bot.ui.channel_language import language_in
from bot.ui.interactions import Interaction, say
from storage.admin import blocks
from storage.chat import context_resets
from storage.db.clock import SECOND_MS, now_ms
from storage.db.database import Connection
from storage.errors import BlockError, RuleError

AFRESH_ALREADY = mark("I started afresh here less than a minute ago. Please wait {time}, or ask a moderator.")
AFRESH = mark("Done: I start afresh.")
_AFRESH_EVERY_MS = 60 * SECOND_MS
_SHOWN = 25


class NotModeratorError(RuleError):
    """Somebody who moderates nobody used a moderator's command."""


@app_commands.command(description="Start afresh: my answers no longer use what was said here so far.")
async def forget(interaction: Interaction) -> None:
    """Leave the conversation of this channel, thread or direct messages behind, for everybody to see."""
    channel_id = interaction.channel_id
    if channel_id is None:
        return await say(interaction, tr("This works only in a channel."))
    guild_id, user_id = interaction.guild_id, interaction.user.id
    unlimited = guild_id is None or _may_moderate(interaction)

    def work(db: Connection) -> str:
        if blocks.is_blocked(db, guild_id, user_id):
            return tr(BLOCKED)
        wait_ms = context_resets.last_ms(db, channel_id) + _AFRESH_EVERY_MS - now_ms()
        if wait_ms > 0 and not unlimited:
            return tr(AFRESH_ALREADY, time=duration(-(-wait_ms // SECOND_MS)))
        context_resets.start(db, channel_id, str(user_id))
        return ""

    # A refusal is for its member alone, so the first answer is; the second one is for everybody.
    await interaction.response.defer(ephemeral=True, thinking=True)
    refusal = await interaction.client.services.database.awrite(work)
    await say(interaction, refusal or tr(AFRESH))
    if refusal:
        return None
    with speaking(await language_in(interaction.client.services, interaction.client, channel_id)):
        told = tr(
            "I start afresh here: my answers no longer use anything that was said before.\n-# It "
            "stays stored until its authors delete it with /privacy."
        )
    await interaction.followup.send(told, allowed_mentions=discord.AllowedMentions.none())
    return None


@app_commands.command(description="I no longer answer a member here, and their ratings no longer count.")
@app_commands.describe(member="The member to block", reason="Why, for you and the other moderators")
@app_commands.guild_only()
@app_commands.default_permissions(moderate_members=True)
async def block(
    interaction: Interaction,
    member: discord.Member | discord.User,
    reason: app_commands.Range[str, 0, 300] = "",
) -> None:
    """Block a member in this server."""
    guild_id = _moderated(interaction)
    if member.bot:
        raise BlockError(mark("I never answer bots."))
    if interaction.client.is_operator(member.id):
        raise BlockError(mark("Whoever runs me can't be blocked."))
    await interaction.response.defer(ephemeral=True, thinking=True)
    actor = str(interaction.user.id)
    new = await interaction.client.services.database.awrite(
        lambda db: blocks.block(db, guild_id=guild_id, user_id=member.id, actor=actor, reason=reason)
    )
    if new:
        told = tr(
            "{name} is blocked now: no answers, and no rating counts from here on.", name=member.mention
        )
    else:
        told = tr("{name} is blocked already.", name=member.mention)
    await say(interaction, told)


@app_commands.command(description="I answer a blocked member again, and their ratings count again.")
@app_commands.describe(member="The member to answer again")
@app_commands.guild_only()
@app_commands.default_permissions(moderate_members=True)
async def unblock(interaction: Interaction, member: discord.User) -> None:
    """Lift a block in this server."""
    guild_id = _moderated(interaction)
    await interaction.response.defer(ephemeral=True, thinking=True)
    actor = str(interaction.user.id)
    await interaction.client.services.database.awrite(
        lambda db: blocks.unblock(db, guild_id=guild_id, user_id=member.id, actor=actor)
    )
    await say(interaction, tr("{name} gets answers again.", name=member.mention))


@app_commands.command(description="List the members I don't answer in this server, and who blocked them.")
@app_commands.guild_only()
@app_commands.default_permissions(moderate_members=True)
async def blocked(interaction: Interaction) -> None:
    """List the blocks that hold here, for the moderator's eyes only."""
    guild_id = _moderated(interaction)
    await interaction.response.defer(ephemeral=True, thinking=True)
    found = await interaction.client.services.database.aread(lambda db: blocks.listing(db, guild_id))
    lines = [_line(each) for each in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(tr("… and {count} more (`strop blocks` lists all).", count=len(found) - _SHOWN))
    await say(interaction, "\n".join(lines) or tr("Nobody is blocked here."))


def _line(each: blocks.Block) -> str:
    when = f"<t:{each.created_ms // 1000}:d>"
    by = f"<@{each.actor}>" if each.actor.isdecimal() else each.actor
    reason = f": {' '.join(each.reason.split())[:100]}" if each.reason else ""
    where = tr(" (everywhere)") if each.guild_id == blocks.EVERYWHERE else ""
    who = f"<@{each.user_id}>{where}"
    return tr("{who}, since {when}, by {by}{reason}", who=who, when=when, by=by, reason=reason)


def _may_moderate(interaction: Interaction) -> bool:
    allowed = interaction.permissions.moderate_members or interaction.permissions.manage_guild
    return allowed or interaction.client.is_operator(interaction.user.id)


def _moderated(interaction: Interaction) -> int:
    """Return the server that the member moderates; raises NotModeratorError where they don't."""
    if not _may_moderate(interaction):
        raise NotModeratorError(mark("Only members with the permission **Timeout Members** can do that."))
    if interaction.guild_id is None:
        raise app_commands.NoPrivateMessage
    return interaction.guild_id
