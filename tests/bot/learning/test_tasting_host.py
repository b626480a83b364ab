"""/tasting: the operator's prompts are answered one by one, members rate, and the rows say whose they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import discord

from bot.chat.answerer import Answerer
from bot.feedback import corrections
from bot.feedback.reply_buttons import EMOJI
from bot.language import texts
from bot.learning import tasting_commands
from bot.learning import tasting_host as host
from bot.learning.tasting_host import TastingHost
from bot.operators import NOT_OPERATOR
from storage.chat import members
from storage.db import sql
from storage.db.database import Connection
from storage.feedback import prompt_bank, tastings
from storage.feedback.tastings import Tasting
from storage.imports import imports
from storage.imports.examples import Author, Prompt
from storage.learning import eligibility
from tests.bot.admin.test_settings import put
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer
from tests.bot.feedback.test_reply_buttons import buttons
from tests.bot.test_commands import text

PROMPTS = "What is good bread?\nName three trees.\n# a comment\nWhy do cats purr?"


async def until(community: Community, check: Callable[[], object]) -> None:
    """Let the host look again and again, on simcord's clock: of itself that only moves by accident."""
    for _ in range(600):
        if check():
            return
        await community.env.advance_time(host.POLL_S)
        # What is no part of the bot, as the model server is not, goes by the real clock.
        await asyncio.sleep(0.01)
    raise AssertionError("it never came")


async def fill(community: Community, prompts: str = PROMPTS) -> str:
    opened = await community.ann.slash(community.channel, "tasting add")
    return text(await community.ann.submit_modal(opened, {"text": prompts}))


async def begin(community: Community, channel: Any = None, **options: Any) -> str:
    where = channel or community.channel
    return text(await community.ann.slash(where, "tasting start", **{"minutes": 1, **options}))


def hasten(community: Community) -> None:
    """As if the pause to the next prompt had passed."""
    community.services.database.write(lambda db: sql.change(db, "UPDATE tastings SET next_ms = 0"))


def newest(community: Community) -> Tasting:
    return community.services.database.read(tastings.latest)[0]


def answered(community: Community) -> int:
    return sum(reply.status == "complete" for reply in community.replies())


async def asked(community: Community, number: int) -> None:
    """Wait for so many answers, and for the last one's final text."""

    def there() -> bool:
        messages = community.messages()
        faces = buttons(messages[-1]) if messages else []
        return answered(community) == number and bool(faces) and EMOJI["stop"] not in faces

    await until(community, there)


async def test_the_prompts_come_one_by_one_and_rating_them_is_enough_to_train(
    community: Community, model_server: FakeModelServer
) -> None:
    # As on Discord; simcord's sockets are the playground's either way.
    community.services.playground = False
    assert await fill(community) == tasting_commands.ADDED.format(count=3)
    begun = await begin(community)
    assert begun.startswith("The tasting begins: 3 prompts, one every 60 s.")
    await asked(community, 1)
    beginning, first = community.said()
    assert beginning.startswith("**A tasting begins.** I answer 3 prompts") and "👍 or 👎" in beginning
    assert first == "> What is good bread?\n\nHello there, friend.\n\n-# Tasting, 1 of 3"
    assert model_server.prompt()[-1] == {"role": "user", "content": "What is good bread?"}
    await community.bob.react(community.messages()[-1], "👍")
    hasten(community)
    await asked(community, 2)
    assert (community.replies()[0].source, community.replies()[0].asker_id) == ("operator", 0)

    def eligible() -> eligibility.Eligibility:
        scope = community.services.scope(community.guild.id)
        read = community.services.database.read
        return read(lambda db: eligibility.eligible_rows(db, scope, permission_reference=""))

    assert eligible().excluded == {"no_eligible_rating": 1}
    await community.bob.slash(community.channel, "privacy opt-in")
    assert [(row.source, row.text) for row in eligible().rows] == [("operator", "Hello there, friend.")]


async def test_a_members_imported_words_are_asked_as_theirs_and_in_the_name_of_the_import(
    community: Community,
) -> None:
    def imported(db: Connection) -> imports.Import:
        said = {"name": "x.zip", "sha256": "a" * 64, "format_name": "discord-package", "rights": "ours"}
        scope = community.services.scope(community.guild.id)
        done = imports.begin(db, **said, licence="ours", scope=scope, actor="test")
        members.ensure(db, 5, "mia", "discord")
        members.set_consent(db, 5, "in", "test")
        prompts = [Prompt("Which flour is best?", "channel 1, message 1", Author(5, "mia"))]
        imports.store_prompts(db, done, prompts, permission_reference="ticket 7")
        return done

    done = community.services.database.write(imported)
    await begin(community)
    await asked(community, 1)
    (reply,) = community.replies()
    assert reply.asker_id == done.member_id
    authors = community.services.database.read(
        lambda db: sql.many(db, "SELECT author_id, source FROM messages WHERE content LIKE 'Which flour%'")
    )
    assert authors == [{"author_id": 5, "source": "discord"}]
    removed = community.services.database.write(lambda db: imports.remove(db, done.id, "test"))
    assert removed.user_id == done.member_id
    (reply,) = community.replies()
    assert reply.prompt == []


async def test_it_ends_with_the_last_prompt_and_what_was_answered_is_not_asked_again(
    community: Community,
) -> None:
    await fill(community, "one\ntwo")
    await begin(community)
    for number in (1, 2):
        await asked(community, number)
        hasten(community)
    await until(community, lambda: newest(community).state == "done")
    assert community.said()[-1] == host.OVER.format(answered=2, rated=0)
    assert "answered every prompt already" in await begin(community)
    assert len(community.env.errors) == 1
    assert (await begin(community, again=True)).startswith("The tasting begins: 2 prompts")


async def test_another_process_goes_on_where_the_last_turn_ended(community: Community) -> None:
    await fill(community)
    await begin(community)
    await asked(community, 1)
    await community.bot.feature(TastingHost).stop()
    hasten(community)
    later = TastingHost(community.services, community.bot, community.bot.feature(Answerer))
    later.start()
    try:
        await asked(community, 2)
    finally:
        await later.stop()
    assert [said for said in community.said() if said.startswith("**A tasting")] == community.said()[:1]
    assert "> Name three trees." in community.said()[-1]


async def test_pairs_are_voted_on(community: Community) -> None:
    await fill(community, "one")
    await begin(community, pairs=True)
    await asked(community, 2)
    await until(community, lambda: buttons(community.messages()[-1]) == ["A", "Tie", "B"])
    beginning, pair = community.said()
    assert "Vote below it." in beginning and pair.startswith("> one\n\n**A**")
    await community.bob.click(community.messages()[-1], label="A")
    await until(community, lambda: community.services.database.read(lambda db: progress(db)).rated == 1)
    found = community.services.database.read(lambda db: progress(db))
    assert (found.answered, found.ratings, found.raters) == (1, 1, 1)


def progress(db: Any) -> tastings.Progress:
    return tastings.progress(db, tastings.latest(db)[0].id)


async def test_only_operators_use_it(community: Community) -> None:
    for command in ("add", "list", "start", "stop", "status"):
        assert text(await community.bob.slash(community.channel, f"tasting {command}")) == NOT_OPERATOR
    assert community.services.database.read(prompt_bank.prompts) == []
    assert len(community.env.errors) == 5


async def test_a_form_of_somebody_who_is_no_operator_any_more_is_refused(community: Community) -> None:
    opened = await community.ann.slash(community.channel, "tasting add")
    named = community.services.config.discord.model_copy(update={"operators": (community.bob.id,)})
    community.services.config = community.services.config.model_copy(update={"discord": named})
    assert text(await community.ann.submit_modal(opened, {"text": PROMPTS})) == NOT_OPERATOR


async def test_where_it_would_teach_nothing_it_does_not_begin(community: Community) -> None:
    await fill(community)
    sees = discord.PermissionOverwrite(view_channel=True)
    hidden = community.guild.create_text_channel(
        "hidden",
        overwrites={
            community.guild.default_role: discord.PermissionOverwrite(view_channel=False),
            community.ann: sees,
            community.bot.user: sees,
        },
    )
    assert await begin(community, hidden) == host.NOT_PUBLIC
    put(community, "training", "off", channel=community.channel)
    assert await begin(community) == host.TRAINING_OFF
    assert community.services.database.read(tastings.latest) == []


async def test_without_a_prompt_it_says_how_to_add_some(community: Community) -> None:
    assert "add some first" in await begin(community)
    assert len(community.env.errors) == 1
    assert text(await community.ann.slash(community.channel, "tasting list")) == tasting_commands.EMPTY_BANK
    assert await fill(community, "# nothing but a comment") == tasting_commands.UNFIT
    assert await fill(community, '{"prompt": "Why?"}\n{"prompt": "How?"}') == tasting_commands.UNFIT
    assert await fill(community, '[\n "Why?"\n]') == tasting_commands.UNFIT


async def test_while_the_model_is_away_it_waits_and_says_nothing_in_the_channel(
    community: Community, model_server: FakeModelServer
) -> None:
    await fill(community)
    await begin(community)
    await asked(community, 1)
    await model_server.stop()
    hasten(community)
    await until(community, lambda: newest(community).next_ms > 0)
    assert len(community.said()) == 2 and newest(community).state == "running"
    await model_server.start()
    hasten(community)
    await asked(community, 2)


async def test_answers_that_fail_are_asked_again_and_then_it_ends_with_a_reason(
    community: Community, model_server: FakeModelServer
) -> None:
    await fill(community, "one")
    model_server.answers_before_refusing = 0
    await begin(community)
    for _ in range(host.MOST_FAILURES):
        hasten(community)
        failures = len(community.replies())
        await until(
            community, lambda before=failures: len(community.replies()) > before or newest(community).why
        )
    await until(community, lambda: newest(community).state == "stopped")
    assert newest(community).why == host.NO_ANSWERS
    assert community.services.database.read(progress).asked == 0


async def test_a_permission_that_lacks_ends_it_and_whoever_began_it_is_told(community: Community) -> None:
    await fill(community)
    mute = discord.PermissionOverwrite(send_messages=False)
    locked = community.guild.create_text_channel("locked", overwrites={community.bot.user: mute})
    reason = host.NOT_ALLOWED.format(names="**Send Messages**")
    assert await begin(community, locked) == reason
    # Begun elsewhere, as from the command line, which knows no permissions.
    await begin(community)
    community.services.database.write(
        lambda db: sql.change(db, "UPDATE tastings SET channel_id = ?, next_ms = 0", (locked.id,))
    )
    await until(community, lambda: newest(community).state == "stopped")
    assert newest(community).why == reason
    told = host.ENDED.format(channel=locked.id, reason=reason)
    await until(community, lambda: community.said(community.ann.user.dm_channel) == [told])
    shown = text(await community.ann.slash(community.channel, "tasting status"))
    assert shown.endswith(f"stopped\n-# {reason}")


async def test_it_is_stopped_by_hand(community: Community) -> None:
    await fill(community)
    await begin(community)
    await asked(community, 1)
    shown = text(await community.ann.slash(community.channel, "tasting status"))
    assert "1 of 3 asked, 0 rated (0 ratings by 0 members), on, one every 60 s" in shown
    stopped = text(await community.ann.slash(community.channel, "tasting stop"))
    assert stopped == tasting_commands.STOPPED.format(channel=community.channel.id)
    assert text(await community.ann.slash(community.channel, "tasting stop")) == tasting_commands.NONE_RUNNING
    hasten(community)
    await community.env.advance_time(2 * host.POLL_S)
    assert answered(community) == 1


async def test_prompts_are_listed_and_removed_by_choosing(community: Community) -> None:
    await fill(community)
    listed = text(await community.ann.slash(community.channel, "tasting list"))
    assert listed.splitlines()[1].endswith("Name three trees.")
    choices = await community.ann.autocomplete(community.channel, "tasting remove", "prompt", "cats")
    assert [choice["name"].partition(": ")[2] for choice in choices] == ["Why do cats purr?"]
    removed = await community.ann.slash(community.channel, "tasting remove", prompt=int(choices[0]["value"]))
    assert text(removed).startswith("Removed: Why do cats purr?")
    assert len(community.services.database.read(prompt_bank.prompts)) == 2


async def test_the_channels_language_and_emoji_are_used(community: Community) -> None:
    put(community, "language", "de", channel=community.channel)
    put(community, "rating_up", "❤️", channel=community.channel)
    await fill(community)
    await begin(community)
    await asked(community, 1)
    beginning, answer = community.said()
    assert beginning.startswith("**Eine Verkostung beginnt.**") and "❤" in beginning
    assert answer.endswith(texts.catalogue("de")[host.COUNTED].format(number=1, count=3))


async def test_what_storage_refuses_is_said_in_the_channels_language(community: Community) -> None:
    put(community, "language", "de", channel=community.channel)
    refused = [await begin(community)]
    await fill(community, "one")
    await begin(community)
    refused.append(await begin(community))
    said = [texts.catalogue("de")[sentence] for sentence in tasting_commands.REFUSALS]
    assert refused == [said[1], said[0]]
    assert len(community.env.errors) == 2


async def test_a_better_answer_without_discords_permission_says_that_it_does_not_train(
    community: Community,
) -> None:
    await fill(community)
    await begin(community)
    await asked(community, 1)
    community.services.playground = False
    opened = await community.bob.click(community.messages()[-1], custom_id=better(community))
    said = text(await community.bob.submit_modal(opened, {"text": "Flour and time."}))
    assert said == corrections.KEPT_UNTRAINED
    assert community.services.database.read(lambda db: members.get(db, community.bob.id)) is not None


def better(community: Community) -> str:
    return f"strop:reply:better:{community.replies()[0].id}"
