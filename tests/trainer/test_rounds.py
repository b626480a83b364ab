"""Requests of a run, a few at a time and in rounds: the server is never short of work."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from trainer.model_server import AT_ONCE, Ask, ask_in_rounds


class Server:
    """Answers requests by their number; `holds` are answered once `until` has come in."""

    def __init__(self, holds: set[int], until: int) -> None:
        self.running, self.most = 0, 0
        self._holds, self._until = holds, until
        self._came = asyncio.Event()

    async def answer(self, number: int) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        if number >= self._until:
            self._came.set()
        if number in self._holds:
            await self._came.wait()
        await asyncio.sleep(0)
        self.running -= 1
        return number


def rounds(server: Server, count: int, size: int = 16) -> list[list[Ask[int]]]:
    return [
        [partial(server.answer, number) for number in range(at, at + size)]
        for at in range(0, count * size, size)
    ]


async def test_a_round_begins_while_the_last_answers_of_the_one_before_are_written() -> None:
    server = Server(holds={3, 15}, until=16)
    found = await ask_in_rounds(rounds(server, 3), lambda answered, on_their_way: True)
    assert found == [list(range(at, at + 16)) for at in (0, 16, 32)]
    assert server.most == AT_ONCE


async def test_no_further_round_begins_once_there_is_no_time_and_what_was_asked_is_answered() -> None:
    told: list[tuple[int, int]] = []

    def goes_on(answered: int, on_their_way: int) -> bool:
        told.append((answered, on_their_way))
        return len(told) < 2

    found = await ask_in_rounds(rounds(Server(set(), 0), 4), goes_on)
    assert found == [list(range(16)), list(range(16, 32))]
    assert [sum(each) for each in told] == [16, 32]
    assert all(on_their_way <= AT_ONCE for _, on_their_way in told)


async def test_a_failure_ends_all_requests() -> None:
    async def fails() -> int:
        raise ValueError("no")

    requests: list[list[Ask[int]]] = [[partial(Server(holds={0}, until=99).answer, 0), fails]]
    with pytest.raises(ExceptionGroup) as caught:
        await ask_in_rounds(requests, lambda *_: True)
    assert caught.group_contains(ValueError)
