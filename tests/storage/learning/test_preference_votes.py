"""Which pairs of answers may be trained on, and whose votes count."""

import pytest
import sqlite_utils

from storage.admin import blocks
from storage.chat import conversations, members, replies
from storage.db import sql
from storage.db.database import Database
from storage.feedback import duels, side_by_side
from storage.learning import eligibility, preference_votes, runs
from storage.learning.preference_votes import GivenVote, VotedPair
from storage.privacy import erasure as privacy
from tests.storage.conftest import SCOPE, Community, finish, thumb

PERMISSION = "DISCORD-2026-17"
ANN, BEN, CAT = 1, 2, 3


def eligible(database: Database, permission: str = "") -> list[VotedPair]:
    def work(db: sqlite_utils.Database) -> list[VotedPair]:
        rows = eligibility.eligible_rows(db, SCOPE, permission_reference=permission).rows
        return preference_votes.eligible_pairs(db, SCOPE, rows, permission_reference=permission)

    return database.read(work)


def compared(db: sqlite_utils.Database, community: Community, second: str = "Another answer.") -> str:
    """Ann asks and two answers stand side by side; the second was cut off."""
    first_id = community.asks(db, ANN, "hello")
    first = replies.get(db, first_id)
    assert first is not None
    second_id = f"{first_id}-second"
    replies.start(
        db,
        reply_id=second_id,
        prompt_message_id=first.prompt_message_id,
        scope=SCOPE,
        adapter_id=None,
        base_hash="base-hash",
        prompt=first.prompt,
        seed=8,
        sampling={},
    )
    finish(db, second_id, second)
    db.execute("UPDATE replies SET finish_reason = 'length' WHERE id = ?", (second_id,))
    side_by_side.add(db, first_id=first_id, second_id=second_id, usual_id=first_id)
    return first_id


def vote(db: sqlite_utils.Database, first_id: str, user_id: int, choice: side_by_side.Choice) -> None:
    side_by_side.vote(db, first_id=first_id, user_id=user_id, choice=choice)


def duel(db: sqlite_utils.Database, community: Community, reply_id: str | None, *, name: str = "d1") -> None:
    """A finished run's duel on the prompt of a reply (None: on a general prompt)."""
    run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")
    duels.add(
        db,
        duel_id=name,
        run_id=run.id,
        scope=SCOPE,
        challenger_id="a1",
        champion_id=None,
        prompt=[{"role": "user", "content": "hello"}],
        first_text="One.",
        second_text="Two.",
        first_is_challenger=True,
        reply_id=reply_id,
    )


def test_votes_between_two_candidates_make_a_pair(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> str:
        first_id = compared(db, community)
        vote(db, first_id, ANN, -1)
        vote(db, first_id, BEN, 0)
        return first_id

    first_id = database.write(work)
    (pair,) = eligible(database)
    assert (pair.pair_id, pair.reply_id, pair.texts) == (
        first_id,
        first_id,
        ("An answer.", "Another answer."),
    )
    assert pair.finished == (True, False)
    assert pair.votes == [GivenVote(ANN, -1), GivenVote(BEN, 0)]
    assert pair.prompt_messages == [{"role": "user", "content": "hello"}]


def test_two_candidates_with_the_same_words_make_none(database: Database, community: Community) -> None:
    database.write(lambda db: vote(db, compared(db, community, "An answer."), BEN, 1))
    assert eligible(database) == []


def test_a_vote_that_was_taken_back_makes_none(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> None:
        first_id = compared(db, community)
        vote(db, first_id, BEN, 1)
        side_by_side.retract(db, first_id=first_id, user_id=BEN)

    database.write(work)
    assert eligible(database) == []


@pytest.mark.parametrize(
    ("opted_in", "voters"),
    [((ANN, BEN, CAT), [BEN, CAT]), ((ANN, CAT), [CAT]), ((BEN, CAT), []), ((ANN,), [])],
)
def test_asker_and_voters_must_have_opted_in_on_discord(
    database: Database, opted_in: tuple[int, ...], voters: list[int]
) -> None:
    """Without the asker nothing counts, without a voter only that vote."""
    community = Community(source="discord")

    def work(db: sqlite_utils.Database) -> None:
        first_id = compared(db, community)
        duel(db, community, first_id)
        for user in (BEN, CAT):
            members.ensure(db, user, "", "discord")
            vote(db, first_id, user, 1)
            duels.vote(db, duel_id="d1", user_id=user, choice=1, source="discord")
        for user in opted_in:
            members.set_consent(db, user, "in", str(user))

    database.write(work)
    assert eligible(database) == []
    found = eligible(database, PERMISSION)
    assert [[each.user_id for each in pair.votes] for pair in found] == [voters] * (2 if voters else 0)


def test_a_duel_trains_only_on_the_prompt_of_a_stored_reply(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> str:
        reply_id = community.asks(db, ANN, "hello")
        duel(db, community, reply_id)
        duel(db, community, None, name="general")
        for name in ("d1", "general"):
            duels.vote(db, duel_id=name, user_id=BEN, choice=-1, source="playground")
        return reply_id

    reply_id = database.write(work)
    (pair,) = eligible(database)
    # The reply itself was never rated. The pair stays in the split of its conversation.
    split = database.read(lambda db: sql.value(db, "SELECT split FROM conversations"))
    assert (pair.pair_id, pair.reply_id, pair.split) == ("d1", reply_id, split)
    assert (pair.texts, pair.finished, pair.votes) == (("One.", "Two."), (False, False), [GivenVote(BEN, -1)])


def test_a_duel_on_a_deleted_message_or_in_a_private_channel_trains_nothing(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        public, private = Community(), Community(public=False)
        deleted, hidden = public.asks(db, ANN, "hello"), private.asks(db, ANN, "psst")
        for name, reply_id in (("d1", deleted), ("d2", hidden)):
            duel(db, public, reply_id, name=name)
            duels.vote(db, duel_id=name, user_id=BEN, choice=1, source="playground")
        conversations.delete_message(db, 1_000)

    database.write(work)
    assert eligible(database) == []


def test_who_erases_their_data_takes_votes_and_the_runs_that_learned_from_them_along(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> tuple[str, str]:
        reply_id = community.asks(db, ANN, "hello")
        thumb(db, reply_id, ANN)
        duel(db, community, reply_id)
        duels.vote(db, duel_id="d1", user_id=BEN, choice=1, source="playground")
        first = runs.lease_next(db, "test", 60_000)
        assert first is not None
        rows = [runs.RunRow(reply_id, "development", "compared", 0.5)]
        runs.record_snapshot(db, first.id, snapshot_hash="s", rows=rows)
        runs.finish(db, first.id, outcome="refused", message="no")
        runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")
        later = runs.lease_next(db, "test", 60_000)
        assert later is not None
        runs.record_snapshot(db, later.id, snapshot_hash="s", rows=rows)
        runs.finish(db, later.id, outcome="refused", message="no")
        return first.id, later.id

    deciding, learning = database.write(work)
    assert len(eligible(database)) == 1
    erasure = database.write(lambda db: privacy.erase_member(db, BEN, "test"))
    # The run that the vote decided never learned from it.
    assert erasure.runs == (learning,)
    assert not database.read(lambda db: runs.expect(db, learning)).repeatable
    assert database.read(lambda db: runs.expect(db, deciding)).repeatable
    assert eligible(database) == []


def test_a_blocked_members_vote_makes_no_pair(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> None:
        first_id = compared(db, community)
        blocks.block(db, guild_id=5, user_id=BEN, actor="test", reason="")
        vote(db, first_id, BEN, 1)

    database.write(work)
    assert eligible(database) == []
