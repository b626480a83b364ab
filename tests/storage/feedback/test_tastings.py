from itertools import count

import pytest
import sqlite_utils

from storage.admin import audit
from storage.chat import members, replies
from storage.db import clock, sql
from storage.db.database import Database
from storage.errors import TastingError, UnknownRowError
from storage.feedback import prompt_bank, tastings
from storage.feedback.tastings import Tasting
from tests.storage.conftest import BASE, GUILD, SCOPE, Community, thumb

CHANNEL = 6
ids = count(50_000)


def bank(db: sqlite_utils.Database, *texts: str) -> None:
    prompt_bank.add_prompts(db, texts, "test")


def begin(
    db: sqlite_utils.Database,
    *,
    wanted: int | None = None,
    again: bool = False,
    champion: str | None = None,
    channel: int = CHANNEL,
) -> Tasting:
    return tastings.start(
        db,
        guild_id=GUILD,
        channel_id=channel,
        scope=SCOPE,
        base_hash=BASE,
        champion_id=champion,
        wanted=wanted,
        every_s=60.0,
        pairs=False,
        again=again,
        requested_by="7",
    )


def ask(db: sqlite_utils.Database, tasting: Tasting, *, answered: bool = True) -> tuple[str, str] | None:
    """Take the next turn and answer it; return the prompt's text and the reply's id."""
    number = next(ids)
    prompt = tastings.take_turn(db, tasting.id, number, BASE, None)
    if prompt is None:
        return None
    members.ensure(db, members.OPERATOR_ID, members.OPERATOR_NAME, members.OPERATOR_SOURCE)
    community = Community(source=members.OPERATOR_SOURCE, ids=iter([number, number + 1_000_000]))
    status = "complete" if answered else "failed"
    return prompt.text, community.asks(db, members.OPERATOR_ID, prompt.text, status=status)


def test_prompts_are_one_a_line_without_comments_and_control_characters() -> None:
    assert prompt_bank.lines_of("# mine\n\n  What is bread? \r\nA\x00B\n") == ["What is bread?", "AB"]


def test_the_bank_takes_each_prompt_once_and_says_what_it_left_out(database: Database) -> None:
    given = ["What is bread?", "what is  BREAD", "x" * 2001, *map(str, range(prompt_bank.MAX_PROMPTS))]
    added = database.write(lambda db: prompt_bank.add_prompts(db, given, "7"))
    assert (added.new, added.known, added.too_long, added.over) == (prompt_bank.MAX_PROMPTS, 1, 1, 1)
    assert [each.text for each in database.read(prompt_bank.prompts)[:2]] == ["What is bread?", "0"]
    assert database.read(lambda db: audit.latest(db))[0].action == "tasting.add"


def test_every_prompt_is_asked_once_in_the_order_of_the_bank(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> list[tuple[str, str] | None]:
        bank(db, "one", "two", "three")
        tasting = begin(db)
        assert tasting.wanted == 3
        return [ask(db, tasting) for _ in range(4)]

    asked = database.write(work)
    assert [each[0] for each in asked if each] == ["one", "two", "three"]
    assert asked[-1] is None


def test_what_the_champion_answered_is_not_asked_again_unless_it_is_wanted(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        bank(db, "one", "two")
        first = begin(db, wanted=1)
        ask(db, first)
        tastings.end(db, first.id, "done")
        second = begin(db)
        assert second.wanted == 1
        assert (ask(db, second) or ("",))[0] == "two"
        tastings.end(db, second.id, "done")
        with pytest.raises(TastingError, match="answered every prompt already"):
            begin(db)
        assert begin(db, again=True, wanted=5).wanted == 5
        # Another adapter answers differently: all is new to it.
        assert begin(db, champion="a1", channel=8).wanted == 2

    database.write(work)


def test_asking_again_goes_round_the_bank_the_least_asked_first(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> list[str]:
        bank(db, "one", "two", "three")
        first = begin(db, wanted=1)
        ask(db, first)
        tastings.end(db, first.id, "stopped")
        again = begin(db, again=True, wanted=5)
        return [(ask(db, again) or ("",))[0] for _ in range(5)]

    assert database.write(work) == ["two", "three", "one", "two", "three"]


def test_a_turn_without_an_answer_is_taken_back_after_a_restart(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        bank(db, "one", "two")
        tasting = begin(db)
        ask(db, tasting)
        ask(db, tasting, answered=False)
        tastings.take_turn(db, tasting.id, next(ids), BASE, None)
        assert tastings.withdraw_unanswered(db) == 1
        assert tastings.progress(db, tasting.id).asked == 1
        assert (ask(db, tasting) or ("",))[0] == "two"

    database.write(work)


def test_it_waits_where_nobody_rates_and_goes_on_with_one_rating(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        bank(db, *map(str, range(9)))
        tasting = begin(db)
        asked = [ask(db, tasting) for _ in range(tastings.MOST_UNRATED - 1)]
        assert not tastings.waits_for_ratings(db, tasting.id)
        asked.append(ask(db, tasting))
        assert tastings.waits_for_ratings(db, tasting.id)
        assert asked[1] is not None
        members.ensure(db, 2, "rater", "discord")
        thumb(db, asked[1][1], 2)
        assert not tastings.waits_for_ratings(db, tasting.id)
        found = tastings.progress(db, tasting.id)
        assert (found.asked, found.answered, found.rated, found.ratings, found.raters) == (5, 5, 1, 1, 1)

    database.write(work)


def test_the_next_prompt_is_due_after_the_pace(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        bank(db, "one", "two")
        tasting = begin(db)
        assert [each.id for each in tastings.due(db)] == [tasting.id]
        ask(db, tasting)
        assert tastings.due(db) == []
        assert 58_000 < tastings.expect(db, tasting.id).next_ms - clock.now_ms() <= 60_000

    database.write(work)


def test_a_channel_has_one_tasting_at_a_time_and_an_empty_bank_none(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        with pytest.raises(TastingError, match="no prompts yet"):
            begin(db)
        bank(db, "one")
        tasting = begin(db)
        with pytest.raises(TastingError, match="on in this channel already"):
            begin(db)
        assert tastings.end(db, tasting.id, "stopped", actor="7")
        assert not tastings.end(db, tasting.id, "done")
        begin(db)

    database.write(work)


def test_a_removed_prompt_leaves_what_was_asked(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        bank(db, "one", "two")
        tasting = begin(db)
        ask(db, tasting)
        first = prompt_bank.prompts(db)[0]
        assert first.asked == 1
        prompt_bank.remove_prompt(db, first.id, "7")
        with pytest.raises(UnknownRowError):
            prompt_bank.remove_prompt(db, first.id, "7")
        assert tastings.progress(db, tasting.id).answered == 1
        # Put back, it counts as answered.
        tastings.end(db, tasting.id, "stopped")
        bank(db, "one")
        assert begin(db).wanted == 1
        assert sql.value(db, "SELECT count(*) FROM messages WHERE content = 'one'") == 1

    database.write(work)


def test_a_tasted_answer_is_passed_over_where_a_channels_talk_goes_on(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> None:
        talk = Community().asks(db, 1, "hello")
        bank(db, "one")
        ask(db, begin(db))
        for asker_id in (None, 1):
            found = replies.latest_in(db, CHANNEL, asker_id=asker_id)
            assert found is not None and found.id == talk

    database.write(work)
