"""Publicness, consent and blocks are facts of each message at its time, and asked again today."""

import sqlite_utils

from storage.admin import blocks
from storage.chat import channels, conversations, members, replies
from storage.db import sql
from storage.db.database import Database
from storage.feedback import duels, ratings
from storage.learning import eligibility, preference_votes, runs
from storage.privacy import consent
from tests.storage.conftest import GUILD, SCOPE, Community, thumb

ANN, BEN, CAT = 1, 2, 3
CHANNEL = 6


def eligible(database: Database) -> eligibility.Eligibility:
    return database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=""))


def asks_below(
    db: sqlite_utils.Database, community: Community, reply_id: str, *, public: bool, channel_id: int = CHANNEL
) -> str:
    """Ann goes on in the old chain; whether everybody can read it may have changed."""
    parent = replies.get(db, reply_id)
    assert parent is not None
    message_id = conversations.add_message(
        db,
        conversation_id=parent.conversation_id,
        discord_id=next(community.ids),
        parent_id=parent.message_id,
        author_id=ANN,
        role="user",
        content="and now between us?",
        public=public,
        channel_id=channel_id,
    )
    return community.answers(db, message_id, "and now between us?")


def test_a_question_in_a_channel_that_was_closed_trains_nothing_though_its_chain_began_in_public(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> tuple[str, str]:
        begun = community.asks(db, ANN, "hello")
        private = asks_below(db, community, begun, public=False)
        for reply_id in (begun, private):
            thumb(db, reply_id, BEN)
        return begun, private

    begun, _ = database.write(work)
    found = eligible(database)
    assert [row.reply_id for row in found.rows] == [begun]
    assert found.excluded == {"not_public": 1}


def test_what_follows_on_private_words_stays_out_also_where_everybody_reads_it(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        private = asks_below(db, community, community.asks(db, ANN, "hello"), public=False)
        thumb(db, asks_below(db, community, private, public=True), BEN)

    database.write(work)
    assert eligible(database).excluded == {"not_public": 1}


def test_a_channel_that_is_closed_now_keeps_its_old_words_out_until_it_is_open_again(
    database: Database, community: Community
) -> None:
    database.write(lambda db: thumb(db, community.asks(db, ANN, "hello"), BEN))
    for public in (True, False, True):
        database.write(
            lambda db, public=public: channels.note(db, CHANNEL, guild_id=GUILD, public=public)  # type: ignore[misc]
        )
        assert len(eligible(database).rows) == public
    # A thread is as closed as the channel that it hangs on.
    database.write(lambda db: sql.change(db, "UPDATE conversations SET parent_channel_id = 60"))
    database.write(lambda db: channels.note(db, 60, guild_id=GUILD, public=False))
    assert eligible(database).excluded == {"not_public": 1}


def test_words_from_another_channel_follow_that_channels_settings(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        thumb(db, asks_below(db, community, community.asks(db, ANN, "x"), public=True, channel_id=61), BEN)
        db.execute("INSERT INTO settings VALUES (?, 61, 'training', 'false', 'x', 0)", (GUILD,))

    database.write(work)
    assert eligible(database).excluded == {"channel_opted_out": 1}


def test_an_older_row_is_as_public_as_its_conversation(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        thumb(db, Community().asks(db, ANN, "hello"), BEN)
        thumb(db, Community(public=False, ids=iter(range(7_000, 8_000))).asks(db, ANN, "psst"), BEN)
        sql.change(db, "UPDATE messages SET public = NULL, channel_id = NULL")

    database.write(work)
    found = eligible(database)
    assert len(found.rows) == 1 and found.excluded == {"not_public": 1}


def test_the_words_of_somebody_blocked_stay_out_also_after_the_block_is_lifted(
    database: Database, community: Community
) -> None:
    """A message that somebody else replied to is context, whoever wrote it."""

    def work(db: sqlite_utils.Database) -> None:
        blocks.block(db, guild_id=GUILD, user_id=ANN, actor="7")
        thumb(db, community.asks(db, ANN, "buy gold"), BEN)
        blocks.unblock(db, guild_id=GUILD, user_id=ANN, actor="7")

    database.write(work)
    assert eligible(database).excluded == {"blocked": 1}


def test_a_rating_after_a_block_counts_nothing_however_it_came_in(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        reply_id = community.asks(db, ANN, "hello")
        thumb(db, reply_id, BEN)
        blocks.block(db, guild_id=GUILD, user_id=BEN, actor="7")
        sql.change(db, "UPDATE ratings SET updated_ms = updated_ms + 60000")

    database.write(work)
    assert eligible(database).excluded == {"no_eligible_rating": 1}


def test_an_answer_that_echoes_a_refusing_members_words_keeps_the_reply_out(
    database: Database, community: Community
) -> None:
    """The member's own message was too long for the prompt; the answer to it was not."""

    def work(db: sqlite_utils.Database) -> None:
        first = community.asks(db, CAT, "I live at Elm Street 5")
        answered = replies.get(db, first)
        assert answered is not None
        asked = conversations.add_message(
            db,
            conversation_id=answered.conversation_id,
            discord_id=next(community.ids),
            parent_id=answered.message_id,
            author_id=ANN,
            role="user",
            content="and then?",
        )
        replies.start(
            db,
            reply_id="second",
            prompt_message_id=asked,
            scope=SCOPE,
            adapter_id=None,
            base_hash="b",
            prompt=[{"role": "assistant", "content": "An answer."}, {"role": "user", "content": "and then?"}],
            seed=1,
            sampling={},
            context=[answered.message_id, asked],
        )
        sql.change(db, "UPDATE replies SET status = 'complete'")
        sql.change(db, "UPDATE messages SET content = 'Words.' WHERE content = ''")
        thumb(db, "second", BEN)
        members.set_consent(db, CAT, "out", str(CAT))

    database.write(work)
    assert eligible(database).excluded == {"opted_out": 1}


def duelling(db: sqlite_utils.Database, community: Community) -> str:
    """A run waits for votes on a pair that borrows Ann's prompt, and on one that borrows Ben's."""
    run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="op")
    for name, asker in (("ann", ANN), ("ben", BEN)):
        duels.add(
            db,
            duel_id=name,
            run_id=run.id,
            scope=SCOPE,
            challenger_id="a1",
            champion_id=None,
            prompt=[{"role": "user", "content": f"a question of {name}"}],
            first_text="One.",
            second_text="Two.",
            first_is_challenger=True,
            reply_id=community.asks(db, asker, f"a question of {name}"),
        )
    return run.id


def test_whoever_opts_out_ends_the_votes_with_their_words_at_once(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> str:
        run_id = duelling(db, community)
        members.ensure(db, CAT, "cat", "playground")
        for voter in (BEN, CAT):
            duels.vote(db, duel_id="ben", user_id=voter, choice=1, source="playground")
        assert consent.decide(db, ANN, "out", str(ANN), permission_reference="")
        return run_id

    run_id = database.write(work)
    assert [duel.id for duel in database.read(lambda db: duels.open_for(db, SCOPE))] == ["ben"]
    gone = database.read(lambda db: duels.get(db, "ann"))
    assert gone is not None and (gone.prompt, gone.first_text, gone.second_text) == ([], "", "")
    assert database.read(lambda db: duels.tally(db, run_id)).votes == 2

    database.write(lambda db: consent.decide(db, CAT, "out", str(CAT), permission_reference=""))
    assert database.read(lambda db: duels.tally(db, run_id)).votes == 1
    pairs = database.read(lambda db: preference_votes.eligible_pairs(db, SCOPE, [], permission_reference=""))
    assert [(pair.pair_id, [vote.user_id for vote in pair.votes]) for pair in pairs] == [("ben", [BEN])]


def test_a_vote_on_words_of_a_channel_that_was_closed_since_ends(
    database: Database, community: Community
) -> None:
    database.write(lambda db: duelling(db, community))
    database.write(lambda db: channels.note(db, CHANNEL, guild_id=GUILD, public=False))
    assert database.write(lambda db: consent.close_withdrawn(db, "")) == 2
    assert database.read(lambda db: duels.open_for(db, SCOPE)) == []


def test_whoever_opts_out_is_not_trained_on_by_the_run_that_is_on(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> tuple[runs.Run, runs.Run | None]:
        reply_id = community.asks(db, ANN, "hello")
        ratings.rate(db, reply_id=reply_id, user_id=BEN, kind="thumb", means="button", value=1)
        run = runs.enqueue(db, scope=SCOPE, trigger="ratings", requested_by="schedule", settings={"seed": 3})
        runs.lease_next(db, "trainer", 60_000)
        rows = [runs.RunRow(reply_id, "train", "liked", 1.0)]
        runs.record_snapshot(db, run.id, snapshot_hash="h", rows=rows)
        runs.heartbeat(db, run.id, "trainer", "train")
        consent.decide(db, ANN, "out", str(ANN), permission_reference="")
        return runs.expect(db, run.id), runs.active(db, SCOPE)

    ended, queued = database.write(work)
    assert ended.state == "cancelled"
    assert queued is not None and queued.state == "queued"
    assert (queued.trigger, queued.settings) == ("ratings", {"seed": 3})


def test_a_member_who_is_blocked_where_they_vote_has_no_vote_whatever_the_scope(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> list[bool]:
        run = runs.enqueue(db, scope="deployment", trigger="manual", requested_by="op")
        duels.add(
            db,
            duel_id="d",
            run_id=run.id,
            scope="deployment",
            challenger_id="a1",
            champion_id=None,
            prompt=[],
            first_text="One.",
            second_text="Two.",
            first_is_challenger=True,
        )
        blocks.block(db, guild_id=GUILD, user_id=BEN, actor="7")
        return [
            duels.vote(db, duel_id="d", user_id=BEN, choice=1, source="discord", guild_id=guild_id)
            for guild_id in (GUILD, 99)
        ]

    assert database.write(work) == [False, True]
