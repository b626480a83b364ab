"""Which servers are whose, where a bot has several processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bot.cli.launch.children import children
from bot.gateway.sign_in import APART_S, IdentifyBudget
from storage.chat import conversations
from storage.chat.shards import Shards
from storage.config import load_config
from storage.config_sections import DiscordConfig
from storage.db.database import Connection, Database


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 2**63))
def test_every_server_is_one_process_s_and_direct_messages_are_the_first_s(
    shards: int, processes: int, guild_id: int
) -> None:
    config = DiscordConfig(shards=max(shards, processes), processes=processes)
    parts = [Shards.of_process(config, number) for number in range(processes)]
    assert sorted(each for part in parts for each in part.ids) == list(range(config.shards))
    (serving,) = [part for part in parts if part.has(guild_id)]
    # As Discord has it: https://discord.com/developers/docs/events/gateway#sharding-sharding-formula
    assert (guild_id >> 22) % config.shards in serving.ids
    assert serving.has_scope(f"guild:{guild_id}")
    assert [part.has_first for part in parts] == [part.has(None) for part in parts]
    assert [part.has_scope("deployment") for part in parts] == [True] + [False] * (processes - 1)


def test_channels_and_conversations_belong_to_the_process_of_their_server(tmp_path: Path) -> None:
    parts = [Shards.of_process(DiscordConfig(shards=2, processes=2), number) for number in (0, 1)]

    def work(db: Connection) -> None:
        for channel_id, guild_id, owner in ((5, 1 << 22, 1), (6, 2 << 22, 0), (7, None, 0)):
            opened = conversations.open_conversation(
                db,
                key=str(channel_id),
                guild_id=guild_id,
                channel_id=channel_id,
                scope="deployment",
                source="discord",
                public=True,
            )
            assert [part.has_channel(db, channel_id) for part in parts] == [owner == 0, owner == 1]
            assert [part.has_conversation(db, opened.id) for part in parts] == [owner == 0, owner == 1]

    with Database.open(tmp_path / "strop.db") as database:
        database.write(work)


async def test_two_processes_share_the_token_s_sign_ins_and_take_turns(tmp_path: Path) -> None:
    with Database.open(tmp_path / "strop.db") as one, Database.open(tmp_path / "strop.db") as two:
        first, second = (IdentifyBudget(each, shards=2, processes=2) for each in (one, two))
        taken = await asyncio.gather(one.awrite(first._take), two.awrite(second._take))
        assert sorted(wait_s > 0 for wait_s in taken) == [False, True], "both signed in at once"
        for budget in (first, second):
            assert APART_S - 2 < await budget.wait_s() <= APART_S
        assert await IdentifyBudget(two, shards=2).wait_s() == 0, "discord.py keeps one process's apart"
        small = [IdentifyBudget(each, limit=1, processes=2) for each in (one, two)]
        assert all([await budget.wait_s() > 3000 for budget in small])


def test_strop_up_starts_so_many_processes_and_one_as_before(tmp_path: Path) -> None:
    file = tmp_path / "strop.toml"

    def bots(text: str) -> list[tuple[str, tuple[str, ...]]]:
        file.write_text(text)
        config = load_config(file, {"STROP_HOME": str(tmp_path)})
        return [(each.name, each.argv[5:]) for each in children(config, file, {}) if "bot" in each.argv]

    assert bots("") == [("bot", ())]
    assert bots("[discord]\nshards = 5\nprocesses = 3") == [
        ("bot", ()),
        ("bot-1", ("--process", "1")),
        ("bot-2", ("--process", "2")),
    ]
