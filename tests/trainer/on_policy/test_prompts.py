"""Which prompts ranking asks, how often, and which it leaves out."""

from __future__ import annotations

import pytest

from tests.trainer.rows import row
from trainer.data.snapshot import Snapshot
from trainer.on_policy import prompts


def snapshot(count: int) -> Snapshot:
    rows = [row(f"r{number}", group=f"g{number}", split="train") for number in range(count)]
    return Snapshot(tuple(rows), "hash")


def test_only_training_prompts_are_asked_and_each_group_once() -> None:
    rows = [
        row("a", group="one", split="train"),
        row("b", group="one", split="train"),
        row("c", group="two", split="train"),
        row("d", group="three", split="gate"),
    ]
    asked, replies = prompts.to_ask(Snapshot(tuple(rows), "hash"), 384)
    assert {row.group_key for row in asked} == {"one", "two"}
    assert replies == prompts.replies_each(2)


@pytest.mark.parametrize(
    ("count", "most", "asked"),
    [(120, 384, 96), (121, 384, 96), (100, 384, 80), (50, 384, 40), (50, 96, 12), (50, 3, 1), (4, 384, 4)],
)
def test_a_fifth_of_the_prompts_are_left_out_and_the_others_asked_as_the_replies_suffice(
    count: int, most: int, asked: int
) -> None:
    found, replies = prompts.to_ask(snapshot(count), most)
    assert (len(found), replies) == (
        asked,
        prompts.replies_each(count - len(prompts.left_out(snapshot(count)))),
    )


@pytest.mark.parametrize(("count", "left"), [(0, 0), (4, 0), (5, 1), (39, 7), (160, 32), (1_000, 32)])
def test_what_is_left_out_is_never_asked_and_always_the_same(count: int, left: int) -> None:
    found = prompts.left_out(snapshot(count))
    asked, _ = prompts.to_ask(snapshot(count), 100_000)
    assert len(found) == left
    assert not {row.group_key for row in found} & {row.group_key for row in asked}
    assert len(found) + len(asked) == count
    assert found == prompts.left_out(Snapshot(tuple(reversed(snapshot(count).rows)), "hash"))


def test_few_prompts_are_answered_more_often() -> None:
    assert [prompts.replies_each(count) for count in (200, 48, 47, 16, 3, 0)] == [4, 4, 8, 12, 16, 16]


def test_every_prompt_gets_its_four_replies_before_any_gets_more() -> None:
    asked = [(at, number) for places, numbers in prompts.rounds(20, 8) for at in places for number in numbers]
    assert asked[:80] == [(at, number) for at in range(20) for number in range(4)]
    assert asked[80:] == [(at, number) for at in range(20) for number in range(4, 8)]
    assert [(len(places), len(numbers)) for places, numbers in prompts.rounds(20, 1)] == [
        (8, 1),
        (8, 1),
        (4, 1),
    ]
    assert prompts.rounds(0, 4) == []
