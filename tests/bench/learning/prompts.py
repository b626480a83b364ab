"""What the simulated members ask: messages of real people, from the `chitchat-dataset` package (MIT).

Split by sender: whoever wrote a test prompt wrote none that the community asks.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.learning.errors import BenchError

TEST_PERCENT = 30
WORDS = (5, 25)
ANSWER_WORDS = (3, 20)


@dataclass(frozen=True)
class Asked:
    """A message that somebody wrote, and what another person answered."""

    sender: str
    text: str
    answer: str


@dataclass(frozen=True)
class Prompts:
    """Messages for the community to ask, and those of other senders to test on."""

    community: tuple[Asked, ...]
    test: tuple[Asked, ...]


def load(seed: int, community: int, test: int) -> Prompts:
    """Draw so many different messages for each side.

    Raises:
        BenchError: the package is not installed, or has too few messages.
    """
    return draw(conversations(), seed, community, test)


def draw(conversations: Sequence[Mapping[str, Any]], seed: int, community: int, test: int) -> Prompts:
    """Draw from conversations; as many senders as possible, and nobody on both sides."""
    by_sender: defaultdict[str, list[Asked]] = defaultdict(list)
    for asked in _asked(conversations):
        by_sender[asked.sender].append(asked)
    tested = {sender for sender in by_sender if zlib.crc32(sender.encode()) % 100 < TEST_PERCENT}
    sides = (sorted(by_sender.keys() - tested), sorted(tested))
    dice = random.Random(f"prompts {seed}")
    return Prompts(
        *(
            tuple(_spread({name: by_sender[name] for name in side}, count, dice))
            for side, count in zip(sides, (community, test), strict=True)
        )
    )


def _spread(by_sender: Mapping[str, list[Asked]], count: int, dice: random.Random) -> list[Asked]:
    """Take one message of every sender before a second one of any."""
    pools = [dice.sample(found, len(found)) for found in by_sender.values()]
    dice.shuffle(pools)
    chosen: list[Asked] = []
    seen: set[str] = set()
    while pools and len(chosen) < count:
        for pool in pools[:]:
            asked = pool.pop()
            if not pool:
                pools.remove(pool)
            if asked.text.lower() not in seen:
                seen.add(asked.text.lower())
                chosen.append(asked)
    if len(chosen) < count:
        raise BenchError(f"The prompts run out at {len(chosen)} of {count}: ask for fewer rounds or prompts.")
    return chosen[:count]


def _asked(conversations: Sequence[Mapping[str, Any]]) -> list[Asked]:
    found = []
    for conversation in conversations:
        turns = conversation["messages"]
        for turn, reply in itertools.pairwise(turns):
            text, answer = text_of(turn), text_of(reply)
            fits = WORDS[0] <= len(text.split()) <= WORDS[1]
            if fits and ANSWER_WORDS[0] <= len(answer.split()) <= ANSWER_WORDS[1]:
                found.append(Asked(str(turn[0]["sender"]), text, answer))
    return found


def text_of(turn: Sequence[Mapping[str, Any]]) -> str:
    """Return what somebody wrote before the other answered, in one line."""
    return " ".join(" ".join(str(message["text"]).split()) for message in turn)


def conversations() -> list[Mapping[str, Any]]:
    """Return the package's conversations in a settled order.

    Raises:
        BenchError: the package is not installed.
    """
    try:
        from chitchat_dataset import Dataset
    except ImportError as error:
        raise BenchError(
            "The benchmark takes its prompts from the package chitchat-dataset: pip install '.[bench]'"
        ) from error
    return [value for _, value in sorted(Dataset().items())]
