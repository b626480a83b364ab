"""What the parts of the bot share: configuration, storage, the model server, and whose words are whose."""

from __future__ import annotations

import dataclasses
import hmac
import secrets
from dataclasses import dataclass, field

import discord

from bot.serving.client import ModelClient
from bot.serving.errors import ServerLoadingError, ServingError
from bot.serving.model.identity import BaseIdentity
from bot.serving.protocol import BaseDescription
from storage.admin import settings
from storage.admin.settings import InForce
from storage.chat import conversations, members
from storage.chat.shards import Shards
from storage.config import Config
from storage.db import key_values
from storage.db.database import Connection, Database
from storage.errors import UnknownRowError
from storage.learning import adapters, bases

SIMULATED_SUFFIX = "·sim"
# How the hash of a base begins whose server isn't ours, and knows none of our additions to the protocol.
EXTERNAL = "external:"


@dataclass(frozen=True, slots=True)
class Person:
    """A member as storage knows them."""

    user_id: int
    name: str
    source: str
    simulated: bool = False

    def ensure(self, db: Connection) -> None:
        """Make sure that the member has a row; for use inside a write."""
        members.ensure(db, self.user_id, self.name, self.source, simulated=self.simulated)


@dataclass
class Services:
    """One process's resources, opened by ``__main__`` and passed to whatever needs them."""

    config: Config
    database: Database
    model: ModelClient
    playground: bool = False
    process: int = 0
    pseudonym_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _base_hash: str | None = field(default=None, repr=False)

    @property
    def shards(self) -> Shards:
        """The part of the servers that this process serves."""
        return Shards.of_process(self.config.discord, self.process)

    @property
    def permission_reference(self) -> str:
        """The operator's record of Discord's permission to train; empty for what needs none."""
        return "" if self.playground else self.config.discord.training_permission_reference

    def person(self, user: discord.abc.User) -> Person:
        """Return the member behind a Discord user; only the playground has simulated ones."""
        name = str(getattr(user, "display_name", user.name))
        if not self.playground:
            return Person(user.id, name, "discord")
        simulated = user.name.endswith(SIMULATED_SUFFIX)
        return Person(user.id, name, "rehearsal" if simulated else "playground", simulated)

    def pseudonym(self, user_id: int) -> str:
        """Return the name by which the model server knows a member: it tells members apart, and no more.

        The key is this process's own, so that nobody can find the member or link two starts of the bot.
        """
        return hmac.digest(self.pseudonym_key, str(user_id).encode(), "sha256").hex()[:24]

    def scope(self, guild_id: int | None) -> str:
        """Return whose adapter answers: the guild's own, or the deployment's."""
        return conversations.scope_of(self.config.trainer.scope, guild_id)

    async def settings(self, guild_id: int | None, home_channel_id: int | None) -> InForce:
        """Return what is set for a channel today; read anew each time, so that a change holds at once."""
        return await self.database.aread(
            lambda db: settings.resolve(db, self.config, guild_id, home_channel_id)
        )

    async def base_and_adapters(self) -> tuple[BaseDescription, frozenset[str]]:
        """Return the base that serves now, and the adapters that are loaded.

        Raises ServerUnavailableError, or ServerLoadingError while there is no model yet.
        """
        health = await self.model.health()
        health.require_ready()
        base, loaded = health.base, health.adapters
        if base is None:
            base, loaded = await self._described_by_models()
        elif not base.hash and base.identity is not None:
            base = await self._with_hash_of(base, base.identity)
        await self._remember(base)
        return base, frozenset(loaded)

    async def _described_by_models(self) -> tuple[BaseDescription, tuple[str, ...]]:
        """Describe a server that says nothing about its base, such as vLLM: the first model is the base."""
        names = await self.model.models()
        if not names:
            raise ServerLoadingError("The model server has no model yet.")
        return BaseDescription(names[0], hash=f"{EXTERNAL}{names[0]}"), tuple(names[1:])

    async def _with_hash_of(self, base: BaseDescription, identity: BaseIdentity) -> BaseDescription:
        """Give a base that a server knows by its identity alone the hash by which its champions are kept."""
        known = await self.database.aread(lambda db: bases.hash_of(db, identity.key))
        return dataclasses.replace(base, hash=known or identity.key)

    async def _remember(self, base: BaseDescription) -> None:
        if self._base_hash != base.hash:
            await self.database.awrite(lambda db: _remember_base(db, base))
            self._base_hash = base.hash

    async def base_hash(self) -> str:
        """Return the hash of the base that serves now or, while the server is away, of the last one.

        Raises ServerUnavailableError or ServerLoadingError before the first base was ever seen.
        """
        try:
            base, _ = await self.base_and_adapters()
            return base.hash
        except ServingError:
            known = await self.database.aread(lambda db: key_values.get(db, key_values.SERVED_BASE))
            if known is None:
                raise
            return str(known)

    async def load_adapter(self, adapter_id: str) -> None:
        """Load a registered adapter into the model server.

        Raises AdapterRefusedError where the server refuses it, UnknownRowError where the registry doesn't
        have it.
        """
        adapter = await self.database.aread(lambda db: adapters.get(db, adapter_id))
        if adapter is None:
            raise UnknownRowError("There is no adapter {adapter}.", adapter=adapter_id)
        await self.model.load_adapter(adapter_id, (self.config.data / adapter.path).absolute())


def _remember_base(db: Connection, base: BaseDescription) -> None:
    """Keep which base was served last, and which base its hash stands for."""
    key_values.put(db, key_values.SERVED_BASE, base.hash)
    bases.remember(db, base.hash, base.identity, base.precision)
