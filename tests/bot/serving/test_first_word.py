"""A run gives way to those who wait for a first word, and only for so long."""

import struct
import time
from pathlib import Path

from bot.serving.first_word import CREDIT_S, FILE, LEASE_S, FirstWordSign, GiveWay


class Run:
    """A run whose clock goes on as it works and as it stands still, half a second a look."""

    def __init__(self, run_dir: Path) -> None:
        self.now = time.monotonic()
        self.looks = 0
        self.give_way = GiveWay(run_dir, lambda: self.now, self._stand_still)
        self.while_still = lambda: None

    def _stand_still(self, seconds: float) -> None:
        assert seconds > 0
        self.now += 0.5
        self.looks += 1
        self.while_still()

    def work(self, seconds: float) -> float:
        """Work, look, and return for how long it stood still."""
        self.now += seconds
        before = self.give_way.paused_s
        self.give_way()
        return self.give_way.paused_s - before

    def keep_somebody_waiting(self, run_dir: Path) -> None:
        (run_dir / FILE).write_bytes(struct.pack("=d", self.now + LEASE_S / 2))


def test_a_run_stands_still_until_nobody_waits(tmp_path: Path) -> None:
    sign, run = FirstWordSign(tmp_path), Run(tmp_path)
    sign.show(waiting=True)
    run.while_still = lambda: sign.show(waiting=run.looks < 8)
    paused = run.work(1.0)
    assert run.looks == 8
    assert paused > 0
    assert run.work(1.0) == 0


def test_a_run_goes_on_at_once_beside_a_server_that_never_was(tmp_path: Path) -> None:
    assert Run(tmp_path / "none").work(1.0) == 0


def test_a_server_that_comes_later_is_noticed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.work(0.01) == 0
    FirstWordSign(tmp_path / "run").show(waiting=True)
    assert run.work(0.01) > 0


def test_a_server_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    run = Run(tmp_path)
    FirstWordSign(tmp_path).show(waiting=True)
    assert run.work(0.1) <= LEASE_S + 0.5
    assert run.work(0.1) == 0


def test_a_word_from_before_the_machine_was_started_anew_counts_for_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / FILE).write_bytes(struct.pack("=d", run.now + 90_000.0))
    assert run.work(0.1) == 0


def test_a_run_among_people_who_always_wait_takes_twice_its_time_and_a_minute(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.while_still = lambda: run.keep_somebody_waiting(tmp_path)
    run.keep_somebody_waiting(tmp_path)
    worked = 0.0
    for _ in range(200):
        run.keep_somebody_waiting(tmp_path)
        run.work(0.5)
        worked += 0.5
        assert run.give_way.paused_s <= worked + CREDIT_S + 0.5
    assert run.give_way.paused_s >= worked


def test_a_working_clock_stands_still_with_the_run(tmp_path: Path) -> None:
    sign, run = FirstWordSign(tmp_path), Run(tmp_path)
    before = run.give_way.working_clock()
    sign.show(waiting=True)
    assert run.work(1.0) > 0
    assert abs(run.give_way.working_clock() - before - 1.0) < 1e-6


def test_a_server_whose_folder_cannot_be_written_serves_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    FirstWordSign(tmp_path / "file").show(waiting=True)
