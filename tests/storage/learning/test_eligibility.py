from itertools import count

import pytest
import sqlite_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.admin import audit, left_out
from storage.chat import conversations, members
from storage.db import clock, sql
from storage.db.database import Database
from storage.errors import UnknownRowError
from storage.feedback import ratings
from storage.learning import eligibility
from tests.storage.conftest import SCOPE, Community, thumb

PERMISSION = "DISCORD-2026-17"


def eligible(database: Database, permission: str = "") -> eligibility.Eligibility:
    return database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=permission))


def opt(database: Database, consent: members.Consent, *user_ids: int) -> None:
    database.write(
        lambda db: [members.set_consent(db, user_id, consent, str(user_id)) for user_id in user_ids]
    )


def rated(db: sqlite_utils.Database, community: Community) -> str:
    """Member 1 asks and member 2 rates."""
    members.ensure(db, 2, "rater", community.source)
    reply_id = community.asks(db, 1, "hello")
    thumb(db, reply_id, 2)
    return reply_id


@pytest.mark.parametrize("source", ["playground", "rehearsal", "sample", "operator", "import"])
def test_what_is_free_to_use_trains_without_permission_or_consent(database: Database, source: str) -> None:
    reply_id = database.write(lambda db: rated(db, Community(source=source)))
    (row,) = eligible(database).rows
    assert (row.reply_id, row.source, row.text) == (reply_id, source, "An answer.")
    assert row.prompt_messages == [{"role": "user", "content": "hello"}]
    assert [(rating.user_id, rating.value) for rating in row.ratings] == [(2, 1)]


@pytest.mark.parametrize(
    ("permission", "opted_in", "reason"),
    [
        ("", (1, 2), "no_permission"),
        (PERMISSION, (), "no_consent"),
        (PERMISSION, (2,), "no_consent"),
        (PERMISSION, (1,), "no_eligible_rating"),
        (PERMISSION, (1, 2), None),
    ],
)
def test_discord_rows_train_only_with_permission_and_everybodys_consent(
    database: Database, permission: str, opted_in: tuple[int, ...], reason: str | None
) -> None:
    database.write(lambda db: rated(db, Community(source="discord")))
    opt(database, "in", *opted_in)
    found = eligible(database, permission)
    assert found.excluded == ({} if reason is None else {reason: 1})
    assert len(found.rows) == (reason is None)


def test_one_person_up_the_chain_who_did_not_opt_in_keeps_the_reply_out(database: Database) -> None:
    community = Community(source="discord")

    def work(db: sqlite_utils.Database) -> None:
        root = community.asks(db, 3, "what a third person wrote")
        reply_id = community.follows_up(db, 1, root, "and then?")
        members.ensure(db, 2, "rater", "discord")
        thumb(db, reply_id, 2)

    database.write(work)
    opt(database, "in", 1, 2)
    assert eligible(database, PERMISSION).excluded == {"no_consent": 1}
    opt(database, "in", 3)
    assert len(eligible(database, PERMISSION).rows) == 1


@pytest.mark.parametrize("who", [1, 2])
def test_whoever_opted_out_never_trains_not_even_in_the_playground(database: Database, who: int) -> None:
    database.write(lambda db: rated(db, Community()))
    opt(database, "out", who)
    assert eligible(database).rows == []
    assert eligible(database).excluded == {"opted_out" if who == 1 else "no_eligible_rating": 1}


def test_words_written_while_opted_out_stay_out(database: Database) -> None:
    database.write(lambda db: members.ensure(db, 1, "Ann", "playground"))
    opt(database, "out", 1)
    database.write(lambda db: rated(db, Community()))
    opt(database, "in", 1)
    assert eligible(database).excluded == {"opted_out": 1}


def test_direct_messages_and_closed_channels_never_train(database: Database) -> None:
    database.write(lambda db: rated(db, Community(public=False)))
    database.write(lambda db: rated(db, Community(guild_id=None, ids=iter(range(5_000, 6_000)))))
    assert eligible(database).excluded == {"not_public": 2}


@pytest.mark.parametrize("changes", [{"status": "failed"}, {"status": "stopped"}, {"answer": "  "}])
def test_replies_that_are_not_whole_never_train(database: Database, changes: dict[str, str]) -> None:
    def work(db: sqlite_utils.Database) -> None:
        thumb(db, Community().asks(db, 1, "hello", **changes), 2)

    database.write(work)
    assert eligible(database).excluded == {"incomplete": 1}


def test_a_reply_to_a_deleted_message_never_trains(database: Database) -> None:
    database.write(lambda db: rated(db, Community()))
    database.write(
        lambda db: conversations.delete_message(db, sql.value(db, "SELECT min(discord_id) FROM messages"))
    )
    assert eligible(database).excluded == {"deleted": 1}


def test_a_retracted_rating_trains_nothing(database: Database) -> None:
    reply_id = database.write(lambda db: rated(db, Community()))
    database.write(lambda db: ratings.retract(db, reply_id=reply_id, user_id=2, kind="thumb"))
    assert eligible(database) == eligibility.Eligibility([], {})


@pytest.mark.parametrize(("days", "rows"), [(29, 0), (31, 1)])
def test_what_a_member_writes_after_erasing_trains_only_after_thirty_days(
    database: Database, days: int, rows: int
) -> None:
    database.write(lambda db: rated(db, Community()))
    erased_ms = clock.now_ms() - days * clock.DAY_MS
    database.write(
        lambda db: sql.change(db, "UPDATE members SET erased_ms = ? WHERE user_id = 1", (erased_ms,))
    )
    found = eligible(database)
    assert len(found.rows) == rows
    assert found.excluded == ({} if rows else {"recently_erased": 1})


def test_all_ratings_of_a_reply_come_along_as_given(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        reply_id = rated(db, Community())
        thumb(db, reply_id, 3, -1, "👎")
        ratings.rate(
            db, reply_id=reply_id, user_id=3, kind="correction", means="modal", value=1, text="Better."
        )

    database.write(work)
    found = eligible(database)
    (row,) = found.rows
    assert [(rating.user_id, rating.kind, rating.value, rating.text) for rating in row.ratings] == [
        (2, "thumb", 1, None),
        (3, "correction", 1, "Better."),
        (3, "thumb", -1, None),
    ]
    assert (found.liked, found.raters) == (1, 2)


def test_a_scope_sees_only_its_own_rows(database: Database) -> None:
    database.write(lambda db: rated(db, Community()))
    assert (
        database.read(lambda db: eligibility.eligible_rows(db, "guild:9", permission_reference="")).rows == []
    )


def test_more_replies_than_a_page_come_whole_and_in_order(database: Database) -> None:
    community = Community()

    def work(db: sqlite_utils.Database) -> list[str]:
        reply_ids = [community.asks(db, 1, f"question {n}") for n in range(eligibility.PAGE * 2 + 3)]
        for reply_id in reply_ids:
            thumb(db, reply_id, 2)
            thumb(db, reply_id, 3)
        return sorted(reply_ids)

    expected = database.write(work)
    assert [row.reply_id for row in eligible(database).rows] == expected


people = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["discord", "playground"]),
        "consent": st.sampled_from(["unset", "in", "out"]),
        "erased": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asker=people, rater=people, permitted=st.booleans(), public=st.booleans())
def test_a_row_trains_exactly_when_the_slow_rule_says_so(
    tmp_path_factory: pytest.TempPathFactory,
    asker: dict[str, object],
    rater: dict[str, object],
    permitted: bool,
    public: bool,
) -> None:
    def qualifies(person: dict[str, object]) -> bool:
        if person["consent"] == "out" or person["erased"]:
            return False
        return person["source"] != "discord" or (permitted and person["consent"] == "in")

    def work(db: sqlite_utils.Database) -> None:
        for user_id, person in ((1, asker), (2, rater)):
            members.ensure(db, user_id, "", str(person["source"]))
            members.set_consent(db, user_id, person["consent"], "1")  # type: ignore[arg-type]
            if person["erased"]:
                sql.change(
                    db, "UPDATE members SET erased_ms = ? WHERE user_id = ?", (clock.now_ms(), user_id)
                )
        thumb(db, Community(source="playground", public=public).asks(db, 1, "hello"), 2)

    with Database.open(tmp_path_factory.mktemp("rule") / "strop.db") as database:
        database.write(work)
        found = eligible(database, PERMISSION if permitted else "")
    assert (len(found.rows) == 1) == (public and qualifies(asker) and qualifies(rater))
    assert len(found.rows) + sum(found.excluded.values()) == 1
    assert set(found.excluded) <= set(eligibility.REASONS)


def tasted(database: Database, kind: ratings.Kind = "thumb") -> str:
    """The operator's prompt is answered, and a Discord member rates the answer."""

    def work(db: sqlite_utils.Database) -> str:
        members.ensure(db, members.OPERATOR_ID, members.OPERATOR_NAME, members.OPERATOR_SOURCE)
        reply_id = Community(source=members.OPERATOR_SOURCE).asks(
            db, members.OPERATOR_ID, "what is good bread?"
        )
        members.ensure(db, 2, "rater", "discord")
        words = "Flour and time." if kind == "correction" else None
        ratings.rate(db, reply_id=reply_id, user_id=2, kind=kind, means="button", value=1, text=words)
        return reply_id

    return database.write(work)


@pytest.mark.parametrize("kind", ["thumb", "vote"])
def test_a_tasting_trains_with_the_raters_opt_in_and_without_discords_permission(
    database: Database, kind: ratings.Kind
) -> None:
    reply_id = tasted(database, kind)
    assert eligible(database).excluded == {"no_eligible_rating": 1}
    opt(database, "in", 2)
    (row,) = eligible(database).rows
    assert (row.reply_id, row.source, [each.user_id for each in row.ratings]) == (reply_id, "operator", [2])
    opt(database, "out", 2)
    assert eligible(database).excluded == {"no_eligible_rating": 1}


def test_a_better_answer_in_a_tasting_is_a_members_words_and_needs_the_permission(
    database: Database,
) -> None:
    tasted(database, "correction")
    opt(database, "in", 2)
    assert eligible(database).excluded == {"no_permission": 1}
    (row,) = eligible(database, PERMISSION).rows
    assert [each.text for each in row.ratings] == ["Flour and time."]


def test_what_a_member_writes_below_a_tasted_answer_is_not_the_operators(database: Database) -> None:
    reply_id = tasted(database)
    opt(database, "in", 2)

    def work(db: sqlite_utils.Database) -> None:
        below = Community(source="discord", ids=count(9_000)).follows_up(db, 2, reply_id, "and rye?")
        thumb(db, below, 2)

    database.write(work)
    found = eligible(database)
    assert [row.reply_id for row in found.rows] == [reply_id]
    assert found.excluded == {"no_permission": 1}


def test_what_an_operator_leaves_out_does_not_train_until_it_is_put_back(database: Database) -> None:
    reply_id = database.write(lambda db: rated(db, Community(source="playground")))
    assert database.write(lambda db: left_out.leave_out(db, reply_id, "cli:ann"))
    assert not database.write(lambda db: left_out.leave_out(db, reply_id, "cli:ann")), "it is out already"

    found = eligible(database)
    assert (found.rows, found.excluded) == ([], {"left_out": 1})
    assert database.read(lambda db: eligibility.list_allowed_prompts(db, [reply_id], PERMISSION)) == set()
    (kept,) = database.read(lambda db: left_out.listing(db, SCOPE))
    assert (kept.reply_id, kept.actor) == (reply_id, "cli:ann")

    assert database.write(lambda db: left_out.put_back(db, reply_id, "cli:ann"))
    assert [row.reply_id for row in eligible(database).rows] == [reply_id]
    said = [(each.actor, each.action) for each in database.read(lambda db: audit.latest(db, 2))]
    assert said == [("cli:ann", "row.put_back"), ("cli:ann", "row.leave_out")]
    with pytest.raises(UnknownRowError):
        database.write(lambda db: left_out.leave_out(db, "none", "cli:ann"))


def test_of_many_ratings_only_the_latest_are_looked_at(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> list[str]:
        community = Community()
        members.ensure(db, 2, "rater", "playground")
        replies = [community.asks(db, 1, f"Question {number}") for number in range(4)]
        for reply_id in replies:
            thumb(db, reply_id, 2)
        sql.change(db, "UPDATE ratings SET updated_ms = id")
        return replies

    def lately(most: int) -> tuple[set[str], bool]:
        found, all_of_them = database.read(
            lambda db: eligibility.lately_rated(db, SCOPE, permission_reference="", ratings=most)
        )
        return {row.reply_id for row in found.rows}, all_of_them

    replies = database.write(work)
    assert lately(4) == (set(replies), True)
    assert lately(2) == (set(replies[2:]), False)
