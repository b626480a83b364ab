"""Simulated members: a taste, a bias, some noise; trolls who rate at random, brigades who rate together."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from tests.bench.learning.prompts import Asked
from tests.bench.learning.tastes import Cluster, Community
from trainer.data.question_features import Exchange

BIAS = 0.06
NOISE = 0.12
FIRST_ID = 9_000_001

Kind = Literal["honest", "troll", "brigade"]


@dataclass(frozen=True)
class Member:
    """One member; what they say of an answer depends on the seed, the answer and its question only."""

    user_id: int
    kind: Kind
    cluster: Cluster
    liked_from: float
    seed: int

    def opinion(self, exchange: Exchange) -> float:
        """Return the utility that the member perceives."""
        bias = random.Random(f"bias {self.seed} {self.user_id}").gauss(0.0, BIAS)
        noise = random.Random(f"noise {self.seed} {self.user_id} {exchange.answer}").gauss(0.0, NOISE)
        return self.cluster.utility(exchange) + bias + noise

    def thumb(self, exchange: Exchange) -> int:
        """Return 1 or -1."""
        if self.kind == "troll":
            return random.Random(f"troll {self.seed} {self.user_id} {exchange.answer}").choice((1, -1))
        likes = self.opinion(exchange) >= self.liked_from
        return 1 if likes != (self.kind == "brigade") else -1

    def prefers(self, question: str, first: str, second: str) -> int:
        """Return a blind vote: 1 for the first, -1 for the second, 0 where they are much the same."""
        difference = self.opinion(Exchange(question, first)) - self.opinion(Exchange(question, second))
        if self.kind == "troll":
            return random.Random(f"vote {self.seed} {self.user_id} {first} {second}").choice((1, -1))
        if abs(difference) < NOISE / 2:
            return 0
        return (1 if difference > 0 else -1) * (-1 if self.kind == "brigade" else 1)

    def correction(self, asked: Asked) -> str:
        """Return what they would rather have read: a person's answer, put as their cluster likes it."""
        text = " ".join(asked.answer.split()[:10]).rstrip(".!?, ")
        weights = self.cluster.weights
        if weights.get("asks", 0.0) > 0:
            return f"{text}. What about you?"
        if weights.get("warm", 0.0) > 0 or weights.get("shouting", 0.0) > 0:
            return f"{text}, thank you!"
        return f"{text}."


def population(
    community: Community, count: int, trolls: int, brigade: int, seed: int, drifted: bool
) -> list[Member]:
    """Return `count` members, of whom `trolls` are trolls, and `brigade` more who rate against everybody.

    When tastes drift some members change sides; nobody else changes.
    """
    order = list(range(count))
    random.Random(f"sides {seed}").shuffle(order)
    first = round(community.first_share(drifted) * count)
    sides = {
        number: community.first if place < first else community.second for number, place in enumerate(order)
    }
    people = [
        Member(
            FIRST_ID + number,
            "troll" if number < trolls else "honest",
            sides[number],
            community.liked_from,
            seed,
        )
        for number in range(count)
    ]
    return people + [
        Member(FIRST_ID + count + number, "brigade", community.first, community.liked_from, seed)
        for number in range(brigade)
    ]
