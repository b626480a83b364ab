"""Whose prompt is read next."""

from typing import Any

from bot.serving.engine.running_batch import RunningBatch
from tests.bot.serving.engine.queue_model import Reply


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def batch(*reading: str, decoding: str = "", crowding: str = "") -> tuple[Any, Clock]:
    """A lane of single-letter users."""
    clock = Clock()
    made: Any = RunningBatch(clock)
    made.reading = [Reply(user, 10, 10, 0.0) for user in reading]
    made.decoding = [Reply(user, 10, 10, 0.0) for user in decoding]
    made.crowding = set(crowding)
    return made, clock


def next_user(batch: Any) -> str | None:
    job = batch.next_to_read()
    return None if job is None else job.user


def test_who_crowds_waits_as_long_as_their_prompt_took_once_for_each_of_the_others() -> None:
    made, clock = batch("h", decoding="hab", crowding="h")
    assert next_user(made) == "h"
    clock.now = 5.0
    made.count_reading({"h"}, 0.2)
    assert next_user(made) is None
    clock.now = 5.39
    assert next_user(made) is None
    clock.now = 5.41
    assert next_user(made) == "h"


def test_prompts_of_others_are_read_while_one_user_waits() -> None:
    made, _ = batch("h", "a", decoding="b", crowding="h")
    assert next_user(made) == "h"
    made.count_reading({"h"}, 0.2)
    assert next_user(made) == "a"


def test_who_has_all_that_they_asked_for_reads_on() -> None:
    made, _ = batch("a", decoding="b")
    made.count_reading({"a"}, 0.2)
    assert next_user(made) == "a"


def test_alone_a_user_reads_on_however_much_waits() -> None:
    made, _ = batch("h", decoding="ha", crowding="h")
    made.count_reading({"h"}, 0.2)
    assert next_user(made) is None
    made.leave(made.decoding[1])
    assert next_user(made) == "h"


def test_the_machine_stays_busy_where_everybody_would_wait() -> None:
    made, _ = batch("h", "g", crowding="hg")
    made.count_reading({"h", "g"}, 0.2)
    assert next_user(made) == "h"
