"""What the operators' page shows beside the loop's state: runs, weeks, what would train next, alarms."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.admin import left_out
from storage.db.clock import DAY_MS
from storage.db.database import Connection
from storage.feedback import like_rate
from storage.learning import adapters, eligibility, run_summary
from storage.learning.eligibility import RatedReply

Payload = dict[str, Any]

WEEKS = 26
RUNS_A_PAGE = 20
ROWS_A_PAGE = 20
# What would train next is asked anew with every look at the page: of the latest so many ratings.
LATEST_RATINGS = 2_000
CHANGES = 200
SHOWN_CHARACTERS = 400
LOW_DISK_BYTES = 2 * 1024**3


def runs(db: Connection, scope: str, skip: int) -> Payload:
    """Return a page of runs, the newest first."""
    found = run_summary.page(db, scope, skip=skip, limit=RUNS_A_PAGE)
    return {"runs": [each.as_json() for each in found], "count": run_summary.count(db, scope), "skip": skip}


def weeks(db: Connection, scope: str, base_hash: str) -> Payload:
    """Return the ratings of each week, the oldest first, and when another adapter became champion."""
    found = like_rate.by_week(db, scope, WEEKS)
    rows = [
        {
            "from_ms": each.first_day * DAY_MS,
            "liked": each.rate.liked if each.rate else 0,
            "disliked": each.rate.disliked if each.rate else 0,
            "share": each.rate.share if each.rate else None,
            "low": each.rate.interval[0] if each.rate else None,
            "high": each.rate.interval[1] if each.rate else None,
        }
        for each in found
    ]
    changes = [
        {"at_ms": each.created_ms, "adapter_id": each.adapter_id, "kind": each.kind}
        for each in adapters.recent_promotions(db, scope, base_hash, CHANGES)
        if each.kind != "initial"
    ]
    return {"weeks": rows, "changes": changes}


def next_rows(db: Connection, scope: str, reference: str, skip: int) -> Payload:
    """Return what would train if a run started now, the newest first, and what is left out by hand.

    With many ratings only the replies that the latest are about; `all` says whether these are all.
    """
    found, all_of_them = eligibility.lately_rated(
        db, scope, permission_reference=reference, ratings=LATEST_RATINGS
    )
    newest = sorted(found.rows, key=lambda row: -row.created_ms)
    return {
        "rows": [_row(row) for row in newest[skip : skip + ROWS_A_PAGE]],
        "count": len(newest),
        "all": all_of_them,
        "skip": skip,
        "excluded": found.excluded,
        "left_out": [
            {"reply_id": each.reply_id, "actor": each.actor, "at_ms": each.created_ms}
            for each in left_out.listing(db, scope)
        ],
    }


def _row(row: RatedReply) -> Payload:
    asked = [each["content"] for each in row.prompt_messages if each["role"] == "user"]
    thumbs = [each.value for each in row.ratings if each.kind == "thumb"]
    return {
        "reply_id": row.reply_id,
        "prompt": _short(asked[-1] if asked else ""),
        "reply": _short(row.text),
        "liked": sum(value > 0 for value in thumbs),
        "disliked": sum(value < 0 for value in thumbs),
        "corrections": sum(each.kind == "correction" for each in row.ratings),
        "split": row.split,
        "source": row.source,
        "at_ms": row.created_ms,
    }


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def alarms(loop: Mapping[str, Any], last_runs: Sequence[run_summary.Summary], home: Path) -> list[str]:
    """Return what an operator has to look at now, each as a sentence."""
    found = []
    server = loop.get("server") or {}
    if server.get("status") in ("down", "failed"):
        found.append(f"The model server does not answer: {server.get('detail') or 'no reason is known'}")
    if loop.get("trainer_alive") is False:
        found.append("The trainer is not running: no run starts until `strop up` or `strop trainer` does.")
    if last_runs and last_runs[0].outcome == "failed":
        found.append(f"The last run {last_runs[0].id} failed: {last_runs[0].message}")
    free = shutil.disk_usage(home).free
    if free < LOW_DISK_BYTES:
        found.append(f"Only {free / 1e9:.1f} GB of disk are free at {home}.")
    return found
