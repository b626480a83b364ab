"""Where the local playground is, which stands in for Discord.

discord.py reaches it with nothing but other base addresses. It is used only with its own dummy token, so that
a real one can't be sent elsewhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path

import discord
import discord.gateway
import yarl

from bot.errors import PlaygroundError

PLAYGROUND_FILE = "playground.json"
PLAYGROUND_VARIABLE = "STROP_PLAYGROUND"


@dataclass(frozen=True, slots=True)
class PlaygroundLink:
    """The addresses of the running playground, as it wrote them."""

    api: str
    gateway: str
    token: str


async def wait_for_playground(run_dir: Path, timeout_s: float = 60.0) -> PlaygroundLink:
    """Return the playground's addresses once they are there; raises PlaygroundError after ``timeout_s``."""
    ends_at = asyncio.get_running_loop().time() + timeout_s
    while True:
        link = await asyncio.to_thread(read_link, run_dir)
        if link is not None:
            return link
        if asyncio.get_running_loop().time() >= ends_at:
            raise PlaygroundError(
                f"The playground did not start within {timeout_s:.0f} s "
                f"(there is no {run_dir / PLAYGROUND_FILE}): start it with `strop playground`, "
                "or everything with `strop up`."
            )
        await asyncio.sleep(0.2)


def read_link(run_dir: Path) -> PlaygroundLink | None:
    """Return the addresses that the running playground wrote, or None."""
    try:
        found = json.loads((run_dir / PLAYGROUND_FILE).read_text("utf-8"))
        return PlaygroundLink(str(found["api"]), str(found["gateway"]), str(found["token"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # Half written, or from another version: the wait goes on, and its end names the file.
        return None


def use_playground(link: PlaygroundLink, configured_token: str | None) -> None:
    """Point discord.py, in this whole process, at the playground.

    Raises PlaygroundError when a token of Discord's is configured, or when an address isn't on this machine.
    """
    if configured_token is not None and configured_token != link.token:
        raise PlaygroundError(
            f"{PLAYGROUND_VARIABLE} is set together with a Discord token: unset one of them. "
            "The playground works only with its own dummy token, so that a real one can't leak."
        )
    for address in (link.api, link.gateway):
        if not _is_loopback(yarl.URL(address).host):
            raise PlaygroundError(
                f"The playground's address {address} isn't on this machine; it is not used."
            )
    discord.http.Route.BASE = link.api.rstrip("/")
    discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(link.gateway)


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
