"""What people see when they talk to the bot."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import discord
import pytest
from simcord.backend import serializers
from structlog.testing import capture_logs

from bot.app import make_client
from bot.chat import answerer, failures, generation
from bot.chat.answerer import Answerer
from bot.chat.draft import Draft, Progress
from bot.chat.listener import HIDDEN, NO_WORDS, READ_EVERYTHING
from bot.chat.question import Question
from bot.delivery.streaming import ChannelPace, ReplyRenderer
from bot.feedback.reply_buttons import Controls
from bot.services import Person, Services
from bot.serving.client_parsing import WholeCharacters
from bot.serving.model.control_tokens import escape_control_tokens
from bot.serving.model.identity import BaseIdentity
from bot.serving.protocol import QueuePlace
from bot.ui.interactions import NO_SUCH_MODEL
from storage.chat import conversations, replies
from storage.db.database import Database
from storage.learning import adapters
from tests.bot.conftest import Community, in_force
from tests.bot.fake_server import BASE, BASE_HASH, FakeModelServer
from tests.bot.screen import Parts, Screen
from tests.bot.test_commands import text

ADAPTER = "a0123456789abcdef"


def register(database: Database, adapter_id: str, scope: str, *, promote: bool = True) -> None:
    def work(db: Any) -> None:
        adapters.insert_candidate(
            db, adapter_id=adapter_id, scope=scope, base_hash=BASE_HASH, path=f"adapters/{adapter_id}"
        )
        if promote:
            adapters.promote(
                db, scope=scope, base_hash=BASE_HASH, adapter_id=adapter_id, actor="test", reason="test"
            )

    database.write(work)


async def test_a_mention_is_answered_with_a_stamped_reply(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello, who are you?")

    assert community.said() == ["Hello there, friend."]
    (reply,) = community.replies()
    assert reply.status == "complete"
    assert (reply.text, reply.base_hash, reply.adapter_id) == ("Hello there, friend.", BASE_HASH, None)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.finish_reason) == (22, 3, "stop")
    assert reply.seed == model_server.requests[0]["seed"]
    assert reply.sampling["temperature"] == 0.7
    assert reply.prompt == model_server.prompt()
    assert model_server.requests[0]["model"] == BASE
    assert model_server.prompt()[-1] == {"role": "user", "content": "hello, who are you?"}


async def test_the_answer_is_a_silent_reply_that_mentions_nobody(community: Community) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")

    (request,) = [
        r for r in community.env.http_requests if r.path.endswith("/messages") and r.method == "POST"
    ]
    assert request.json["flags"] == discord.MessageFlags(suppress_notifications=True).value
    assert request.json["allowed_mentions"] == {"parse": [], "replied_user": False}
    assert request.json["message_reference"]["fail_if_not_exists"] is False


async def test_what_is_not_meant_for_the_bot_is_left_alone(community: Community) -> None:
    await community.ann.send(community.channel, "hello everyone")
    await community.ann.send(community.channel, "@everyone look")
    assert community.said() == []
    assert community.services.database.read(lambda db: conversations.get_message(db, 1)) is None


async def test_bots_are_ignored(community: Community) -> None:
    other = community.guild.add_member(community.env.create_user("other", bot=True))
    await other.send(community.channel, f"{community.mention} let us talk forever")
    assert community.said() == []


async def test_a_reply_goes_on_with_the_conversation(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.ann.send(community.channel, f"{community.mention} first question")
    model_server.answer = "Second answer."
    await community.bob.send(community.channel, "and now?", reply_to=community.messages()[0])

    assert community.said() == ["Hello there, friend.", "Second answer."]
    assert [message["content"] for message in model_server.prompt()[1:]] == [
        "ann: first question",
        "Hello there, friend.",
        "bob: and now?",
    ]
    first, second = community.replies()
    assert first.conversation_id == second.conversation_id


async def test_two_replies_to_one_answer_are_two_branches(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.ann.send(community.channel, f"{community.mention} root")
    answer = community.messages()[0]
    await community.ann.send(community.channel, "left", reply_to=answer)
    await community.ann.send(community.channel, "right", reply_to=answer)
    assert [message["content"] for message in model_server.prompt()[1:]] == [
        "root",
        "Hello there, friend.",
        "right",
    ]


async def test_direct_messages_go_on_without_replying(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.ann.send_dm("hi")
    await community.ann.send_dm("go on")
    assert [message["content"] for message in model_server.prompt()[1:]] == [
        "hi",
        "Hello there, friend.",
        "go on",
    ]
    first, second = community.replies()
    assert first.scope == "deployment"
    assert first.conversation_id == second.conversation_id
    conversation = community.services.database.read(lambda db: conversations.get(db, first.conversation_id))
    assert conversation is not None and not conversation.public


async def test_mentions_become_names_and_control_tokens_plain_text(
    community: Community, model_server: FakeModelServer
) -> None:
    text = f"{community.mention} tell {community.bob.mention} in {community.channel.mention} <|im_end|>"
    await community.ann.send(community.channel, text)
    assert (
        model_server.prompt()[-1]["content"] == f"tell @bob in #general {escape_control_tokens('<|im_end|>')}"
    )


async def test_the_champion_of_the_guild_answers_and_is_loaded_on_demand(
    community: Community, model_server: FakeModelServer, database: Database
) -> None:
    register(database, ADAPTER, f"guild:{community.guild.id}")
    await community.ann.send(community.channel, f"{community.mention} hello")

    assert model_server.requests[-1]["model"] == ADAPTER
    assert community.replies()[0].adapter_id == ADAPTER
    await community.ann.send_dm("hello")
    assert community.replies()[1].adapter_id is None


async def test_an_adapter_that_the_server_forgets_is_loaded_again(
    community: Community, model_server: FakeModelServer, database: Database
) -> None:
    register(database, ADAPTER, f"guild:{community.guild.id}")
    forgetful = model_server._load
    loads = 0

    async def forget_first(request: Any) -> Any:
        nonlocal loads
        loads += 1
        response = await forgetful(request)
        if loads == 1:
            model_server.adapters.clear()
        return response

    model_server.on_load = forget_first
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there, friend."]
    assert loads == 2
    assert community.replies()[0].adapter_id == ADAPTER


async def test_an_adapter_that_cannot_be_loaded_leaves_the_base_answering(
    community: Community, model_server: FakeModelServer, database: Database
) -> None:
    register(database, ADAPTER, f"guild:{community.guild.id}")
    model_server.refused_adapters.add(ADAPTER)
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there, friend."]
    assert community.replies()[0].adapter_id is None


async def test_a_server_that_is_down_is_said_so_and_comes_back_by_itself(
    community: Community, model_server: FakeModelServer
) -> None:
    await model_server.stop()
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == [failures.UNREACHABLE]
    assert [reply.status for reply in community.replies()] == ["failed"]

    await model_server.start()
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said()[1:] == ["Hello there, friend."]


@pytest.mark.parametrize("settings", ['[server]\nbase_url = "http://127.0.0.1:1"\nmodel = "gemma3"\n'])
async def test_a_wrong_server_model_is_one_sentence_for_members_and_one_in_the_log(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.describes_base = False
    with capture_logs() as lines:
        await community.ann.send(community.channel, f"{community.mention} hello")
        status = await community.ann.slash(community.channel, "status")
    assert community.said() == [NO_SUCH_MODEL]
    (line,) = [each for each in lines if each["log_level"] == "error"]
    assert line["event"] == "reply.no_such_model" and "no model gemma3; it has " in line["error"]
    assert f"Model server: {NO_SUCH_MODEL}" in text(status)


async def test_a_loading_model_is_waited_for_in_the_same_message(
    services: Services, model_server: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "LOADING_POLL_S", 0.1)
    model_server.status = "loading"
    screen = Screen()
    task = Answerer(services, Controls(services.config.replies)).start(
        Question(1, 2, None, False, Person(3, "ann", "playground"), "hello", in_force(services)), screen
    )
    assert task is not None
    await asyncio.sleep(0.3)
    assert list(screen.messages.values()) == [generation.LOADING]

    model_server.status = "ok"
    await task
    assert list(screen.messages.values()) == ["Hello there, friend."]
    reply = services.database.read(lambda db: replies.by_discord_id(db, 100))
    assert reply is not None and reply.status == "complete"


async def test_a_stream_that_breaks_off_says_so_and_keeps_what_came(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.answer = "one two three four five six"
    model_server.break_after = 3
    await community.ann.send(community.channel, f"{community.mention} count")

    (said,) = community.said()
    assert said == f"one two three\n\n{failures.BROKE_OFF}"
    (reply,) = community.replies()
    assert (reply.status, reply.text, reply.error) == ("failed", "one two three", "ConnectionBrokenError")
    assert len(model_server.requests) == 1


async def test_a_server_that_counts_no_tokens_is_answered_through_by_estimate(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.describes_base = model_server.tokenizes = False
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there, friend."]
    assert model_server.prompt()[-1]["content"] == "hello"


async def test_a_base_that_is_known_by_its_identity_alone_has_the_champions_of_its_hash(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.identity = {"source": "hub:a/b", "revision": "c" * 40, "chat_template_hash": "t" * 64}
    await community.ann.send(community.channel, f"{community.mention} hello")
    model_server.base_hash = ""
    await community.ann.send(community.channel, f"{community.mention} hello")
    model_server.identity["revision"] = "d" * 40
    await community.ann.send(community.channel, f"{community.mention} hello")
    first, same, other = (reply.base_hash for reply in community.replies())
    assert first == same == BASE_HASH
    assert other == BaseIdentity(**model_server.identity).key


async def test_thoughts_are_not_shown_stored_or_sent_back(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.answer = "<think> What would she like to hear? </think> Hello there."
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there."]
    assert community.replies()[0].text == "Hello there."
    await community.ann.send(community.channel, f"{community.mention} and again")
    assert all("think" not in message["content"] for message in model_server.prompt())


async def test_a_full_queue_is_waited_out(community: Community, model_server: FakeModelServer) -> None:
    model_server.busy_times = 2
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there, friend."]

    model_server.busy_times = 3
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said()[1] == failures.BUSY.format(time="1 s")


async def test_an_answer_that_was_cut_off_shows_it(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.finish_reason = "length"
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there, friend. …"]
    assert community.replies()[0].text == "Hello there, friend."


async def test_what_stands_below_an_answer_never_lands_in_its_open_code_block(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.answer = "So:\n```python\nprint(1)"
    model_server.finish_reason = "length"
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["So:\n```python\nprint(1) …\n```"]
    assert community.replies()[0].text == model_server.answer


async def test_an_empty_answer_is_not_silence(community: Community, model_server: FakeModelServer) -> None:
    model_server.answer = "  "
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == [answerer.NOTHING_SAID]


async def test_a_long_answer_loses_nothing_and_every_part_leads_to_its_reply(
    community: Community, model_server: FakeModelServer, database: Database
) -> None:
    model_server.answer = " ".join(f"word{number}" for number in range(900))
    await community.ann.send(community.channel, f"{community.mention} talk")

    assert len(community.said()) > 3
    assert " ".join(community.said()).split() == model_server.answer.split()
    (reply,) = community.replies()
    for message in community.messages():
        found = database.read(lambda db, i=message.id: conversations.by_discord_id(db, i))
        assert found is not None and found.id == reply.message_id


async def test_a_hundred_thousand_characters_never_overflow(
    community: Community, model_server: FakeModelServer
) -> None:
    text = f"{community.mention} " + "lorem ipsum " * 9000
    await feed(community, content=text, mentions=[community.env.backend.bot_user])
    assert community.said()[-1].endswith(answerer.TRUNCATED)
    assert sum(4 + len(turn["content"].split()) for turn in model_server.prompt()) <= 1024


async def feed(
    community: Community,
    *,
    content: str,
    mentions: list[Any],
    reference: dict[str, str] | None = None,
    author: Any = None,
) -> None:
    """Deliver a message as Discord would, also one that simcord's own actors can't send."""
    with community.unheard() as backend:
        message = backend.create_message(
            community.channel.id, (author or community.ann).id, "a placeholder", reference=reference
        )
    payload = json.loads(json.dumps(serializers.message_payload(backend, message)))
    payload |= {"content": content, "mentions": [dict(serializers.user_payload(user)) for user in mentions]}
    await community.env.settle()
    with community.env._bot_scope():
        community.bot._connection.parsers["MESSAGE_CREATE"](payload)
    await community.env.settle()


async def test_what_is_no_text_is_not_opened_and_that_is_said(community: Community) -> None:
    bomb = ("bomb.zip", b"PK\x03\x04" + b"\0" * 1000)
    await community.ann.send(community.channel, f"{community.mention} open this", attachments=[bomb])
    note = "I can't open bomb.zip: I read only text."
    assert community.said() == [f"Hello there, friend.\n\n-# {note}"]
    await community.ann.send(community.channel, community.mention, attachments=[bomb])
    assert community.said()[1:] == [note]
    assert not [r for r in community.env.http_requests if "attachments" in r.path]


async def test_a_mention_without_a_question_gets_a_hint(community: Community) -> None:
    await community.ann.send(community.channel, community.mention)
    assert community.said() == [NO_WORDS]


@pytest.mark.parametrize("operator", [False, True])
async def test_a_reply_whose_text_discord_hides_names_the_fix(community: Community, operator: bool) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    reference = {"channel_id": str(community.channel.id), "message_id": str(community.messages()[0].id)}
    for _ in range(3):
        author = community.ann if operator else community.bob
        await feed(community, content="", mentions=[], reference=reference, author=author)
    # The key of strop.toml is for who can set it.
    told = [each for each in community.said() if each.startswith(HIDDEN)]
    assert told == [f"{HIDDEN}\n{READ_EVERYTHING}" if operator else HIDDEN]


async def test_a_missing_permission_is_told_in_private_once(community: Community) -> None:
    overwrite = discord.PermissionOverwrite(send_messages=False)
    locked = community.guild.create_text_channel("locked", overwrites={community.guild.me: overwrite})
    await community.ann.send(locked, f"{community.mention} hello")
    await community.ann.send(locked, f"{community.mention} hello?")

    assert community.said(locked) == []
    (told,) = community.said(community.ann.user.dm_channel)
    assert "Send Messages" in told and locked.mention in told
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there, friend."]


@pytest.mark.parametrize("settings", ["[discord]\nchannels = [1]"], indirect=True)
async def test_message_content_is_asked_for_only_with_chosen_channels(community: Community) -> None:
    assert community.bot.intents.message_content
    assert not community.bot.intents.members and not community.bot.intents.presences


async def test_intents_are_the_smallest_set(community: Community) -> None:
    wanted = {"guilds", "guild_messages", "dm_messages", "guild_reactions", "dm_reactions"}
    assert {name for name, on in community.bot.intents if on} == wanted


async def test_the_final_text_survives_a_failing_discord(
    community: Community, model_server: FakeModelServer
) -> None:
    community.env.inject_error("PATCH", "/channels/*/messages/*", status=500)
    model_server.answer = "one two three four"
    model_server.pause_s = 0.3
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["one two three four"]


async def test_the_typing_sign_ends_with_the_first_words(
    community: Community, model_server: FakeModelServer
) -> None:
    def typing() -> bool:
        return any("do_typing" in repr(task.get_coro()) for task in asyncio.all_tasks())

    model_server.answer = "one two three four"
    model_server.gate = asyncio.Event()
    community.env.backend.create_message(community.channel.id, community.ann.id, f"{community.mention} hello")
    for _ in range(500):
        if community.said() and not typing():
            break
        await asyncio.sleep(0.01)
    assert community.said() and not typing()
    assert community.bot.feature(Answerer).in_flight == 1
    model_server.gate.set()
    await community.env.settle()
    assert community.said() == ["one two three four"]


async def test_draining_finishes_what_it_can_and_marks_the_rest(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.answer = "one two three four"
    model_server.gate = asyncio.Event()
    community.env.backend.create_message(community.channel.id, community.ann.id, f"{community.mention} hello")
    await asyncio.sleep(0.5)
    assert community.bot.feature(Answerer).in_flight == 1
    await community.bot.feature(Answerer).drain(finish_s=0.1, stop_s=3.0)
    assert community.said() == [f"one two\n\n{answerer.STOPPED}"]
    (reply,) = community.replies()
    assert (reply.status, reply.text) == ("stopped", "one two")

    await community.ann.send(community.channel, f"{community.mention} again")
    assert len(community.said()) == 1


async def test_a_reply_that_a_crash_left_half_written_is_marked_at_the_next_start(
    community: Community, model_server: FakeModelServer, services: Any
) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    (reply,) = community.replies()
    services.database.write(
        lambda db: db.conn.execute(
            "UPDATE replies SET status = 'streaming', finish_reason = NULL WHERE id = ?", (reply.id,)
        )
    )
    await community.env.restart_bot(make_client(services))
    await community.env.settle()
    assert community.said() == [f"Hello there, friend.\n\n{answerer.STOPPED}"]
    assert services.database.read(lambda db: replies.get(db, reply.id)).status == "failed"


async def test_a_reply_whose_last_edit_a_crash_prevented_is_delivered_at_the_next_start(
    community: Community, model_server: FakeModelServer, services: Any
) -> None:
    """Four characters shown and all of them stored: members would rate what nobody has read."""
    await community.ann.send(community.channel, f"{community.mention} hello")
    (reply,), (message,) = community.replies(), community.messages()
    services.database.write(
        lambda db: db.conn.execute("UPDATE replies SET status = 'streaming' WHERE id = ?", (reply.id,))
    )
    community.env.backend.edit_message(community.channel.id, message.id, {"content": "Hell"})
    await community.env.restart_bot(make_client(services))
    await community.env.settle()
    assert community.said() == ["Hello there, friend."]
    assert services.database.read(lambda db: replies.get(db, reply.id)).status == "complete"


async def test_a_reply_is_complete_only_when_its_last_edit_is_delivered(
    community: Community, model_server: FakeModelServer, services: Any
) -> None:
    """A channel that refuses the text leaves a reply that counts as failed, however whole it was."""
    states: list[str] = []
    surface = Screen()
    edit = surface.send

    async def watched(content: str, buttons: Any = None) -> int:
        states.extend(reply.status for reply in community.replies())
        return await edit(content, buttons)

    surface.send = watched  # type: ignore[method-assign]
    person = Person(community.ann.id, "ann", "playground")
    question = Question(
        999, community.channel.id, community.guild.id, True, person, "hello", in_force(community.services)
    )
    task = community.bot.feature(Answerer).start(question, surface)
    assert task is not None
    await task
    assert set(states) == {"streaming"}
    assert [reply.status for reply in community.replies()] == ["complete"]


async def test_replies_that_only_wait_for_their_channel_keep_nobody_from_the_model(
    community: Community, model_server: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six questions a second in one slow channel: everybody elsewhere is answered."""
    monkeypatch.setattr(answerer, "MAX_IN_FLIGHT", 2)
    monkeypatch.setattr(answerer, "MAX_IN_CHANNEL", 5)
    slow, free = asyncio.Event(), Screen(first_id=9000)

    class SlowScreen(Screen):
        async def send(self, content: str, buttons: Any = None) -> int:
            await slow.wait()
            return await super().send(content, buttons)

    person = Person(community.ann.id, "ann", "playground")
    answering = community.bot.feature(Answerer)

    def ask(number: int, channel_id: int, surface: Any) -> Any:
        held = in_force(community.services)
        question = Question(number, channel_id, community.guild.id, True, person, f"hello {number}", held)
        return answering.start(question, surface)

    waiting = []
    for number in range(8):
        waiting.append(ask(1000 + number, 77, SlowScreen(first_id=5000 + 10 * number)))
        for _ in range(100):
            await asyncio.sleep(0.01)
            if answering._at_the_model == 0:
                break
    assert [task is None for task in waiting] == [False] * 5 + [True] * 3
    elsewhere = ask(2000, 78, free)
    await asyncio.wait_for(elsewhere, 20)
    assert list(free.messages.values()) == ["Hello there, friend."]
    slow.set()
    await asyncio.gather(*(task for task in waiting if task))


async def test_a_message_that_its_reply_withdraws_does_not_erase_the_reply(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    (message,) = community.messages()
    community.bot.feature(Answerer)._withdrawn.append(message.id)
    community.env.backend.delete_message(community.channel.id, message.id)
    await community.env.settle()
    assert community.replies()[0].text == "Hello there, friend."


async def test_a_reply_that_moderators_delete_is_forgotten(community: Community) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello")
    community.env.backend.delete_message(community.channel.id, community.messages()[0].id)
    await community.env.settle()
    assert community.replies()[0].text == ""


async def test_a_server_that_does_not_describe_its_base_serves_as_well(
    community: Community, model_server: FakeModelServer
) -> None:
    """vLLM answers /health with an empty body."""
    model_server.describes_base = False
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == ["Hello there, friend."]
    assert community.replies()[0].base_hash == f"external:{BASE}"


async def test_too_many_questions_at_once_are_told_when_to_come_back(
    community: Community, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answerer, "MAX_IN_FLIGHT", 0)
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == [failures.BUSY.format(time="30 s")]


async def test_what_nobody_expected_is_one_sentence_with_an_id(
    community: Community, services: Services
) -> None:
    services.database.write(lambda db: db.conn.execute("DROP TABLE champions"))
    await community.ann.send(community.channel, f"{community.mention} hello")
    (said,) = community.said()
    assert said.startswith("Something went wrong on my side (error `r")


@pytest.mark.parametrize("settings", ['[chat]\nsystem_prompt = "' + "s " * 3000 + '"'], indirect=True)
async def test_a_system_prompt_that_leaves_no_room_is_told_without_a_key(community: Community) -> None:
    with capture_logs() as lines:
        await community.ann.send(community.channel, f"{community.mention} hello")
    (said,) = community.said()
    assert said.startswith("My system prompt leaves no room") and "chat." not in said
    assert said in [each["error"] for each in lines if each["event"] == "reply.refused"]


async def test_a_storage_that_fails_at_the_end_does_not_cost_the_text(
    services: Services, model_server: FakeModelServer
) -> None:
    """Two messages of one id can't be; a fake that makes them stands for any surprise of storage."""
    answerer = Answerer(services, Controls(services.config.replies))
    screens = [Screen(), Screen()]
    for number, screen in enumerate(screens):
        question = Question(
            number + 1, 2, 3, True, Person(3, "ann", "playground"), "hello", in_force(services)
        )
        task = answerer.start(question, screen)
        assert task is not None
        await task
    assert [list(screen.messages.values()) for screen in screens] == [["Hello there, friend."]] * 2


async def test_the_event_loop_stays_free_while_many_replies_stream(
    services: Services, model_server: FakeModelServer
) -> None:
    model_server.answer = " ".join(f"word{number}" for number in range(200))
    model_server.pause_s = 0.005
    lags: list[float] = []
    loop = asyncio.get_running_loop()

    async def watch() -> None:
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            lags.append(loop.time() - before - 0.01)

    watching = asyncio.create_task(watch())
    answerer = Answerer(services, Controls(services.config.replies))
    person, held = Person(3, "ann", "playground"), in_force(services)
    tasks = [
        answerer.start(Question(number, number % 5, 1, True, person, "hello", held), Screen(number * 1000))
        for number in range(1, 31)
    ]
    await asyncio.gather(*(task for task in tasks if task is not None))
    watching.cancel()
    stored = services.database.read(lambda db: replies.recent(db, 0, 100))
    assert len(stored) == 30 and all(reply.status == "complete" for reply in stored)
    assert sorted(lags)[len(lags) * 9 // 10] < 0.1


def shown_over_time(community: Community) -> list[str]:
    """What the bot's messages said, one after the other."""
    return [
        request.json["content"]
        for request in community.env.http_requests
        if request.method in ("POST", "PATCH") and request.json and request.json.get("content")
    ]


async def test_whoever_waits_sees_their_place_in_the_reply_itself(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.places = [(2, 12.4)]
    model_server.pause_s = 0.3
    model_server.answer = "There."
    await community.ann.send(community.channel, f"{community.mention} hello")

    assert shown_over_time(community) == ["-# 2 before you, about 12 s.", "There."]
    assert community.said() == ["There."]
    (reply,) = community.replies()
    assert reply.text == "There."


async def test_the_place_is_brought_up_to_date_now_and_then(services: Services) -> None:
    screen = Screen()
    question = Question(
        1, 2, 3, True, Person(4, "ann", "discord"), "hello", in_force(services), quote="> hello"
    )
    draft = Draft("r1", question, ReplyRenderer(screen, ChannelPace(0.01), Parts()), Progress(0.0))
    for now, ahead, wait_s in ((0.0, 3, 1.5), (1.0, 3, 9.0), (2.0, 2, 7.0), (5.0, 1, 4.0), (9.5, 0, 1.0)):
        generation._show_place(draft, QueuePlace(ahead, wait_s), now)
        await asyncio.sleep(0.05)
    await draft.renderer.finish("There.")
    assert [text for _, text in screen.calls] == [
        "> hello\n\n-# 3 before you, about 9 s.",
        "> hello\n\n-# 1 before you, about 4 s.",
        "> hello\n\n-# You are next, in about 1 s.",
        "There.",
    ]


async def test_a_short_wait_is_not_worth_a_message(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.places = [(1, 1.2)]
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert not any("before you" in text for text in shown_over_time(community))


async def test_a_long_busy_server_is_said_at_once(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.busy_times, model_server.retry_after = 3, "40"
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert community.said() == [failures.BUSY.format(time="40 s")]
    assert len(model_server.requests) == 1


async def test_the_model_server_knows_members_by_a_pseudonym(
    community: Community, model_server: FakeModelServer
) -> None:
    for member in (community.ann, community.bob, community.ann):
        await member.send(community.channel, f"{community.mention} hello")
    first, second, third = (request["user"] for request in model_server.requests)
    assert first == third != second
    assert str(community.ann.id) not in json.dumps(model_server.requests)
    assert len(first) == 24


async def test_a_foreign_server_is_not_asked_for_places(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.describes_base = False
    await community.ann.send(community.channel, f"{community.mention} hello")
    assert "queue_updates" not in model_server.requests[0]
    assert community.said() == ["Hello there, friend."]


async def test_half_a_character_from_the_model_leaves_no_reply_open(
    community: Community, model_server: FakeModelServer
) -> None:
    model_server.answer = "half \ud83d of it, and a whole \U0001f600"
    await community.ann.send(community.channel, f"{community.mention} hello")
    (reply,) = community.replies()
    assert (reply.status, reply.text) == ("complete", "half \ufffd of it, and a whole 😀")
    assert community.said() == [reply.text]


def test_a_character_that_a_server_sends_in_two_halves_is_put_together() -> None:
    characters = WholeCharacters()
    assert [characters.push(text) for text in ("a\ud83d", "\ude00b", "\ude00", "\ud83d", "")] == [
        "a",
        "😀b",
        "\ufffd",
        "",
        "",
    ]
    assert characters.finish() == "\ufffd" and characters.finish() == ""
