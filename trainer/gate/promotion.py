"""The end of a run: one transaction that makes the challenger champion, or one that refuses it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import sqlite_utils
import structlog

from bot.serving.client import ModelClient
from bot.serving.errors import ServingError, UnknownModelError
from storage.config import Config
from storage.db import sql
from storage.db.database import Database
from storage.errors import AdapterNotPromotableError, StaleChampionError
from storage.learning import adapters, runs, trials
from storage.learning.adapters import Adapter
from storage.learning.runs import Run
from storage.sentences import Sentence
from trainer.model_server import ensure_listed

T = TypeVar("T")

log = structlog.get_logger()

ACTOR = "trainer"
STALE = Sentence("the champion changed while it was judged; the next run judges against the new one")


def challenger_number_of(db: sqlite_utils.Database, run: Run, champion_id: str | None) -> int:
    """Return the number of a run's challenger: 1 for the first since its champion was promoted.

    Going back to a champion doesn't start the count anew.
    """
    earlier = sql.value(
        db,
        """SELECT count(DISTINCT evaluations.run_id) FROM evaluations
           JOIN runs ON runs.id = evaluations.run_id
           WHERE runs.scope = ?1 AND evaluations.champion_id IS ?4
             AND runs.rowid < (SELECT rowid FROM runs WHERE id = ?2) AND evaluations.created_ms > coalesce(
                 (SELECT max(created_ms) FROM promotions WHERE scope = ?1 AND created_ms <= ?3
                  AND kind = 'promote' AND adapter_id IS ?4), 0)""",
        (run.scope, run.id, run.created_ms, champion_id),
    )
    return 1 + int(earlier)


async def swap(
    database: Database,
    client: ModelClient,
    config: Config,
    *,
    run: Run,
    adapter: Adapter,
    champion_id: str | None,
    measured: Sentence,
    metrics: Mapping[str, Any],
) -> Run:
    """Promote a listed challenger and end its run in one transaction; a changed champion refuses it instead.

    `measured` completes the sentence "adapter X replaced Y: …". From then on the old champion keeps the
    holdback's share, so that fresh ratings of both can be compared.
    """
    await ensure_listed(client, config, adapter.id)
    sentence = Sentence(
        "adapter {adapter} replaced {rival}: {measured}",
        adapter=adapter.id,
        rival=Sentence("the base model") if champion_id is None else champion_id,
        measured=measured,
    )

    def promote(db: sqlite_utils.Database) -> Run:
        tried = trials.find_for_run(db, run.id, "canary")
        if tried is not None:
            trials.end(db, tried.id, "better", measured)
        adapters.promote(
            db,
            scope=run.scope,
            base_hash=adapter.base_hash,
            adapter_id=adapter.id,
            actor=ACTOR,
            reason=measured,
            run_id=run.id,
            expected_champion=champion_id,
        )
        if config.gate.holdback_share:
            trials.begin(
                db,
                "holdback",
                scope=run.scope,
                base_hash=adapter.base_hash,
                run_id=run.id,
                newcomer_id=adapter.id,
                incumbent_id=champion_id,
                share=config.gate.holdback_share,
                days=config.gate.holdback_days,
            )
        return runs.finish(
            db,
            run.id,
            outcome="promoted",
            message=sentence,
            metrics=metrics,
            adapter_id=adapter.id,
            champion_id=champion_id,
        )

    try:
        finished = await database.awrite(promote)
    except (StaleChampionError, AdapterNotPromotableError) as error:
        reason = STALE if isinstance(error, StaleChampionError) else Sentence.of(error)
        return await refuse(database, client, run=run, adapter=adapter, reason=reason, metrics=metrics)
    if not await client.has_adapter(adapter.id):
        # The bot loads a champion that the server lost from the registry; this is only worth a line.
        log.warning("the new champion is not listed", adapter_id=adapter.id, run_id=run.id)
    await retire_old_adapters(database, client)
    return finished


async def refuse(
    database: Database,
    client: ModelClient,
    *,
    run: Run,
    adapter: Adapter,
    reason: Sentence,
    metrics: Mapping[str, Any],
    keep: bool = False,
    canary_ends: trials.Outcome = "superseded",
) -> Run:
    """End a run without a swap; the challenger is rejected unless an operator may yet promote it.

    `canary_ends` is how its canary ended, if it has one.
    """

    def work(db: sqlite_utils.Database) -> Run:
        tried = trials.find_for_run(db, run.id, "canary")
        if tried is not None:
            trials.end(db, tried.id, canary_ends, reason)
        current = adapters.get(db, adapter.id)
        if not keep and current is not None and current.state == "candidate":
            adapters.set_state(db, adapter.id, "rejected")
        return runs.finish(
            db,
            run.id,
            outcome="refused",
            message=Sentence(
                "{adapter} was not promoted, because {reason}", adapter=adapter.id, reason=reason
            ),
            metrics=metrics,
            adapter_id=adapter.id,
        )

    finished = await database.awrite(work)
    await retire_old_adapters(database, client)
    return finished


async def retire_old_adapters(database: Database, client: ModelClient) -> list[str]:
    """Unload from the server what is neither champion, nor the one before it, nor being judged.

    Returns what was unloaded. A server that is away has nothing to unload.
    """
    unloaded = []
    try:
        for name in await client.models():
            if await database.aread(lambda db, name=name: _is_retired(db, name)):  # type: ignore[misc]
                await _tolerating_absence(lambda name=name: client.unload_adapter(name))  # type: ignore[misc]
                unloaded.append(name)
    except ServingError as error:
        log.warning("old adapters could not be unloaded", error=str(error))
    return unloaded


def ask(measured: Sentence) -> Sentence:
    """Say that only an operator's word is missing."""
    return Sentence(
        'gate.policy is "ask": {measured}; put it in service with /promote or `strop promote`',
        measured=measured,
    )


def _is_retired(db: sqlite_utils.Database, name: str) -> bool:
    """Whether an adapter of ours is loaded for nothing."""
    adapter = adapters.get(db, name)
    if adapter is None:
        return False
    if adapters.champion(db, adapter.scope, adapter.base_hash) == name:
        return False
    if any(trial.exception_id == name for trial in trials.active(db, adapter.scope, adapter.base_hash)):
        return False
    latest = adapters.recent_promotions(db, adapter.scope, adapter.base_hash, 1)
    if adapter.state != "tainted" and latest and latest[0].previous_id == name:
        return False
    run = runs.get(db, adapter.run_id) if adapter.run_id else None
    judged = run is not None and (run.state == "running" or run.outcome == "votes")
    return not (adapter.state == "candidate" and judged)


async def _tolerating_absence(call: Callable[[], Awaitable[None]]) -> None:
    try:
        await call()
    except UnknownModelError:
        return
