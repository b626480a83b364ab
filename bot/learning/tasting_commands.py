"""/tasting: the operator's own prompts, and the tastings in which members rate the answers to them."""

from __future__ import annotations

import re
from typing import Any, Self

import discord
from discord import app_commands

from bot.chat.content.attachments import AttachmentReader
from bot.language import durations
from bot.language.texts import mark, plural, tr
from bot.learning import tasting_host as host
from bot.operators import NOT_OPERATOR
from bot.services import Services
from bot.ui import modals
from bot.ui.channels import parent_of
from bot.ui.interactions import (
    Interaction,
    autocomplete_safe,
    operators_only,
    say,
    set_language,
    with_error_reply,
)
from storage.db.database import Connection
from storage.feedback import prompt_bank, tastings
from storage.feedback.prompt_bank import Added, BankPrompt
from storage.feedback.tastings import Progress, Tasting
from storage.imports.prompts import holds_json
from storage.learning import adapters

_LIMIT = 1900
_SHOWN_PROMPT = 120
_LATEST = 5

HINT = mark("For more than fits here, use /tasting add with a text file.")
UNFIT = mark("I found no prompts in that: write one per line.")
ADDED = mark("{count} new prompts are in the bank.")
KNOWN = mark("{count} were there already.")
TOO_LONG = mark("{count} were longer than {limit} characters, so I left them out.")
BANK_FULL = mark("{count} did not fit: the bank holds {limit}.")
EMPTY_BANK = mark("There are no prompts yet. Add some with /tasting add.")
MORE = mark("… and {count} more (`strop tasting list` shows all).")
ASKED_TIMES = mark("asked {count} times")
REMOVED = mark("Removed: {prompt}\n-# What was asked and rated before stays.")
BEGUN = mark(
    "The tasting begins: {count} prompts, one every {pace}. I wait whenever nobody has rated {unrated} "
    "answers in a row. /tasting status shows how far it is, /tasting stop ends it."
)
STOPPED = mark("The tasting in <#{channel}> is stopped.")
NONE_RUNNING = mark("No tasting is on in this channel.")
NONE_YET = mark("There has been no tasting on this server. Begin one with /tasting start.")
RUNS = mark("on, one every {pace}")
WAITS = mark("waits for ratings")
DONE = mark("done")
HALTED = mark("stopped")
HOW_FAR = mark("<#{channel}>: {asked} of {wanted} asked, {rated} rated ({ratings} by {members}), {state}")

# What storage refuses a tasting with, as the catalogues know it.
REFUSALS = (
    mark("A tasting is on in this channel already: stop it first."),
    mark("There are no prompts yet: add some first."),
    mark("Whoever answers now has answered every prompt already: add new ones, or ask them again."),
)

group = app_commands.Group(
    name="tasting",
    description="Let members rate my answers to prompts of your own (for operators).",
    guild_only=True,
)


@group.command(description="Add prompts: a form with one per line, or a text file.")
@app_commands.describe(file="A text file with one prompt per line, instead of the form")
@operators_only
async def add(interaction: Interaction, file: discord.Attachment | None = None) -> None:
    """Open the form, or read the file."""
    if file is None:
        await interaction.response.send_modal(_form())
        return
    await interaction.response.defer(ephemeral=True, thinking=True)
    attached = await interaction.client.feature(AttachmentReader).read_one(file)
    told = (
        await _add(interaction.client.services, attached.text, interaction.user.id) if attached.text else ""
    )
    await say(interaction, "\n".join(filter(None, (told, *attached.notes))))


async def store_prompts(interaction: Interaction, services: Services, _: str, text: str) -> None:
    """Take the prompts of a form, if whoever sent it is an operator now."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    await set_language(interaction)
    if not interaction.client.is_operator(interaction.user.id):
        return await say(interaction, tr(NOT_OPERATOR))
    return await say(interaction, await _add(services, text, interaction.user.id))


async def _add(services: Services, text: str, user_id: int) -> str:
    lines = prompt_bank.lines_of(text)
    # Pasted data: its lines are no prompts, and a file of it goes through `strop tasting add`.
    if not lines or holds_json(text):
        return tr(UNFIT)
    return describe_added(
        await services.database.awrite(lambda db: prompt_bank.add_prompts(db, lines, str(user_id)))
    )


def describe_added(added: Added) -> str:
    """Say what became of prompts that were handed in."""
    pieces = [
        tr(ADDED, count=added.new),
        tr(KNOWN, count=added.known) if added.known else "",
        tr(TOO_LONG, count=added.too_long, limit=prompt_bank.MAX_PROMPT) if added.too_long else "",
        tr(BANK_FULL, count=added.over, limit=prompt_bank.MAX_PROMPTS) if added.over else "",
    ]
    return " ".join(filter(None, pieces))


@group.command(name="list", description="See the prompts of your bank, and how often each was asked.")
@operators_only
async def list_prompts(interaction: Interaction) -> None:
    """List the bank."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    bank = await interaction.client.services.database.aread(prompt_bank.prompts)
    await say(interaction, _listed(bank) if bank else tr(EMPTY_BANK))


def _listed(bank: list[BankPrompt]) -> str:
    lines: list[str] = []
    for prompt in bank:
        asked = f"  ({tr(ASKED_TIMES, count=prompt.asked)})" if prompt.asked else ""
        line = f"`{prompt.id}` {_short(prompt.text)}{asked}"
        if sum(map(len, lines)) + len(lines) + len(line) > _LIMIT:
            return "\n".join([*lines, tr(MORE, count=len(bank) - len(lines))])
        lines.append(line)
    return "\n".join(lines)


@group.command(description="Take a prompt out of your bank.")
@app_commands.describe(prompt="Start typing and choose")
@operators_only
async def remove(interaction: Interaction, prompt: int) -> None:
    """Remove one prompt."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    actor = str(interaction.user.id)
    gone = await interaction.client.services.database.awrite(
        lambda db: prompt_bank.remove_prompt(db, prompt, actor)
    )
    await say(interaction, tr(REMOVED, prompt=_short(gone.text)))


@remove.autocomplete("prompt")
@autocomplete_safe
async def _prompt_choices(interaction: Interaction, typed: str | int) -> list[app_commands.Choice[int]]:
    if not interaction.client.is_operator(interaction.user.id):
        return []
    bank = await interaction.client.services.database.aread(prompt_bank.prompts)
    wanted = str(typed).casefold()
    fitting = [prompt for prompt in bank if wanted in f"{prompt.id} {prompt.text}".casefold()]
    return [
        app_commands.Choice(name=_short(f"{prompt.id}: {prompt.text}", 100), value=prompt.id)
        for prompt in fitting[:25]
    ]


@group.command(description="Begin in this channel: I answer your prompts one by one, and members rate.")
@app_commands.describe(
    count="How many prompts (default: all that the present adapter has not answered yet)",
    minutes="Minutes from one prompt to the next (default: 5)",
    pairs="Two answers to each prompt, side by side, for a vote",
    again="Also ask what the present adapter has answered already, the least often asked first",
)
@operators_only
async def start(
    interaction: Interaction,
    count: app_commands.Range[int, 1, prompt_bank.MAX_PROMPTS] | None = None,
    minutes: app_commands.Range[float, tastings.MIN_EVERY_S / 60, tastings.MAX_EVERY_S / 60] | None = None,
    pairs: bool = False,
    again: bool = False,
) -> None:
    """Begin a tasting in this channel."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    every_s = tastings.DEFAULT_EVERY_S if minutes is None else minutes * 60
    await say(interaction, await _begin(interaction, count, every_s, pairs=pairs, again=again))


async def _begin(
    interaction: Interaction,
    count: int | None = None,
    every_s: float = tastings.DEFAULT_EVERY_S,
    *,
    pairs: bool = False,
    again: bool = False,
) -> str:
    """Begin a tasting in the interaction's channel; return the sentence on it, or on what is in the way."""
    services, guild_id, channel_id = interaction.client.services, interaction.guild_id, interaction.channel_id
    if guild_id is None or channel_id is None:
        raise app_commands.NoPrivateMessage
    found = await services.settings(guild_id, parent_of(interaction.channel) or channel_id)
    if reason := host.objection(services, interaction.channel, found, pairs=pairs):
        return reason
    base_hash, scope = await services.base_hash(), services.scope(guild_id)
    begun = await services.database.awrite(
        lambda db: tastings.start(
            db,
            guild_id=guild_id,
            channel_id=channel_id,
            scope=scope,
            base_hash=base_hash,
            champion_id=adapters.champion(db, scope, base_hash),
            wanted=count,
            every_s=every_s,
            pairs=pairs,
            again=again,
            requested_by=str(interaction.user.id),
        )
    )
    pace = durations.pace(begun.every_s)
    return tr(BEGUN, count=begun.wanted, pace=pace, unrated=tastings.MOST_UNRATED)


@group.command(description="Stop the tasting in this channel.")
@operators_only
async def stop(interaction: Interaction) -> None:
    """Stop it; what was rated stays rated."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    channel_id, actor = interaction.channel_id or 0, str(interaction.user.id)

    def work(db: Connection) -> bool:
        running = tastings.running_in(db, channel_id)
        return running is not None and tastings.end(db, running.id, "stopped", actor=actor)

    stopped = await interaction.client.services.database.awrite(work)
    await say(interaction, tr(STOPPED, channel=channel_id) if stopped else tr(NONE_RUNNING))


@group.command(description="How far tastings are: what was asked, what is rated, and what holds them up.")
@operators_only
async def status(interaction: Interaction) -> None:
    """Show the latest tastings of this server."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    guild_id = interaction.guild_id

    def work(db: Connection) -> list[tuple[Tasting, Progress, bool]]:
        return [
            (each, tastings.progress(db, each.id), tastings.waits_for_ratings(db, each.id))
            for each in tastings.latest(db, guild_id, _LATEST)
        ]

    found = await interaction.client.services.database.aread(work)
    lines = [_progress_text(*each) for each in found]
    await say(interaction, "\n".join(lines)[:_LIMIT] or tr(NONE_YET))


def _progress_text(tasting: Tasting, progress: Progress, waits: bool) -> str:
    if tasting.state == "running":
        state = tr(WAITS) if waits else tr(RUNS, pace=durations.pace(tasting.every_s))
    else:
        state = tr(DONE if tasting.state == "done" else HALTED)
    said = tr(
        HOW_FAR,
        channel=tasting.channel_id,
        asked=progress.asked,
        wanted=tasting.wanted,
        rated=progress.rated,
        ratings=plural("{count} rating", "{count} ratings", progress.ratings),
        members=plural("{count} member", "{count} members", progress.raters),
        state=state,
    )
    return f"{said}\n-# {tasting.why}" if tasting.why else said


class OfferButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]], template=r"strop:tasting:offer"
):
    """Below a run that found nothing to train on: begins a tasting, or takes prompts where there are none."""

    def __init__(self) -> None:
        super().__init__(
            discord.ui.Button(
                label=tr("Start a tasting"),
                style=discord.ButtonStyle.secondary,
                custom_id="strop:tasting:offer",
            )
        )

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Make the button again when it is pressed."""
        return cls()

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Do what /tasting does, for operators."""
        if not interaction.client.is_operator(interaction.user.id):
            return await say(interaction, tr(NOT_OPERATOR))
        if not await interaction.client.services.database.aread(prompt_bank.prompts):
            await interaction.response.send_modal(_form())
            return None
        await interaction.response.defer(ephemeral=True, thinking=True)
        return await say(interaction, await _begin(interaction))


def offer_view() -> discord.ui.View:
    """Return the button that offers a tasting."""
    view = discord.ui.View(timeout=None)
    view.add_item(OfferButton())
    return view


def _form() -> discord.ui.Modal:
    return modals.prompts(tr("Prompts for tastings"), tr("One prompt per line"), tr(HINT))


def _short(text: str, limit: int = _SHOWN_PROMPT) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"
