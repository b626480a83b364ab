"""Who may act on everything: the configured operators, else the application's owner or team."""

from __future__ import annotations

from collections.abc import Iterable

import discord
from discord import app_commands

from bot.language.texts import mark


class NotOperatorError(app_commands.CheckFailure):
    """Somebody else than an operator used an operator's command."""


NOT_OPERATOR = mark("Only those who run this bot can do that.")


def operator_ids(configured: Iterable[int], application: discord.AppInfo | None) -> frozenset[int]:
    """Return who is an operator. Of a team, read-only members and people who haven't accepted yet are not."""
    named = frozenset(configured)
    if named or application is None:
        return named
    if application.team is None:
        return frozenset({application.owner.id})
    return frozenset(
        member.id
        for member in application.team.members
        if member.membership_state is discord.TeamMembershipState.accepted
        and member.role is not discord.TeamMemberRole.read_only
    )
