import pytest
import sqlite_utils
from hypothesis import given
from hypothesis import strategies as st
from sqlite_utils.utils import sqlite3

from storage.chat import conversations, members, replies
from storage.chat.splits import assign_split, near_duplicate_key
from storage.db import sql
from storage.db.database import Database
from storage.errors import UnknownRowError
from tests.storage.conftest import BASE, SCOPE, Community, finish


def open_one(
    db: sqlite_utils.Database, key: str = "discord:1", guild_id: int | None = 5
) -> conversations.Conversation:
    return conversations.open_conversation(
        db, key=key, guild_id=guild_id, channel_id=6, scope=SCOPE, source="playground", public=True
    )


def write_one(db: sqlite_utils.Database, content: str, discord_id: int = 1, key: str = "discord:1") -> int:
    return conversations.add_message(
        db,
        conversation_id=open_one(db, key).id,
        discord_id=discord_id,
        parent_id=None,
        author_id=1,
        role="user",
        content=content,
    )


def test_opening_a_conversation_twice_finds_the_first(database: Database) -> None:
    first, second = database.write(lambda db: (open_one(db), open_one(db)))
    assert first == second


def test_a_direct_message_is_never_public(database: Database) -> None:
    assert not database.write(lambda db: open_one(db, guild_id=None)).public


def test_a_message_that_arrives_twice_is_stored_once(database: Database) -> None:
    first, second = database.write(lambda db: (write_one(db, "hello"), write_one(db, "hello again")))
    assert first == second
    message = database.read(lambda db: conversations.by_discord_id(db, 1))
    assert message is not None and message.content == "hello"


def test_a_message_carries_its_authors_source_and_consent_at_the_time(database: Database) -> None:
    def work(db: sqlite_utils.Database) -> conversations.Message | None:
        members.ensure(db, 1, "Ann", "discord")
        members.set_consent(db, 1, "in", "1")
        write_one(db, "hello")
        members.set_consent(db, 1, "out", "1")
        return conversations.by_discord_id(db, 1)

    message = database.write(work)
    assert message is not None and (message.source, message.consent) == ("discord", "in")


def test_nearly_the_same_first_prompt_shares_a_split_however_often_it_is_asked(database: Database) -> None:
    variants = ["What is a strop?", "what is a  STROP", "<@42> What is a strop??", "Is what a strop!"]

    def work(db: sqlite_utils.Database) -> set[tuple[str | None, str]]:
        for number, text in enumerate(variants):
            write_one(db, text, number + 1, f"discord:{number + 1}")
        rows = sql.many(db, "SELECT group_key, split FROM conversations")
        return {(row["group_key"], row["split"]) for row in rows}

    assert len(database.write(work)) == 1


def test_the_split_never_changes_once_the_conversation_has_begun(database: Database) -> None:
    database.write(lambda db: write_one(db, "What is a strop?"))
    before = database.read(lambda db: open_split(db))
    database.write(lambda db: write_one(db, "Something else entirely", 2))
    database.write(lambda db: conversations.edit_message(db, 1, "Edited into another question"))
    assert database.read(lambda db: open_split(db)) == before
    with pytest.raises(sqlite3.IntegrityError, match="never changes"):
        database.write(lambda db: sql.change(db, "UPDATE conversations SET split = 'gate'"))


def open_split(db: sqlite_utils.Database) -> tuple[str, str | None]:
    conversation = conversations.get(db, 1)
    assert conversation is not None
    return conversation.split, conversation.group_key


def test_about_seventy_ten_and_twenty_percent_go_to_train_development_and_gate() -> None:
    splits = [assign_split(str(n)) for n in range(20_000)]
    shares = [round(splits.count(name) / len(splits), 2) for name in ("train", "development", "gate")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


@given(st.text(max_size=200))
def test_any_text_has_a_stable_group_and_split(text: str) -> None:
    key = near_duplicate_key(text)
    assert key == near_duplicate_key(text.upper().lower().upper()) or not text.isascii()
    assert assign_split(key) == assign_split(key)
    assert near_duplicate_key(f"  {text} !!") == key


def test_a_chain_is_the_way_from_the_root_to_a_message_along_one_branch(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> tuple[list[str], list[str]]:
        root = community.asks(db, 1, "root", answer="A")
        left = community.follows_up(db, 2, root, "left")
        community.follows_up(db, 3, root, "right")
        reply = replies.get(db, left)
        assert reply is not None
        whole = [message.content for message in conversations.chain(db, reply.message_id)]
        return whole, [message.content for message in conversations.chain(db, reply.message_id, limit=2)]

    assert database.write(work) == (["root", "A", "left", "An answer."], ["left", "An answer."])


def test_any_part_of_a_split_reply_leads_to_the_reply(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> tuple[object, ...]:
        reply_id = community.asks(db, 1, "a long question")
        replies.add_part(db, reply_id, 777, 6, 1)
        replies.add_part(db, reply_id, 777, 6, 1)
        reply, message = replies.by_discord_id(db, 777), conversations.by_discord_id(db, 777)
        assert reply is not None and message is not None
        return reply.id == reply_id, reply.message_id == message.id, len(replies.parts(db, reply_id))

    assert database.write(work) == (True, True, 2)


def test_a_deleted_message_loses_its_text_and_the_prompts_that_quote_it(
    database: Database, community: Community
) -> None:
    def work(db: sqlite_utils.Database) -> tuple[bool, bool, str, list[dict[str, str]]]:
        reply_id = community.asks(db, 1, "my secret")
        discord_id = sql.value(db, "SELECT discord_id FROM messages WHERE role = 'user'")
        first, second = (
            conversations.delete_message(db, discord_id),
            conversations.delete_message(db, discord_id),
        )
        message, reply = conversations.by_discord_id(db, discord_id), replies.get(db, reply_id)
        assert message is not None and reply is not None
        return first, second, message.content, reply.prompt

    assert database.write(work) == (True, False, "", [])


def test_an_edit_changes_a_message_once(database: Database) -> None:
    database.write(lambda db: write_one(db, "teh"))
    edits = database.write(
        lambda db: [conversations.edit_message(db, 1, "the"), conversations.edit_message(db, 1, "the")]
    )
    assert edits == [True, False]


def test_a_reply_records_what_produced_it(database: Database, community: Community) -> None:
    reply_id = database.write(lambda db: community.asks(db, 1, "hello"))
    reply = database.read(lambda db: replies.get(db, reply_id))
    assert reply is not None
    assert (reply.adapter_id, reply.base_hash, reply.seed) == (None, BASE, 7)
    assert reply.sampling == {"temperature": 0.7}
    assert (reply.text, reply.status, reply.asker_id) == ("An answer.", "complete", 1)
    assert (reply.first_token_ms, reply.duration_ms, reply.completion_tokens) == (20, 200, 5)


def test_a_reply_started_twice_is_one_reply(database: Database, community: Community) -> None:
    def work(db: sqlite_utils.Database) -> int:
        reply_id = community.asks(db, 1, "hello")
        reply = replies.get(db, reply_id)
        assert reply is not None
        replies.start(
            db,
            reply_id=reply_id,
            prompt_message_id=reply.prompt_message_id,
            scope=SCOPE,
            adapter_id=None,
            base_hash=BASE,
            prompt=[],
            seed=1,
            sampling={},
        )
        return int(sql.value(db, "SELECT count(*) FROM replies"))

    assert database.write(work) == 1


def test_unknown_rows_are_named(database: Database) -> None:
    with pytest.raises(UnknownRowError, match="no reply nope"):
        database.write(lambda db: finish(db, "nope", "text"))


def test_scopes_follow_the_configuration() -> None:
    assert conversations.scope_of("guild", 5) == "guild:5"
    assert conversations.scope_of("guild", None) == "deployment"
    assert conversations.scope_of("deployment", 5) == "deployment"
