"""Settings of servers and channels, blocks, fresh starts, and what they mean for training."""

from typing import Any

import pytest

from storage.admin import audit, blocks, settings
from storage.admin.setting_values import KINDS
from storage.admin.settings import Place
from storage.chat import context_resets, conversations, replies
from storage.config import Config, load_config
from storage.db.database import Database
from storage.errors import SettingError
from storage.feedback import duels, ratings
from storage.learning import eligibility, runs
from tests.storage.conftest import GUILD, SCOPE, Community, thumb

CHANNEL = 6


@pytest.fixture
def config(tmp_path: Any) -> Config:
    return load_config(None, {"STROP_HOME": str(tmp_path)})


def test_the_channel_s_word_stands_over_the_server_s_and_that_over_the_file(
    database: Database, config: Config
) -> None:
    def origins() -> list[tuple[float, str]]:
        found = database.read(
            lambda db: [settings.resolve(db, config, GUILD, channel) for channel in (CHANNEL, 7, None)]
        )
        return [(each.settings.temperature, each.origins["temperature"]) for each in found]

    assert origins() == [(0.7, "file")] * 3
    database.write(lambda db: settings.put(db, config, Place(GUILD), "temperature", 0.5, "1"))
    database.write(lambda db: settings.put(db, config, Place(GUILD, CHANNEL), "temperature", "0.1", "1"))
    assert origins() == [(0.1, "channel"), (0.5, "server"), (0.5, "server")]
    assert database.write(lambda db: settings.reset(db, Place(GUILD, CHANNEL), "1")) == ["temperature"]
    assert origins() == [(0.5, "server")] * 3
    assert [entry.action for entry in database.read(audit.latest)] == [
        "settings.reset",
        "settings.change",
        "settings.change",
    ]


def test_another_server_and_direct_messages_are_not_touched(database: Database, config: Config) -> None:
    database.write(lambda db: settings.put(db, config, Place(GUILD), "temperature", 0.5, "1"))
    for guild_id in (GUILD + 1, None):
        found = database.read(lambda db, g=guild_id: settings.resolve(db, config, g, CHANNEL))
        assert found.settings.temperature == 0.7


@pytest.mark.parametrize(
    ("key", "typed", "value"),
    [
        ("temperature", "1", 1.0),
        ("max_new_tokens", "200", 200),
        ("triggers", "every, mention", ("mention", "every")),
        ("triggers", "none", ()),
        ("auto_thread", "on", True),
        ("rating_up", "👍 <:strop:123456789012345678> 👍", ("👍", "<:strop:123456789012345678>")),
        ("system_prompt", "  ", ""),
        ("language", "de", "de"),
        ("wake_words", "Strop, razor-bot,strop", ("strop", "razor-bot")),
        ("wake_words", 'hey  Strop, "ok strop"', ("hey strop", "ok strop")),
        ("wake_words", "ストロップ、ストロップさん", ("ストロップ", "ストロップさん")),
        ("wake_words", "سنّ، يا ستروب", ("سنّ", "يا ستروب")),
        ("wake_words", "क्षुर", ("क्षुर",)),
        ("wake_words", "none", ()),
        ("two_answers", "off", False),
        (
            "role_limits",
            "<@&123456789012345678>=5 123456789012345679=0",
            ("123456789012345678=5", "123456789012345679=0"),
        ),
    ],
)
def test_values_are_read_as_people_type_them(key: str, typed: str, value: object) -> None:
    assert KINDS[key].parse(typed) == value


@pytest.mark.parametrize(
    ("key", "typed"),
    [
        ("temperature", "nan"),
        ("temperature", True),
        ("temperature", "hot"),
        ("max_new_tokens", "20.5"),
        ("max_new_tokens", 10**9),
        ("triggers", "mention everything"),
        ("auto_thread", "maybe"),
        ("rating_up", ""),
        ("rating_up", "good"),
        ("rating_up", "👍 " + " ".join(f"<:e{n}:12345678901234567{n}>" for n in range(10))),
        ("system_prompt", "x" * 2001),
        ("language", "tlh"),
        ("wake_words", "x"),
        ("wake_words", "who?"),
        ("wake_words", "a1, a2, a3, a4, a5, a6"),
        ("role_limits", "mods=5"),
        ("role_limits", "123456789012345678=500"),
        ("follow_up_s", -1),
    ],
)
def test_values_that_do_not_fit_are_refused_and_nothing_is_stored(
    database: Database, config: Config, key: str, typed: object
) -> None:
    with pytest.raises(SettingError):
        database.write(lambda db: settings.put(db, config, Place(GUILD), key, typed, "1"))
    assert database.read(settings.places) == []


def test_every_setting_is_described_and_its_example_fits(config: Config) -> None:
    base = settings.defaults(config)
    for key, kind in KINDS.items():
        assert kind.help and kind.parse(kind.example) is not None
        assert kind.parse(getattr(base, key)) == getattr(base, key)
    assert set(KINDS) == set(settings.Settings.__slots__)


def test_a_stored_value_that_no_longer_fits_is_passed_over(database: Database, config: Config) -> None:
    database.write(lambda db: settings.put(db, config, Place(GUILD), "temperature", 0.5, "1"))
    database.write(
        lambda db: db.conn.execute(
            "INSERT INTO settings VALUES (?, ?, 'temperature', '99', '1', 1)", (GUILD, 6)
        )
    )
    found = database.read(lambda db: settings.resolve(db, config, GUILD, CHANNEL))
    assert found.settings.temperature == 0.5


def test_the_audit_counts_a_persona_instead_of_quoting_it(database: Database, config: Config) -> None:
    database.write(lambda db: settings.put(db, config, Place(GUILD), "system_prompt", "secret words", "1"))
    assert database.read(audit.latest)[0].detail["to"] == "12 characters"


def test_a_channel_that_opted_out_of_training_is_excluded_and_counted(
    database: Database, community: Community, config: Config
) -> None:
    database.write(lambda db: thumb(db, community.asks(db, 1, "one"), 2))

    def eligible() -> tuple[int, dict[str, int]]:
        found = database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=""))
        return len(found.rows), found.excluded

    assert eligible() == (1, {})
    database.write(lambda db: settings.put(db, config, Place(GUILD), "training", "off", "1"))
    assert eligible() == (0, {"channel_opted_out": 1})
    database.write(lambda db: settings.put(db, config, Place(GUILD, CHANNEL), "training", "on", "1"))
    assert eligible() == (1, {})
    database.write(
        lambda db: db.conn.execute("UPDATE conversations SET channel_id = 99, parent_channel_id = 6")
    )
    assert eligible() == (1, {})


def test_a_blocked_member_s_ratings_count_no_more_by_any_means(
    database: Database, community: Community
) -> None:
    def work(db: Any) -> list[bool]:
        first, second = community.asks(db, 1, "one"), community.asks(db, 1, "two")
        rated = [thumb(db, first, 2)]
        blocks.block(db, guild_id=GUILD, user_id=2, actor="1")
        rated += [thumb(db, first, 2, -1, "👎"), thumb(db, second, 2)]
        rated.append(
            ratings.rate(
                db, reply_id=second, user_id=2, kind="correction", means="modal", value=1, text="better"
            )
        )
        duels.add(
            db,
            duel_id="d",
            run_id=new_run(db),
            scope=SCOPE,
            challenger_id="a",
            champion_id=None,
            prompt=[],
            first_text="x",
            second_text="y",
            first_is_challenger=True,
        )
        rated.append(duels.vote(db, duel_id="d", user_id=2, choice=1, source="playground"))
        blocks.unblock(db, guild_id=GUILD, user_id=2, actor="1")
        return [*rated, thumb(db, second, 2)]

    assert database.write(work) == [True, False, False, False, False, True]
    assert database.read(lambda db: ratings.counts(db, SCOPE)).liked == 2


def new_run(db: Any) -> str:
    return runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1").id


def test_a_block_everywhere_holds_in_every_server_and_in_direct_messages(database: Database) -> None:
    database.write(lambda db: blocks.block(db, guild_id=blocks.EVERYWHERE, user_id=2, actor="cli:x"))
    database.write(lambda db: blocks.block(db, guild_id=GUILD, user_id=3, actor="1"))

    def blocked(guild_id: int | None, user_id: int) -> bool:
        return database.read(lambda db: blocks.is_blocked(db, guild_id, user_id))

    assert [blocked(where, 2) for where in (GUILD, 9, None)] == [True, True, True]
    assert [blocked(where, 3) for where in (GUILD, 9, None)] == [True, False, False]


def test_a_late_answer_to_a_question_from_before_is_from_before(
    database: Database, community: Community
) -> None:
    def work(db: Any) -> list[str]:
        reply = replies.get(db, community.asks(db, 1, "before"))
        assert reply is not None
        # The fresh start fell between the question and its answer.
        db.conn.execute("INSERT INTO fresh_starts VALUES (?, ?, '1', 1)", (CHANNEL, reply.prompt_message_id))
        after = replies.get(db, community.follows_up(db, 1, reply.id, "after"))
        assert after is not None
        chain = conversations.chain(db, after.message_id)
        return [each.content for each in context_resets.since(chain, context_resets.boundary(db, [CHANNEL]))]

    assert database.write(work) == ["after", "An answer."]
