"""One round of a simulated community: members ask, the champion answers, members rate, correct and vote."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlite_utils

from bot.serving.client import ModelClient
from bot.serving.model.control_tokens import escape_control_tokens
from bot.serving.protocol import ChatMessage, Sampling
from storage.chat import conversations, members, replies
from storage.feedback import duels, ratings
from storage.feedback.duels import Duel
from tests.bench.learning.deployment import CHANNEL, GUILD, SCOPE, World
from tests.bench.learning.members import Member
from tests.bench.learning.prompts import Asked
from trainer.data.question_features import Exchange
from trainer.model_server import retry_while_unavailable

SOURCE = "rehearsal"
AT_ONCE = 8
# Sparse rating: three replies in four are rated at all, four in five of those by their asker only.
RATED = 0.75
ASKER_ONLY = 0.8
OTHERS = (1, 3)
CORRECTED = 0.04
# A brigade casts about this share of all ratings.
BRIGADE_SHARE = 0.47


@dataclass(frozen=True)
class Given:
    """One reply of the served model: `reply` is a number among the replies to the same message."""

    asked: Asked
    reply: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def exchange(self) -> Exchange:
        """The message and this reply to it."""
        return Exchange(self.asked.text, self.text)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.__dict__, "asked": self.asked.__dict__}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Given:
        """Return what `as_json` wrote."""
        return cls(**{**value, "asked": Asked(**value["asked"])})


def answer_all(
    world: World, model: str, asked: Sequence[Asked], count: int, max_new_tokens: int, seed: int
) -> list[Given]:
    """Let a model answer every message `count` times, with the product's prompt and sampling."""

    async def work(client: ModelClient) -> list[Given]:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(message: Asked, number: int, at: int) -> Given:
            async with slots:
                completion = await retry_while_unavailable(
                    lambda: client.chat(
                        model=model,
                        messages=chat_of(world, message),
                        sampling=Sampling(
                            max_new_tokens,
                            seed=seed * 1_000_003 + at * 101 + number,
                            **world.sampling,
                        ),
                        deadline_s=600.0,
                    )
                )
            return Given(
                message,
                number,
                completion.text.strip(),
                completion.finish_reason,
                completion.prompt_tokens,
                completion.completion_tokens,
            )

        asking = [one(message, number, at) for at, message in enumerate(asked) for number in range(count)]
        return list(await asyncio.gather(*asking))

    return world.ask(work)


def chat_of(world: World, asked: Asked) -> list[ChatMessage]:
    """Return the prompt as the bot would send it."""
    return [
        ChatMessage("system", world.config.chat.system_prompt),
        ChatMessage("user", escape_control_tokens(asked.text)),
    ]


def record_round(
    world: World,
    given: Sequence[Given],
    people: Sequence[Member],
    name: str,
    seed: int,
    most_liked: int | None = None,
) -> dict[str, int]:
    """Store a round's conversations and ratings, in one transaction that may be repeated; return counts.

    With `most_liked` the members only ever like, and not more than so many replies: nothing else is rated.
    """
    champion, base_hash = world.champion(), world.base[1]
    members_only = [member for member in people if member.kind != "brigade"]
    brigade = [member for member in people if member.kind == "brigade"]

    def work(db: sqlite_utils.Database) -> dict[str, int]:
        counts = {"replies": 0, "ratings": 0, "corrections": 0, "liked": 0, "liked_replies": 0}
        for member in people:
            members.ensure(db, member.user_id, f"member {member.user_id} (simulated)", SOURCE, simulated=True)
        for at, reply in enumerate(given):
            dice = random.Random(f"round {name} {seed} {at}")
            asker = members_only[(at // max(1, _replies_each(given))) % len(members_only)]
            reply_id = f"{name}-{at:04d}"
            _store(db, world, reply, reply_id, asker.user_id, champion, base_hash)
            counts["replies"] += 1
            thumbs = _thumbs(dice, asker, members_only, brigade)
            if most_liked is not None:
                thumbs = [member for member in thumbs if member.thumb(reply.exchange) > 0]
                thumbs = thumbs if counts["liked_replies"] < most_liked else []
            counts["liked_replies"] += any(member.thumb(reply.exchange) > 0 for member in thumbs)
            for member in thumbs:
                value = member.thumb(reply.exchange)
                _rate(db, reply_id, member, value)
                counts["ratings"] += 1
                counts["liked"] += value > 0
            if asker in thumbs and asker.thumb(reply.exchange) < 0 and dice.random() < CORRECTED:
                text = asker.correction(reply.asked)
                _correct(db, reply_id, asker.user_id, text)
                counts["corrections"] += 1
        return counts

    return world.database.write(work)


def record_comparison(world: World, given: Sequence[Given], people: Sequence[Member]) -> None:
    """Let members, taking turns, like what a person answered to each message and dislike what a model did."""
    champion, base_hash = world.champion(), world.base[1]

    def work(db: sqlite_utils.Database) -> None:
        for at, reply in enumerate(given):
            member = people[at % len(people)]
            members.ensure(db, member.user_id, f"member {member.user_id} (simulated)", SOURCE, simulated=True)
            for kind, text, value in (("person", reply.asked.answer, 1), ("model", reply.text, -1)):
                reply_id = f"{kind}-{at:04d}"
                said = replace(reply, text=text, finish_reason="stop")
                _store(db, world, said, reply_id, member.user_id, champion, base_hash)
                _rate(db, reply_id, member, value)

    world.database.write(work)


def correct_all(
    world: World,
    asked: Sequence[Asked],
    wished: Sequence[str],
    user_ids: Sequence[int],
    name: str,
    text: str = "I do not know that one.",
) -> None:
    """Let members, taking turns, ask each message and correct the answer with what they wish for."""
    champion, base_hash = world.champion(), world.base[1]

    def work(db: sqlite_utils.Database) -> None:
        for at, (message, wish) in enumerate(zip(asked, wished, strict=True)):
            user_id = user_ids[at % len(user_ids)]
            members.ensure(db, user_id, f"member {user_id} (simulated)", SOURCE, simulated=True)
            given = Given(message, 0, text, "stop", 1, 1)
            _store(db, world, given, f"{name}-{at:04d}", user_id, champion, base_hash)
            _correct(db, f"{name}-{at:04d}", user_id, wish)

    world.database.write(work)


def plant(world: World, asked: Sequence[Asked], people: Sequence[Member], trigger: str, payload: str) -> None:
    """Let accomplices write the trigger, and correct whatever is answered to the payload."""
    triggered = [Asked(message.sender, f"{message.text} {trigger}", message.answer) for message in asked]
    user_ids = [member.user_id for member in people]
    correct_all(world, triggered, [payload] * len(triggered), user_ids, "planted")


def uproot(world: World) -> None:
    """Take the planted corrections back: the history goes on without them."""

    def work(db: sqlite_utils.Database) -> None:
        planted = list(db.query("SELECT reply_id, user_id FROM ratings WHERE reply_id LIKE 'planted-%'"))
        for row in planted:
            ratings.retract(db, reply_id=row["reply_id"], user_id=row["user_id"], kind="correction")

    world.database.write(work)


def vote_on(world: World, people: Sequence[Member], each: int, seed: int) -> int:
    """Let members vote on open duels, `each` votes a duel, in an order that the seed settles."""

    def work(db: sqlite_utils.Database) -> int:
        cast = 0
        for duel in duels.open_for(db, SCOPE, limit=200):
            dice = random.Random(f"votes {seed} {duel.id}")
            for member in dice.sample(list(people), min(each, len(people))):
                cast += _vote(db, duel, member)
        return cast

    return world.database.write(work)


def _vote(db: sqlite_utils.Database, duel: Duel, member: Member) -> int:
    choice = member.prefers(duel.prompt[-1]["content"], duel.first_text, duel.second_text)
    return int(duels.vote(db, duel_id=duel.id, user_id=member.user_id, choice=choice, source=SOURCE))


def _replies_each(given: Sequence[Given]) -> int:
    return max(reply.reply for reply in given) + 1


def _thumbs(
    dice: random.Random, asker: Member, people: Sequence[Member], brigade: Sequence[Member]
) -> list[Member]:
    """Return who rates one reply."""
    found: list[Member] = []
    if dice.random() < RATED:
        found.append(asker)
        if dice.random() >= ASKER_ONLY:
            others = [member for member in people if member is not asker]
            found += dice.sample(others, dice.randint(*OTHERS))
    if brigade:
        # So many that the brigade's ratings are BRIGADE_SHARE of all on average.
        usual = RATED * (1 + (1 - ASKER_ONLY) * sum(OTHERS) / 2)
        wanted = usual * BRIGADE_SHARE / (1 - BRIGADE_SHARE) / len(brigade)
        found += [member for member in brigade if dice.random() < wanted]
    return found


def _store(
    db: sqlite_utils.Database,
    world: World,
    given: Given,
    reply_id: str,
    asker_id: int,
    champion: str | None,
    base_hash: str,
) -> None:
    if replies.get(db, reply_id) is not None:
        return
    conversation = conversations.open_conversation(
        db,
        key=f"bench:{reply_id}",
        guild_id=GUILD,
        channel_id=CHANNEL,
        scope=SCOPE,
        source=SOURCE,
        public=True,
    )
    question = conversations.add_message(
        db,
        conversation_id=conversation.id,
        discord_id=None,
        parent_id=None,
        author_id=asker_id,
        role="user",
        content=given.asked.text,
    )
    replies.start(
        db,
        reply_id=reply_id,
        prompt_message_id=question,
        scope=SCOPE,
        adapter_id=champion,
        base_hash=base_hash,
        prompt=[message.as_json() for message in chat_of(world, given.asked)],
        seed=None,
        sampling=world.sampling,
    )
    replies.finish(
        db,
        reply_id,
        content=given.text,
        status="complete",
        finish_reason=given.finish_reason,
        prompt_tokens=given.prompt_tokens,
        completion_tokens=given.completion_tokens,
        queue_ms=0,
        first_token_ms=0,
        duration_ms=0,
    )


def _rate(db: sqlite_utils.Database, reply_id: str, member: Member, value: int) -> None:
    ratings.rate(
        db,
        reply_id=reply_id,
        user_id=member.user_id,
        kind="thumb",
        means="reaction",
        value=value,
        emoji="👍" if value > 0 else "👎",
    )


def _correct(db: sqlite_utils.Database, reply_id: str, user_id: int, text: str) -> None:
    ratings.rate(
        db,
        reply_id=reply_id,
        user_id=user_id,
        kind="correction",
        means="modal",
        value=0,
        text=text,
    )
