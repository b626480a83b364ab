"""`python -m tests.bench.learning.judge.signals`: what free signals add to the model that ranks replies.

Members of a pool rate some answers and only react to others: some ask again for what they dislike, some go
on, some of those thank or complain, in two languages. Beside it stands pure noise: the same signals, dealt
out at random. `--opinions SEED` asks instead whether a real conversation's length and last message tell what
its people thought of it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.learning.signals.of_replies import Signals
from tests.bench.learning import prompts
from tests.bench.learning.judge import people, pools
from tests.bench.learning.judge.__main__ import OTHERS_MESSAGES, OUT, PEOPLE_MESSAGES, SERVED_PROMPTS, Kept
from tests.bench.learning.judge.pools import Pool
from trainer.data.rows import Row
from trainer.data.snapshot import Snapshot
from trainer.evaluation import reward_model, statistics
from trainer.evaluation.evaluate import rated_texts
from trainer.evaluation.reward_model import RatedText
from trainer.on_policy import signals

COUNTS = (50, 100, 250)
# Of the tastes, for the interval of a mean.
RESAMPLES = 10_000
UNRATED, TESTED = 400, 400
# Of real conversations: the fewest messages, and as many conversations as a model is fitted on.
LEAST_MESSAGES, REAL = 4, 400
# Of what a member dislikes and likes: asks for another version, goes on.
ASKS_AGAIN, GOES_ON = (0.4, 0.05), (0.45, 0.7)
# The part of next messages that thank or complain; of those, the part that says what the member thinks.
SPEAKS_OF_IT, SINCERE = 0.33, 0.9
THANKS = ("thanks, that helps", "haha great", "danke dir", "super, vielen dank", "perfect thank you")
COMPLAINTS = ("that is not what i asked", "no, wrong", "das stimmt nicht", "hä? nein", "what are you saying")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.learning.judge.signals", description=__doc__)
    parser.add_argument("--people", type=int, action="append", default=[], help="a seed of people's answers")
    parser.add_argument("--others", type=int, action="append", default=[], help="the same, of other senders")
    parser.add_argument("--served", type=int, action="append", default=[], help="a seed of a base's answers")
    parser.add_argument("--opinions", type=int, action="append", default=[], help="a seed of real ratings")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    parsed = parser.parse_args(arguments)
    kept = Kept(parsed.out / "signals.json")
    found = [pools.of_people(seed, PEOPLE_MESSAGES) for seed in parsed.people]
    found += [pools.of_people(seed, OTHERS_MESSAGES, tested=True) for seed in parsed.others]
    found += [
        pools.of_base(seed, SERVED_PROMPTS, parsed.out, parsed.out / "models") for seed in parsed.served
    ]
    for pool in found:
        for noise in (False, True):
            for count in parsed.counts:
                cells = _cells(pool, count, parsed.draws, noise, kept)
                print(
                    f"{pool.name}, {'noise' if noise else 'informative'}, {count}:",
                    _summary(cells),
                    flush=True,
                )
    for seed in parsed.opinions:
        for quality in people.COUNTS:
            cell = kept.do(f"opinions {seed}/{quality}", lambda q=quality, s=seed: of_people(q, s))  # type: ignore[misc]
            print(quality, json.dumps(cell), flush=True)
    return 0


def _cells(pool: Pool, count: int, draws: int, noise: bool, kept: Kept) -> list[dict[str, Any]]:
    found = [
        {"taste": name}
        | kept.do(
            f"{pool.name}/{name}/{count}/{draw}/{'noise' if noise else 'true'}",
            lambda name=name, draw=draw, t=texts, r=true: cell(pool, name, t, r, count, draw, noise=noise),  # type: ignore[misc]
        )
        for name, (_, texts, true) in pools.rated(pool, seed=1).items()
        for draw in range(draws)
    ]
    return [each for each in found if "too few" not in each]


def _summary(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    gains = [each["with"] - each["without"] for each in cells]
    gain = statistics.clustered_mean(
        gains, [each["taste"] for each in cells], resamples=RESAMPLES, confidence=0.95, seed=0
    )
    return {
        "cells": len(cells),
        "signals": round(float(np.mean([each["signals"] for each in cells])), 3),
        "proven": sum(each["bound"] > 0.5 for each in cells),
        "used": sum(each["weight"] > 0 for each in cells),
        "without": round(float(np.mean([each["without"] for each in cells])), 3),
        "gain": round(gain.value, 4),
        "over tastes": [round(gain.low, 4), round(gain.high, 4)],
        "gain of each weight": {
            weight: round(float(np.mean([each["weights"][weight] - each["without"] for each in cells])), 4)
            for weight in map(str, signals.WEIGHTS)
        },
        "worst": round(min(gains), 4),
        "best": round(max(gains), 4),
    }


def cell(
    pool: Pool,
    taste: str,
    texts: Sequence[RatedText],
    true: Sequence[bool],
    count: int,
    draw: int,
    *,
    noise: bool,
) -> dict[str, Any]:
    """Fit with and without signals on `count` ratings, and test on other conversations' true labels.

    `weights` holds what each weight would have brought, whether or not it was chosen.
    """
    train, unrated, test = _split(pool, count, draw)
    rows = [_row(str(at), texts[at]) for at in train]
    snapshot = Snapshot(tuple(rows), "")
    rated = rated_texts(rows)
    if not reward_model.enough(rated):
        return {"too few": True}
    dice = random.Random(f"signals {pool.name} {taste} {count} {draw}")
    shown = {at: true[at] for at in (*train, *unrated)}
    if noise:
        shuffled = list(shown.values())
        dice.shuffle(shuffled)
        shown = dict(zip(shown, shuffled, strict=True))
    given = {at: _signals(at, texts[at], liked, dice) for at, liked in shown.items()}
    of_rated, of_unrated = ([given[at] for at in part] for part in (train, unrated))
    labels, found = signals.weak_labels(snapshot, of_rated, of_unrated, seed=0)
    model = reward_model.fit(rated, reward_model.penalties_for(rated))
    fitted = signals.SignalsModel.cross_validated(list(zip(of_rated, rated, strict=True)))[0].fit()

    def auc(weak: Sequence[Any]) -> float:
        chances = signals.fit_beside(model, rated, weak).probability([texts[at].exchange for at in test])
        return round(statistics.auc(chances.tolist(), [true[at] for at in test]), 4)

    return {
        "signals": found.auc.value if found.auc else 0.5,
        "bound": found.auc.bound_low if found.auc else 0.0,
        "weight": found.weight,
        "without": auc([]),
        "with": auc(labels),
        "weights": {
            str(weight): auc(signals.label(fitted, of_unrated, weight)) for weight in signals.WEIGHTS
        },
    }


def of_people(quality: str, seed: int) -> dict[str, Any]:
    """Return how well a real conversation's length and last message tell what its people thought of it.

    Going on is having more turns than the half of them; the last message stands for the next one. Length
    alone needs no fit and is looked at in all conversations with LEAST_MESSAGES, the rest in REAL of them, by
    folds of senders.
    """
    every = people.conversations(quality, least_messages=LEAST_MESSAGES)
    found = people.drawn(every, REAL, seed)
    usual = int(np.median([len(one.turns) for one in every]))
    scores: dict[str, list[float]] = {"both": [], "last message": []}
    tested: list[people.Rated] = []
    for train, test in people.folds(found):
        if not reward_model.enough([one.text for one in train]):
            continue
        tested += test
        for name, least in (("both", usual), ("last message", None)):
            known = [(_of_conversation(one, least), one.text) for one in train]
            model, _ = signals.SignalsModel.cross_validated(known)
            ratios = model.fit().log_ratios([_of_conversation(one, least) for one in test])
            scores[name] += ratios.tolist()
    return {
        "ratings": len(found),
        **{name: people.auc_of(values, tested) for name, values in scores.items()},
        "all ratings": len(every),
        "turns alone": people.auc_of([float(len(one.turns)) for one in every], every),
    }


def _of_conversation(one: people.Rated, least: int | None) -> Signals:
    """Return a conversation's end as signals; without `least` it is not told how long it went on."""
    went_on = least is not None and len(one.turns) > least
    return Signals(one.name, one.name, "", "", "", False, False, went_on, one.turns[-1])


def _signals(at: int, text: RatedText, liked: bool, dice: random.Random) -> Signals:
    asks_again = dice.random() < ASKS_AGAIN[liked]
    goes_on = not asks_again and dice.random() < GOES_ON[liked]
    words = ""
    if goes_on:
        pleased = liked == (dice.random() < SINCERE)
        spoken = dice.choice(THANKS if pleased else COMPLAINTS)
        words = spoken if dice.random() < SPEAKS_OF_IT else dice.choice(_ordinary())
    return Signals(
        str(at), str(text.group), text.question, text.text, "rehearsal", asks_again, False, goes_on, words
    )


def _ordinary() -> tuple[str, ...]:
    """Return messages of real people that speak of anything."""
    global _ORDINARY
    if not _ORDINARY:
        _ORDINARY = tuple(asked.text for asked in prompts.load(701, 300, 0).community)
    return _ORDINARY


_ORDINARY: tuple[str, ...] = ()


def _row(name: str, text: RatedText) -> Row:
    verdict: Any = "liked" if text.liked else "disliked"
    group = str(text.group)
    return Row(
        name, 0, group, "train", (("user", text.question),), text.text, True, verdict, 1.0, (), "rehearsal"
    )


def _split(pool: Pool, count: int, draw: int) -> tuple[list[int], list[int], list[int]]:
    """Draw conversations to rate, others that are only reacted to, and others again to test on."""
    by_group: dict[str, list[int]] = {}
    for at, group in enumerate(pool.groups):
        by_group.setdefault(group, []).append(at)
    order = sorted(by_group)
    random.Random(f"draw {pool.name} {draw}").shuffle(order)
    unrated = min(UNRATED, (len(pool.groups) - count) // 2)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for group in order:
        for part, most in zip(parts, (count, unrated, TESTED), strict=True):
            if len(part) < most:
                part += by_group[group]
                break
    return parts[0][:count], parts[1][:unrated], parts[2]


if __name__ == "__main__":
    sys.exit(main())
