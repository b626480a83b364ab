"""/privacy: what members decide about their own words."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from typing import Any

import discord
import structlog
from discord import app_commands

from bot.commands.tree import Interaction, StropTree, guarded, say, speak_to
from bot.replies_ui import retracting
from bot.services import Services
from bot.serving.errors import ServingError
from bot.texts import mark, tr
from storage import members, privacy, scrubbing

CONFIRM_S = 120.0
DELETE_LABEL = mark("Delete my data")
KEEP_LABEL = mark("Keep it")
# Discord takes 10 MB from a bot; beyond this the export is compressed.
_PLAIN_EXPORT_BYTES = 8_000_000

_log = structlog.get_logger(__name__)

group = app_commands.Group(name="privacy", description="What I keep of you, and what may be trained on it.")


def add_to(tree: StropTree) -> None:
    """Add this module's commands."""
    tree.add_command(group)


@group.command(name="opt-in", description="Allow that your messages and ratings train the model.")
async def opt_in(interaction: Interaction) -> None:
    """Record consent."""
    await _decide(interaction, "in")


@group.command(name="opt-out", description="Your messages and ratings never train the model.")
async def opt_out(interaction: Interaction) -> None:
    """Record the refusal."""
    await _decide(interaction, "out")


@group.command(name="export", description="Get everything that I have stored about you, as a file.")
async def export(interaction: Interaction) -> None:
    """Send the member's data, for their eyes only."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    user_id = interaction.user.id
    data = await interaction.client.services.database.aread(lambda db: privacy.export_member(db, user_id))
    name, content = await asyncio.to_thread(_file, data)
    await say(
        interaction,
        tr("This is everything that I have stored about you."),
        file=discord.File(io.BytesIO(content), filename=name),
    )


@group.command(name="corrections", description="See your better answers, and take some of them back.")
async def list_corrections(interaction: Interaction) -> None:
    """List the member's better answers, for their eyes only."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    await retracting.offer(interaction, interaction.client.services)


@group.command(name="delete", description="Delete everything that I have stored about you.")
async def delete(interaction: Interaction) -> None:
    """Ask first: this can't be undone."""
    await say(
        interaction,
        tr(
            "This deletes your messages to me, my replies to them, your ratings and votes. What was trained "
            "on them stops answering at once and is trained again without you. It can't be undone."
        ),
        view=ConfirmDeletion(interaction.user.id),
    )


class ConfirmDeletion(discord.ui.View):
    """The last question before a deletion; only the member it was put to can answer."""

    def __init__(self, user_id: int) -> None:
        super().__init__(timeout=CONFIRM_S)
        self._user_id = user_id
        self.confirm.label, self.keep.label = tr(DELETE_LABEL), tr(KEEP_LABEL)

    @discord.ui.button(label=DELETE_LABEL, style=discord.ButtonStyle.danger)
    async def confirm(self, interaction: discord.Interaction[Any], _: discord.ui.Button[Any]) -> None:
        """Delete."""
        await self._confirmed(interaction)

    @discord.ui.button(label=KEEP_LABEL, style=discord.ButtonStyle.secondary)
    async def keep(self, interaction: discord.Interaction[Any], _: discord.ui.Button[Any]) -> None:
        """Change nothing."""
        self.stop()
        await speak_to(interaction)
        await interaction.response.edit_message(content=tr("Nothing was deleted."), view=None)

    async def interaction_check(self, interaction: discord.Interaction[Any], /) -> bool:
        """Let only the member themselves answer."""
        return interaction.user.id == self._user_id

    @guarded
    async def _confirmed(self, interaction: Interaction) -> None:
        self.stop()
        await interaction.response.edit_message(content=tr("Deleting…"), view=None)
        sentence = await erase(interaction.client.services, self._user_id)
        await interaction.edit_original_response(content=sentence)


async def erase(services: Services, user_id: int) -> str:
    """Erase a member everywhere and return the sentence on what happened.

    The database first, in one transaction; then files, then the write-ahead log, so that no copy of the
    words is left.
    """
    erasure = await services.database.awrite(lambda db: privacy.erase_member(db, user_id, str(user_id)))
    await scrub(services, erasure)
    _log.info(
        "member.erased",
        erasure_id=erasure.id,
        adapters=len(erasure.affected_adapters),
        runs=len(erasure.runs),
    )
    sentence = tr("Done: everything that I had stored about you is deleted.")
    if erasure.affected_adapters:
        sentence += " " + tr(
            "{count} adapter(s) had learned from it and are gone; a clean retrain without you is queued.",
            count=len(erasure.affected_adapters),
        )
    return sentence + " " + tr("What you write to me from now on trains nothing for 30 days.")


async def scrub(services: Services, erasure: privacy.Erasure) -> None:
    """Remove what an erasure left in adapters, snapshots, backups and the log; safe to repeat."""
    for adapter_id in erasure.affected_adapters:
        try:
            await services.model.unload_adapter(adapter_id)
        except ServingError as error:
            # Not loaded, or the server is away: its files go now, and it asks the registry when it is back.
            _log.debug("adapter.not_unloaded", adapter_id=adapter_id, error=type(error).__name__)
    done = await asyncio.to_thread(scrubbing.complete, services.database, services.config.data, erasure)
    if not done:
        _log.info("erasure.pending", erasure_id=erasure.id)  # the trainer completes it within a minute


async def scrub_pending(services: Services) -> None:
    """Finish erasures that a stop interrupted between the database and the files."""
    for erasure in await services.database.aread(privacy.pending):
        await scrub(services, erasure)


async def _decide(interaction: Interaction, consent: members.Consent) -> None:
    await interaction.response.defer(ephemeral=True, thinking=True)
    services = interaction.client.services
    person = services.person(interaction.user)

    def work(db: Any) -> None:
        person.ensure(db)
        members.set_consent(db, person.user_id, consent, str(person.user_id))

    await services.database.awrite(work)
    if consent == "out":
        text = tr("Noted: nothing that you write or rate trains the model. I still answer you.")
    elif services.playground or services.permission_reference:
        text = tr("Thank you: your messages to me and your ratings may train the model, until you opt out.")
    else:
        text = tr(
            "Noted. Training on Discord messages stays off here all the same, until whoever runs me has "
            "Discord's permission for it."
        )
    await say(interaction, text)


def _file(data: dict[str, Any]) -> tuple[str, bytes]:
    content = json.dumps(data, ensure_ascii=False, indent=1).encode()
    if len(content) <= _PLAIN_EXPORT_BYTES:
        return "strop-my-data.json", content
    return "strop-my-data.json.gz", gzip.compress(content)
