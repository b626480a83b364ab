"""The slash commands: what they do, who may use them, and what they say."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from bot.operators import NOT_OPERATOR
from bot.privacy.commands import KEPT_BY_ADAPTERS
from bot.ui.command_tree import StropTree
from storage.admin import audit
from storage.chat import members
from storage.db import key_values
from storage.learning import adapters, runs
from storage.process.locks import ProcessLock
from tests.bot.adapter_files import FIRST, SECOND, THIRD, WEIGHTS, lay
from tests.bot.conftest import Community
from tests.bot.fake_server import BASE_HASH, FakeModelServer


def text(result: Any) -> str:
    """Everything that the bot answered an interaction with."""
    messages = [result.response] if result.response is not None else []
    return "\n".join(message.content for message in [*messages, *result.followups] if message.content)


def register(community: Community, *adapter_ids: str, promote: bool = False, scope: str = "") -> None:
    def work(db: Any) -> None:
        for adapter_id in adapter_ids:
            where = scope or f"guild:{community.guild.id}"
            adapters.insert_candidate(
                db, adapter_id=adapter_id, scope=where, base_hash=BASE_HASH, path=f"adapters/{adapter_id}"
            )
            if promote:
                adapters.promote(
                    db, scope=where, base_hash=BASE_HASH, adapter_id=adapter_id, actor="test", reason="test"
                )

    lay(community.services.config.adapters, *adapter_ids)
    community.services.database.write(work)


def champion(community: Community) -> str | None:
    scope = f"guild:{community.guild.id}"
    return community.services.database.read(lambda db: adapters.champion(db, scope, BASE_HASH))


@pytest.mark.parametrize(
    ("command", "options"), [("retrain", {}), ("rollback", {}), ("promote", {"adapter": FIRST})]
)
async def test_what_concerns_everybody_is_for_operators_only(
    community: Community, command: str, options: dict[str, str]
) -> None:
    register(community, FIRST)
    result = await community.bob.slash(community.channel, command, **options)

    assert result.ephemeral and text(result) == NOT_OPERATOR
    assert champion(community) is None
    assert community.services.database.read(lambda db: runs.latest(db, f"guild:{community.guild.id}")) == []
    assert len(community.env.errors) == 1


async def test_retrain_queues_one_run_that_reports_in_the_channel(community: Community) -> None:
    first = await community.ann.slash(community.channel, "retrain")
    second = await community.ann.slash(community.channel, "retrain")

    assert first.ephemeral and second.ephemeral
    (run,) = community.services.database.read(lambda db: runs.latest(db, f"guild:{community.guild.id}"))
    assert (run.trigger, run.requested_by, run.report_channel_id) == (
        "manual",
        str(community.ann.id),
        community.channel.id,
    )
    assert run.id in text(first) and "already queued" in text(second)


async def test_retrain_on_unchanged_ratings_during_its_own_vote_says_so(community: Community) -> None:
    """Another run would make the same adapter, and both would be refused."""
    scope, database = f"guild:{community.guild.id}", community.services.database
    await community.ann.send(community.channel, f"{community.mention} hello")
    await community.ann.react(community.messages()[0], "👍")

    def judged(db: Any) -> str:
        run = runs.enqueue(db, scope=scope, trigger="ratings", requested_by="scheduler")
        runs.lease_next(db, "trainer", 60_000)
        runs.finish(db, run.id, outcome="votes", message="it waits", adapter_id=FIRST)
        return run.id

    run_id = database.write(judged)
    told = text(await community.ann.slash(community.channel, "retrain"))
    assert "No rating has changed" in told and run_id in told and FIRST in told
    assert database.read(lambda db: runs.active(db, scope)) is None

    await community.bob.react(community.messages()[0], "👎")
    assert "is queued" in text(await community.ann.slash(community.channel, "retrain"))


async def test_status_shows_the_loop_at_a_glance(community: Community) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    await community.ann.react(community.messages()[0], "👍")
    result = await community.bob.slash(community.channel, "status")

    assert result.ephemeral
    assert "the base model" in text(result) and "1 member: 1 like, 0 dislikes" in text(result)
    assert "ready" in text(result) and "Trainer: not running" in text(result)


async def test_status_in_a_direct_message_says_that_servers_adapters_do_not_answer_there(
    community: Community,
) -> None:
    register(community, FIRST, promote=True)
    await community.ann.send_dm("hello")
    assert "not here" in text(await community.ann.user.slash("status"))
    assert "not here" not in text(await community.ann.slash(community.channel, "status"))


async def test_direct_messages_say_once_that_a_servers_new_champion_does_not_answer_there(
    community: Community,
) -> None:
    await community.ann.send_dm("hello")
    register(community, FIRST, promote=True)
    await community.ann.send_dm("and now?")
    await community.ann.send_dm("and later?")
    said = community.said(community.ann.user.dm_channel)
    assert ["not here" in each for each in said] == [False, True, False]


async def test_status_works_while_the_model_server_is_away(
    community: Community, model_server: FakeModelServer
) -> None:
    await model_server.stop()
    assert "not reachable" in text(await community.bob.slash(community.channel, "status"))


async def test_adapters_lists_what_was_trained(community: Community) -> None:
    assert "no adapters yet" in text(await community.bob.slash(community.channel, "adapters"))
    register(community, FIRST)
    register(community, SECOND, promote=True)
    listed = text(await community.bob.slash(community.channel, "adapters"))
    assert f"Adapter `{SECOND}` answers." in listed and f"`{FIRST}` candidate" in listed


async def test_promote_and_rollback_change_who_answers(
    community: Community, model_server: FakeModelServer
) -> None:
    register(community, FIRST, SECOND)
    promoted = await community.ann.slash(community.channel, "promote", adapter=FIRST)
    assert promoted.ephemeral and f"adapter `{FIRST}` answers, not the base model" in text(promoted)
    await community.ann.slash(community.channel, "promote", adapter=SECOND)
    assert champion(community) == SECOND
    assert model_server.adapters == [FIRST, SECOND]

    await community.bob.send(community.channel, f"{community.mention} hello")
    assert community.replies()[0].adapter_id == SECOND

    assert f"adapter `{FIRST}` answers again" in text(
        await community.ann.slash(community.channel, "rollback")
    )
    assert "the base model answers again" in text(await community.ann.slash(community.channel, "rollback"))
    assert "nothing came before it" in text(await community.ann.slash(community.channel, "rollback"))
    assert len(community.env.errors) == 1
    actions = [entry.action for entry in community.services.database.read(audit.latest)]
    assert actions.count("champion.promote") == 2 and actions.count("champion.rollback") == 2


async def test_the_base_can_be_promoted_by_name(community: Community) -> None:
    register(community, FIRST, promote=True)
    await community.ann.slash(community.channel, "promote", adapter="base")
    assert champion(community) is None
    again = await community.ann.slash(community.channel, "promote", adapter="base")
    assert text(again) == "The base model answers already."


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        ("unknown", "There is no adapter a9"),
        ("refused", "was made for another base"),
        ("foreign", "belongs to guild:1"),
        ("tainted", "can't be promoted"),
    ],
)
async def test_what_must_not_answer_is_refused_with_the_reason(
    community: Community, model_server: FakeModelServer, problem: str, sentence: str
) -> None:
    adapter_id = "a9" if problem == "unknown" else FIRST
    if problem != "unknown":
        register(community, FIRST, scope="guild:1" if problem == "foreign" else "")
    if problem == "refused":
        model_server.refused_adapters.add(FIRST)
    if problem == "tainted":
        community.services.database.write(lambda db: adapters.set_state(db, FIRST, "tainted"))
    result = await community.ann.slash(community.channel, "promote", adapter=adapter_id)
    assert sentence in text(result)
    assert champion(community) is None
    assert len(community.env.errors) == 1


async def test_promote_completes_ids_for_operators_only(community: Community) -> None:
    register(community, FIRST, SECOND)
    community.services.database.write(lambda db: adapters.set_state(db, SECOND, "tainted"))
    offered = await community.ann.autocomplete(community.channel, "promote", "adapter", "")
    assert [choice["value"] for choice in offered] == [FIRST]
    assert await community.bob.autocomplete(community.channel, "promote", "adapter", "") == []


async def test_promote_offers_what_may_answer_and_does_not_yet_with_date_and_score(
    community: Community,
) -> None:
    register(community, FIRST, SECOND, promote=True)
    register(community, "a3333333333333333", scope="guild:1")

    def judged(db: Any) -> None:
        run = runs.enqueue(db, scope=f"guild:{community.guild.id}", trigger="manual", requested_by="1")
        runs.lease_next(db, "test", 60_000)
        db.conn.execute("UPDATE adapters SET run_id = ? WHERE id = ?", (run.id, FIRST))
        adapters.insert_candidate(
            db, adapter_id="a4", scope=run.scope, base_hash="another base", path="p", run_id=run.id
        )
        headline = {"value": 0.31, "low": 0.1, "high": 0.5, "n": 26}
        runs.finish(db, run.id, outcome="refused", message="no", metrics={"headline": headline})

    community.services.database.write(judged)
    offered = await community.ann.autocomplete(community.channel, "promote", "adapter", "")
    assert [choice["value"] for choice in offered] == [FIRST, "base"]
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    assert offered[0]["name"] == f"{FIRST} · {today} · +0.31 · retired"
    found = await community.ann.autocomplete(community.channel, "promote", "adapter", "BASE")
    assert [choice["value"] for choice in found] == ["base"]


async def test_rollback_goes_to_the_one_that_is_chosen_of_those_before(community: Community) -> None:
    third = THIRD
    register(community, FIRST, SECOND, third, promote=True)
    offered = await community.ann.autocomplete(community.channel, "rollback", "adapter", "")
    assert [choice["value"] for choice in offered] == [SECOND, FIRST, "base"]
    assert await community.bob.autocomplete(community.channel, "rollback", "adapter", "") == []
    result = await community.ann.slash(community.channel, "rollback", adapter=FIRST)
    assert f"adapter `{FIRST}` answers again" in text(result) and champion(community) == FIRST
    result = await community.ann.slash(community.channel, "rollback", adapter=third)
    assert (
        "not among the adapters that led to the current one" in text(result) and champion(community) == FIRST
    )
    assert len(community.env.errors) == 1
    await community.ann.slash(community.channel, "rollback", adapter="base")
    assert champion(community) is None


async def test_going_back_to_what_the_server_refuses_changes_nothing_and_works_without_the_server(
    community: Community, model_server: FakeModelServer
) -> None:
    register(community, FIRST, SECOND, promote=True)
    model_server.refused_adapters.add(FIRST)
    refused = await community.ann.slash(community.channel, "rollback")
    assert "was made for another base" in text(refused) and champion(community) == SECOND
    assert len(community.env.errors) == 1

    await community.bob.send(community.channel, f"{community.mention} hello")
    await model_server.stop()
    await community.ann.slash(community.channel, "rollback")
    assert champion(community) == FIRST


async def test_what_was_changed_on_disk_neither_becomes_champion_nor_is_gone_back_to(
    community: Community, model_server: FakeModelServer
) -> None:
    register(community, FIRST, SECOND, promote=True)
    register(community, THIRD)
    weights = community.services.config.adapters / FIRST / "adapter_model.safetensors"
    weights.write_bytes(b"tampered")
    for command, options in (("rollback", {}), ("promote", {"adapter": FIRST})):
        refused = text(await community.ann.slash(community.channel, command, **options))
        assert FIRST in refused and champion(community) == SECOND
    assert model_server.adapters == [] and len(community.env.errors) == 2
    weights.write_bytes(WEIGHTS[FIRST])
    await community.ann.slash(community.channel, "rollback")
    assert champion(community) == FIRST


async def test_an_adapter_is_promoted_while_the_server_is_away_and_loaded_by_the_first_reply(
    community: Community, model_server: FakeModelServer
) -> None:
    register(community, FIRST)
    await community.bob.send(community.channel, f"{community.mention} hello")
    await model_server.stop()
    assert "answers, not the base model" in text(
        await community.ann.slash(community.channel, "promote", adapter=FIRST)
    )
    await model_server.start()
    await community.bob.send(community.channel, f"{community.mention} hello again")
    assert community.replies()[-1].adapter_id == FIRST and model_server.adapters == [FIRST]


async def test_status_says_when_the_next_run_starts_and_how_long_people_waited(
    community: Community,
) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    result = await community.bob.slash(community.channel, "status")
    assert "Next run: when the trainer is back; it is not running" in text(result)
    assert "The only reply in 24 hours had its first word within" in text(result)
    (file,) = result.followups[0].attachments if result.followups else result.response.attachments
    assert file.filename == "strop-status.png"
    assert (
        "Liked or corrected: 0, needed: 25. Raters: 0, needed: 5. New ratings: 0, needed: 50."
        in file.description
    )
    assert "Now: 0 being written, 0 waiting." in file.description


async def test_status_shows_the_next_three_runs_by_the_clock(community: Community) -> None:
    lock = ProcessLock(community.services.config.run / "trainer.lock")
    with lock.acquire("{pid}"):
        said = text(await community.bob.slash(community.channel, "status"))
    assert re.search(r"By the clock: <t:(\d+):f>, <t:(\d+):f>, <t:(\d+):f>", said)


async def test_ask_answers_in_place_and_can_be_rated(
    community: Community, model_server: FakeModelServer
) -> None:
    result = await community.bob.slash(community.channel, "ask", prompt="what is\nthis?")

    assert not result.ephemeral
    assert text(result) == "> what is this?\n\nHello there, friend."
    (reply,) = community.replies()
    assert (reply.text, reply.asker_id) == ("Hello there, friend.", community.bob.id)
    assert model_server.prompt()[-1]["content"] == "what is\nthis?"
    await community.ann.react(result.response, "👍")
    rated = community.services.database.read(
        lambda db: db.conn.execute("SELECT value FROM ratings WHERE reply_id = ?", (reply.id,)).fetchall()
    )
    assert rated == [(1,)]


async def test_ask_with_a_long_answer_uses_follow_ups(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.answer = " ".join(f"word{number}" for number in range(600))
    result = await community.bob.slash(community.channel, "ask", prompt="talk")
    assert len(result.followups) >= 2
    assert text(result).split()[2:] == model_server.answer.split()


async def test_commands_work_in_direct_messages(community: Community) -> None:
    await community.bob.send_dm("hello")
    result = await community.bob.user.slash("status")
    assert "Ratings" in text(result)


@pytest.mark.parametrize(
    ("command", "options"), [("retrain", {}), ("rollback", {}), ("promote", {"adapter": "base"})]
)
@pytest.mark.parametrize(
    ("settings", "here"),
    [("", False), ('[trainer]\nscope = "deployment"', True)],
    ids=["guild", "deployment"],
)
async def test_where_each_server_trains_its_own_there_is_nothing_to_change_in_direct_messages(
    community: Community, here: bool, command: str, options: dict[str, str]
) -> None:
    result = await community.ann.user.slash(command, **options)
    assert (text(result) != "This works only in a server.") is here
    assert bool(community.services.database.read(lambda db: runs.latest(db, "deployment"))) is (
        here and command == "retrain"
    )
    assert community.env.errors or here


async def test_an_unexpected_error_is_one_sentence_with_an_id(community: Community) -> None:
    community.services.database.write(lambda db: db.conn.execute("DROP TABLE promotions"))
    result = await community.bob.slash(community.channel, "status")
    assert result.ephemeral and "Something went wrong on my side (error `" in text(result)
    assert len(community.env.errors) == 1


async def test_commands_are_registered_only_when_their_definition_changed(community: Community) -> None:
    tree = community.bot.tree
    assert isinstance(tree, StropTree)
    assert not await tree.sync_if_changed()
    assert await tree.sync_if_changed(always=True)
    key = f"commands.hash:{community.bot.application_id}"
    community.services.database.write(lambda db: key_values.put(db, key, "another"))
    assert await tree.sync_if_changed()
    assert not await tree.sync_if_changed()


async def test_opting_in_and_out_is_recorded(community: Community) -> None:
    def consent() -> str:
        member = community.services.database.read(lambda db: members.get(db, community.bob.id))
        assert member is not None
        return member.consent

    result = await community.bob.slash(community.channel, "privacy opt-in")
    assert result.ephemeral and consent() == "in"
    await community.bob.slash(community.channel, "privacy opt-out")
    assert consent() == "out"


async def test_opting_out_says_what_adapters_keep_once_there_is_one_that_learned(
    community: Community,
) -> None:
    await community.bob.send(community.channel, f"{community.mention} my words")
    before = text(await community.bob.slash(community.channel, "privacy opt-out"))
    assert "nothing that you write or rate trains the model" in before and KEPT_BY_ADAPTERS not in before

    def learned(db: Any) -> None:
        run = runs.enqueue(db, scope=f"guild:{community.guild.id}", trigger="manual", requested_by="1")
        runs.lease_next(db, "trainer", 60_000)
        db.execute("INSERT INTO run_rows SELECT ?, id, 'train', 'liked', 1.0 FROM replies", (run.id,))
        db.execute("UPDATE adapters SET run_id = ? WHERE id = ?", (run.id, "a" * 16))

    register(community, "a" * 16, promote=True)
    community.services.database.write(learned)
    await community.bob.slash(community.channel, "privacy opt-in")
    assert KEPT_BY_ADAPTERS in text(await community.bob.slash(community.channel, "privacy opt-out"))
    assert KEPT_BY_ADAPTERS not in text(await community.ann.slash(community.channel, "privacy opt-out"))


async def test_export_is_a_file_for_ones_own_eyes(community: Community) -> None:
    await community.bob.send(community.channel, f"{community.mention} my words")
    await community.ann.send(community.channel, f"{community.mention} her words")
    result = await community.bob.slash(community.channel, "privacy export")

    assert result.ephemeral
    assert [file.filename for file in result.response.attachments] == ["strop-my-data.json"]


async def test_a_member_is_told_in_a_few_words_what_is_kept_of_them(community: Community) -> None:
    nothing = text(await community.bob.slash(community.channel, "privacy show"))
    assert "messages 0, my answers to them 0" in nothing and "not opted out" in nothing
    await community.bob.send(community.channel, f"{community.mention} my words")
    await community.ann.send(community.channel, f"{community.mention} her words")
    await community.bob.slash(community.channel, "privacy opt-in")
    told = await community.bob.slash(community.channel, "privacy show")
    assert told.ephemeral
    assert "messages 1, my answers to them 1" in text(told) and "You opted in" in text(told)
    asked = await community.bob.slash(community.channel, "privacy delete")
    await community.bob.click(asked.response, label="Delete my data")
    told = await community.bob.slash(community.channel, "privacy show")
    assert "messages 0, my answers to them 0" in text(told) and "nothing new of yours" in text(told)


async def test_an_erasure_has_the_model_server_drop_what_it_read(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.bob.send(community.channel, f"{community.mention} my secret words")
    asked = await community.bob.slash(community.channel, "privacy delete")
    await community.bob.click(asked.response, label="Delete my data")
    assert model_server.resets == 1


async def test_an_old_question_whether_to_delete_deletes_nothing(community: Community) -> None:
    await community.bob.send(community.channel, f"{community.mention} my secret words")
    asked = await community.bob.slash(community.channel, "privacy delete")
    record = community.env.backend.get_message(community.channel.id, asked.response.id)
    for button in record.components[0]["components"]:
        user, answer, when = button["custom_id"].split(":")[2:]
        button["custom_id"] = f"strop:erase:{user}:{answer}:{int(when) - 600}"
    await community.bob.click(asked.response, label="Delete my data")
    assert "too old" in asked.response.content
    assert community.replies()[0].text


async def test_deleting_asks_first_and_then_deletes(community: Community) -> None:
    await community.bob.send(community.channel, f"{community.mention} my secret words")
    await community.ann.send(community.channel, f"{community.mention} her words")

    asked = await community.bob.slash(community.channel, "privacy delete")
    assert asked.ephemeral and "can't be undone" in text(asked)
    kept = await community.bob.click(asked.response, label="Keep it")
    del kept
    assert community.replies()[0].text == "Hello there, friend."

    asked = await community.bob.slash(community.channel, "privacy delete")
    await community.bob.click(asked.response, label="Delete my data")
    assert asked.response.content.startswith("Done: everything")
    mine, hers = community.replies()
    assert (mine.text, mine.prompt) == ("", [])
    assert hers.text == "Hello there, friend."
    path = community.services.database.path
    files = [file.read_bytes() for file in path.parent.glob("strop.db*")]
    assert not any(b"my secret words" in content for content in files)
    actions = [entry.action for entry in community.services.database.read(audit.latest)]
    assert "member.erase" in actions


async def test_deleting_unloads_and_removes_what_was_trained_on_it(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.bob.send(community.channel, f"{community.mention} my words")
    (reply,) = community.replies()
    scope = f"guild:{community.guild.id}"

    def train(db: Any) -> None:
        run = runs.enqueue(db, scope=scope, trigger="manual", requested_by="test")
        runs.lease_next(db, "test", 60_000)
        row = runs.RunRow(reply.id, "train", "liked", 1.0)
        runs.record_snapshot(db, run.id, snapshot_hash="s", rows=[row])
        adapters.insert_candidate(
            db, adapter_id=FIRST, scope=scope, base_hash=BASE_HASH, path=f"adapters/{FIRST}", run_id=run.id
        )
        runs.finish(db, run.id, outcome="promoted", message="ok", adapter_id=FIRST)

    community.services.database.write(train)
    folder = community.services.config.adapters / FIRST
    lay(folder.parent, FIRST)
    await community.ann.slash(community.channel, "promote", adapter=FIRST)
    assert model_server.adapters == [FIRST]

    asked = await community.bob.slash(community.channel, "privacy delete")
    await community.bob.click(asked.response, label="Delete my data")
    assert "1 adapter was trained on it and is gone" in asked.response.content
    assert model_server.adapters == [] and not folder.exists() and champion(community) is None
