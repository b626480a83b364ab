"""Who answers, changed by hand: the one way, for the command line, the slash commands and a card's buttons.

One rule holds for all of them. The adapter's files are verified, then it is loaded where the model server is
up, then one transaction changes the champion: what is damaged, or what the server refuses, never answers.
Without the server it goes on all the same: a reply loads its adapter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from bot.serving.client import ModelClient
from bot.serving.errors import ServerLoadingError, ServerUnavailableError
from bot.serving.model import adapter_files
from storage.config import Config
from storage.db.database import Connection, Database
from storage.learning import adapters
from storage.learning.adapters import AnyChampion

Check = Callable[[Connection], None]
"""Asked once more inside the transaction; raises RuleError where the change is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Change:
    """Who answered before, and who answers now; None is the base model."""

    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """Whose champion it is: a scope's, on one base."""

    scope: str
    base_hash: str


class ChampionChanges:
    """Promotes, rolls back and rejects.

    Every method raises RuleError or UnknownRowError where the registry doesn't allow it, and
    AdapterRefusedError where the files or the model server don't. Then nothing is changed.
    """

    def __init__(self, config: Config, database: Database, model: ModelClient) -> None:
        self._config = config
        self._database = database
        self._model = model

    async def promote(
        self,
        place: Place,
        adapter_id: str | None,
        *,
        actor: str,
        reason: str,
        run_id: str | None = None,
        expected_champion: str | AnyChampion | None = AnyChampion.ANY,
        check: Check | None = None,
    ) -> Change:
        """Make an adapter (None: the base model) champion, whatever the gate said.

        With `expected_champion` only if that one still is champion.
        """
        if adapter_id is not None:
            await self._database.aread(
                lambda db: adapters.expect_promotable(db, adapter_id, place.scope, place.base_hash)
            )
        await self._prepare(adapter_id)

        def work(db: Connection) -> str | None:
            if check is not None:
                check(db)
            return adapters.promote_by_hand(
                db,
                scope=place.scope,
                base_hash=place.base_hash,
                adapter_id=adapter_id,
                actor=actor,
                reason=reason,
                run_id=run_id,
                expected_champion=expected_champion,
            )

        return Change(await self._database.awrite(work), adapter_id)

    async def roll_back(
        self,
        place: Place,
        *,
        actor: str,
        reason: str,
        to: str | AnyChampion | None = AnyChampion.ANY,
        check: Check | None = None,
    ) -> Change:
        """Go back to the champion before this one, or to an earlier one."""
        earlier = await self._database.aread(
            lambda db: adapters.earlier_champions(db, place.scope, place.base_hash)
        )
        # What is verified is what the transaction goes back to, whoever changes the champion meanwhile.
        target = earlier[-1] if isinstance(to, AnyChampion) and earlier else to
        if earlier and target in earlier and not isinstance(target, AnyChampion):
            await self._prepare(target)

        def work(db: Connection) -> Change:
            if check is not None:
                check(db)
            before = adapters.champion(db, place.scope, place.base_hash)
            after = adapters.rollback(
                db, scope=place.scope, base_hash=place.base_hash, actor=actor, reason=reason, to=target
            )
            return Change(before, after)

        return await self._database.awrite(work)

    async def reject(self, adapter_id: str, *, actor: str, reason: str) -> None:
        """Decide that a candidate stays out of service."""
        await self._database.awrite(lambda db: adapters.reject(db, adapter_id, actor=actor, reason=reason))

    async def _prepare(self, adapter_id: str | None) -> None:
        """Verify an adapter's files, and load it where the server is up."""
        if adapter_id is None:
            return
        adapter = await self._database.aread(lambda db: adapters.expect(db, adapter_id))
        folder = self._config.adapters / adapter.id
        await asyncio.to_thread(
            adapter_files.verify, folder, adapters_dir=self._config.adapters, base_hash=adapter.base_hash
        )
        with contextlib.suppress(ServerUnavailableError, ServerLoadingError):
            await self._model.load_adapter(adapter.id, folder.absolute())
