"""The connection to Discord.

It knows no feature. `bot.app` builds them, and each plugs in its commands, buttons and listeners, see
`bot.features`; a button finds what it needs by type, with `interaction.client.feature(...)`.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import discord
import structlog
import yarl
from discord import app_commands

from bot.delivery.targets import translate_errors
from bot.errors import DeliveryError, IdentifyBudgetError
from bot.features import FeatureRegistry
from bot.gateway.event_guard import GatewayGuard
from bot.gateway.sign_in import IdentifyBudget
from bot.operators import operator_ids
from bot.services import Services
from storage.config import Config

_RECONNECT_S = 5.0

DISCORD = "https://discord.com"

_log = structlog.get_logger(__name__)


def intents_for(config: Config) -> discord.Intents:
    """Return the smallest set of intents: message content only to answer where nobody mentions the bot."""
    return discord.Intents(
        guilds=True,
        guild_messages=True,
        dm_messages=True,
        guild_reactions=True,
        dm_reactions=True,
        message_content=config.discord.message_content or bool(config.discord.channels),
    )


class StropClient(FeatureRegistry, discord.Client):
    """One connection to Discord, or to the playground."""

    tree: app_commands.CommandTree[StropClient]

    def __init__(self, services: Services, **options: Any) -> None:
        super().__init__(
            intents=intents_for(services.config),
            allowed_mentions=discord.AllowedMentions.none(),
            max_messages=None,
            proxy=None if services.playground else services.config.network.proxy_for(DISCORD),
            **options,
        )
        self.services = services
        self.guard = GatewayGuard()
        self.guard.install(self)
        self.lasting_items: list[type[discord.ui.DynamicItem[Any]]] = []
        discord_config = services.config.discord
        self._budget = IdentifyBudget(
            services.database, shards=discord_config.shards, processes=discord_config.processes
        )
        self._latest: discord.AppInfo | None = None

    # ------------------------------------------------------------------ what features ask for

    def add_dynamic_items(self, *items: type[discord.ui.DynamicItem[Any]]) -> None:
        """Let buttons and menus answer after a restart as well: all they need is in their custom ids."""
        super().add_dynamic_items(*items)
        self.lasting_items += items

    def is_operator(self, user_id: int) -> bool:
        """Whether this member may do what concerns everybody."""
        return user_id in self.operators()

    def operators(self) -> frozenset[int]:
        """Return who may do what concerns everybody, as Discord said last where strop.toml names nobody."""
        return operator_ids(self.services.config.discord.operators, self._latest or self.application)

    async def read_application(self) -> None:
        """Ask Discord anew who owns the application: members join and leave a team."""
        try:
            self._latest = await translate_errors(self.application_info())
        except DeliveryError as error:
            _log.warning("application.not_read", error=type(error.__cause__ or error).__name__)

    async def tell(self, user_id: int, text: str) -> None:
        """Write to one person in private, if they let us."""
        try:
            direct = await translate_errors(self.create_dm(discord.Object(user_id)))
            await translate_errors(direct.send(text))
        except DeliveryError as error:
            _log.info("message.not_sent", user_id=user_id, error=type(error).__name__)

    # ------------------------------------------------------------------ the connection

    async def setup_hook(self) -> None:
        """Prepare what doesn't need the gateway."""
        await self.run_setup_jobs()

    async def connect(self, *, reconnect: bool = True) -> None:
        """Stay connected, within the hourly budget of sign-ins."""
        while not self.is_closed():
            if not self.services.playground:
                await self._budget.wait()
            try:
                await super().connect(reconnect=reconnect)
                return
            except IdentifyBudgetError as error:
                _log.warning("gateway.identify_refused", reason=str(error))
            except AttributeError:
                # discord.py 2.7.1 reads `self.ws.sequence` also when the very first connection failed.
                if self.is_closed() or getattr(self, "ws", None) is not None:
                    raise
                _log.warning("gateway.first_connection_failed", retry_s=_RECONNECT_S)
                await asyncio.sleep(_RECONNECT_S)

    async def before_identify_hook(self, shard_id: int | None, *, initial: bool = False) -> None:
        """Count every sign-in before it is sent."""
        await super().before_identify_hook(shard_id, initial=initial)
        if not self.services.playground:
            await self._budget.spend()

    async def on_ready(self) -> None:
        """A new session: nothing that happened before it will be sent again."""
        _log.info("gateway.ready", guilds=len(self.guilds), user_id=self.user.id if self.user else None)
        self.start_background_jobs()
        self.start_session_jobs()

    async def shutdown(self) -> None:
        """Let replies in flight finish or say that they were stopped, then disconnect."""
        await self.stop_jobs()
        await self.close()

    # ------------------------------------------------------------------ events

    def dispatch(self, event: str, /, *args: Any, **kwargs: Any) -> None:
        """Bring an event to its listeners, each in a task of its own, as discord.py does for one method."""
        super().dispatch(event, *args, **kwargs)
        for handler in self.listeners(event):
            self._schedule_event(handler, f"on_{event}", *args, **kwargs)

    async def on_error(self, event_method: str, /, *args: Any, **_: Any) -> None:
        """Log what a handler didn't expect, and tell whoever spoke to the bot; the next event is as usual."""
        error_id = secrets.token_hex(4)
        _log.exception("event.failed", handler=event_method, error_id=error_id)
        if (apology := self.apology_for(event_method)) is not None:
            await apology(error_id, *args)


class ShardedStropClient(StropClient, discord.AutoShardedClient):
    """The same over several gateway connections."""

    async def launch_shard(self, gateway: yarl.URL, shard_id: int, *, initial: bool = False) -> None:
        """Open one connection within the budget of sign-ins; discord.py tries again every 5 s, for ever."""
        if not self.services.playground:
            await self._budget.wait()
        await super().launch_shard(gateway, shard_id, initial=initial)

    async def before_identify_hook(self, shard_id: int | None, *, initial: bool = False) -> None:
        """Count every sign-in; what has to wait is to discord.py a connection that timed out."""
        try:
            await super().before_identify_hook(shard_id, initial=initial)
        except IdentifyBudgetError as error:
            _log.warning("gateway.identify_refused", shard_id=shard_id, reason=str(error))
            raise TimeoutError(str(error)) from error

    async def on_shard_ready(self, shard_id: int) -> None:
        """A shard's new session, which no ``on_ready`` announces unless all shards have one."""
        if self.is_ready():
            _log.info("gateway.shard_ready", shard_id=shard_id)
            self.start_session_jobs()
