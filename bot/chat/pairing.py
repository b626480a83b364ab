"""Two candidates for one question: when, and against whom.

The candidate that would have answered alone meets its predecessor: the adapter, or the base model, that it
took over from; where nothing came before it, another try of itself. What a trial sends to another adapter
meets the champion.
"""

from __future__ import annotations

import random

from bot.chat.draft import Draft, Pair, Plan
from bot.chat.question import Question
from bot.services import Services
from storage.config_sections import RepliesConfig
from storage.feedback import side_by_side
from storage.learning import adapters

# With more replies than this in flight, nobody waits for a second candidate of somebody else.
_QUIET = 4


def wants_two_candidates(config: RepliesConfig, question: Question, in_flight: int) -> bool:
    """Whether this question gets two candidates: where it asks for them, else by lot.

    By lot never in direct messages, beside a picture, or while it is busy. Operators set how often, and
    places that never do; a server's admins can switch it off for themselves.
    """
    if question.compared:
        return True
    if question.guild_id is None or question.pictures or in_flight > _QUIET:
        return False
    if {question.guild_id, question.channel_id} & set(config.compare_not_in):
        return False
    return question.in_force.settings.two_answers and random.random() < config.compare


async def opponent(services: Services, scope: str, usual: Plan) -> str | None:
    """Return the adapter that writes the other candidate; None is the base model."""
    if usual.route.diverted:
        return usual.route.champion
    return await predecessor(services, scope, usual.base.hash, usual.adapter_id)


async def predecessor(services: Services, scope: str, base_hash: str, champion: str | None) -> str | None:
    """Return the adapter that the champion took over from; None is the base model."""
    if champion is None:
        return None
    recent = await services.database.aread(
        lambda db: adapters.recent_promotions(db, scope, base_hash, limit=20)
    )
    return next((each.previous_id for each in recent if each.adapter_id == champion), None)


async def record(services: Services, pair: Pair, usual: Draft) -> None:
    """Store that the two stand side by side."""
    await services.database.awrite(
        lambda db: side_by_side.add(
            db, first_id=pair.first.reply_id, second_id=pair.second.reply_id, usual_id=usual.reply_id
        )
    )
