"""Open replies: what a start finds, and when one counts as an answer."""

from __future__ import annotations

from typing import Any

import pytest
import sqlite_utils

from storage.chat import open_replies, replies
from storage.db import sql
from storage.db.database import Database
from storage.feedback import side_by_side
from tests.storage import many_rows
from tests.storage.conftest import BASE, SCOPE, Community


def opened(db: sqlite_utils.Database, reply_id: str, asked: replies.Reply) -> replies.Reply:
    return replies.open_reply(
        db, reply_id=reply_id, prompt_message_id=asked.prompt_message_id, scope=SCOPE, base_hash=""
    )


def known(db: sqlite_utils.Database, reply_id: str) -> replies.Reply:
    found = replies.get(db, reply_id)
    assert found is not None
    return found


def test_what_is_open_stays_so_until_it_is_settled(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> tuple[list[str], list[str]]:
        community.asks(db, 1, "one")
        left = community.asks(db, 1, "two", status="streaming")
        before = [reply.id for reply in open_replies.all_open(db)]
        assert before == [left]
        open_replies.settle(db, left, "complete")
        open_replies.settle(db, left, "failed", "too late")
        return [reply.id for reply in open_replies.all_open(db)], [known(db, left).status]

    assert database.write(work) == ([], ["complete"])


@pytest.mark.parametrize(
    ("change", "whole"),
    [
        ("UPDATE replies SET prompt_tokens = 1 WHERE id = ?", True),
        ("UPDATE replies SET finish_reason = NULL WHERE id = ?", False),
        ("DELETE FROM reply_parts WHERE reply_id = ?", False),
        ("UPDATE messages SET content = ' ' WHERE id = (SELECT message_id FROM replies WHERE id = ?)", False),
        ("INSERT INTO comparisons SELECT ?, id, id, scope, 0 FROM replies LIMIT 1", False),
    ],
)
def test_only_what_was_written_to_its_end_and_alone_is_delivered(
    database: Database, community: Community, change: str, whole: bool
) -> None:
    def work(db: sqlite_utils.Database) -> bool:
        community.asks(db, 1, "another")
        left = community.asks(db, 1, "two", status="streaming")
        sql.change(db, change, (left,))
        return open_replies.is_whole(db, left)

    assert database.write(work) is whole


def test_an_opened_reply_gets_what_produces_it_once(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> list[Any]:
        asked = known(db, community.asks(db, 1, "hello"))
        first = opened(db, "r1", asked)
        assert not first.planned and first.text == "" and first.status == "streaming"
        prompt = [{"role": "user", "content": "hello"}]
        for seed in (1, 2):
            replies.start(
                db,
                reply_id="r1",
                prompt_message_id=first.prompt_message_id,
                scope=SCOPE,
                adapter_id="a",
                base_hash=BASE,
                prompt=prompt,
                seed=seed,
                sampling={"top_k": 1},
            )
        planned = known(db, "r1")
        assert planned.planned
        return [planned.adapter_id, planned.base_hash, planned.seed, planned.prompt == prompt]

    assert database.write(work) == ["a", BASE, 1, True]


def test_a_message_that_may_be_on_its_way_is_known_by_its_position(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> list[int | None]:
        asked = known(db, community.asks(db, 1, "hello"))
        opened(db, "r1", asked)
        seen = [open_replies.find_lost_part(db, "r1")]
        replies.add_part(db, "r1", 501, 6, 0)
        seen.append(open_replies.find_lost_part(db, "r1"))
        open_replies.send_part(db, "r1", 1)
        open_replies.send_part(db, "r1", 1)
        seen.append(open_replies.find_lost_part(db, "r1"))
        replies.add_part(db, "r1", 502, 6, 1)
        return [*seen, open_replies.find_lost_part(db, "r1")]

    assert database.write(work) == [0, None, 1, None]


def test_a_question_has_an_answer_unless_all_that_began_failed_unseen(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> list[bool]:
        asked = known(db, community.asks(db, 1, "hello"))
        question = asked.prompt_message_id
        sql.change(db, "DELETE FROM reply_parts WHERE reply_id = ?", (asked.id,))
        seen = [
            open_replies.has_answer(db, question),
            open_replies.has_answer(db, question, besides=asked.id),
        ]
        sql.change(db, "UPDATE replies SET status = 'failed', error = 'cut' WHERE id = ?", (asked.id,))
        seen.append(open_replies.has_answer(db, question))
        assert [reply.id for reply in open_replies.list_unanswered(db, "cut", 0)] == [asked.id]
        replies.add_part(db, asked.id, 601, 6, 0)
        assert open_replies.list_unanswered(db, "cut", 0) == []
        return [*seen, open_replies.has_answer(db, question)]

    assert database.write(work) == [True, False, False, True]


def test_of_two_candidates_that_nobody_saw_only_one_is_answered_anew(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> list[str]:
        asked = known(db, community.asks(db, 1, "hello"))
        for number in (1, 2):
            replies.open_reply(
                db,
                reply_id=f"rival{number}",
                prompt_message_id=asked.prompt_message_id,
                scope=asked.scope,
                base_hash=asked.base_hash,
                asker_id=1,
            )
        sql.change(db, "DELETE FROM reply_parts")
        sql.change(db, "UPDATE replies SET status = 'failed', error = 'cut'")
        return [reply.id for reply in open_replies.list_unanswered(db, "cut", 0)]

    assert database.write(work) == ["rival2"]


def test_a_pair_is_not_looked_for_among_all_pairs(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> None:
        reply_id = community.asks(db, 1, "one")
        checks = (lambda: open_replies.is_whole(db, reply_id), lambda: side_by_side.drop(db, reply_id))
        before = [many_rows.steps(db, check) for check in checks]
        many_rows.fill(db)
        for check, least in zip(checks, before, strict=True):
            assert many_rows.steps(db, check) < 2 * least + 100

    database.write(work)
