"""Votes between two adapters: each counted once for each side, and none that would give a blind vote away."""

import sqlite_utils

from storage.db import sql
from storage.db.database import Database
from storage.feedback import duels, rating_statistics, side_by_side
from storage.feedback.rating_statistics import Votes
from storage.learning import runs
from tests.storage.conftest import SCOPE, Community, thumb

OLD, NEW = "a1", "a2"


def votes(database: Database) -> dict[str | None, Votes | None]:
    shares = database.read(lambda db: rating_statistics.by_adapter(db, SCOPE, 90, 8))
    return {each.adapter_id: each.votes for each in shares}


def liked_reply(db: sqlite_utils.Database, community: Community, adapter_id: str, text: str) -> str:
    """A reply of an adapter that somebody likes: only rated adapters are shown."""
    reply_id = community.asks(db, 1, text)
    sql.change(db, "UPDATE replies SET adapter_id = ? WHERE id = ?", (adapter_id, reply_id))
    thumb(db, reply_id, 9)
    return reply_id


def test_votes_in_the_chat_count_between_two_adapters_only(database: Database, community: Community) -> None:
    def fill(db: sqlite_utils.Database) -> None:
        new, old, twin = (
            liked_reply(db, community, adapter_id, text)
            for adapter_id, text in ((NEW, "one"), (OLD, "two"), (NEW, "three"))
        )
        another = liked_reply(db, community, NEW, "four")
        side_by_side.add(db, first_id=new, second_id=old, usual_id=new)
        side_by_side.add(db, first_id=twin, second_id=another, usual_id=twin)
        for user_id, choice in ((2, 1), (3, 1), (4, -1), (5, 0)):
            thumb(db, new, user_id)
            side_by_side.vote(db, first_id=new, user_id=user_id, choice=choice)
        side_by_side.vote(db, first_id=twin, user_id=2, choice=1)

    database.write(fill)
    assert votes(database) == {NEW: Votes(won=2, lost=1), OLD: Votes(won=1, lost=2)}


def test_votes_on_a_challenger_count_once_its_run_is_decided(
    database: Database, community: Community
) -> None:
    def fill(db: sqlite_utils.Database) -> str:
        liked_reply(db, community, NEW, "one")
        liked_reply(db, community, OLD, "two")
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1")
        runs.lease_next(db, "test", 60_000)
        for number, first_is_challenger in enumerate((True, False)):
            duels.add(
                db,
                duel_id=f"d{number}",
                run_id=run.id,
                scope=SCOPE,
                challenger_id=NEW,
                champion_id=OLD,
                prompt=[],
                first_text="x",
                second_text="y",
                first_is_challenger=first_is_challenger,
            )
        runs.finish(db, run.id, outcome="votes", message="")
        for duel_id, user_id, choice in (("d0", 2, 1), ("d0", 3, -1), ("d1", 2, -1), ("d1", 3, 0)):
            duels.vote(db, duel_id=duel_id, user_id=user_id, choice=choice, source="playground")
        return run.id

    run_id = database.write(fill)
    assert votes(database) == {NEW: None, OLD: None}
    database.write(lambda db: runs.finish(db, run_id, outcome="promoted", message=""))
    assert votes(database) == {NEW: Votes(won=2, lost=1), OLD: Votes(won=1, lost=2)}
