"""Questions and answers to rate: the sample community's, real people's, and a served base's own."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bot.playground.simulation import sample
from tests.bench.learning import chat, prompts
from tests.bench.learning.deployment import opened
from tests.bench.learning.judge.tastes import DEALT, NOISE, TASTES, Taste, labels
from tests.bench.learning.profile import FULL
from trainer.data.question_features import Exchange
from trainer.evaluation.reward_model import RatedText

REPLIES = 4


@dataclass(frozen=True)
class Pool:
    """Exchanges with the conversation that each belongs to."""

    name: str
    exchanges: tuple[Exchange, ...]
    groups: tuple[str, ...]


def of_sample_community() -> Pool:
    """Return the base's 256 replies that the product ships."""
    conversations = json.loads(sample.SAMPLE_FILE.read_text(encoding="utf-8"))["conversations"]
    found = [
        (Exchange(one["prompt"], reply["text"]), one["prompt"])
        for one in conversations
        for reply in one["replies"]
    ]
    return _pool("sample community", found)


def of_people(seed: int, count: int, *, tested: bool = False) -> Pool:
    """Return messages of real people with what other people answered; `tested` takes the other senders."""
    drawn = prompts.load(seed, 0, count).test if tested else prompts.load(seed, count, 0).community
    name = f"{'other people' if tested else 'people'} {seed}"
    return _pool(name, [(Exchange(asked.text, asked.answer), asked.text) for asked in drawn])


def of_base(seed: int, count: int, out: Path, models: Path, replies: int = REPLIES) -> Pool:
    """Return a base's replies to messages of real people, served once and kept in `out`."""
    path = out / f"replies-{seed}-{count}{'' if replies == REPLIES else f'x{replies}'}.json"
    if not path.exists():
        asked = prompts.load(seed, count, 0).community
        with opened(out / "home", models, FULL) as world:
            given = chat.answer_all(world, world.base[0], asked, replies, FULL.max_new_tokens, seed)
        found = [asdict(Exchange(reply.asked.text, reply.text)) for reply in given]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    exchanges = [Exchange(**value) for value in json.loads(path.read_text(encoding="utf-8"))]
    return _pool(f"base {seed}", [(exchange, exchange.question) for exchange in exchanges])


def rated(pool: Pool, seed: int) -> dict[str, tuple[Taste | None, list[RatedText], list[bool]]]:
    """Return for each taste what members say of the pool's answers, and what is true."""
    found: dict[str, tuple[Taste | None, list[RatedText], list[bool]]] = {}
    for taste in TASTES:
        said, true = labels(taste, pool.exchanges, seed)
        found[taste.name] = (taste, texts_of(pool.exchanges, pool.groups, said), true)
    exchanges, true = _dealt(pool, seed)
    dice = random.Random(f"noise dealt {seed}")
    said = [own != (dice.random() < NOISE) for own in true]
    found[DEALT] = (None, texts_of(exchanges, pool.groups, said), true)
    return found


def _dealt(pool: Pool, seed: int) -> tuple[list[Exchange], list[bool]]:
    """Return the pool with about half of its answers given to other questions, and which are their own."""
    dice = random.Random(f"dealt {seed}")
    found, own = [], []
    for exchange in pool.exchanges:
        keep = dice.random() < 0.5
        others = [each for each in dice.sample(pool.exchanges, 8) if each.question != exchange.question]
        other = dice.choice(others)
        found.append(exchange if keep else Exchange(exchange.question, other.answer))
        own.append(keep)
    return found, own


def texts_of(exchanges: Sequence[Exchange], groups: Sequence[str], said: Sequence[bool]) -> list[RatedText]:
    """Return answers as the judge is given them, with what members said of each."""
    return [
        RatedText(exchange.answer, liked, 1.0, group, question=exchange.question)
        for exchange, group, liked in zip(exchanges, groups, said, strict=True)
    ]


def _pool(name: str, found: Sequence[tuple[Exchange, str]]) -> Pool:
    spoken = [each for each in found if each[0].answer.strip()]
    return Pool(name, tuple(exchange for exchange, _ in spoken), tuple(group for _, group in spoken))
