"""Sample replies of a run: what challenger and champion answered to the same held-out prompts.

The trainer keeps them in the run's folder, never in the database: an erasure removes the folder, and with it
every copy of a member's words.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FILE = "replies.jsonl"


@dataclass(frozen=True, slots=True)
class Sample:
    """Two replies to one prompt; `held_out` says that a member wrote it, in a held-out conversation."""

    prompt: str
    challenger: str
    champion: str
    held_out: bool


def read(runs_dir: Path, run_id: str, limit: int, *, general_only: bool = False) -> list[Sample]:
    """Return up to `limit` samples whose two replies differ; none where a run has none or lost them.

    With `general_only` prompts that a member wrote are left out.
    """
    found: list[Sample] = []
    try:
        with (runs_dir / run_id / FILE).open(encoding="utf-8") as lines:
            for sample in _differing(lines):
                if len(found) == limit:
                    break
                if not (general_only and sample.held_out):
                    found.append(sample)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Scrubbed by an erasure, cut short by a crash, or written by another version: nothing to show.
        return []
    return found


def _differing(lines: Iterable[str]) -> Iterator[Sample]:
    for line in lines:
        pair = json.loads(line)
        challenger, champion = pair["challenger"]["text"].strip(), pair["champion"]["text"].strip()
        asked = [message["content"] for message in pair["messages"] if message["role"] == "user"]
        if asked and challenger and champion and challenger != champion:
            yield Sample(asked[-1], challenger, champion, pair["group"] is not None)
