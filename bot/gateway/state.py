"""How the connection to Discord is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import discord


@dataclass(frozen=True, slots=True)
class GatewayState:
    """Discord's side: each shard with whether it is connected, and its round trip where that is known."""

    shards: Mapping[int, tuple[bool, float | None]]
    guilds: int = 0
    malformed: Mapping[str, int] = field(default_factory=dict)

    @property
    def connected(self) -> bool:
        """Whether every shard is."""
        return bool(self.shards) and all(up for up, _ in self.shards.values())


def gateway_state(client: discord.Client) -> GatewayState:
    """Return the state of each shard; without shards there is one, number 0."""
    if isinstance(client, discord.AutoShardedClient):
        shards = {
            number: (client.is_ready() and not shard.is_closed(), _known(shard.latency))
            for number, shard in client.shards.items()
        }
    else:
        socket = getattr(client, "ws", None)
        up = client.is_ready() and socket is not None and bool(getattr(socket, "open", False))
        shards = {0: (up, _known(client.latency))}
    guard = getattr(client, "guard", None)
    return GatewayState(shards, len(client.guilds), dict(guard.malformed) if guard else {})


def _known(latency_s: float) -> float | None:
    """Return a round trip; discord.py says NaN or infinity where there was none."""
    return latency_s if math.isfinite(latency_s) else None
