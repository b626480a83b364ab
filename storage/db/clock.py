"""The one clock of the database: milliseconds since the epoch, UTC."""

import time

SECOND_MS = 1_000
DAY_MS = 24 * 60 * 60 * SECOND_MS


def now_ms() -> int:
    """Return the current time in milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000
