"""Show training runs in the channel: a message edited in place while a run is on, and its result below.

A run takes minutes, and people go on talking: so the result is a reply to the first message, and no edit.
The trainer never talks to Discord. It writes rows; this looks at them every second, and whatever a restart
interrupts is picked up from the rows again.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import discord
import structlog
from discord.ext import tasks

from bot.delivery.targets import translate_errors
from bot.errors import ChannelRefusedError, DeliveryError, MessageGoneError
from bot.language.durations import duration
from bot.language.sentences import translate
from bot.language.texts import mark, number, speak, tr
from bot.learning import run_card
from bot.learning.blind_votes import DuelBoard
from bot.learning.run_buttons import cancel_view, card_view, list_public_samples, vote_ending_view
from bot.learning.run_card import Card
from bot.learning.status_text import PHASES
from bot.learning.tasting_commands import offer_view
from bot.services import Services
from bot.ui.channel_language import language_in
from storage.db import key_values
from storage.db.clock import now_ms
from storage.db.database import Connection
from storage.feedback import duels, tastings
from storage.learning import loop_status, runs, trials
from storage.process.locks import trainer_is_running
from storage.sentences import NOTHING, Sentence

POLL_S = 1.0
EDIT_EVERY_S = 2.0
# Every scope is looked at this often; those with a run that is on, at every poll.
ALL_SCOPES_EVERY = 5
TRAINER_PATIENCE_MS = 15_000
# After a restart, a run that ended longer ago than this is no news any more.
NEWS_MS = 24 * 60 * 60 * 1000
UNSHOWN_NEWS_MS = 10 * 60 * 1000
"""A run that ended longer ago than this, and was never shown, isn't shown any more."""


NO_EMBEDS = mark("-# To see scores and data here, give me the permission **Embed Links** in this channel.")

CUT_SHORT = mark("The time limit ended its training early: it learned from less than there is.")

_BAR_CELLS = 10
_LATEST = 3

_log = structlog.get_logger(__name__)


# These come minutes or days after the message before them, so they are said in a message of their own.
_RESULTS = frozenset({"promoted", "refused", "votes", "failed"})


@dataclass(frozen=True)
class _Look:
    """What a run's message is to show: its text, its buttons, and its card once it is decided."""

    text: str
    outcome: runs.Outcome | None = None
    stoppable: bool = False
    offers_tasting: bool = False
    card: Card | None = None


@dataclass
class _Report:
    """The latest message about a run; ``message_id`` is None until it was posted.

    ``said`` is the outcome that it says, ``gone`` that somebody deleted it while the run was on.
    """

    channel_id: int
    message_id: int | None
    said: runs.Outcome | None = None
    shown: _Look | None = None
    edited_at: float = 0.0
    closed: bool = False
    gone: bool = False


def run_text(
    run: runs.Run, *, trainer_alive: bool = True, votes: int | None = None, canary: Sentence = NOTHING
) -> str:
    """Return what the run's latest message says now; ``canary`` says how its canary goes."""
    if run.state == "queued":
        late = now_ms() - run.created_ms > TRAINER_PATIENCE_MS and not trainer_alive
        if late:
            wait = tr("The trainer is not running right now; this run starts when it is back.")
        else:
            wait = translate(run.note) or tr("Waiting for the trainer…")
        return f"{_head(run)}\n{wait}"
    lines = [_head(run)]
    if run.outcome not in _RESULTS:
        lines += _phase_lines(run)
    if run.outcome is not None:
        lines.append(f"{_MARKS.get(run.outcome, '•')} {translate(run.message) or run.outcome}")
    if run.outcome in ("promoted", "refused", "votes") and run.metrics.training.shortened:
        lines.append(run_card.cut_short(run.metrics) or tr(CUT_SHORT))
    if run.outcome == "votes" and (seen := run_card.judge_saw(run.metrics)):
        lines.append(seen)
    if run.outcome == "votes" and canary:
        lines.append(translate(canary))
    if run.outcome == "votes" and votes is not None:
        lines.append(
            tr(
                "Votes so far: {count}. The pairs are below; nobody is told which answer is whose.",
                count=votes,
            )
        )
    return "\n".join(lines)[:1900]


def progress_text(run: runs.Run, said: runs.Outcome | None) -> str:
    """Return what a run's earlier message says once its result stands in one of its own."""
    if said is not None:
        return f"{_head(run)}\n{tr('The vote is over. The result is in my reply below.')}"
    return "\n".join([_head(run), *_phase_lines(run), tr("The result is in my reply below.")])


def _head(run: runs.Run) -> str:
    return tr("**Retraining** · run `{run}`", run=run.id)


_MARKS = {"promoted": "🏆", "refused": "✋", "not_yet": "⏳", "votes": "🗳️", "failed": "⚠️", "cancelled": "⏹️"}


def _phase_lines(run: runs.Run) -> list[str]:
    """One line a phase: done, on, or to come; a run that is over shows only what it reached."""
    order = [phase for phase in PHASES if phase != "votes"]
    over = run.outcome is not None
    if run.outcome in ("refused", "votes"):
        order.remove("swap")  # nothing was swapped
    if run.phase in order:
        reached = order.index(run.phase)
    else:
        reached = len(order) - 1 if run.phase in ("votes", "swap") else -1
    lines = []
    for position, phase in enumerate(order):
        if over and position == reached:
            # What a run failed in, or was cancelled in, is not done.
            sign = _MARKS[run.outcome] if run.outcome in ("failed", "cancelled") else "✅"
            lines.append(f"{sign} {tr(PHASES[phase])}")
        elif position < reached:
            lines.append(f"✅ {tr(PHASES[phase])}")
        elif position == reached:
            left = tr(" · about {time} left", time=duration(run.eta_s)) if run.eta_s else ""
            note = f" · {translate(run.note)}" if run.note else ""
            share = number(run.progress, ".0%")
            lines.append(f"▶️ {tr(PHASES[phase])} {_bar(run.progress)} {share}{left}{note}")
        elif not over:
            lines.append(f"▫️ {tr(PHASES[phase])}")
    return lines


def _bar(progress: float) -> str:
    full = round(progress * _BAR_CELLS)
    return "▰" * full + "▱" * (_BAR_CELLS - full)


class ProgressReporter:
    """Watches the runs of the bot's scopes and keeps their messages up to date."""

    def __init__(self, services: Services, client: discord.Client) -> None:
        self._services = services
        self._client = client
        self._board = DuelBoard(services, client)
        self._reports: dict[str, _Report] = {}
        self._busy_scopes: set[str] = set()
        self._round = 0
        self._loop = tasks.loop(seconds=POLL_S)(self._poll)

    def start(self) -> None:
        """Begin to watch."""
        if not self._loop.is_running():
            self._loop.start()

    async def stop(self) -> None:
        """Stop watching; what is shown stays."""
        self._loop.cancel()

    async def report_in(self, scope: str, channel_id: int) -> None:
        """Report this scope's runs, also those that a schedule starts, in this channel from now on."""
        if self._services.shards.has_scope(scope):
            self._busy_scopes.add(scope)
        await self._services.database.awrite(
            lambda db: key_values.put(db, _channel_fact(scope), str(channel_id))
        )

    async def _poll(self) -> None:
        try:
            scopes = self._scopes() if self._round % ALL_SCOPES_EVERY == 0 else sorted(self._busy_scopes)
            self._round += 1
            if scopes:
                await self._look(scopes)
        except Exception:  # The loop's boundary: one bad round must not end the reports.
            _log.exception("progress.round_failed")

    async def _look(self, scopes: list[str]) -> None:
        found = await self._services.database.aread(
            lambda db: {scope: _runs_of(db, scope) for scope in scopes}
        )
        trainer_alive = True
        if any(run.state == "queued" for latest, *_ in found.values() for run in latest):
            trainer_alive = await asyncio.to_thread(trainer_is_running, self._services.config)
        for scope, (latest, channel_id, waiting, cards) in found.items():
            busy = False
            for run in latest:
                busy |= run.finished_ms is None or run.outcome == "votes"
                if (where := run.report_channel_id or channel_id) is not None:
                    speak(await self._language_in(where))
                text = run_text(run, trainer_alive=trainer_alive, votes=waiting.votes, canary=waiting.canary)
                offers = run.outcome == "not_yet" and tastings.OFFER in run.message
                look = _Look(text, run.outcome, run.finished_ms is None, offers, cards.get(run.id))
                await self._show(run, channel_id, look)
            if channel_id is not None:
                speak(await self._language_in(channel_id))
                await self._board.update(scope, channel_id)
            (self._busy_scopes.add if busy else self._busy_scopes.discard)(scope)

    async def _language_in(self, channel_id: int) -> str:
        return await language_in(self._services, self._client, channel_id)

    async def _show(self, run: runs.Run, channel_id: int | None, look: _Look) -> None:
        report = self._reports.get(run.id) or self._new_report(run, channel_id)
        if report is None or (report.closed and report.shown == look):
            return
        self._reports[run.id] = report
        if report.gone:
            if look.stoppable:
                return
            # How the run ended is said all the same, in a message of its own.
            report.message_id, report.shown, report.gone = None, None, False
            report.said = None
        over = run.finished_ms is not None and run.outcome != "votes"
        # That members are to vote is said at once: the pairs to vote on come below it.
        waits = not over and (look.outcome is None or look.outcome == report.said)
        now = asyncio.get_running_loop().time()
        if look == report.shown or (waits and now - report.edited_at < EDIT_EVERY_S):
            return
        report.edited_at = now
        try:
            await self._deliver(run, report, look)
        except (ChannelRefusedError, MessageGoneError) as error:
            _log.warning("progress.not_shown", run_id=run.id, error=str(error))
            was_on = look.stoppable or (report.shown is not None and report.shown.stoppable)
            report.gone = was_on and isinstance(error, MessageGoneError)
            report.shown, report.closed = look, not report.gone
        except DeliveryError as error:
            _log.info("progress.retried", run_id=run.id, error=type(error.__cause__).__name__)
        else:
            report.shown, report.closed = look, over
        self._forget_old()

    async def _deliver(self, run: runs.Run, report: _Report, look: _Look) -> None:
        drawn = await self._drawn(run, look)
        try:
            await self._put(run, report, look.text, drawn)
        except ChannelRefusedError:
            if drawn["embed"] is None:
                raise
            # Without the permission to embed, Discord refuses the whole message: its last word still comes.
            await self._put(run, report, f"{look.text}\n{tr(NO_EMBEDS)}"[:2000], {**drawn, "embed": None})

    async def _put(self, run: runs.Run, report: _Report, text: str, drawn: dict[str, Any]) -> None:
        channel = self._client.get_partial_messageable(report.channel_id)
        outcome = run.outcome if run.outcome in _RESULTS else None
        given = {key: value for key, value in drawn.items() if value is not None}
        if report.message_id is not None:
            earlier = channel.get_partial_message(report.message_id)
            if outcome == report.said:
                await translate_errors(earlier.edit(content=text, **drawn))
                return
            with contextlib.suppress(ChannelRefusedError, MessageGoneError):
                await translate_errors(
                    earlier.edit(content=progress_text(run, report.said), embed=None, view=None)
                )
            given["reference"] = earlier.to_reference(fail_if_not_exists=False)
        message = await translate_errors(
            channel.send(text, silent=outcome is None, mention_author=False, **given)
        )
        report.message_id, report.said = message.id, outcome
        await self._services.database.awrite(
            lambda db: runs.set_report(
                db, run.id, channel_id=report.channel_id, message_id=message.id, said=outcome
            )
        )

    async def _drawn(self, run: runs.Run, look: _Look) -> dict[str, Any]:
        """Return the message's embed and buttons; None takes away what an earlier look had."""
        if look.card is not None:
            samples = await list_public_samples(self._services, look.card)
            return {"embed": run_card.embed(look.card, samples), "view": card_view(look.card)}
        if look.offers_tasting:
            return {"embed": None, "view": offer_view()}
        if look.outcome == "votes":
            return {"embed": None, "view": vote_ending_view(run.id)}
        return {"embed": None, "view": cancel_view(run.id) if look.stoppable else None}

    def _new_report(self, run: runs.Run, channel_id: int | None) -> _Report | None:
        """Decide whether a run that was not seen before is shown, and where."""
        where = run.report_channel_id or channel_id
        age_ms = 0 if run.finished_ms is None else now_ms() - run.finished_ms
        if where is None or age_ms > (UNSHOWN_NEWS_MS if run.report_message_id is None else NEWS_MS):
            return None
        # A schedule that finds nothing to do yet is no news; neither is a run that waits its turn.
        quiet = run.outcome == "not_yet" or run.phase in (None, "snapshot")
        if run.report_message_id is None and run.trigger != "manual" and quiet:
            return None
        return _Report(where, run.report_message_id, run.report_outcome)

    def _forget_old(self) -> None:
        while len(self._reports) > 200:
            del self._reports[next(iter(self._reports))]

    def _scopes(self) -> list[str]:
        guilds = {self._services.scope(guild.id) for guild in self._client.guilds}
        scopes = {*guilds, self._services.scope(None), *self._busy_scopes}
        return sorted(scope for scope in scopes if self._services.shards.has_scope(scope))


def _channel_fact(scope: str) -> str:
    return f"progress.channel:{scope}"


@dataclass(frozen=True)
class _Waiting:
    """What has come in for the run that waits for the members' word; no votes where it asks for none."""

    votes: int | None = None
    canary: Sentence = NOTHING


def _runs_of(db: Connection, scope: str) -> tuple[list[runs.Run], int | None, _Waiting, dict[str, Card]]:
    """Return the scope's latest runs (oldest first), its channel, what came in, and the cards."""
    latest = runs.latest(db, scope, _LATEST)[::-1]
    channel = key_values.get(db, _channel_fact(scope))
    waiting = next((run for run in latest if run.outcome == "votes"), None)
    found = {run.id: run_card.find(db, run) for run in latest}
    cards = {run_id: card for run_id, card in found.items() if card is not None}
    return latest, int(channel) if channel else None, _waiting(db, waiting), cards


def _waiting(db: Connection, run: runs.Run | None) -> _Waiting:
    if run is None:
        return _Waiting()
    tally = duels.tally(db, run.id)
    tried = trials.find_for_run(db, run.id, "canary")
    on = tried is not None and tried.ended_ms is None
    canary = loop_status.trial_text(tried) if tried is not None and on else NOTHING
    return _Waiting(tally.votes if tally.duels else None, canary)
