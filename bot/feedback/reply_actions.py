"""What the buttons and the context menu do: write again, stop, page, rate, correct, explain, report.

Every action reads its reply from storage by the id that it was given, so that it works the same after a
restart, on a double click, and on a message that changed meanwhile. Refusals are one sentence for the eyes of
whoever asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import discord
import structlog

from bot.chat.answerer import Answerer, ReplyControls
from bot.chat.draft import Draft, Regeneration
from bot.chat.listener import MessageListener
from bot.client import StropClient
from bot.delivery.splitting import visible_parts
from bot.delivery.streaming import ReplyRenderer
from bot.delivery.targets import WrittenSurface
from bot.errors import DeliveryError
from bot.feedback import corrections, reply_view, reports
from bot.feedback.provenance import Training, training_of, why_text
from bot.feedback.reply_view import ReplyRecord
from bot.language.texts import mark, speaking, tr
from bot.ui.channel_language import language_in
from bot.ui.interactions import Interaction, say
from storage.admin import audit
from storage.admin.settings import InForce
from storage.chat import open_replies, replies, reply_versions
from storage.db.database import Connection, Database
from storage.feedback import ratings, side_by_side

UNKNOWN = mark("That is not a reply of mine that I still know.")
GONE = mark("This reply was deleted.")
ASKED_GONE = mark("The question was deleted, so I can't answer it again.")
NOT_YOURS = mark("Only the member who asked, or one of my operators, can have this written again.")
NOT_YOURS_TO_STOP = mark("Only the member who asked, a moderator or one of my operators can stop this.")
STILL_WRITING = mark("I am still writing this one.")
BUSY = mark("I am writing another version already.")
NOTHING_TO_STOP = mark("I have finished this one already.")
RESTARTING = mark("I am being restarted. Please try again in a moment.")
ENOUGH = mark("There are {total} versions of this reply already. Ask me again in a new message.")
COMPARED = mark("Two answers stand here side by side: vote on them below.")
VOTE_FIRST = mark("Vote first: then I tell you which is which.")
UNDELIVERED = mark("I wrote another version, but Discord does not let me change this message.")
NO_MESSAGE = mark("I can no longer reach the message of this reply.")

_log = structlog.get_logger(__name__)


class ReplyActions:
    """The actions on replies; holds only which replies are being changed at this moment."""

    def __init__(
        self, app: StropClient, controls: ReplyControls, answerer: Answerer, listener: MessageListener
    ) -> None:
        self._services = app.services
        self._client = app
        self._controls = controls
        self._answerer = answerer
        self._listener = listener
        self._changing: set[str] = set()
        self._actions: dict[str, Callable[[Interaction, str], Awaitable[None]]] = {
            "regenerate": self.regenerate,
            "stop": self.stop,
            "better": self.better,
            "why": self.why,
            "back": lambda interaction, reply_id: self.page(interaction, reply_id, -1),
            "forward": lambda interaction, reply_id: self.page(interaction, reply_id, 1),
            "up": lambda interaction, reply_id: self.rate(interaction, reply_id, 1),
            "down": lambda interaction, reply_id: self.rate(interaction, reply_id, -1),
        }

    async def press(self, interaction: Interaction, action: str, reply_id: str) -> None:
        """Do what a button is for."""
        found = self._actions.get(action)
        if found is None:
            return await say(interaction, tr(UNKNOWN))
        return await found(interaction, reply_id)

    async def find_reply(self, reply_id: str) -> ReplyRecord | None:
        """Return a reply by its id, with all that storage knows around it."""
        return await self._services.database.aread(lambda db: reply_view.find(db, reply_id))

    async def find_by_message(self, message_id: int) -> ReplyRecord | None:
        """Return the reply that a Discord message shows."""
        return await self._services.database.aread(lambda db: reply_view.by_discord_id(db, message_id))

    # ------------------------------------------------------------------ write again, and stop

    async def regenerate(self, interaction: Interaction, reply_id: str) -> None:
        """Write another version over the reply's messages; the earlier ones are kept."""
        await _acknowledge(interaction)
        known = await self.find_reply(reply_id)
        # Nothing is awaited between the last look and taking the slot: a double click writes one version.
        found = await self._listener.read_settings_at(interaction)
        refusal = await self._listener.refuse_asking(interaction, found)
        refusal = refusal or self._no_regenerating(interaction, known)
        if known is None or refusal:
            return await say(interaction, refusal)
        slot = known.versions.first_id
        self._changing.add(slot)
        try:
            sentence = await self._write_again(known, found)
        finally:
            self._changing.discard(slot)
        if sentence or _from_menu(interaction):
            await say(interaction, sentence or tr("Done: another version is there."))
        return None

    def _no_regenerating(self, interaction: Interaction, known: ReplyRecord | None) -> str:
        """Say why a reply can't be written again, or nothing."""
        if known is None:
            return tr(UNKNOWN)
        user_id, total = interaction.user.id, known.versions.total
        refusals = (
            (known.gone, GONE),
            (known.comparison is not None, COMPARED),
            (user_id != known.reply.asker_id and not self._client.is_operator(user_id), NOT_YOURS),
            (known.asked.deleted_ms is not None or not known.asked.words.strip(), ASKED_GONE),
            (known.versions.first_id in self._changing, BUSY),
            (self._answerer.being_written(*known.versions.reply_ids) is not None, STILL_WRITING),
            (total >= self._services.config.replies.most_versions, ENOUGH),
            (not known.parts, NO_MESSAGE),
        )
        return next((tr(sentence, total=total) for refused, sentence in refusals if refused), "")

    async def _write_again(self, known: ReplyRecord, in_force: InForce) -> str:
        """Write another version; return what went wrong, if nothing came of it."""
        shown = await self.find_reply(known.versions.shown_id) or known
        again = Regeneration(
            reply_id=shown.reply.id,
            prompt_message_id=shown.asked.id,
            text=shown.text,
            messages=tuple(part.discord_id for part in shown.parts),
            versions=shown.versions,
            votes=shown.votes,
        )
        channel = self._client.get_partial_messageable(shown.parts[0].channel_id)
        with speaking(await language_in(self._services, self._client, channel.id)):
            task = self._answerer.start(shown.question(in_force), WrittenSurface(channel), again=again)
        if task is None:
            return tr(RESTARTING)
        draft = await task
        _log.info("reply.regenerated", reply_id=draft.reply_id, beside=again.reply_id, kept=draft.fell_back)
        return _fallen_back(draft) if draft.progress.delivered else tr(UNDELIVERED)

    async def stop(self, interaction: Interaction, reply_id: str, message_id: int = 0) -> None:
        """End a reply that is being written; what is there stays."""
        await _acknowledge(interaction)
        known = await self.find_reply(reply_id)
        ids = known.versions.reply_ids if known is not None else (reply_id,)
        draft = self._answerer.being_written(*ids, message_id=message_id)
        if draft is None:
            return await say(interaction, tr(NOTHING_TO_STOP))
        if not self._may_stop(interaction, draft):
            return await say(interaction, tr(NOT_YOURS_TO_STOP))
        stopped = self._answerer.stop(draft.reply_id)
        _log.info("reply.stopped", reply_id=draft.reply_id, stopped=stopped)
        if stopped and interaction.user.id != draft.question.author.user_id:
            actor, detail = str(interaction.user.id), {"reply_id": draft.reply_id}
            await self._services.database.awrite(lambda db: audit.record(db, actor, "reply.stop", detail))
        if not stopped:
            await say(interaction, tr(NOTHING_TO_STOP))
        elif _from_menu(interaction):
            await say(interaction, tr("Stopped."))
        return None

    def _may_stop(self, interaction: Interaction, draft: Draft) -> bool:
        user_id = interaction.user.id
        if user_id == draft.question.author.user_id or self._client.is_operator(user_id):
            return True
        return interaction.guild_id is not None and interaction.permissions.manage_messages

    # ------------------------------------------------------------------ page, and rate

    async def page(self, interaction: Interaction, reply_id: str, step: int) -> None:
        """Show the version before or after; to others than the asker, for their eyes only."""
        await _acknowledge(interaction)
        known = await self.find_reply(reply_id)
        if known is None or known.gone:
            return await say(interaction, tr(UNKNOWN if known is None else GONE))
        slot = known.versions.first_id
        if slot in self._changing or self._answerer.being_written(*known.versions.reply_ids):
            return await say(interaction, tr(STILL_WRITING))
        wanted = known.versions.neighbour(step)
        if not self._may_page(interaction, known):
            return await self._show_privately(interaction, wanted)
        if wanted == known.versions.shown_id:
            return None
        self._changing.add(slot)
        try:
            await self._services.database.awrite(lambda db: reply_versions.show(db, wanted))
            await self.redraw(wanted)
        except DeliveryError:
            await say(interaction, tr(NO_MESSAGE))
        finally:
            self._changing.discard(slot)
        return None

    def _may_page(self, interaction: Interaction, known: ReplyRecord) -> bool:
        user_id = interaction.user.id
        return user_id == known.reply.asker_id or self._client.is_operator(user_id)

    async def _show_privately(self, interaction: Interaction, reply_id: str) -> None:
        other = await self.find_reply(reply_id)
        if other is None or other.gone:
            return await say(interaction, tr(GONE))
        number = other.versions.reply_ids.index(reply_id) + 1
        head = tr(
            "-# Version {number} of {total}; only the member who asked chooses which one is shown.",
            number=number,
            total=other.versions.total,
        )
        return await say(interaction, f"{visible_parts(other.text)[0][:1800]}\n\n{head}")

    async def rate(self, interaction: Interaction, reply_id: str, value: int) -> None:
        """Store a thumb in place of the member's earlier one; the same button again takes it back."""
        await _acknowledge(interaction)
        person = self._services.person(interaction.user)

        def work(db: Connection) -> ReplyRecord | None:
            known = reply_view.find(db, reply_id)
            if known is None or known.gone:
                return None
            person.ensure(db)
            if _pressed(db, reply_id, person.user_id) == value:
                ratings.retract(db, reply_id=reply_id, user_id=person.user_id, kind="thumb")
            else:
                ratings.rate(
                    db,
                    reply_id=reply_id,
                    user_id=person.user_id,
                    kind="thumb",
                    means="button",
                    value=value,
                    permission_reference=self._services.permission_reference,
                )
            return reply_view.find(db, known.versions.shown_id)

        shown = await self._services.database.awrite(work)
        if shown is None:
            return await say(interaction, tr(GONE))
        _log.info("rating.pressed", reply_id=reply_id)
        if self._answerer.being_written(*shown.versions.reply_ids) is None:
            # The rating counts also where its message was deleted this moment.
            with contextlib.suppress(discord.NotFound):
                await interaction.edit_original_response(view=self._below(shown))
        return None

    # ------------------------------------------------------------------ correct, explain, report

    async def better(self, interaction: Interaction, reply_id: str) -> None:
        """Open the form for the reply that a member wishes for."""
        known = await self.find_reply(reply_id)
        if known is None or known.gone:
            return await say(interaction, tr(UNKNOWN if known is None else GONE))
        if known.comparison is not None:
            return await say(interaction, tr(COMPARED))
        if self._answerer.being_written(reply_id) is not None:
            return await say(interaction, tr(STILL_WRITING))
        return await corrections.open_form(interaction, self._services, reply_id)

    async def why(self, interaction: Interaction, reply_id: str) -> None:
        """Say where a reply came from."""
        await interaction.response.defer(ephemeral=True, thinking=True)

        def work(db: Connection) -> tuple[ReplyRecord | None, Training, bool]:
            known = reply_view.find(db, reply_id)
            if known is None:
                return None, training_of(db, None), True
            pair = known.comparison
            chosen = (
                pair is None or side_by_side.choice_of(db, pair.first_id, interaction.user.id) is not None
            )
            return known, training_of(db, known.reply.adapter_id, known.reply.id), chosen

        known, training, chosen = await self._services.database.aread(work)
        if known is None:
            return await say(interaction, tr(UNKNOWN))
        if not chosen:
            return await say(interaction, tr(VOTE_FIRST))
        if self._answerer.being_written(reply_id) is not None:
            return await say(interaction, tr(STILL_WRITING))
        return await say(interaction, why_text(known, training))

    async def report(self, interaction: Interaction, reply_id: str) -> None:
        """Open the form for a report."""
        await reports.open_form(interaction, self._services, reply_id)

    # ------------------------------------------------------------------ the messages of a reply

    def _below(self, known: ReplyRecord) -> Any:
        return self._controls.finished_controls(
            known.reply.id, known.versions, has_text=bool(known.reply.text.strip()), votes=known.votes
        )

    async def redraw(self, reply_id: str, note: str = "") -> None:
        """Bring the messages of a reply in line with storage; raises DeliveryError where Discord refuses."""
        known = await self.find_reply(reply_id)
        if known is None or not known.parts:
            return
        channel_id = known.parts[0].channel_id
        renderer = ReplyRenderer(
            WrittenSurface(self._client.get_partial_messageable(channel_id)),
            self._answerer.paces.of(channel_id),
            _StoredParts(self._services.database, self._answerer, reply_id, channel_id),
            lambda _: self._below(known),
            [(part.discord_id, "") for part in known.parts],
        )
        # Whoever pressed may read another language than the channel does.
        with speaking(await language_in(self._services, self._client, channel_id)):
            text = known.text
        await renderer.finish("\n\n".join(piece for piece in (text, note) if piece))


@dataclass(frozen=True, slots=True)
class _StoredParts:
    """Keeps note of the messages of a reply that is there already."""

    database: Database
    answerer: Answerer
    reply_id: str
    channel_id: int

    async def sending(self, position: int) -> None:
        await self.database.awrite(lambda db: open_replies.send_part(db, self.reply_id, position))

    async def record_sent(self, message_id: int, position: int) -> None:
        await self.database.awrite(
            lambda db: replies.add_part(db, self.reply_id, message_id, self.channel_id, position)
        )

    async def withdrawing(self, message_id: int) -> None:
        self.answerer.withdrawing(message_id)

    async def withdrawn(self, message_id: int) -> None:
        await self.database.awrite(lambda db: replies.drop_part(db, message_id))


async def _acknowledge(interaction: Interaction) -> None:
    """Answer within Discord's three seconds: a button without a trace, a menu with "thinking"."""
    if interaction.response.is_done():
        return
    if _from_menu(interaction):
        await interaction.response.defer(ephemeral=True, thinking=True)
    else:
        await interaction.response.defer()


def _pressed(db: Connection, reply_id: str, user_id: int) -> int | None:
    """Return the thumb that a member gave by button and that stands, or None."""
    for rating in ratings.list_for_reply(db, reply_id):
        if rating.user_id == user_id and rating.kind == "thumb" and rating.means == "button":
            return None if rating.retracted else rating.value
    return None


def _from_menu(interaction: Interaction) -> bool:
    return interaction.command is not None


def _fallen_back(draft: Draft) -> str:
    """Return why an earlier version stays: the draft's last note, without its small print."""
    if not draft.fell_back:
        return ""
    return draft.progress.notes[-1].removeprefix("-# ") if draft.progress.notes else tr("Nothing came of it.")
