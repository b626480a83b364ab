"""Which rated replies may be trained on: what Discord's policy and the members allow.

Every path into training asks here, and asks again when a snapshot is made: consent, publicness, provenance,
blocks and retention. Each message is judged by what was so when it was written and by what is so today: a
channel that was closed since, a member who opted out since, keep their words out. A reply qualifies only if
every message behind its prompt does, and then counts with the ratings of those raters who qualify themselves.
Labels and weights are the trainer's business.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlite_utils

from storage.admin import settings
from storage.chat import members
from storage.chat.splits import Split
from storage.db import sql
from storage.db.clock import DAY_MS, now_ms
from storage.sentences import Sentence

ERASURE_REST_MS = 30 * DAY_MS
PAGE = 200

# Everything else counts as Discord's: training needs its permission and the members' consent.
FREE_SOURCES = frozenset({"playground", "rehearsal", "sample", "operator", "import"})

# In the order in which they are told: of several, the first.
REASONS = {
    "not_public": Sentence("direct messages and channels that not everybody can see never train"),
    "channel_opted_out": Sentence("training is switched off in their channel or server (/settings)"),
    "deleted": Sentence("a message in its context was deleted or erased"),
    "unfinished_import": Sentence("its import was interrupted: import the file again, or take it back"),
    "incomplete": Sentence("the reply failed, was stopped, or is empty"),
    "opted_out": Sentence("somebody in its context opted out of training"),
    "blocked": Sentence("somebody in its context was blocked when they wrote"),
    "no_permission": Sentence("Discord's permission to train is not recorded"),
    "no_consent": Sentence("somebody in its context has not opted in with /privacy"),
    "recently_erased": Sentence("somebody in its context erased their data less than 30 days ago"),
    "retired": Sentence("its held-out conversation has been used 20 times; new conversations take its place"),
    "picture": Sentence("a picture in its context was shown to the model, which training can't see"),
    "left_out": Sentence("an operator left it out by hand"),
    "no_eligible_rating": Sentence("no rater has opted in with /privacy (or all took their ratings back)"),
}


def reason(code: str) -> Sentence:
    """Return why a reply may not train; a code that this version doesn't know is only itself."""
    return REASONS.get(code) or Sentence(code)


@dataclass(frozen=True, slots=True)
class GivenRating:
    """One member's rating as given; `value` -1, 0 or 1, `text` is a correction's."""

    user_id: int
    value: int
    kind: str
    text: str | None
    source: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class RatedReply:
    """One reply that may be trained on, with the ratings that may."""

    reply_id: str
    conversation_id: int
    split: Split
    group_key: str
    prompt_messages: list[dict[str, str]]
    text: str
    source: str
    ratings: list[GivenRating]
    asker_id: int | None
    adapter_id: str | None
    base_hash: str
    created_ms: int

    @property
    def by_asker_only(self) -> bool:
        """Whether nobody but the member who asked has rated it: then nobody vouches for the rating."""
        return {rating.user_id for rating in self.ratings} == {self.asker_id}


@dataclass(frozen=True, slots=True)
class Eligibility:
    """What may train, in the order of the reply ids, and how many replies may not, by reason (REASONS)."""

    rows: list[RatedReply]
    excluded: dict[str, int]

    @property
    def liked(self) -> int:
        """Replies that more members liked than disliked, or that have a correction."""
        return sum(_is_liked(row.ratings) for row in self.rows)

    @property
    def by_asker_only(self) -> int:
        """Replies that nobody but the member who asked has rated."""
        return sum(row.by_asker_only for row in self.rows)

    @property
    def raters(self) -> int:
        """Members who gave the ratings."""
        return len({rating.user_id for row in self.rows for rating in row.ratings})


def eligible_rows(db: sqlite_utils.Database, scope: str, *, permission_reference: str) -> Eligibility:
    """Return every rated reply of a scope that may be trained on today, and count the others by reason.

    Read in pages, so that no single query grows with the database.
    """
    return _judge(db, pages(db, scope), permission_reference)


def lately_rated(
    db: sqlite_utils.Database, scope: str, *, permission_reference: str, ratings: int
) -> tuple[Eligibility, bool]:
    """Judge the replies that a scope's latest ratings are about, and say whether that is all of them.

    However many there are, so many ratings are read.
    """
    rows = sql.many(
        db,
        """SELECT reply_id FROM ratings INDEXED BY ratings_by_time
           WHERE scope = ? AND retracted = 0 ORDER BY updated_ms DESC LIMIT ?""",
        (scope, ratings + 1),
    )
    ids = sorted({row["reply_id"] for row in rows[:ratings]})
    found = _judge(db, (ids[at : at + PAGE] for at in range(0, len(ids), PAGE)), permission_reference)
    return found, len(rows) <= ratings


def _judge(db: sqlite_utils.Database, pages: Iterable[list[str]], permission_reference: str) -> Eligibility:
    rows: list[RatedReply] = []
    excluded: Counter[str] = Counter()
    for page in pages:
        for verdict in judge_rows(db, page, permission_reference):
            if isinstance(verdict, RatedReply):
                rows.append(verdict)
            else:
                excluded[verdict] += 1
    return Eligibility(rows, dict(excluded))


def judge_rows(
    db: sqlite_utils.Database, reply_ids: Sequence[str], permission_reference: str
) -> Iterator[RatedReply | str]:
    """Yield for each of some rated replies the row that may be trained on, or the reason why not."""
    page = Page(db, reply_ids, permission_reference)
    for candidate in page.candidates:
        reason = page.objection(candidate)
        given = page.ratings(candidate) if reason is None else []
        if reason is None and given:
            yield _rated_reply(candidate, given)
        else:
            yield reason or page.missing_rating(candidate)


def pages(db: sqlite_utils.Database, scope: str) -> Iterator[list[str]]:
    """Yield the ids of the replies of a scope that have a rating that stands, in order, some at a time."""
    last = ""
    while True:
        page = sql.many(
            db,
            """SELECT DISTINCT reply_id FROM ratings INDEXED BY ratings_active
               WHERE scope = ? AND retracted = 0 AND reply_id > ? ORDER BY reply_id LIMIT ?""",
            (scope, last, PAGE),
        )
        if not page:
            return
        last = page[-1]["reply_id"]
        yield [row["reply_id"] for row in page]


def list_allowed_prompts(
    db: sqlite_utils.Database, reply_ids: Sequence[str], permission_reference: str
) -> set[str]:
    """Return those of some replies whose prompts may be used, rated or not: blind votes show them."""
    page = Page(db, reply_ids, permission_reference)
    return {reply["id"] for reply in page.candidates if page.objection(reply) is None}


class Page:
    """A few hundred replies with the people, messages and ratings around them."""

    def __init__(
        self, db: sqlite_utils.Database, reply_ids: Sequence[str], permission_reference: str
    ) -> None:
        self._permitted = bool(permission_reference)
        self._closed = settings.read_closed_places(db)
        self._rested_since_ms = now_ms() - ERASURE_REST_MS
        ids = json.dumps(list(reply_ids))
        self.candidates = sql.many(db, _CANDIDATES, (ids,))
        self._context = _by_reply(sql.many(db, _CONTEXT, (ids,)))
        self._ratings = _by_reply(sql.many(db, _RATINGS, (ids,)))

    def objection(self, candidate: sql.Row) -> str | None:
        """Return why the reply may not train, or None; of several reasons the first in REASONS."""
        objections = {self.objection_to_message(message) for message in self._context[candidate["id"]]}
        if (
            candidate["status"] != "complete"
            or not candidate["text"].strip()
            or candidate["prompt_json"] == "[]"
        ):
            objections.add("incomplete")
        if candidate["left_out"]:
            objections.add("left_out")
        if candidate["unfinished"]:
            objections.add("unfinished_import")
        if candidate["conversation_source"] not in FREE_SOURCES and not self._permitted:
            objections.add("no_permission")
        return next((reason for reason in REASONS if reason in objections), None)

    def objection_to_message(self, message: sql.Row) -> str | None:
        """Judge one message behind a reply by its place, its fate and its author."""
        if message["guild_id"] is None or not message["public"] or message["closed_since"]:
            return "not_public"
        if (message["guild_id"], message["settings_channel_id"]) in self._closed:
            return "channel_opted_out"
        if message["deleted_ms"] is not None:
            return "deleted"
        if message["user_id"] is None:
            return None
        objection = self.objection_to(message)
        if message["blocked"] and objection != "opted_out":
            return "blocked"
        return objection or ("picture" if message["pictures"] else None)

    def ratings(self, candidate: sql.Row) -> list[GivenRating]:
        """Return the ratings of a reply that may train."""
        return [
            GivenRating(**{key: rating[key] for key in GivenRating.__slots__})
            for rating in self._ratings[candidate["id"]]
            if self._objection_to_rating(candidate, rating) is None
        ]

    def missing_rating(self, candidate: sql.Row) -> str:
        """Return why none of a reply's ratings may train."""
        objections = {
            self._objection_to_rating(candidate, rating) for rating in self._ratings[candidate["id"]]
        }
        wordy = candidate["source"] == members.OPERATOR_SOURCE and objections == {"no_permission"}
        return "no_permission" if wordy else "no_eligible_rating"

    def _objection_to_rating(self, candidate: sql.Row, rating: sql.Row) -> str | None:
        """Judge a rating. In a tasting a thumb or a vote quotes no member's message: the opt-in is enough.

        A correction is a member's own words, also there.
        """
        permitted = candidate["source"] == members.OPERATOR_SOURCE and rating["kind"] != "correction"
        return self.objection_to(rating, permitted=permitted)

    def objection_to(self, row: sql.Row, *, permitted: bool = False) -> str | None:
        """Judge a message, a rating or a vote by its author: what they said then, and what they say now.

        `permitted` is what needs no permission of Discord's.
        """
        if "out" in (row["consent"], row["member_consent"]):
            return "opted_out"
        if row["erased_ms"] is not None and row["erased_ms"] > self._rested_since_ms:
            return "recently_erased"
        if {row["source"], row["member_source"]} <= FREE_SOURCES:
            return None
        if not (self._permitted or permitted):
            return "no_permission"
        return None if row["member_consent"] == "in" else "no_consent"


_CANDIDATES = """
SELECT replies.id, replies.conversation_id, replies.asker_id, replies.adapter_id, replies.base_hash,
       replies.status, replies.prompt_json, replies.source, replies.created_ms, answer.content AS text,
       conversations.split, conversations.group_key,
       conversations.key AS conversation_key, conversations.source AS conversation_source,
       EXISTS (SELECT 1 FROM left_out_replies WHERE left_out_replies.reply_id = replies.id) AS left_out,
       EXISTS (SELECT 1 FROM imports WHERE imports.state = 'running'
               AND conversations.key LIKE 'import:' || imports.id || ':%') AS unfinished
FROM json_each(?) AS wanted
CROSS JOIN replies ON replies.id = wanted.value
CROSS JOIN messages AS answer ON answer.id = replies.message_id
CROSS JOIN conversations ON conversations.id = replies.conversation_id
ORDER BY replies.id"""

# What a message is judged by, and the tables that know it.
MESSAGE_FACTS = """messages.author_id AS user_id, messages.source, messages.consent, messages.blocked,
       messages.deleted_ms, messages.pictures, members.consent AS member_consent,
       members.source AS member_source, members.erased_ms, conversations.guild_id,
       coalesce(messages.public, conversations.public) AS public,
       coalesce(places.parent_channel_id, iif(messages.channel_id <> conversations.channel_id,
                messages.channel_id, conversations.parent_channel_id), conversations.channel_id)
           AS settings_channel_id,
       EXISTS (SELECT 1 FROM channels WHERE channels.public = 0 AND channels.channel_id IN (
                   conversations.channel_id, conversations.parent_channel_id, messages.channel_id,
                   places.parent_channel_id)) AS closed_since"""
MESSAGE_JOINS = """CROSS JOIN conversations ON conversations.id = messages.conversation_id
LEFT JOIN channels AS places ON places.channel_id = messages.channel_id
LEFT JOIN members ON members.user_id = messages.author_id"""

# Every message behind a reply: its prompt's, and those behind each answer in its prompt, which echoes words
# that the prompt itself may have left out. The reply's own answer comes first.
_CONTEXT = f"""
WITH RECURSIVE behind (reply_id, message_id) AS (
    SELECT replies.id, replies.message_id FROM json_each(?) AS wanted
    CROSS JOIN replies ON replies.id = wanted.value
    UNION
    SELECT behind.reply_id, reply_context.message_id FROM behind
    CROSS JOIN replies AS answered ON answered.message_id = behind.message_id
    CROSS JOIN reply_context ON reply_context.reply_id = answered.id
)
SELECT behind.reply_id, {MESSAGE_FACTS}
FROM behind
CROSS JOIN messages ON messages.id = behind.message_id
{MESSAGE_JOINS}"""

# What a blocked member rates doesn't count, wherever it came in.
_RATINGS = """
SELECT ratings.*, members.consent AS member_consent, members.source AS member_source, members.erased_ms
FROM json_each(?) AS wanted
CROSS JOIN ratings ON ratings.reply_id = wanted.value
CROSS JOIN members ON members.user_id = ratings.user_id
CROSS JOIN replies ON replies.id = ratings.reply_id
CROSS JOIN conversations ON conversations.id = replies.conversation_id
WHERE ratings.retracted = 0 AND NOT EXISTS (
    SELECT 1 FROM blocks WHERE blocks.user_id = ratings.user_id
    AND blocks.guild_id IN (0, conversations.guild_id) AND blocks.created_ms < ratings.updated_ms)
ORDER BY ratings.reply_id, ratings.user_id, ratings.kind"""


def _by_reply(rows: list[sql.Row]) -> defaultdict[str, list[sql.Row]]:
    grouped: defaultdict[str, list[sql.Row]] = defaultdict(list)
    for row in rows:
        grouped[row["reply_id"]].append(row)
    return grouped


def _rated_reply(candidate: dict[str, Any], given: list[GivenRating]) -> RatedReply:
    return RatedReply(
        reply_id=candidate["id"],
        conversation_id=candidate["conversation_id"],
        split=candidate["split"],
        group_key=candidate["group_key"] or candidate["conversation_key"],
        prompt_messages=json.loads(candidate["prompt_json"]),
        text=candidate["text"],
        source=candidate["source"],
        ratings=given,
        asker_id=candidate["asker_id"],
        adapter_id=candidate["adapter_id"],
        base_hash=candidate["base_hash"],
        created_ms=candidate["created_ms"],
    )


def _is_liked(given: Sequence[GivenRating]) -> bool:
    corrected = any(rating.kind == "correction" for rating in given)
    return corrected or sum(rating.value for rating in given if rating.kind == "thumb") > 0
