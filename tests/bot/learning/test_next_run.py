"""When the next run starts, in words; what a run needs only where it is needed."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest

from bot.language import texts
from bot.learning.next_run import Outlook, needs, next_run
from storage.db.clock import now_ms
from storage.feedback.ratings import RatingCounts
from storage.learning.loop_status import Champion, LoopStatus, Readiness
from storage.learning.runs import Run
from tests.storage.a_run import a_run

HOUR_MS = 3_600_000


def outlook(run: Run | None = None, due_ms: int | None = None, **changes: Any) -> Outlook:
    ready = Readiness(18, 5, 25, 5)
    status = LoopStatus("guild:5", Champion(), RatingCounts(0, 0, 0, 0), 31, ready, run)
    return Outlook(status, due_ms, **{"min_new_ratings": 50, "trainer_alive": True, **changes})


@pytest.mark.parametrize(
    ("after_h", "minimum", "said"),
    [
        (5.01, 50, "by the clock in 5 h, or after 50 new ratings"),
        (5.01, 0, "by the clock in 5 h"),
        (0.5, 0, "by the clock in 30 min"),
        (72.2, 0, "by the clock in 3 days"),
        (None, 50, "after 50 new ratings"),
        (None, 0, "only when /retrain asks for it"),
    ],
)
def test_the_next_run_is_told_by_what_starts_it(after_h: float | None, minimum: int, said: str) -> None:
    due_ms = None if after_h is None else now_ms() + round(after_h * HOUR_MS)
    assert next_run(outlook(due_ms=due_ms, min_new_ratings=minimum)) == said


def test_the_text_has_the_time_as_each_readers_discord_shows_it() -> None:
    due_ms = now_ms() + 5 * HOUR_MS
    assert f"(<t:{due_ms // 1000}:f>)" in next_run(outlook(due_ms=due_ms), stamped=True)
    context = contextvars.copy_context()
    context.run(texts.speak, "de")
    assert (
        context.run(next_run, outlook(due_ms=due_ms))
        == "nach Zeitplan in 5 Std. oder nach 50 neuen Bewertungen"
    )


def test_a_run_that_is_on_or_a_trainer_that_is_away_is_told_first() -> None:
    on = a_run(phase="train", progress=0.42)
    assert next_run(outlook(on)) == "one is on now"
    running = outlook(on).running
    assert running is not None and (running.name, running.have, running.least) == ("Training", 42, 100)
    assert next_run(outlook(a_run(state="queued"))) == "one waits for the trainer"
    assert outlook(a_run(state="queued")).running is None
    assert "not running" in next_run(outlook(trainer_alive=False, due_ms=now_ms()))


def test_new_ratings_are_needed_only_where_they_start_a_run() -> None:
    named = [(need.name, need.have, need.least, need.met) for need in needs(outlook())]
    assert named == [
        ("Liked or corrected", 18, 25, False),
        ("Raters", 5, 5, True),
        ("New ratings", 31, 50, False),
    ]
    assert len(needs(outlook(min_new_ratings=0))) == 2
