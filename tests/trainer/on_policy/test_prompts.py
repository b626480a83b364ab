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
    ("count", "most", "asked", "replies"),
    [
        (120, 384, 96, 4),
        (121, 384, 96, 4),
        (100, 384, 80, 4),
        (50, 384, 40, 8),
        (50, 96, 12, 8),
        (50, 3, 1, 8),
        (4, 384, 4, 16),
    ],
)
def test_a_fifth_of_the_prompts_are_left_out_and_the_others_asked_as_the_replies_suffice(
    count: int, most: int, asked: int, replies: int
) -> None:
    found, each = prompts.to_ask(snapshot(count), most)
    assert (len(found), each) == (asked, replies)


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


@pytest.mark.parametrize(
    ("train", "development", "left_out", "added", "ranked"),
    [(200, 40, 32, 0, 0), (100, 10, 20, 10, 0), (100, 40, 20, 12, 0), (40, 9, 8, 9, 7), (5, 0, 1, 0, 4)],
)
def test_what_is_looked_at_are_prompts_left_out_then_development_prompts_then_ranked_ones(
    train: int, development: int, left_out: int, added: int, ranked: int
) -> None:
    others = [row(f"d{number}", group=f"d{number}", split="development") for number in range(development)]
    rows = Snapshot((*snapshot(train).rows, *others), "hash")
    asked, _ = prompts.to_ask(rows, 384)
    found = prompts.to_look_at(rows, asked)
    assert found[:left_out] == prompts.left_out(rows)[:left_out]
    assert [each.split for each in found[left_out : left_out + added]] == ["development"] * added
    assert found[left_out + added :] == asked[:ranked]
