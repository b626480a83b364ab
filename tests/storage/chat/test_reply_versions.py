"""Versions of one reply, and pairs of candidates: what is kept, what is shown, what counts."""

from __future__ import annotations

import pytest
import sqlite_utils

from storage.admin.audit import record
from storage.chat import conversations, replies, reply_versions
from storage.db.database import Database
from storage.errors import UnknownRowError
from storage.feedback import ratings, reply_reports, side_by_side
from storage.learning import eligibility
from storage.privacy import erasure
from tests.storage.conftest import SCOPE, Community
from trainer.data import labels

ANN, BOB, CAT = 1, 2, 3


def second(db: sqlite_utils.Database, community: Community, first_id: str, answer: str = "Again.") -> str:
    """A reply to the same message, beside the first."""
    first = replies.get(db, first_id)
    assert first is not None
    reply_id = community.answers(db, first.prompt_message_id, "", answer=answer)
    part = replies.parts(db, reply_id)[0]
    replies.drop_part(db, part.discord_id)
    reply_versions.add(db, reply_id, beside=first_id)
    return reply_id


@pytest.fixture
def two(database: Database, community: Community) -> tuple[str, str]:
    def work(db: sqlite_utils.Database) -> tuple[str, str]:
        first_id = community.asks(db, ANN, "Hello?", answer="First.")
        return first_id, second(db, community, first_id)

    return database.write(work)


def test_a_reply_alone_is_its_only_version(database: Database, community: Community) -> None:
    alone = database.write(lambda db: community.asks(db, ANN, "Hello?"))
    found = database.read(lambda db: reply_versions.of(db, alone))
    assert (found.reply_ids, found.shown_id, found.number, found.total) == ((alone,), alone, 1, 1)
    assert found.neighbour(1) == found.neighbour(-1) == alone
    assert database.write(lambda db: reply_versions.drop(db, alone)) is None


def test_adding_keeps_what_is_shown_and_may_come_twice(database: Database, two: tuple[str, str]) -> None:
    again = database.write(lambda db: reply_versions.add(db, two[1], beside=two[0]))
    assert again == reply_versions.Versions(two, two[0])
    assert database.read(lambda db: reply_versions.of(db, two[1])) == again


def test_showing_moves_discords_messages_and_back(database: Database, two: tuple[str, str]) -> None:
    (part,) = database.read(lambda db: replies.parts(db, two[0]))
    for shown, hidden in (two[::-1], two):
        assert database.write(lambda db, i=shown: reply_versions.show(db, i)).shown_id == shown
        found = database.read(lambda db: replies.by_discord_id(db, part.discord_id))
        message = database.read(lambda db: conversations.by_discord_id(db, part.discord_id))
        assert found is not None and message is not None
        assert (found.id, message.content) == (shown, found.text)
        assert database.read(lambda db, i=hidden: replies.parts(db, i)) == []


def test_showing_what_is_not_there_is_refused(database: Database) -> None:
    assert database.write(lambda db: reply_versions.show(db, "nothing")).total == 1
    with pytest.raises(UnknownRowError):
        database.write(lambda db: side_by_side.add(db, first_id="nothing", second_id="none", usual_id="none"))


def test_the_chain_goes_through_the_version_that_is_shown(
    database: Database, community: Community, two: tuple[str, str]
) -> None:
    below = database.write(lambda db: community.follows_up(db, ANN, two[0], "Go on."))

    def chain() -> list[str]:
        def work(db: sqlite_utils.Database) -> list[str]:
            reply = replies.get(db, below)
            assert reply is not None
            return [message.content for message in conversations.chain(db, reply.prompt_message_id)]

        return database.read(work)

    assert chain() == ["Hello?", "First.", "Go on."]
    database.write(lambda db: reply_versions.show(db, two[1]))
    assert chain() == ["Hello?", "Again.", "Go on."]


@pytest.mark.parametrize("dropped", [0, 1])
def test_dropping_a_version_shows_the_other(database: Database, two: tuple[str, str], dropped: int) -> None:
    database.write(lambda db: reply_versions.show(db, two[dropped]))
    left = database.write(lambda db: reply_versions.drop(db, two[dropped]))
    assert left is not None and left.shown_id == two[1 - dropped] and left.total == 1
    assert database.read(lambda db: replies.parts(db, two[1 - dropped]))


def test_three_versions_outlive_the_first(
    database: Database, community: Community, two: tuple[str, str]
) -> None:
    third = database.write(lambda db: second(db, community, two[0], "Third."))
    left = database.write(lambda db: reply_versions.drop(db, two[0]))
    assert left is not None and left.reply_ids == (two[1], third) and left.shown_id == third
    assert left.neighbour(-1) == two[1] and left.neighbour(5) == third


def test_deleting_the_message_forgets_every_version(database: Database, two: tuple[str, str]) -> None:
    (part,) = database.read(lambda db: replies.parts(db, two[0]))
    assert database.write(lambda db: conversations.delete_message(db, part.discord_id))
    texts = [database.read(lambda db, i=each: replies.get(db, i)) for each in two]
    assert [reply.text for reply in texts if reply] == ["", ""]


def test_erasing_the_asker_forgets_every_version(database: Database, two: tuple[str, str]) -> None:
    database.write(lambda db: erasure.erase_member(db, ANN, "test"))
    texts = [database.read(lambda db, i=each: replies.get(db, i)) for each in two]
    assert [(reply.text, reply.prompt) for reply in texts if reply] == [("", []), ("", [])]


def test_a_retracted_correction_loses_its_words(database: Database, two: tuple[str, str]) -> None:
    def correct(db: sqlite_utils.Database) -> None:
        ratings.rate(
            db, reply_id=two[0], user_id=BOB, kind="correction", means="modal", value=1, text="Better."
        )

    database.write(correct)
    assert database.read(lambda db: ratings.list_for_reply(db, two[0]))[0].text == "Better."
    database.write(lambda db: ratings.retract(db, reply_id=two[0], user_id=BOB, kind="correction"))
    assert database.read(lambda db: ratings.list_for_reply(db, two[0]))[0].text is None


@pytest.fixture
def pair(database: Database, two: tuple[str, str]) -> side_by_side.Comparison:
    return database.write(lambda db: side_by_side.add(db, first_id=two[0], second_id=two[1], usual_id=two[1]))


def vote(
    database: Database, pair: side_by_side.Comparison, user_id: int, choice: side_by_side.Choice
) -> bool:
    return database.write(
        lambda db: side_by_side.vote(db, first_id=pair.first_id, user_id=user_id, choice=choice)
    )


def test_the_usual_candidate_is_shown_until_more_prefer_the_other(
    database: Database, pair: side_by_side.Comparison
) -> None:
    def shown() -> str:
        return database.read(lambda db: reply_versions.of(db, pair.first_id)).shown_id

    assert shown() == pair.usual_id == pair.second_id
    assert vote(database, pair, ANN, 1) and shown() == pair.first_id
    assert not vote(database, pair, ANN, 1)
    assert vote(database, pair, BOB, -1) and shown() == pair.usual_id
    assert vote(database, pair, CAT, 0) and shown() == pair.usual_id
    tally = database.read(lambda db: side_by_side.tally(db, pair.first_id))
    assert (tally.first, tally.second, tally.ties, tally.votes) == (1, 1, 1, 3)
    assert database.write(lambda db: side_by_side.retract(db, first_id=pair.first_id, user_id=BOB))
    assert shown() == pair.first_id
    assert database.read(lambda db: side_by_side.totals(db, SCOPE)) == (1, 2)
    assert database.read(lambda db: side_by_side.choice_of(db, pair.first_id, CAT)) == 0
    assert database.read(lambda db: side_by_side.choice_of(db, pair.first_id, BOB)) is None


def test_votes_like_one_reply_and_dislike_the_other_for_the_trainer(
    database: Database, pair: side_by_side.Comparison
) -> None:
    for user_id in (BOB, CAT):
        vote(database, pair, user_id, 1)
    eligible = database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=""))
    verdicts = {each.reply_id: each.verdict for each in labels.aggregate(eligible.rows).replies}
    assert verdicts == {pair.first_id: "liked", pair.second_id: "disliked"}
    assert len({row.split for row in eligible.rows}) == 1
    exported = database.read(lambda db: erasure.export_member(db, BOB))
    assert [row["kind"] for row in exported["ratings"]] == ["vote", "vote"]


def test_erasing_a_voter_takes_the_votes_along(database: Database, pair: side_by_side.Comparison) -> None:
    vote(database, pair, BOB, 1)
    database.write(lambda db: erasure.erase_member(db, BOB, "test"))
    assert database.read(lambda db: side_by_side.tally(db, pair.first_id)).votes == 0


def test_reports_are_counted_by_member_reply_and_time(database: Database) -> None:
    database.write(lambda db: record(db, str(BOB), reply_reports.ACTION, {"reply_id": "r1"}))
    seen = database.read(
        lambda db: (
            reply_reports.count_reports(db, BOB),
            reply_reports.count_reports(db, BOB, reply_id="r1", within_ms=60_000),
            reply_reports.count_reports(db, BOB, reply_id="r2"),
            reply_reports.count_reports(db, ANN),
        )
    )
    assert seen == (1, 1, 0, 0)
