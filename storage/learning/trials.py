"""Trials: two adapters answer in one scope, each its share of the conversations, until ratings decide.

A *canary* lets a challenger that is not proven yet answer a small share of new conversations. A *holdback*
keeps the champion before a promotion answering a small share, so that fresh ratings of both can be compared
honestly. Which side a conversation is on is a stable hash of run and conversation: nobody chooses it, nobody
can foresee it, and the conversation stays there.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlite_utils

from storage import sentences
from storage.admin import audit, settings
from storage.chat import channels
from storage.chat.conversations import Conversation
from storage.db import sql
from storage.db.clock import DAY_MS, now_ms
from storage.sentences import Sentence

Kind = Literal["canary", "holdback"]
Side = Literal["newcomer", "incumbent"]
Outcome = Literal["better", "worse", "undecided", "superseded"]


@dataclass(frozen=True, slots=True)
class Trial:
    """Two adapters side by side; an id of None is the base model.

    `share` is the share of conversations that the exception answers: the newcomer of a canary, the incumbent
    of a holdback. `standing` is what the trainer last counted, for people to read.
    """

    id: int
    kind: Kind
    scope: str
    base_hash: str
    run_id: str
    newcomer_id: str
    incumbent_id: str | None
    share: float
    started_ms: int
    until_ms: int
    standing: dict[str, Any]
    seen: str
    judged_ms: int
    ended_ms: int | None
    outcome: Outcome | None
    reason: Sentence

    @property
    def exception(self) -> Side:
        """The side that answers `share` of the conversations; the champion answers the others."""
        return "newcomer" if self.kind == "canary" else "incumbent"

    @property
    def exception_id(self) -> str | None:
        """The adapter that is not champion; None is the base model."""
        return self.newcomer_id if self.kind == "canary" else self.incumbent_id

    def is_exception(self, conversation_id: int) -> bool:
        """Whether a conversation is among the `share`; the same for as long as the trial runs."""
        drawn = hashlib.sha256(f"{self.run_id}/{self.kind}/{conversation_id}".encode()).digest()[:8]
        return int.from_bytes(drawn) < self.share * 2**64


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers a question (`adapter_id`), who does if that can't be, and in which trials it counts."""

    adapter_id: str | None
    champion: str | None
    sides: tuple[tuple[int, Side], ...] = ()
    kind: Kind | None = None

    @property
    def diverted(self) -> bool:
        """Whether a trial sends the question to another adapter than the champion."""
        return self.kind is not None


BASE = Route(None, None)
"""The route of a reply that counts in no trial, by the base model."""


@dataclass(frozen=True, slots=True)
class TrialRating:
    """One member's thumb (-1 or 1) on one reply of a trial; `given_ms` is when it was first given."""

    side: Side
    conversation_id: int
    user_id: int
    value: int
    given_ms: int


@dataclass(frozen=True, slots=True)
class PairVote:
    """One member's vote between the two sides' replies to one question: 1 prefers the newcomer's."""

    pair_id: str
    user_id: int
    outcome: int


def begin(
    db: sqlite_utils.Database,
    kind: Kind,
    *,
    scope: str,
    base_hash: str,
    run_id: str,
    newcomer_id: str,
    incumbent_id: str | None,
    share: float,
    days: float,
) -> int:
    """Start a trial, which ends an older one of its kind in the scope; return its id."""
    for older in _open(db, scope, base_hash, kind):
        end(db, older.id, "superseded", Sentence("a newer challenger took its place"))
    now = now_ms()
    values = {
        "kind": kind,
        "scope": scope,
        "base_hash": base_hash,
        "run_id": run_id,
        "newcomer_id": newcomer_id,
        "incumbent_id": incumbent_id,
        "share": share,
        "started_ms": now,
        "until_ms": now + round(days * DAY_MS),
    }
    trial_id = sql.insert(db, "trials", values)
    detail = {key: values[key] for key in ("scope", "run_id", "newcomer_id", "incumbent_id", "share")}
    audit.record(db, "trainer", f"{kind}.begin", {"trial_id": trial_id, **detail})
    return trial_id


def end(
    db: sqlite_utils.Database, trial_id: int, outcome: Outcome, reason: Sentence, *, actor: str = "trainer"
) -> bool:
    """End a trial: from the next reply on the champion answers alone. False if it was over already."""
    ended = sql.change(
        db,
        """UPDATE trials SET ended_ms = ?, outcome = ?, reason = ?, reason_sentence = ?
           WHERE id = ? AND ended_ms IS NULL""",
        (now_ms(), outcome, reason, sentences.dump(reason), trial_id),
    )
    if ended:
        trial = expect(db, trial_id)
        detail = {"trial_id": trial_id, "run_id": trial.run_id, "outcome": outcome, "reason": reason}
        audit.record(db, actor, f"{trial.kind}.end", detail)
    return bool(ended)


def end_all(db: sqlite_utils.Database, scope: str, base_hash: str, reason: Sentence, *, actor: str) -> None:
    """End every trial of a scope: another champion makes them void."""
    for trial in _open(db, scope, base_hash):
        end(db, trial.id, "superseded", reason, actor=actor)


def end_canary_of(db: sqlite_utils.Database, run_id: str, reason: Sentence) -> None:
    """End the canary of a run that is decided otherwise."""
    for row in sql.many(
        db, "SELECT id FROM trials WHERE run_id = ? AND kind = 'canary' AND ended_ms IS NULL", (run_id,)
    ):
        end(db, row["id"], "superseded", reason)


def end_with(
    db: sqlite_utils.Database, adapter_ids: Collection[str], reason: Sentence, *, actor: str
) -> None:
    """End every trial in which one of these adapters answers."""
    for trial in open_trials(db):
        if {trial.newcomer_id, trial.incumbent_id} & set(adapter_ids):
            end(db, trial.id, "superseded", reason, actor=actor)


def expect(db: sqlite_utils.Database, trial_id: int) -> Trial:
    """Return the trial with this id, which is there."""
    return _trial(sql.many(db, "SELECT * FROM trials WHERE id = ?", (trial_id,))[0])


def open_trials(db: sqlite_utils.Database) -> list[Trial]:
    """Return every trial that has not ended, the oldest first."""
    return [_trial(row) for row in sql.many(db, "SELECT * FROM trials WHERE ended_ms IS NULL ORDER BY id")]


def find_for_run(db: sqlite_utils.Database, run_id: str, kind: Kind) -> Trial | None:
    """Return the latest trial of a kind that a run led to, or None."""
    row = sql.one(
        db, "SELECT * FROM trials WHERE run_id = ? AND kind = ? ORDER BY id DESC LIMIT 1", (run_id, kind)
    )
    return None if row is None else _trial(row)


def active(db: sqlite_utils.Database, scope: str, base_hash: str) -> list[Trial]:
    """Return the trials that divert conversations now, a canary first.

    Whatever ended a trial, it diverts nothing from that moment on: another champion, an adapter that was
    tainted by an erasure or set aside.
    """
    rows = sql.many(
        db,
        """SELECT trials.* FROM trials
           JOIN champions ON champions.scope = trials.scope AND champions.base_hash = trials.base_hash
           JOIN adapters AS newcomer ON newcomer.id = trials.newcomer_id
           LEFT JOIN adapters AS incumbent ON incumbent.id = trials.incumbent_id
           WHERE trials.scope = ? AND trials.base_hash = ? AND trials.ended_ms IS NULL
             AND champions.adapter_id IS iif(kind = 'canary', incumbent_id, newcomer_id)
             AND newcomer.state NOT IN ('tainted', 'rejected')
             AND coalesce(incumbent.state, 'base') NOT IN ('tainted', 'rejected')
           ORDER BY kind, trials.id""",
        (scope, base_hash),
    )
    return [_trial(row) for row in rows]


def route(
    db: sqlite_utils.Database,
    *,
    scope: str,
    base_hash: str,
    champion: str | None,
    conversation: Conversation,
    asker_id: int,
    left_out: Collection[int] = (),
) -> Route:
    """Return who answers a question in a conversation; `left_out` are ids of servers and channels.

    Only conversations that began under a trial take part in it, so that nobody's partner changes halfway. A
    trial whose time is over diverts nothing, also while there is no trainer to end it.
    """
    now = now_ms()
    trials = [
        trial
        for trial in active(db, scope, base_hash)
        if trial.started_ms <= conversation.created_ms and now < trial.until_ms
    ]
    if not trials or not _takes_part(db, conversation, asker_id, left_out):
        return Route(champion, champion)
    for trial in trials:
        if trial.is_exception(conversation.id):
            return Route(trial.exception_id, champion, ((trial.id, trial.exception),), trial.kind)
    usual: dict[Side, Side] = {"newcomer": "incumbent", "incumbent": "newcomer"}
    return Route(champion, champion, tuple((trial.id, usual[trial.exception]) for trial in trials))


def note(db: sqlite_utils.Database, reply_id: str, route: Route) -> None:
    """Record in which trials a reply counts. Safe to repeat; a reply that is routed anew counts anew."""
    sql.change(db, "DELETE FROM trial_replies WHERE reply_id = ?", (reply_id,))
    for trial_id, side in route.sides:
        values = {"trial_id": trial_id, "reply_id": reply_id, "side": side}
        sql.insert(db, "trial_replies", values)


def behind(db: sqlite_utils.Database, reply_id: str) -> Trial | None:
    """Return the trial that sent a question to another adapter than the champion of its time, or None."""
    rows = sql.many(
        db,
        """SELECT trials.*, side FROM trial_replies JOIN trials ON trials.id = trial_replies.trial_id
           WHERE reply_id = ?""",
        (reply_id,),
    )
    found = [(_trial(row), row["side"]) for row in rows]
    return next((trial for trial, side in found if side == trial.exception), None)


def ratings(db: sqlite_utils.Database, trial_id: int) -> list[TrialRating]:
    """Return the ratings that count in a trial as they stand now, in the order they were first given.

    A correction without a thumb dislikes. What blocked members say doesn't count, nor what members say who
    opted out; replies that stood side by side with another are voted on instead.
    """
    rows = sql.many(
        db,
        """SELECT trial_replies.side, replies.conversation_id, ratings.user_id,
                  iif(ratings.kind = 'thumb', ratings.value, -1) AS value, ratings.created_ms AS given_ms
           FROM trial_replies
           JOIN replies ON replies.id = trial_replies.reply_id
           JOIN conversations ON conversations.id = replies.conversation_id
           JOIN ratings ON ratings.reply_id = replies.id AND ratings.retracted = 0
           JOIN members ON members.user_id = ratings.user_id AND members.consent <> 'out'
           WHERE trial_replies.trial_id = ?
             AND (ratings.kind = 'thumb' AND ratings.value <> 0
                  OR ratings.kind = 'correction' AND NOT EXISTS (
                      SELECT 1 FROM ratings AS thumb WHERE thumb.reply_id = ratings.reply_id
                      AND thumb.user_id = ratings.user_id AND thumb.kind = 'thumb' AND thumb.retracted = 0))
             AND NOT EXISTS (SELECT 1 FROM comparisons
                             WHERE first_id = replies.id OR second_id = replies.id)
             AND NOT EXISTS (SELECT 1 FROM blocks WHERE blocks.user_id = ratings.user_id
                             AND blocks.guild_id IN (0, conversations.guild_id))
           ORDER BY ratings.created_ms, ratings.id""",
        (trial_id,),
    )
    return [TrialRating(**row) for row in rows]


def pair_votes(db: sqlite_utils.Database, trial: Trial) -> list[PairVote]:
    """Return the votes on pairs in the chat that stood between the two sides since the trial began."""
    rows = sql.many(
        db,
        """SELECT first_id AS pair_id, ratings.user_id,
                  iif(first.adapter_id IS :newcomer, ratings.value, -ratings.value) AS outcome
           FROM comparisons
           JOIN replies AS first ON first.id = comparisons.first_id
           JOIN replies AS second ON second.id = comparisons.second_id
           JOIN conversations ON conversations.id = first.conversation_id
           JOIN ratings ON ratings.reply_id = first_id AND ratings.kind = 'vote' AND ratings.retracted = 0
           JOIN members ON members.user_id = ratings.user_id AND members.consent <> 'out'
           WHERE comparisons.scope = :scope AND comparisons.created_ms >= :since
             AND (first.adapter_id IS :newcomer AND second.adapter_id IS :incumbent
                  OR first.adapter_id IS :incumbent AND second.adapter_id IS :newcomer)
             AND NOT EXISTS (SELECT 1 FROM blocks WHERE blocks.user_id = ratings.user_id
                             AND blocks.guild_id IN (0, conversations.guild_id))
           ORDER BY ratings.created_ms, ratings.id""",
        {
            "newcomer": trial.newcomer_id,
            "incumbent": trial.incumbent_id,
            "scope": trial.scope,
            "since": trial.started_ms,
        },
    )
    return [PairVote(**row) for row in rows]


def record_judgement(
    db: sqlite_utils.Database, trial_id: int, standing: Mapping[str, Any], seen: str
) -> None:
    """Keep what was counted, and a mark of the state in which it was."""
    sql.change(
        db,
        "UPDATE trials SET standing_json = ?, seen = ?, judged_ms = ? WHERE id = ?",
        (json.dumps(dict(standing)), seen, now_ms(), trial_id),
    )


def _open(db: sqlite_utils.Database, scope: str, base_hash: str, kind: Kind | None = None) -> list[Trial]:
    wanted = (scope, base_hash)
    found = [trial for trial in open_trials(db) if (trial.scope, trial.base_hash) == wanted]
    return [trial for trial in found if kind in (None, trial.kind)]


def _takes_part(
    db: sqlite_utils.Database, conversation: Conversation, asker_id: int, left_out: Collection[int]
) -> bool:
    """Whether a conversation may meet an exception: never a private one, nor where training is off."""
    guild_id, home = conversation.guild_id, conversation.settings_channel_id
    if guild_id is None or not conversation.public:
        return False
    if channels.any_private(db, {home, conversation.channel_id}):
        return False
    if {guild_id, home, conversation.channel_id} & set(left_out):
        return False
    if (guild_id, home) in settings.read_closed_places(db):
        return False
    consent: str | None = sql.value(db, "SELECT consent FROM members WHERE user_id = ?", (asker_id,))
    return consent != "out"


def _trial(row: dict[str, Any]) -> Trial:
    apart = ("standing_json", "side", "reason", "reason_sentence")
    values = {key: value for key, value in row.items() if key not in apart}
    reason = sentences.load(row["reason"], row["reason_sentence"])
    return Trial(standing=json.loads(row["standing_json"]), reason=reason, **values)
