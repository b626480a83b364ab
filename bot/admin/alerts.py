"""What operators are told without asking: errors, failed runs, rollbacks, low disk, dead processes. Once.

It goes to one channel (`discord.operators_channel`) and to a webhook (`alerts.webhook`), as ids, numbers and
the sentence that a run ended with, never anybody's words. What was told where is kept in the database, so
that a restart repeats nothing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog
from discord.ext import tasks

from bot.admin.alert_destinations import Destination
from bot.admin.error_digest import FaultLog
from bot.client import StropClient
from bot.gateway.state import gateway_state
from bot.language.names import adapter_name
from bot.language.sentences import translate
from bot.language.texts import mark, number, speaking, tr
from bot.services import Services
from bot.serving.errors import ServingError
from storage import sentences
from storage.db import key_values, sql
from storage.db.clock import DAY_MS, now_ms
from storage.db.database import Connection
from storage.process.locks import trainer_is_running

LOOK_S = 15.0
# A process counts as dead when so many looks in a row found it so: a restart takes less.
DEAD_AFTER_LOOKS = 3
LOW_DISK_BYTES = 2 * 1024**3
# Enough room again only above this much more, so that a disk at the edge is not told about for ever.
ROOM_AGAIN = 1.25
_MOST_LINES = 12
_DOWN = {
    "model server": mark("⚠️ The model server is not running."),
    "trainer": mark("⚠️ The trainer is not running."),
    "gateway": mark("⚠️ The connection to Discord is lost."),
}
_BACK = {
    "model server": mark("✅ The model server is back."),
    "trainer": mark("✅ The trainer is back."),
    "gateway": mark("✅ The connection to Discord is back."),
}
# Who goes back without being asked; its reasons are made of numbers and ids.
_TRAINER = "trainer"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReportedState:
    """What the operators know already."""

    failed_runs: tuple[str, ...] = ()
    promotion_id: int = 0
    canary_ended_ms: int = 0
    disk_low: bool = False
    down: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look found. `down` names processes that are dead, `failed` maps run ids to sentences.

    `changes` are champions that gave way, by id; `canaries` those that were liked less, by when they ended.
    """

    failed: dict[str, str]
    changes: tuple[tuple[int, str], ...]
    canaries: tuple[tuple[int, str], ...]
    free_bytes: int
    down: tuple[str, ...]


@dataclass
class _Streak:
    """How often in a row each process was found dead."""

    looks: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, *, alive: bool) -> bool:
        """Count one look; return whether the process counts as dead."""
        self.looks[name] = 0 if alive else self.looks.get(name, 0) + 1
        return self.looks[name] >= DEAD_AFTER_LOOKS


def news(reported: ReportedState, observed: Observation) -> tuple[list[str], ReportedState]:
    """Return what to tell now, and what the operators know afterwards."""
    lines = [f"⚠️ {text}" for run_id, text in observed.failed.items() if run_id not in reported.failed_runs]
    lines += [f"↩️ {text}" for promotion_id, text in observed.changes if promotion_id > reported.promotion_id]
    lines += [f"↩️ {text}" for ended_ms, text in observed.canaries if ended_ms > reported.canary_ended_ms]
    low = observed.free_bytes < LOW_DISK_BYTES * (ROOM_AGAIN if reported.disk_low else 1)
    if low != reported.disk_low:
        free = f"{number(observed.free_bytes / 1024**3, '.1f')} GiB"
        lines.append(
            tr(
                "⚠️ The disk is nearly full: {free} left in the data folder. Free some, or replies and "
                "ratings are lost when it is full.",
                free=free,
            )
            if low
            else tr("✅ The disk has room again: {free} left.", free=free)
        )
    lines += [tr(_DOWN[name]) for name in observed.down if name not in reported.down]
    lines += [tr(_BACK[name]) for name in reported.down if name not in observed.down]
    newest = max(reported.promotion_id, _latest(observed.changes))
    ended_ms = max(reported.canary_ended_ms, _latest(observed.canaries))
    return lines, ReportedState(tuple(observed.failed), newest, ended_ms, low, observed.down)


class OperationsWatch:
    """Looks every few seconds, and tells one destination what is new there."""

    def __init__(self, services: Services, client: StropClient, destination: Destination | None) -> None:
        self._services = services
        self._client = client
        self._destination = destination
        self._streak = _Streak()
        self._faults = FaultLog()
        self._loop = tasks.loop(seconds=LOOK_S)(self._round)

    def start(self) -> None:
        """Begin to watch, if there is somebody to tell."""
        if self._destination is not None and not self._loop.is_running():
            logging.getLogger().addHandler(self._faults)
            self._loop.start()

    async def stop(self) -> None:
        """Stop watching."""
        logging.getLogger().removeHandler(self._faults)
        self._loop.cancel()

    async def _round(self) -> None:
        destination = self._destination
        try:
            if destination is not None and not destination.silent:
                with speaking(await destination.language()):
                    await self._look(destination)
        except Exception:  # The loop's boundary: one bad round must not end the watch.
            _log.exception("operations.round_failed")

    async def _look(self, destination: Destination) -> None:
        await self._tell_faults(destination)
        if not self._services.shards.has_first:
            return  # what all processes see is told by one of them
        down = await self._down()
        free = (await asyncio.to_thread(shutil.disk_usage, self._services.database.path.parent)).free
        reported, failed, changes = await self._services.database.aread(
            lambda db: _stored(db, destination.fact)
        )
        canaries = await self._services.database.aread(_failed_canaries)
        observed = Observation(failed, changes, canaries, free, down)
        if reported is None:
            # The first look ever: what happened before is no news, what is wrong now is.
            reported = ReportedState(tuple(failed), _latest(changes), _latest(canaries))
        lines, known = news(reported, observed)
        if lines and not await _post(destination, lines):
            return
        text = json.dumps(asdict(known))
        await self._services.database.awrite(lambda db: _keep(db, destination.fact, text))

    async def _tell_faults(self, destination: Destination) -> None:
        """Tell of what went wrong; what can't be told now is told later."""
        lines = self._faults.lines()
        if lines and await _post(destination, [f"🐞 {line}" for line in lines]):
            self._faults.forget()

    async def _down(self) -> tuple[str, ...]:
        try:
            serving = (await self._services.model.health()).status != "failed"
        except ServingError:
            serving = False
        training = await asyncio.to_thread(trainer_is_running, self._services.config)
        found = {
            "model server": serving,
            "trainer": training,
            "gateway": gateway_state(self._client).connected,
        }
        dead = {name: self._streak.count(name, alive=alive) for name, alive in found.items()}
        return tuple(name for name in dead if dead[name])


async def _post(destination: Destination, lines: Sequence[str]) -> bool:
    """Post the lines, not too many of them; False where they have to wait."""
    more = [tr("… and {count} more", count=len(lines) - _MOST_LINES)] if len(lines) > _MOST_LINES else []
    return await destination.post([*lines[:_MOST_LINES], *more])


def _stored(
    db: Connection, fact: str
) -> tuple[ReportedState | None, dict[str, str], tuple[tuple[int, str], ...]]:
    """Return what was told, the last day's failed runs, and the latest rollbacks."""
    kept = key_values.get(db, fact)
    failed = sql.many(
        db,
        """SELECT id, scope, message, message_sentence FROM runs WHERE state = 'failed' AND finished_ms > ?
           ORDER BY finished_ms, id""",
        (now_ms() - DAY_MS,),
    )
    changes = sql.many(
        db,
        """SELECT id, scope, adapter_id, previous_id, kind, actor, reason, reason_sentence
           FROM promotions
           WHERE kind IN ('rollback', 'erase') ORDER BY id DESC LIMIT 20""",
    )
    return (
        None if kept is None else _reported(json.loads(kept)),
        {row["id"]: _failure_text(row)[:300] for row in failed},
        tuple((row["id"], _change_text(row)) for row in reversed(changes)),
    )


def _latest(news: Sequence[tuple[int, str]]) -> int:
    return max((newest for newest, _ in news), default=0)


def _failed_canaries(db: Connection) -> tuple[tuple[int, str], ...]:
    """Return the latest canaries that were liked less, by when they ended."""
    rows = sql.many(
        db,
        """SELECT ended_ms, scope, newcomer_id, reason, reason_sentence FROM trials
           WHERE kind = 'canary' AND outcome = 'worse' ORDER BY ended_ms DESC LIMIT 20""",
    )
    return tuple((row["ended_ms"], _refused_text(row)[:300]) for row in reversed(rows))


def _reported(value: dict[str, Any]) -> ReportedState:
    return ReportedState(
        **{**value, "failed_runs": tuple(value["failed_runs"]), "down": tuple(value["down"])}
    )


def _refused_text(row: dict[str, Any]) -> str:
    return tr(
        "{scope}: {who} is refused: {reason}.",
        scope=row["scope"],
        who=adapter_name(row["newcomer_id"]),
        reason=_reason(row),
    )


def _reason(row: dict[str, Any]) -> str:
    return translate(sentences.load(row["reason"], row["reason_sentence"]))


def _failure_text(row: dict[str, Any]) -> str:
    message = translate(sentences.load(row["message"], row["message_sentence"]))
    return tr("Run `{run}` of {scope} failed: {message}", run=row["id"], scope=row["scope"], message=message)


def _change_text(row: dict[str, Any]) -> str:
    before, after = adapter_name(row["previous_id"]), adapter_name(row["adapter_id"])
    erased = mark("a member erased words that it was trained on")
    why = tr("rolled back") if row["kind"] == "rollback" else tr(erased)
    if row["kind"] == "rollback" and row["actor"] == _TRAINER:
        why = tr("rolled back, because {reason}", reason=_reason(row))
    return tr(
        "{scope}: {before} no longer answers, {after} does ({why}).",
        scope=row["scope"],
        before=before,
        after=after,
        why=why,
    )


def _keep(db: Connection, fact: str, text: str) -> None:
    if key_values.get(db, fact) != text:
        key_values.put(db, fact, text)
