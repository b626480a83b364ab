"""A training's claim on the GPU of a server on the same machine, which gives the whole card up (torch-free).

vLLM's own sleep mode is not used: its `/sleep` and `/wake_up` exist only with `VLLM_SERVER_DEV_MODE`, which
also opens routes that run code (`/collective_rpc`), past the API key, to every process of the machine. The
process that keeps vLLM ends it instead and starts it again. The claim is a lock on a file, so that a training
that is killed gives the card back at once, and nothing is sent that somebody else could send too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bot.serving.protocol import ASLEEP, SERVER_FILE, VLLM

CLAIM_FILE = "gpu.claim"
# Ending takes seconds; whoever holds the card longer does not know of claims.
PATIENCE_S = 60.0
POLL_S = 0.2


def is_claimed(run_dir: Path) -> bool:
    """Whether a training wants the card for itself."""
    try:
        with (run_dir / CLAIM_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def card_to_itself(
    run_dir: Path, on_wait: Callable[[], None], patience_s: float = PATIENCE_S
) -> Iterator[bool]:
    """Hold the claim; yield whether a server of this machine has given its GPU up for it.

    ``on_wait`` is called while the server ends, and may raise.
    """
    if _announced(run_dir).get("engine") != VLLM:
        yield False
        return
    with (run_dir / CLAIM_FILE).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        alone = _waited_for_sleep(run_dir, on_wait, patience_s)
        if not alone:
            fcntl.flock(file, fcntl.LOCK_UN)
        yield alone


def _waited_for_sleep(run_dir: Path, on_wait: Callable[[], None], patience_s: float) -> bool:
    ends_at = time.monotonic() + patience_s
    while not _announced(run_dir).get(ASLEEP):
        if time.monotonic() > ends_at:
            return False
        on_wait()
        time.sleep(POLL_S)
    return True


def _announced(run_dir: Path) -> dict[str, object]:
    try:
        value = json.loads((run_dir / SERVER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
