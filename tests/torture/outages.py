"""Outages with hundreds of ratings in each: everything that members did meanwhile is made up for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bot.playground.discord import community
from tests.e2e.forked_bot import BotForks
from tests.e2e.stand_in import GENERAL, StandIn, stand_in

RATERS = [person.user_id for person in community.PEOPLE]
EMOJI = {1: "👍", -1: "👎"}


class Outages:
    """A bot that is away again and again, and members who rate all the same."""

    def __init__(self, strop: StandIn, draw: random.Random) -> None:
        self._strop = strop
        self._draw = draw
        self._given: dict[tuple[int, int], int] = {}
        self._messages: list[int] = []

    async def prepare(self, ratings: int) -> None:
        """Have so many replies written that an outage can hold this many ratings."""
        await self._strop.start_bot()
        wanted = -(-ratings // len(RATERS))
        for number in range(wanted):
            self._strop.ask(f"question {number}")
            await self._strop.until(lambda number=number: len(self._done()) > number)
        self._messages = self._done()

    def _done(self) -> list[int]:
        complete = all(reply.status == "complete" for reply in self._strop.replies())
        return [int(m["id"]) for m in self._strop.said()] if complete else []

    async def one(self) -> tuple[int, int]:
        """Let the bot be away while everybody changes every rating; return (ratings, lost)."""
        process = self._strop.process
        assert process is not None
        crash = self._draw.random() < 0.5
        if crash:
            process.kill()
            await asyncio.to_thread(process.wait)
        else:
            self._strop.gateway.invalidate_sessions(resumable=False)
        before = len(self._strop.lines("ratings.reconciled"))
        for message_id in self._messages:
            for who in RATERS:
                self._rate(message_id, who)
        if crash:
            await self._strop.start_bot()
        await self._strop.until(lambda: len(self._strop.lines("ratings.reconciled")) > before, 300.0)
        lost = 0
        for _ in range(50):
            lost = self._lost()
            if not lost:
                break
            await asyncio.sleep(0.1)
        return len(self._messages) * len(RATERS), lost

    def _rate(self, message_id: int, who: int) -> None:
        """A member changes their mind: the reaction of before is taken back, the other one is given."""
        backend = self._strop.playground.backend
        earlier = self._given.get((message_id, who))
        value = -earlier if earlier else self._draw.choice((1, -1))
        if earlier:
            backend.set_reaction(GENERAL, message_id, who, EMOJI[earlier], reacted=False)
        backend.set_reaction(GENERAL, message_id, who, EMOJI[value], reacted=True)
        self._given[message_id, who] = value

    def _lost(self) -> int:
        stored = sorted(self._strop.standing())
        given = sorted((who, value) for (_, who), value in self._given.items())
        return sum(a != b for a, b in zip(stored, given, strict=False)) + abs(len(stored) - len(given))


@asynccontextmanager
async def absent(home: Path, ratings: int, seed: int) -> AsyncIterator[Outages]:
    """A bot with replies enough for so many ratings in an outage."""
    forks = BotForks()
    try:
        async with stand_in(home, rate_limits=()) as strop:
            strop.forks = forks
            outages = Outages(strop, random.Random(seed))
            await outages.prepare(ratings)
            yield outages
    finally:
        forks.close()
