"""Which training prompts ranking asks, how often, and which it leaves out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.data.rows import Row
from trainer.data.snapshot import Snapshot
from trainer.evaluation.scores import stable_hash

# Replies to each prompt: the best of four is about twice as good as a single one (EXPERIMENTS, 9).
REPLIES = 4
# Where there are fewer prompts than FEW each is answered several times as often, up to MOST_TURNS times.
FEW_PROMPTS = 48
MOST_TURNS = 4
# Prompts that are asked before the clock is looked at, and fewest of them: less teaches nothing.
ROUND = 8
LEAST_PROMPTS = 24
# Prompts that are never asked: what ranking does to answers in general is seen on these (EXPERIMENTS, 33).
LEFT_OUT_SHARE = 0.2
MOST_LEFT_OUT = 32
# Prompts that an adapter is looked at on, and fewest of them.
MOST_TO_LOOK_AT = 32
ENOUGH_TO_LOOK_AT = 24


def to_ask(snapshot: Snapshot, most_replies: int) -> tuple[list[Row], int]:
    """Return training rows with different prompts, and how many replies each of them gets.

    No more than ``most_replies`` in all, but for the first prompt's. The order of the rows only depends on
    their replies' ids.
    """
    rows = different(snapshot.of("train"))
    rows = rows[: len(rows) - _left_out(len(rows))]
    replies = replies_each(len(rows))
    return _so_many(rows, replies, most_replies), replies


def for_references(snapshot: Snapshot, most_replies: int) -> tuple[list[Row], int]:
    """Return the same of all training prompts: their liked replies are what references stand beside."""
    _, replies = to_ask(snapshot, most_replies)
    return _so_many(different(snapshot.of("train")), replies, most_replies), replies


def _so_many(rows: list[Row], replies: int, most_replies: int) -> list[Row]:
    return rows[: max(1, most_replies // replies)]


def left_out(snapshot: Snapshot) -> list[Row]:
    """Return the training rows whose prompts are never asked: a fifth of all, MOST_LEFT_OUT at most."""
    rows = different(snapshot.of("train"))
    return rows[len(rows) - _left_out(len(rows)) :]


def to_look_at(snapshot: Snapshot, ranked: Sequence[Row]) -> list[Row]:
    """Return rows whose prompts tell what ranking does to answers in general: those that it left out.

    A small community has few, so that development prompts come after them, and some that were ranked where
    there are still too few.
    """
    unseen = [*left_out(snapshot), *different(snapshot.of("development"))]
    return [*unseen, *ranked[: max(0, ENOUGH_TO_LOOK_AT - len(unseen))]][:MOST_TO_LOOK_AT]


def different(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each group of near-identical prompts, in an order that only depends on the ids."""
    return list({row.group_key: row for row in sorted(rows, key=_by_id)}.values())


def _by_id(row: Row) -> int:
    return stable_hash(row.reply_id)


def _left_out(prompts: int) -> int:
    return min(MOST_LEFT_OUT, int(LEFT_OUT_SHARE * prompts))


def replies_each(prompts: int) -> int:
    """Return how many replies each of so many prompts gets: REPLIES, or a multiple where they are few."""
    return REPLIES * min(MOST_TURNS, max(1, math.ceil(FEW_PROMPTS / max(1, prompts))))


def rounds(prompts: int, replies: int) -> list[tuple[range, range]]:
    """Return places of prompts and numbers of replies that are asked for at the same time, in order."""
    return [
        (range(at, min(at + ROUND, prompts)), range(turn, min(turn + REPLIES, replies)))
        for turn in range(0, replies, REPLIES)
        for at in range(0, prompts, ROUND)
    ]
