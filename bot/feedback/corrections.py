"""Better answers: the reply that a member wishes for, kept as a rating of the kind "correction"."""

from __future__ import annotations

import asyncio

import structlog

from bot.feedback import reply_view
from bot.language.texts import mark, tr
from bot.services import Services
from bot.ui import modals
from bot.ui.interactions import Interaction, say
from storage.db.database import Connection
from storage.feedback import ratings

KEPT = mark("Thank you: I keep this as the better answer. Send the form empty to take it back.")
KEPT_ONLY = mark(
    "Thank you: I keep this as the better answer. It trains me only if you opt in with /privacy opt-in. "
    "Send the form empty to take it back."
)
KEPT_UNTRAINED = mark(
    "Thank you: I keep this as the better answer. It does not train me: whoever runs me has not recorded "
    "Discord's permission to train on members' words. Send the form empty to take it back."
)
TAKEN_BACK = mark("Your better answer is taken back.")
NONE_THERE = mark("The form was empty, and there was no earlier answer of yours to take back.")
SAME = mark("That is what I said already. Press 👍 if you like it.")
GONE = mark("This reply was deleted meanwhile, so I kept nothing.")
# Discord waits three seconds for a form; the earlier answer is left out rather than the form.
_PREFILL_S = 1.5

_log = structlog.get_logger(__name__)


async def open_form(interaction: Interaction, services: Services, reply_id: str) -> None:
    """Open the form, with what the member wrote before."""
    user_id = interaction.user.id
    try:
        async with asyncio.timeout(_PREFILL_S):
            written = await services.database.aread(lambda db: _written(db, reply_id, user_id))
    except TimeoutError:
        written = ""
    await interaction.response.send_modal(modals.better_answer(reply_id, written))


async def store_correction(interaction: Interaction, services: Services, reply_id: str, text: str) -> None:
    """Store the better answer, or take the member's earlier one back where the form is empty."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    person, wanted = services.person(interaction.user), text.strip()

    def work(db: Connection) -> str:
        known = reply_view.find_in_server(db, reply_id, interaction.guild_id)
        if known is None or known.gone:
            return GONE
        if not wanted:
            taken = ratings.retract(db, reply_id=reply_id, user_id=person.user_id, kind="correction")
            return TAKEN_BACK if taken else NONE_THERE
        if wanted == known.reply.text.strip():
            return SAME
        person.ensure(db)
        ratings.rate(
            db,
            reply_id=reply_id,
            user_id=person.user_id,
            kind="correction",
            means="modal",
            value=1,
            text=wanted,
            permission_reference=services.permission_reference,
        )
        if services.playground:
            return KEPT
        # Also in a tasting: the prompt is the operator's, but a better answer is in the member's own words.
        return KEPT_ONLY if services.permission_reference else KEPT_UNTRAINED

    sentence = await services.database.awrite(work)
    _log.info("correction.sent_in", reply_id=reply_id, retracted=not wanted)
    await say(interaction, tr(sentence))


def _written(db: Connection, reply_id: str, user_id: int) -> str:
    mine = [
        rating.text or ""
        for rating in ratings.list_for_reply(db, reply_id)
        if rating.user_id == user_id and rating.kind == "correction" and not rating.retracted
    ]
    return mine[0] if mine else ""
