"""Signals that cost members nothing: another version asked for, one kept, going on or not, the next message.

Only what the member who asked did within GOES_ON_MS counts, and the rules of `eligibility` hold, as for a
rating: for the reply and all behind it, and for the next message too. Where that message may not train, where
the member decided about training meanwhile or is blocked, nothing is known of the reply: it has no signals.
An operator may ask for another version in the member's place, which is not told apart.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import sqlite_utils

from storage.chat import members
from storage.db import sql
from storage.db.clock import SECOND_MS, now_ms
from storage.learning.eligibility import MESSAGE_FACTS, MESSAGE_JOINS, Page

GOES_ON_MS = 30 * 60 * SECOND_MS
# So many of a scope's newest replies are read; of these so many unrated ones are looked at, and the most are
# returned.
NEWEST = 2_000
LOOKED_AT = 1_000
MOST_UNRATED = 400
# Of these, the most that one member asked for: nobody's reactions speak for all.
MOST_OF_ONE = MOST_UNRATED // 10
# Nobody asked for another version of these, or went on: they came in a file, or stand in a tasting.
_UNLIVED = ("import", "sample", members.OPERATOR_SOURCE)
_PAGE = 200


@dataclass(frozen=True, slots=True)
class Signals:
    """What the member who asked did after one reply; `next_words` is "" where they did not go on.

    `kept` says that it has other versions and is the one shown.
    """

    reply_id: str
    group_key: str
    question: str
    text: str
    source: str
    another_version: bool
    kept: bool
    went_on: bool
    next_words: str


def of_replies(
    db: sqlite_utils.Database, reply_ids: Sequence[str], *, permission_reference: str
) -> list[Signals]:
    """Return the signals of those of some replies that have any, in the order of their ids."""
    ordered = sorted(reply_ids)
    return [
        signals
        for start in range(0, len(ordered), _PAGE)
        for signals in _page(db, ordered[start : start + _PAGE], permission_reference)
    ]


def of_unrated(
    db: sqlite_utils.Database, scope: str, *, permission_reference: str, most_of_one: int = MOST_OF_ONE
) -> list[Signals]:
    """Return the signals of a scope's newest unrated replies whose conversations are trained on, by id."""
    rows = sql.many(
        db,
        """SELECT newest.id, newest.asker_id
           FROM (SELECT id, asker_id, conversation_id, status, created_ms FROM replies
                 WHERE scope = ? ORDER BY created_ms DESC, id DESC LIMIT ?) AS newest
           CROSS JOIN conversations ON conversations.id = newest.conversation_id
           WHERE newest.status = 'complete' AND newest.asker_id IS NOT NULL AND conversations.split = 'train'
                 AND NOT EXISTS (SELECT 1 FROM ratings WHERE ratings.reply_id = newest.id)
           ORDER BY newest.created_ms DESC, newest.id DESC LIMIT ?""",
        (scope, NEWEST, LOOKED_AT),
    )
    asker = {row["id"]: row["asker_id"] for row in rows}
    found = {
        one.reply_id: one for one in of_replies(db, list(asker), permission_reference=permission_reference)
    }
    kept: list[str] = []
    of_one: Counter[int] = Counter()
    for reply_id in asker:
        if reply_id in found and len(kept) < MOST_UNRATED and of_one[asker[reply_id]] < most_of_one:
            kept.append(reply_id)
            of_one[asker[reply_id]] += 1
    return [found[reply_id] for reply_id in sorted(kept)]


def _page(db: sqlite_utils.Database, reply_ids: Sequence[str], permission_reference: str) -> list[Signals]:
    page = Page(db, reply_ids, permission_reference)
    ids = json.dumps(reply_ids)
    acts = {row["id"]: row for row in sql.many(db, _ACTS, {"ids": ids, "wait": GOES_ON_MS, "now": now_ms()})}
    followed: dict[str, sql.Row] = {}
    for row in sql.many(db, _NEXT, {"ids": ids, "wait": GOES_ON_MS}):
        followed.setdefault(row["reply_id"], row)
    found = []
    for reply in page.candidates:
        act, following = acts.get(reply["id"]), followed.get(reply["id"])
        if act is None or reply["source"] in _UNLIVED or page.objection(reply) is not None:
            continue
        if following is not None and page.objection_to_message(following) is not None:
            continue
        found.append(
            Signals(
                reply_id=reply["id"],
                group_key=reply["group_key"] or reply["conversation_key"],
                question=json.loads(reply["prompt_json"])[-1]["content"],
                text=reply["text"],
                source=reply["source"],
                another_version=bool(act["another_version"]),
                kept=bool(act["kept"]),
                went_on=following is not None,
                next_words=following["content"] if following is not None else "",
            )
        )
    return found


# What is settled: the time to go on is over, and the member who asked wrote the prompt, did not decide about
# training meanwhile, and is not blocked. Two answers side by side are voted on and never written again.
# A plus takes a column's type away: an expression's index has none, and is not used beside one that has.
_ACTS = """
SELECT replies.id,
       EXISTS (SELECT 1 FROM reply_versions AS mine
               JOIN reply_versions AS following ON following.first_id = mine.first_id
                    AND following.number = mine.number + 1
               JOIN replies AS newer ON newer.id = following.reply_id
               WHERE mine.reply_id = replies.id
                     AND newer.created_ms <= replies.created_ms + coalesce(replies.duration_ms, 0) + :wait
       ) AS another_version,
       EXISTS (SELECT 1 FROM reply_versions WHERE reply_id = replies.id AND shown = 1) AS kept
FROM json_each(:ids) AS wanted
CROSS JOIN replies ON replies.id = wanted.value
CROSS JOIN conversations ON conversations.id = replies.conversation_id
CROSS JOIN messages AS asked ON asked.id = replies.prompt_message_id AND asked.author_id = replies.asker_id
WHERE replies.created_ms + coalesce(replies.duration_ms, 0) + :wait <= :now
      AND NOT EXISTS (SELECT 1 FROM blocks WHERE blocks.user_id = replies.asker_id
                      AND blocks.guild_id IN (0, conversations.guild_id))
      AND NOT EXISTS (SELECT 1 FROM audit WHERE audit.detail_json ->> 'user_id' = +replies.asker_id
                      AND audit.action = 'consent' AND audit.created_ms BETWEEN replies.created_ms
                      AND replies.created_ms + coalesce(replies.duration_ms, 0) + :wait)
      AND NOT EXISTS (SELECT 1 FROM comparisons
                      WHERE first_id = replies.id OR second_id = replies.id)"""

# What the member who asked wrote below a reply in time, the first message of each reply first. The plus keeps
# SQLite from looking through all that the member ever wrote.
_NEXT = f"""
SELECT answered.id AS reply_id, messages.content, {MESSAGE_FACTS}
FROM json_each(:ids) AS wanted
CROSS JOIN replies AS answered ON answered.id = wanted.value
CROSS JOIN messages ON messages.parent_id = answered.message_id AND +messages.author_id = answered.asker_id
{MESSAGE_JOINS}
WHERE messages.created_ms <= answered.created_ms + coalesce(answered.duration_ms, 0) + :wait
ORDER BY messages.id"""
