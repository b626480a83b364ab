"""Whether Discord lets the bot in: its token, its intents, its permissions, its channels."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from bot.diagnostics.checks import Check, note, ok, problem
from storage.config import Config

DISCORD_API = "https://discord.com/api/v10"
DISCORD_TIMEOUT_S = 5.0
# Bits of Discord's application flags: https://discord.com/developers/docs/resources/application
MESSAGE_CONTENT_FLAGS = (1 << 18) | (1 << 19)
# https://discord.com/developers/docs/topics/permissions
PERMISSIONS = {
    "View Channels": 1 << 10,
    "Send Messages": 1 << 11,
    "Read Message History": 1 << 16,
    "Add Reactions": 1 << 6,
    "Embed Links": 1 << 14,
    "Send Messages in Threads": 1 << 38,
}
ADMINISTRATOR = 1 << 3


def examine_discord(config: Config, api: str = DISCORD_API) -> Iterator[Check]:
    """Yield what Discord says of the token, the intents and the permissions, if a token is set."""
    token = config.discord.token
    if token is None:
        yield note("token", "none set: `strop up` runs the playground; set DISCORD_TOKEN for Discord")
        return
    try:
        answers = asyncio.run(_ask_discord(api, token.get_secret_value(), config))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, _NotDiscordError) as error:
        way = "through network.proxy" if config.network.proxy_for(api) else "from here"
        reason = str(error) if isinstance(error, _NotDiscordError) else type(error).__name__
        yield note("token", f"not checked: Discord can't be reached {way} ({reason})")
        return
    yield from _judge_discord(config, answers)


class _NotDiscordError(Exception):
    """Something on the way answered in Discord's place, such as a proxy; that says nothing about a token."""


@dataclass(frozen=True)
class _Answers:
    user: dict[str, Any] | None
    application: dict[str, Any]
    guilds: list[dict[str, Any]]
    missing_channels: list[int]


async def _ask_discord(api: str, token: str, config: Config) -> _Answers:
    proxy = config.network.proxy_for(api)
    timeout = aiohttp.ClientTimeout(total=DISCORD_TIMEOUT_S)
    headers = {"Authorization": f"Bot {token}", "User-Agent": "DiscordBot (strop, doctor)"}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as http:

        async def get(path: str) -> tuple[int, Any]:
            async with http.get(f"{api}{path}", proxy=proxy) as response:
                if response.status >= 500 or response.status in (407, 429):
                    response.raise_for_status()
                if response.content_type != "application/json":
                    raise _NotDiscordError(f"an answer of status {response.status} that is not Discord's")
                return response.status, await response.json()

        status, user = await get("/users/@me")
        if status == 401:
            return _Answers(None, {}, [], [])
        if status != 200:
            raise _NotDiscordError(f"status {status}")
        _, application = await get("/applications/@me")
        _, guilds = await get("/users/@me/guilds")
        missing = [
            channel for channel in config.discord.channels if (await get(f"/channels/{channel}"))[0] >= 400
        ]
    return _Answers(dict(user), dict(application), list(guilds), missing)


def _judge_discord(config: Config, answers: _Answers) -> Iterator[Check]:
    if answers.user is None:
        yield problem(
            "token",
            "Discord refuses it",
            "check that it is all of this application's bot token (discord.com/developers → Bot); "
            "if that is lost, reset it there, then set DISCORD_TOKEN",
        )
        return
    yield ok("token", f"Discord knows it as {answers.user.get('username', 'a bot')}")
    if not config.discord.channels and not config.discord.message_content:
        yield ok("intents", "no privileged intent is needed: the bot answers mentions, replies and DMs")
    elif int(answers.application.get("flags") or 0) & MESSAGE_CONTENT_FLAGS:
        yield ok("intents", "message content is switched on, as the configuration needs")
    else:
        yield problem(
            "intents",
            "message content is off, but discord.channels or discord.message_content needs it",
            "switch on Message Content at discord.com/developers → Bot, or drop those settings",
        )
    yield _judge_permissions(answers.guilds)
    if answers.missing_channels:
        listed = ", ".join(map(str, answers.missing_channels))
        yield problem(
            "channels",
            f"the bot can't see {listed}",
            "check the ids in discord.channels and give the bot View Channel there",
        )


def _judge_permissions(guilds: list[dict[str, Any]]) -> Check:
    if not guilds:
        return problem("permissions", "the bot is in no server", "invite it with the link in deploy/GUIDE.md")
    for guild in guilds:
        granted = int(guild.get("permissions") or 0)
        lacking = [name for name, bit in PERMISSIONS.items() if not granted & bit]
        if lacking and not granted & ADMINISTRATOR:
            where = guild.get("name", guild.get("id"))
            return problem(
                "permissions",
                f"missing in {where}: {', '.join(lacking)}",
                "give the bot's role these permissions",
            )
    return ok("permissions", f"enough in {len(guilds)} server{'s' if len(guilds) != 1 else ''}")
