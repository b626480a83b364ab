"""What a run starts from: the served base, the champion of that time, and the base's own replies."""

from __future__ import annotations

from dataclasses import dataclass

import sqlite_utils

from bot.serving.client import ModelClient
from bot.serving.protocol import BaseDescription
from storage.config import Config
from storage.db.database import Database
from storage.learning import adapters, bases
from storage.sentences import Sentence
from trainer.data import general_replies
from trainer.data.general_replies import Replay
from trainer.model_server import require_served_base, retry_while_unavailable
from trainer.run.heartbeat import Heartbeat

SERVER_PATIENCE_S = 600.0


@dataclass(frozen=True)
class RunContext:
    """What a run starts from: the served base and the champion at that time."""

    base: BaseDescription
    champion_id: str | None


async def find(client: ModelClient, database: Database, config: Config, scope: str) -> RunContext:
    """Wait for the served base, and return it with the scope's champion.

    Raises as `require_served_base`.
    """
    base = await retry_while_unavailable(lambda: require_served_base(client, config), SERVER_PATIENCE_S)

    def begin(db: sqlite_utils.Database) -> str | None:
        bases.remember(db, base.hash, base.identity, base.precision)
        return adapters.ensure_champion_row(db, scope, base.hash)

    return RunContext(base, await database.awrite(begin))


async def replay(client: ModelClient, config: Config, context: RunContext, heartbeat: Heartbeat) -> Replay:
    """Return the base's own replies to general prompts; it is asked once for each base."""
    return await general_replies.load(
        client,
        config.models,
        base_id=context.base.id,
        base_hash=context.base.hash,
        on_reply=lambda done, total: heartbeat.show(
            0.5 + 0.5 * done / total,
            Sentence("sampling replies from the base (once for each base)"),
        ),
    )
