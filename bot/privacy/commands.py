"""/privacy: what members decide about their own words."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
from collections.abc import Iterator
from typing import Any, Self

import discord
import structlog
from discord import app_commands

from bot.feedback import my_ratings
from bot.language.texts import mark, plural, tr
from bot.services import Services
from bot.serving.errors import ServingError
from bot.serving.model import control_tokens
from bot.ui.interactions import Interaction, say, with_error_reply
from storage.chat import members
from storage.db.clock import SECOND_MS, now_ms
from storage.db.database import Connection
from storage.feedback import my_ratings as mine
from storage.learning.eligibility import ERASURE_REST_MS
from storage.privacy import consent as decisions
from storage.privacy import erasure as privacy
from storage.privacy import file_scrubbing

CONFIRM_S = 120
NOT_YOURS = mark("Only the person who was asked can answer this.")
TOO_LATE = mark("Nothing was deleted: this question is too old. Please use /privacy delete once more.")
DELETE_LABEL = mark("Delete my data")
KEEP_LABEL = mark("Keep it")
OPTED_IN = mark("You opted in: it may train me.")
OPTED_OUT = mark("You opted out: none of it trains me.")
UNDECIDED = mark("You have not decided: none of it trains me until you opt in.")
UNDECIDED_FREE = mark("You have not opted out: in this playground it may train me.")
KEPT_BY_ADAPTERS = mark(
    "Adapters that learned from it before keep what they learned, and may go on answering until a new one, "
    "trained without it, takes their place. `/privacy delete` takes them out of service at once."
)
# Discord takes 10 MB from a bot; beyond this the export comes in parts.
_PLAIN_EXPORT_BYTES = 8_000_000

_log = structlog.get_logger(__name__)

group = app_commands.Group(
    name="privacy", description="What I keep about you, and what may be trained on it."
)


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
    files = await asyncio.to_thread(export_files, data)
    for number, (name, content) in enumerate(files, 1):
        told = (
            tr("This is everything that I have stored about you.")
            if len(files) == 1
            else tr(
                "Part {number} of {count} of what I have stored about you.", number=number, count=len(files)
            )
        )
        await say(interaction, told, file=discord.File(io.BytesIO(content), filename=name))


@group.command(name="ratings", description="See what you rated, and take some of it back.")
async def list_ratings(interaction: Interaction) -> None:
    """List the member's ratings of every kind, for their eyes only."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    await my_ratings.offer(interaction)


@group.command(name="show", description="What I keep about you, in short.")
async def show(interaction: Interaction) -> None:
    """Say how much is stored on the member, and whether it trains."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services, user_id = interaction.client.services, interaction.user.id
    counts, member = await services.database.aread(
        lambda db: (mine.counts(db, user_id), members.get(db, user_id))
    )
    await say(
        interaction,
        summary(counts, member, free=services.playground, signals=services.config.trainer.signals),
    )


@group.command(name="delete", description="Delete everything that I have stored about you.")
async def delete(interaction: Interaction) -> None:
    """Ask first: this can't be undone."""
    await say(
        interaction,
        tr(
            "This deletes your messages to me, my replies to them, your ratings and votes. What was trained "
            "on them stops answering at once and is trained again without you. It can't be undone."
        ),
        view=_confirmation(interaction.user.id),
    )


def _confirmation(user_id: int) -> discord.ui.View:
    """Return the two buttons of the last question before a deletion."""
    view = discord.ui.View(timeout=None)
    for answer in ("yes", "no"):
        view.add_item(ErasureButton(user_id, answer, now_ms() // SECOND_MS))
    return view


class ErasureButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"strop:erase:(?P<user>\d{1,20}):(?P<answer>yes|no):(?P<asked>\d{1,12})",
):
    """One answer to the last question before a deletion, for the member it was put to, and not for long."""

    def __init__(self, user_id: int, answer: str, asked_s: int) -> None:
        self.user_id = user_id
        self.answer = answer
        self.asked_s = asked_s
        certain = answer == "yes"
        super().__init__(
            discord.ui.Button(
                label=tr(DELETE_LABEL if certain else KEEP_LABEL),
                style=discord.ButtonStyle.danger if certain else discord.ButtonStyle.secondary,
                custom_id=f"strop:erase:{user_id}:{answer}:{asked_s}",
            )
        )

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Make the button again from its custom id."""
        return cls(int(match["user"]), match["answer"], int(match["asked"]))

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Delete, or change nothing."""
        if interaction.user.id != self.user_id:
            return await say(interaction, tr(NOT_YOURS))
        late = now_ms() // SECOND_MS - self.asked_s > CONFIRM_S
        if late or self.answer == "no":
            told = tr(TOO_LATE) if late else tr("Nothing was deleted.")
            await interaction.response.edit_message(content=told, view=None)
            return None
        await interaction.response.edit_message(content=tr("Deleting…"), view=None)
        sentence = await erase(interaction.client.services, self.user_id)
        try:
            await interaction.edit_original_response(content=sentence)
        except discord.NotFound:
            # Whoever closed the question meanwhile hears all the same that it is done.
            await say(interaction, sentence)
        return None


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
        sentence += " " + plural(
            "{count} adapter was trained on it and is gone; a clean retrain without you is queued.",
            "{count} adapters were trained on it and are gone; a clean retrain without you is queued.",
            len(erasure.affected_adapters),
        )
    return sentence + " " + tr("I am not trained on what you write to me in the next 30 days.")


def summary(counts: mine.OwnCounts, member: members.Member | None, *, free: bool, signals: bool) -> str:
    """Say what is stored on a member and what becomes of it; `free`: here it trains without consent."""
    lines = [
        tr(
            "With your name and id I keep: messages {messages}, my answers to them {replies}, "
            "ratings {ratings} (better answers {corrections}, votes {votes}).",
            messages=counts.messages,
            replies=counts.replies,
            ratings=counts.ratings,
            corrections=counts.corrections,
            votes=counts.votes,
        ),
        tr(_consent_text(member, free=free)),
    ]
    if counts.runs:
        lines.append(tr("Training runs that used some of it: {runs}.", runs=counts.runs))
    if member is not None and member.erased_ms is not None:
        until_ms = member.erased_ms + ERASURE_REST_MS
        if until_ms > now_ms():
            rest = f"<t:{until_ms // 1000}:D>"
            lines.append(
                tr("You erased your data: nothing new of yours is trained on before {until}.", until=rest)
            )
    if signals and (member is None or member.consent != "out"):
        lines.append(
            tr(
                "What you do after an answer (ask again, go on, thank or stop) may train as a hint too, "
                "under the same rules."
            )
        )
    lines.append(
        tr(
            "-# `/privacy ratings` lists your ratings, `export` sends all of it as a file, "
            "`delete` erases it."
        )
    )
    return "\n".join(lines)


def _consent_text(member: members.Member | None, *, free: bool) -> str:
    consent = member.consent if member is not None else "unset"
    if consent == "unset":
        return UNDECIDED_FREE if free else UNDECIDED
    return OPTED_IN if consent == "in" else OPTED_OUT


async def scrub(services: Services, erasure: privacy.Erasure) -> None:
    """Remove what an erasure left in adapters, snapshots, backups and the log; safe to repeat."""
    for adapter_id in erasure.affected_adapters:
        try:
            await services.model.unload_adapter(adapter_id)
        except ServingError as error:
            # Not loaded, or the server is away: its files go now, and it asks the registry when it is back.
            _log.debug("adapter.not_unloaded", adapter_id=adapter_id, error=type(error).__name__)
    try:
        await services.model.reset_prefix_cache()
    except ServingError as error:
        # It is away, or another one: what a server keeps of prompts ends with its process.
        _log.debug("server.not_reset", error=type(error).__name__)
    control_tokens.forget()
    done = await asyncio.to_thread(file_scrubbing.complete, services.database, services.config.data, erasure)
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

    def work(db: Connection) -> bool:
        person.ensure(db)
        decisions.decide(
            db,
            person.user_id,
            consent,
            str(person.user_id),
            permission_reference=services.config.discord.training_permission_reference,
        )
        return bool(privacy.list_adapters_of_member(db, person.user_id))

    has_taught = await services.database.awrite(work)
    if consent == "out":
        text = tr("Noted: nothing that you write or rate trains the model. I still answer you.")
        if has_taught:
            text += f"\n{tr(KEPT_BY_ADAPTERS)}"
    elif services.playground or services.permission_reference:
        text = tr("Thank you: your messages to me and your ratings may train the model, until you opt out.")
    else:
        text = tr(
            "Noted. Training on Discord messages stays off here all the same, until whoever runs me has "
            "Discord's permission for it."
        )
    await say(interaction, text)


def export_files(data: dict[str, Any], most_bytes: int = _PLAIN_EXPORT_BYTES) -> list[tuple[str, bytes]]:
    """Return a member's data as files that Discord takes, each of them readable on its own."""
    content = _json(data)
    if len(content) <= most_bytes:
        return [("strop-my-data.json", content)]
    parts = [_json(part) for part in _parts(data, most_bytes)]
    return [
        (f"strop-my-data-{number}-of-{len(parts)}.json.gz", gzip.compress(part))
        for number, part in enumerate(parts, 1)
    ]


def _parts(data: dict[str, Any], most_bytes: int) -> Iterator[dict[str, Any]]:
    """Share the rows out among parts that each begin with whose they are."""
    whose = {key: value for key, value in data.items() if not isinstance(value, list)}
    part: dict[str, Any] = dict(whose)
    size = 0
    for key, rows in data.items():
        for row in rows if isinstance(rows, list) else ():
            length = len(_json(row)) + 2
            if size and size + length > most_bytes:
                yield part
                part, size = dict(whose), 0
            part.setdefault(key, []).append(row)
            size += length
    yield part


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()
