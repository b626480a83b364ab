"""A reply that is done leaves no object behind in the bot's memory; `make torture` soaks for hours."""

from __future__ import annotations

import gc
from collections import Counter

from tests.bot.conftest import Community

REPLIES = 12


def living() -> Counter[str]:
    """Count what is alive of our own and of Discord's library, by type."""
    gc.collect()
    return Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in map(type, gc.get_objects())
        if str(kind.__module__).startswith(("bot.", "storage.", "discord."))
    )


async def test_a_finished_reply_leaves_no_object_behind(community: Community) -> None:
    async def ask() -> None:
        for number in range(REPLIES):
            await community.ann.send(community.channel, f"{community.mention} question {number}")
            await community.bob.react(community.messages()[-1], "👍")

    await ask()
    before = living()
    await ask()
    grown = {kind: count - before[kind] for kind, count in living().items() if count > before[kind]}
    assert {kind: count for kind, count in grown.items() if count >= REPLIES // 2} == {}
