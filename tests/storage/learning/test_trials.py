"""Canaries and holdbacks as rows: who answers where, what counts, and what ends them."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import sqlite_utils

from storage.admin import audit, blocks, settings
from storage.admin.settings import Place
from storage.chat import conversations, members, replies
from storage.config import load_config
from storage.db.database import Database
from storage.feedback import ratings, side_by_side
from storage.learning import adapters, loop_status, runs, trials
from storage.learning.trials import Route, Trial
from storage.privacy import erasure
from tests.storage import many_rows
from tests.storage.conftest import BASE, GUILD, SCOPE, Community, thumb

OLD, NEW, NEWER = "aold", "anew", "anewer"


def register(db: sqlite_utils.Database, adapter_id: str, run_id: str | None = None) -> None:
    path = f"adapters/{adapter_id}"
    adapters.insert_candidate(
        db, adapter_id=adapter_id, scope=SCOPE, base_hash=BASE, path=path, run_id=run_id
    )


def crown(db: sqlite_utils.Database, adapter_id: str | None) -> None:
    adapters.promote(db, scope=SCOPE, base_hash=BASE, adapter_id=adapter_id, actor="7", reason="for the test")


def waiting_run(db: sqlite_utils.Database, adapter_id: str) -> str:
    """A run whose adapter waits for the members' word."""
    run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="7")
    runs.lease_next(db, "trainer", 60_000)
    register(db, adapter_id, run.id)
    runs.finish(db, run.id, outcome="votes", message="waits", adapter_id=adapter_id)
    return run.id


def canary(db: sqlite_utils.Database, share: float = 0.5, newcomer: str = NEW) -> Trial:
    """OLD is champion, the newcomer its canary."""
    if adapters.get(db, OLD) is None:
        register(db, OLD)
        crown(db, OLD)
    run_id = waiting_run(db, newcomer)
    return begin(db, "canary", run_id, newcomer, OLD, share)


def holdback(db: sqlite_utils.Database, share: float = 0.5) -> Trial:
    """NEW was promoted over OLD, which keeps a share."""
    register(db, OLD)
    crown(db, OLD)
    run_id = waiting_run(db, NEW)
    crown(db, NEW)
    return begin(db, "holdback", run_id, NEW, OLD, share)


def begin(
    db: sqlite_utils.Database, kind: trials.Kind, run_id: str, newcomer: str, incumbent: str, share: float
) -> Trial:
    trial_id = trials.begin(
        db,
        kind,
        scope=SCOPE,
        base_hash=BASE,
        run_id=run_id,
        newcomer_id=newcomer,
        incumbent_id=incumbent,
        share=share,
        days=14,
    )
    return trials.expect(db, trial_id)


def routed(
    db: sqlite_utils.Database, reply_id: str, asker_id: int = 1, left_out: tuple[int, ...] = ()
) -> Route:
    """Who would answer in a reply's conversation now."""
    reply = replies.get(db, reply_id)
    assert reply is not None
    conversation = conversations.get(db, reply.conversation_id)
    assert conversation is not None
    return trials.route(
        db,
        scope=SCOPE,
        base_hash=BASE,
        champion=adapters.champion(db, SCOPE, BASE),
        conversation=conversation,
        asker_id=asker_id,
        left_out=left_out,
    )


def asked(db: sqlite_utils.Database, community: Community, count: int, user_id: int = 1) -> list[str]:
    """So many new conversations, each answered by whom the trials send it to."""
    made = [community.asks(db, user_id, f"question {number}") for number in range(count)]
    for reply_id in made:
        route = routed(db, reply_id, user_id)
        db.execute("UPDATE replies SET adapter_id = ? WHERE id = ?", (route.adapter_id, reply_id))
        trials.note(db, reply_id, route)
    return made


def answerers(db: sqlite_utils.Database, made: list[str]) -> list[str | None]:
    return [reply.adapter_id for reply_id in made if (reply := replies.get(db, reply_id))]


# --------------------------------------------------------------------------------------------- who answers
def test_a_canary_answers_its_share_of_conversations_and_the_champion_the_rest(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        canary(db, share=0.25)
        who = answerers(db, asked(db, community, 400))
        assert 70 <= who.count(NEW) <= 130
        assert who.count(OLD) == 400 - who.count(NEW)

    database.write(work)


def test_a_holdback_keeps_its_share_with_the_champion_before(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        holdback(db, share=0.25)
        who = answerers(db, asked(db, community, 400))
        assert 70 <= who.count(OLD) <= 130
        assert who.count(NEW) == 400 - who.count(OLD)

    database.write(work)


def test_a_conversation_stays_where_it_is_and_one_that_began_before_stays_with_the_champion(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        before = community.asks(db, 1, "from before")
        db.execute("UPDATE conversations SET created_ms = created_ms - 1000")
        canary(db, share=1.0)
        assert routed(db, before) == Route(OLD, OLD)
        made = asked(db, community, 3)
        again = [routed(db, reply_id) for reply_id in made]
        assert {route.adapter_id for route in again} == {NEW}
        assert [routed(db, reply_id) for reply_id in made] == again
        assert again[0].diverted and again[0].champion == OLD

    database.write(work)


def test_private_places_opted_out_members_and_places_without_training_take_no_part(
    database: Database, tmp_path: Path
) -> None:
    config = load_config(None, {"STROP_HOME": str(tmp_path)})

    def work(db: sqlite_utils.Database) -> None:
        canary(db, share=1.0)
        plain = Route(OLD, OLD)
        assert routed(db, Community(public=False, ids=count(2_000)).asks(db, 1, "private")) == plain
        assert routed(db, Community(guild_id=None, ids=count(3_000)).asks(db, 1, "direct")) == plain
        reply_id = Community().asks(db, 2, "public")
        assert routed(db, reply_id, 2).adapter_id == NEW
        assert routed(db, reply_id, 2, left_out=(GUILD,)) == plain
        assert routed(db, reply_id, 2, left_out=(6,)) == plain
        members.set_consent(db, 2, "out", "2")
        assert routed(db, reply_id, 2) == plain
        settings.put(db, config, Place(GUILD, 6), "training", "off", "7")
        assert routed(db, reply_id, 1) == plain

    database.write(work)


def test_a_canary_and_a_holdback_run_side_by_side_and_the_champion_counts_in_both(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        watched = holdback(db, share=0.3)
        run_id = waiting_run(db, NEWER)
        tried = begin(db, "canary", run_id, NEWER, NEW, 0.3)
        made = asked(db, community, 200)
        assert set(answerers(db, made)) == {OLD, NEW, NEWER}
        champions = [each for each in made if routed(db, each).adapter_id == NEW]
        assert routed(db, champions[0]).sides == ((tried.id, "incumbent"), (watched.id, "newcomer"))
        assert {trial.kind for trial in trials.active(db, SCOPE, BASE)} == {"canary", "holdback"}

    database.write(work)


# ------------------------------------------------------------------------------------------- what ends them
def test_another_champion_ends_every_trial_whoever_brings_it(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        tried = canary(db, share=1.0)
        (reply_id,) = asked(db, community, 1)
        adapters.promote(db, scope=SCOPE, base_hash=BASE, adapter_id=None, actor="7", reason="by hand")
        assert routed(db, reply_id) == Route(None, None)
        ended = trials.expect(db, tried.id)
        assert (ended.outcome, ended.reason) == ("superseded", "another champion answers (promote)")
        assert audit.latest(db)[1].action == "canary.end" and audit.latest(db)[1].actor == "7"

    database.write(work)


def test_a_rollback_ends_the_holdback(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> None:
        watched = holdback(db, share=1.0)
        (reply_id,) = asked(db, community, 1)
        assert routed(db, reply_id).adapter_id == OLD
        adapters.rollback(db, scope=SCOPE, base_hash=BASE, actor="7", reason="by hand")
        assert routed(db, reply_id) == Route(OLD, OLD)
        assert trials.expect(db, watched.id).outcome == "superseded"

    database.write(work)


def test_a_trial_whose_time_is_over_diverts_nothing(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> None:
        tried = canary(db, share=1.0)
        (reply_id,) = asked(db, community, 1)
        assert routed(db, reply_id).adapter_id == NEW
        db.execute("UPDATE trials SET until_ms = started_ms WHERE id = ?", (tried.id,))
        assert routed(db, reply_id) == Route(OLD, OLD)

    database.write(work)


def test_a_newer_canary_ends_the_older_one(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        older, newer = canary(db), canary(db, newcomer=NEWER)
        assert trials.expect(db, older.id).reason == "a newer challenger took its place"
        assert [trial.id for trial in trials.active(db, SCOPE, BASE)] == [newer.id]

    database.write(work)


def test_a_run_that_is_decided_ends_its_canary(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        tried = canary(db)
        runs.finish(db, tried.run_id, outcome="refused", message="it lost")
        assert trials.expect(db, tried.id).outcome == "superseded"

    database.write(work)


@pytest.mark.parametrize("state", ["tainted", "rejected"])
def test_an_adapter_that_may_not_answer_stops_being_a_canary_at_once(
    database: Database, community: Community, state: adapters.State
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        canary(db, share=1.0)
        (reply_id,) = asked(db, community, 1)
        adapters.set_state(db, NEW, state)
        assert routed(db, reply_id) == Route(OLD, OLD)

    database.write(work)


def test_an_erasure_ends_the_canary_that_learned_from_it(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> Trial:
        taught = community.asks(db, 3, "what it learned from")
        thumb(db, taught, 3)
        tried = canary(db, share=1.0)
        db.execute("INSERT INTO run_rows VALUES (?, ?, 'train', 'liked', 1.0)", (tried.run_id, taught))
        erasure.erase_member(db, 3, actor="3")
        return trials.expect(db, tried.id)

    ended = database.write(work)
    assert (ended.outcome, ended.reason) == ("superseded", "a member erased words that it was trained on")


# --------------------------------------------------------------------------------------------- what counts
def test_a_rating_counts_as_it_stands_on_the_side_that_answered(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        tried = canary(db)
        made = asked(db, community, 12)
        new = next(each for each in made if routed(db, each).adapter_id == NEW)
        old = next(each for each in made if routed(db, each).adapter_id == OLD)
        for reply_id, user_id in ((new, 1), (new, 2), (old, 1)):
            thumb(db, reply_id, user_id)
        thumb(db, new, 2, -1, "👎")
        ratings.retract(db, reply_id=old, user_id=1, kind="thumb")
        ratings.rate(db, reply_id=old, user_id=2, kind="correction", means="modal", value=0, text="Better.")
        found = [(each.side, each.user_id, each.value) for each in trials.ratings(db, tried.id)]
        assert found == [("newcomer", 1, 1), ("newcomer", 2, -1), ("incumbent", 2, -1)]

    database.write(work)


def test_blocked_members_and_those_who_opted_out_count_nothing(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        tried = canary(db, share=1.0)
        (reply_id,) = asked(db, community, 1)
        for user_id in (1, 2, 3, 4):
            thumb(db, reply_id, user_id)
        blocks.block(db, guild_id=GUILD, user_id=2, actor="7")
        blocks.block(db, guild_id=blocks.EVERYWHERE, user_id=3, actor="7")
        members.set_consent(db, 4, "out", "4")
        assert [each.user_id for each in trials.ratings(db, tried.id)] == [1]

    database.write(work)


def test_two_candidates_side_by_side_are_voted_on_and_not_rated(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        tried = canary(db, share=1.0)
        (usual,) = asked(db, community, 1)
        reply = replies.get(db, usual)
        assert reply is not None
        rival = community.answers(db, reply.prompt_message_id, "question 0")
        db.execute("UPDATE replies SET adapter_id = ? WHERE id = ?", (OLD, rival))
        side_by_side.add(db, first_id=rival, second_id=usual, usual_id=usual)
        thumb(db, usual, 1)
        side_by_side.vote(db, first_id=rival, user_id=1, choice=-1)
        side_by_side.vote(db, first_id=rival, user_id=2, choice=1)
        assert trials.ratings(db, tried.id) == []
        assert [(each.user_id, each.outcome) for each in trials.pair_votes(db, tried)] == [(1, 1), (2, -1)]

    database.write(work)


def test_a_reply_tells_which_trial_sent_it_elsewhere_and_a_reroute_replaces_that(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        tried = canary(db)
        made = asked(db, community, 12)
        new = next(each for each in made if routed(db, each).adapter_id == NEW)
        old = next(each for each in made if routed(db, each).adapter_id == OLD)
        found = trials.behind(db, new)
        assert found is not None and found.id == tried.id
        assert trials.behind(db, old) is None
        trials.note(db, new, Route(OLD, OLD))
        thumb(db, new, 1)
        assert trials.behind(db, new) is None and trials.ratings(db, tried.id) == []

    database.write(work)


def test_status_says_how_a_canary_goes_and_not_who_is_ahead(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> str:
        tried = canary(db, share=0.1)
        trials.record_judgement(
            db, tried.id, {"newcomer": 4, "incumbent": 31, "raters": 6, "needed": [12, 61]}, "mark"
        )
        return loop_status.status_text(loop_status.read(db, SCOPE, BASE))

    assert (
        f"Canary: adapter {NEW} answers 10% of new conversations; rated: 4 of its conversations, "
        "31 of the champion's; in half of all cases 12 to 61 more decide (reckoned anew with each)"
    ) in database.write(work)


def test_the_ratings_of_a_trial_are_not_looked_for_among_all_pairs(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> None:
        trial = canary(db)
        for reply_id in asked(db, community, 20):
            thumb(db, reply_id, 1)
        before = many_rows.steps(db, lambda: trials.ratings(db, trial.id))
        many_rows.fill(db)
        assert many_rows.steps(db, lambda: trials.ratings(db, trial.id)) < 1.2 * before

    database.write(work)
