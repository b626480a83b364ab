"""Says which part of a measurement runs and about how long the rest will take (torch-free)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.bench.serving.profile import Profile

# Seconds on two cores of 2021, every peer installed; what has run already corrects them for this machine.
TURN_S = 4.0
STREAM_TOKEN_S = 0.35
SWAP_S = 5.0
REPLY_S = 1.2
STARTUP_S = 20.0
PROMPT_TOKEN_S = 0.003
# Parts whose size a profile hardly changes.
OTHER_PARTS_S = {"threads": 60.0, "learning": 150.0, "queries": 90.0, "start": 60.0, "retrain": 360.0}


class Countdown:
    """Plans the stages of a run and prints, before each, the time left.

    ``failed`` are the stages that could not be measured.
    """

    def __init__(self, profile: Profile, parts: Sequence[str], say: Callable[[str], None]) -> None:
        self._say = say
        self._expected = expected_seconds(profile, parts)
        self._left = dict(self._expected)
        self._spent_s = 0.0
        self.failed: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage, and learn from how long it takes. One that fails costs only its own rows."""
        place = len(self._expected) - len(self._left) + 1
        self._say(f"[{place}/{len(self._expected)}] {name}: {duration(self.left_s())} left")
        started = time.monotonic()
        try:
            yield
        except Exception as error:  # the stage's boundary: hours of other stages are not lost with it
            self.failed.append(name)
            self._say(f"{name} failed: {type(error).__name__}: {error}")
        self._spent_s += time.monotonic() - started
        self._left.pop(name)

    def left_s(self) -> float:
        """Return the expected rest, at the pace of what has run."""
        left = sum(self._left.values())
        done = sum(self._expected.values()) - left
        return left * (self._spent_s / done if done else 1.0)


def expected_seconds(profile: Profile, parts: Sequence[str]) -> dict[str, float]:
    """Return the stages of a run in order, with the seconds that each is expected to take."""
    expected: dict[str, float] = {}
    if "speed" in parts:
        for streams in profile.streams:
            tokens = streams * (profile.tokens_for(streams) + profile.prompt_tokens / 4)
            expected[f"speed at {streams}"] = profile.pairs * (TURN_S + tokens * STREAM_TOKEN_S / 4)
    if "swap" in parts:
        expected["swap"] = STARTUP_S + (profile.swaps + 1) * SWAP_S
    if "scoring" in parts:
        expected["scoring"] = STARTUP_S + profile.replies * REPLY_S
    if "training" in parts:
        expected["training"] = 2 * STARTUP_S + 2 * profile.training_phases * profile.phase_s
    if "first-word" in parts:
        expected["first-word"] = (
            2 * STARTUP_S + 2 * profile.waits * profile.first_word_tokens * PROMPT_TOKEN_S
        )
    for name in OTHER_PARTS_S.keys() & set(parts):
        expected[name] = OTHER_PARTS_S[name]
    return expected


def duration(seconds: float) -> str:
    """Write a duration for a person."""
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {max(1, round(seconds)):.0f} s"
