"""Which of the token's shards a process runs, where several processes share a token and a database.

Discord sends a server's events to one shard, and direct messages to shard 0:
https://discord.com/developers/docs/events/gateway#sharding
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storage.chat import conversations
from storage.config_sections import DiscordConfig
from storage.db.database import Connection


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of one process: `ids` of `count`."""

    count: int = 1
    ids: Sequence[int] = (0,)

    @classmethod
    def of_process(cls, config: DiscordConfig, process: int) -> Shards:
        """Return the shards of a process, numbered from 0: every so many-th of them."""
        return cls(config.shards, range(process, config.shards, config.processes))

    @property
    def has_first(self) -> bool:
        """Whether direct messages come here; what is no server's in particular is done here too, and once."""
        return 0 in self.ids

    def has(self, guild_id: int | None) -> bool:
        """Whether a server's events come here; None: those of direct messages."""
        return self.has_first if guild_id is None else (guild_id >> 22) % self.count in self.ids

    def has_channel(self, db: Connection, channel_id: int) -> bool:
        """Whether the events of a channel in which something was said come here."""
        return len(self.ids) == self.count or self.has(conversations.guild_of(db, channel_id))

    def has_conversation(self, db: Connection, conversation_id: int) -> bool:
        """Whether the events of a conversation's place come here."""
        if len(self.ids) == self.count:
            return True
        conversation = conversations.get(db, conversation_id)
        return self.has(conversation.guild_id if conversation else None)

    def has_scope(self, scope: str) -> bool:
        """Whether the runs of a scope are reported here: a server's own, or what all of them share."""
        kind, _, guild_id = scope.partition(":")
        return self.has(int(guild_id) if kind == "guild" else None)
