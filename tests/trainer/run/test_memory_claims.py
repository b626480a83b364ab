"""Trainings on one machine that share its memory: with real files, locks and processes."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.errors import MemoryShortError, RunCancelledError
from trainer.run.memory_claims import FOLDER, MemoryClaims

GB = 10**9
HELD = 400_000_000


def nothing() -> None:
    pytest.fail("nobody had to wait")


def wanting(needed: int, free: int) -> Callable[[int], tuple[int, int]]:
    """A training that needs so much where so much is free; it chooses what others will take."""

    def choose(taken: int) -> tuple[int, int]:
        if needed > free - taken:
            raise MemoryShortError("It does not fit.")
        return taken, needed

    return choose


def test_one_that_is_alone_claims_what_it_needs_or_is_told_that_it_does_not_fit(tmp_path: Path) -> None:
    claims = MemoryClaims(tmp_path, "r1", nothing)
    assert claims.claim("cpu", wanting(GB, 2 * GB)) == 0
    assert claims.claim("cpu", wanting(2 * GB, 2 * GB)) == 0, "its own claim is replaced, not added"
    with pytest.raises(MemoryShortError):
        claims.claim("cpu", wanting(3 * GB, 2 * GB))


def test_another_begins_beside_it_where_both_fit_and_else_once_it_has_ended(tmp_path: Path) -> None:
    first = MemoryClaims(tmp_path, "r1", nothing)
    first.claim("cuda", wanting(GB, 3 * GB))
    assert MemoryClaims(tmp_path, "r2", nothing).claim("cuda", wanting(2 * GB, 3 * GB)) == GB
    assert MemoryClaims(tmp_path, "r3", nothing).claim("cpu", wanting(3 * GB, 3 * GB)) == 0
    waits = list[str]()

    def wait() -> None:
        waits.append("waiting")
        first.release()

    assert MemoryClaims(tmp_path, "r4", wait).claim("cuda", wanting(3 * GB, 3 * GB)) == 0
    assert waits == ["waiting"]


def test_one_that_waits_can_be_cancelled(tmp_path: Path) -> None:
    first = MemoryClaims(tmp_path, "r1", nothing)
    first.claim("cpu", wanting(GB, GB))

    def cancelled() -> None:
        raise RunCancelledError("cancelled")

    with pytest.raises(RunCancelledError):
        MemoryClaims(tmp_path, "r2", cancelled).claim("cpu", wanting(GB, GB))


def test_what_another_has_taken_meanwhile_is_not_counted_twice_and_a_kill_lets_its_claim_go(
    tmp_path: Path,
) -> None:
    program = f"""
    from pathlib import Path
    from trainer.run.memory_claims import MemoryClaims
    claims = MemoryClaims(Path({str(tmp_path)!r}), "r1", lambda: None)
    claims.claim("cpu", lambda taken: (None, {GB}))
    taken = bytearray(b"x") * {HELD}
    print("ready", flush=True)
    input()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None and other.stdout.readline() == b"ready\n"
    claims = MemoryClaims(tmp_path, "r2", nothing)
    left = claims.claim("cpu", wanting(1, 2 * GB))
    assert GB - HELD - 50_000_000 < left < GB - HELD + 50_000_000
    other.kill()
    other.communicate()
    assert claims.claim("cpu", wanting(2 * GB, 2 * GB)) == 0
    assert [path.name for path in (tmp_path / FOLDER).glob("*.json")] == ["r2.json"]
