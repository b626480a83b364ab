"""Two answers to one prompt and who preferred which: votes in the chat, and votes on blind duels.

The rules of `eligibility` hold: everybody whose words are in the prompt must allow training, and so must a
voter for their vote to count. A vote on two replies of a chat is a rating on both; a duel borrows the prompt
of a stored reply, or trains nothing.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import sqlite_utils

from storage.chat import members
from storage.chat.splits import Split
from storage.db import sql
from storage.learning.eligibility import Page, RatedReply


@dataclass(frozen=True, slots=True)
class GivenVote:
    """One member's choice: 1 the first answer, -1 the second, 0 neither."""

    user_id: int
    choice: int


@dataclass(frozen=True, slots=True)
class VotedPair:
    """Two answers to the prompt of `reply_id`, and the votes on them that may train.

    `finished` says of each whether the model wrote its stop token; of a duel's texts nobody knows.
    """

    pair_id: str
    reply_id: str
    split: Split
    group_key: str
    prompt_messages: list[dict[str, str]]
    texts: tuple[str, str]
    finished: tuple[bool, bool]
    votes: list[GivenVote]
    source: str


def eligible_pairs(
    db: sqlite_utils.Database, scope: str, rows: Sequence[RatedReply], *, permission_reference: str
) -> list[VotedPair]:
    """Return the pairs of a scope that may be trained on, by id; `rows` are its eligible replies."""
    chat = _chat_pairs(db, scope, {row.reply_id: row for row in rows})
    return sorted([*chat, *_duel_pairs(db, scope, permission_reference)], key=lambda pair: pair.pair_id)


def _chat_pairs(db: sqlite_utils.Database, scope: str, rows: dict[str, RatedReply]) -> list[VotedPair]:
    found = []
    for pair in sql.many(db, _COMPARED, (scope,)):
        first, second = rows.get(pair["first_id"]), rows.get(pair["second_id"])
        if first is None or second is None or first.prompt_messages != second.prompt_messages:
            continue
        votes = [GivenVote(r.user_id, r.value) for r in first.ratings if r.kind == "vote"]
        if votes and first.text.strip() != second.text.strip():
            found.append(
                VotedPair(
                    pair_id=first.reply_id,
                    reply_id=first.reply_id,
                    split=first.split,
                    group_key=first.group_key,
                    prompt_messages=first.prompt_messages,
                    texts=(first.text, second.text),
                    finished=(pair["first_end"] == "stop", pair["second_end"] == "stop"),
                    votes=votes,
                    source=first.source,
                )
            )
    return found


def _duel_pairs(db: sqlite_utils.Database, scope: str, permission_reference: str) -> list[VotedPair]:
    duels = sql.many(db, _DUELS, (scope,))
    page = Page(db, sorted({duel["reply_id"] for duel in duels}), permission_reference)
    grounds = {reply["id"]: reply for reply in page.candidates if page.objection(reply) is None}
    # A vote on a tasting's duel quotes no member's message, as a thumb there doesn't: the opt-in is enough.
    tasted = {
        duel["id"]
        for duel in duels
        if duel["reply_id"] in grounds and grounds[duel["reply_id"]]["source"] == members.OPERATOR_SOURCE
    }
    votes: defaultdict[str, list[GivenVote]] = defaultdict(list)
    for vote in sql.many(db, _DUEL_VOTES, (scope,)):
        if page.objection_to(vote, permitted=vote["duel_id"] in tasted) is None:
            votes[vote["duel_id"]].append(GivenVote(vote["user_id"], vote["choice"]))
    return [
        VotedPair(
            pair_id=duel["id"],
            reply_id=duel["reply_id"],
            split=grounds[duel["reply_id"]]["split"],
            group_key=grounds[duel["reply_id"]]["group_key"] or grounds[duel["reply_id"]]["conversation_key"],
            prompt_messages=json.loads(duel["prompt_json"]),
            texts=(duel["first_text"], duel["second_text"]),
            finished=(False, False),
            votes=votes[duel["id"]],
            source=grounds[duel["reply_id"]]["source"],
        )
        for duel in duels
        if duel["reply_id"] in grounds and votes[duel["id"]]
    ]


_COMPARED = """
SELECT first_id, second_id, first.finish_reason AS first_end, second.finish_reason AS second_end
FROM comparisons
CROSS JOIN replies AS first ON first.id = first_id CROSS JOIN replies AS second ON second.id = second_id
WHERE comparisons.scope = ? ORDER BY first_id"""

# An erasure empties the texts of a duel and its prompt.
_DUELS = """
SELECT id, reply_id, prompt_json, first_text, second_text FROM duels
WHERE scope = ? AND reply_id IS NOT NULL AND prompt_json <> '[]'
      AND trim(first_text) <> '' AND trim(second_text) <> '' AND trim(first_text) <> trim(second_text)
ORDER BY id"""

_DUEL_VOTES = """
SELECT duel_votes.duel_id, duel_votes.user_id, duel_votes.choice, duel_votes.source,
       members.consent AS consent, members.consent AS member_consent, members.source AS member_source,
       members.erased_ms
FROM duels
CROSS JOIN duel_votes ON duel_votes.duel_id = duels.id
CROSS JOIN members ON members.user_id = duel_votes.user_id
WHERE duels.scope = ? AND duels.reply_id IS NOT NULL
ORDER BY duel_votes.duel_id, duel_votes.user_id"""
