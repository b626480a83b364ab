"""Without operators in strop.toml the application's owner or team counts, as Discord says now."""

from __future__ import annotations

from typing import Any, cast

import discord
import pytest

from bot.admin.team import TeamReader
from tests.bot.conftest import Community
from tests.bot.playground.conftest import until


def application(community: Community, owner_id: int) -> discord.AppInfo:
    """What Discord answers about whose the application is."""
    document: Any = {
        "id": "1",
        "name": "strop",
        "icon": None,
        "description": "",
        "bot_public": True,
        "bot_require_code_grant": False,
        "verify_key": "0" * 64,
        "owner": {"id": str(owner_id), "username": "o", "discriminator": "0", "avatar": None},
        "flags": 0,
    }
    return discord.AppInfo(community.bot._connection, cast("Any", document))


async def test_whoever_left_is_no_operator_any_more_and_whoever_joined_is_one(
    community: Community, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot, config = community.bot, community.services.config
    nobody = config.discord.model_copy(update={"operators": ()})
    community.services.config = config.model_copy(update={"discord": nobody})
    (first,) = bot.operators()
    asked = 0

    async def answer() -> discord.AppInfo:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise OSError("Discord is away for a moment")
        return application(community, community.bob.id)

    # The virtual Discord's owner never changes: its one answer is replaced.
    monkeypatch.setattr(bot, "application_info", answer)
    reader = TeamReader(bot, every_s=0.01)
    reader.start()
    try:
        await until(lambda: bot.is_operator(community.bob.id), 10)
        assert not bot.is_operator(first) and asked >= 2
    finally:
        await reader.stop()


async def test_where_operators_are_named_nobody_is_asked(community: Community) -> None:
    reader = TeamReader(community.bot, every_s=0.0)
    reader.start()
    assert reader._task is None and community.bot.operators() == {community.ann.id}
