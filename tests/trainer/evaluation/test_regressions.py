"""Corrections as regression tests: which are checked, and when a challenger has fallen back."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.rows import row
from trainer.data.labels import Correction
from trainer.data.rows import Row
from trainer.data.snapshot import Snapshot
from trainer.evaluation import regressions, statistics
from trainer.evaluation.regressions import MAX_HELD_OUT, MAX_TRAINED, ScoredCase

JUDGE = {"resamples": 500, "confidence": 0.95, "seed": 0}


def corrected(name: str, split: str, created_ms: int, count: int = 1) -> Row:
    wished = tuple(Correction(f"Wish {n} of {name}.", 1.0) for n in range(count))
    return replace(row(name, "disliked", split=split, corrections=wished), created_ms=created_ms)


BASE = -2.5


def case(number: int, challenger: float, champion: float, *, trained: bool = True) -> ScoredCase:
    """A case whose margins are so far beyond the base's, which finds its own reply likelier."""
    return ScoredCase(f"r{number:02d}", 0, f"g{number}", trained, BASE + challenger, BASE + champion, BASE)


def test_the_newest_corrections_are_checked_and_no_more_than_the_time_allows() -> None:
    rows = [corrected(f"t{n:03d}", "train", n) for n in range(40)]
    rows += [corrected(f"h{n:03d}", "gate" if n % 2 else "development", n) for n in range(40)]
    found = regressions.cases(Snapshot(tuple(rows), "hash"))
    trained, held_out = [c for c in found if c.trained], [c for c in found if not c.trained]
    assert [c.row.reply_id for c in trained] == [f"t{n:03d}" for n in range(39, 39 - MAX_TRAINED, -1)]
    assert [c.row.reply_id for c in held_out] == [f"h{n:03d}" for n in range(39, 39 - MAX_HELD_OUT, -1)]


def test_several_corrections_of_one_reply_are_several_cases() -> None:
    found = regressions.cases(Snapshot((corrected("a", "train", 1, count=2), row("b")), "hash"))
    assert [(c.row.reply_id, c.number) for c in found] == [("a", 0), ("a", 1)]


def test_cases_that_flip_both_ways_are_chance() -> None:
    flipping = [case(n, 0.5, -0.5) if n % 2 else case(n, -0.5, 0.5) for n in range(16)]
    found = regressions.summarise(flipping, trained=True, **JUDGE)
    assert found is not None and found.gain is not None
    assert (len(found.lost), found.gained) == (8, 8)
    assert len(found.lost) <= found.most_lost
    assert found.gain.bound_high > 0


def test_cases_that_are_all_lost_are_not() -> None:
    found = regressions.summarise([case(n, -0.5, 0.5) for n in range(8)], trained=True, **JUDGE)
    assert found is not None and found.gain is not None
    assert found.lost == tuple(f"r{n:02d}" for n in range(8))
    assert len(found.lost) > found.most_lost
    assert found.gain.bound_high < -0.2
    assert found.towards == 0


def test_a_champion_that_knows_its_corrections_by_heart_sets_no_higher_bar() -> None:
    found = regressions.summarise([case(n, 1.5, 4.0) for n in range(16)], trained=True, **JUDGE)
    assert found is not None and found.gain is not None
    assert found.lost == () and found.towards == 16
    assert found.gain.bound_high > -0.02


def test_one_case_or_four_lost_prove_nothing_and_are_named() -> None:
    found = regressions.summarise([case(n, -0.5, 0.5) for n in range(4)], trained=True, **JUDGE)
    assert found is not None
    assert len(found.lost) == 4 <= found.most_lost
    assert found.gain is None


def test_what_moves_away_from_wishes_further_than_the_base_has_lost_them_too() -> None:
    found = regressions.summarise([case(n, -0.5, 0.0) for n in range(8)], trained=True, **JUDGE)
    assert found is not None and found.gain is not None
    assert len(found.lost) == 8 > found.most_lost
    assert found.gain.bound_high < -0.3


def test_a_hair_more_or_less_than_the_base_is_no_move() -> None:
    found = regressions.summarise([case(n, -0.2, 0.2) for n in range(8)], trained=True, **JUDGE)
    assert found is not None and (found.lost, found.gained, found.towards) == ((), 0, 0)


def test_what_was_trained_on_and_what_was_held_out_are_judged_apart() -> None:
    scored = [case(1, -1, 1), case(2, 1, 1, trained=False)]
    trained = regressions.summarise(scored, trained=True, **JUDGE)
    held_out = regressions.summarise(scored, trained=False, **JUDGE)
    assert trained is not None and trained.lost == ("r01",)
    assert held_out is not None and held_out.lost == ()
    assert regressions.summarise(scored[:1], trained=False, **JUDGE) is None


@given(st.integers(0, 25))
def test_chance_explains_no_more_than_one_in_twenty(better: int) -> None:
    most = statistics.most_by_chance(better)
    changes = most + 1 + better
    tail = sum(1 for heads in _ways(changes) if heads > most) / 2**changes if changes <= 12 else None
    assert tail is None or tail <= 0.05
    assert most >= better


def _ways(changes: int) -> list[int]:
    """How many heads each of all sequences of throws has."""
    return [bin(sequence).count("1") for sequence in range(2**changes)]
