"""A run as the database would return it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from storage.learning.evaluations import Metrics
from storage.learning.runs import Run
from storage.sentences import NOTHING


def a_run(**changes: Any) -> Run:
    """Return a run that is on, with what matters to a test."""
    values: dict[str, Any] = dict.fromkeys(field.name for field in fields(Run))
    values |= {"id": "r1", "scope": "guild:5", "state": "running", "progress": 0.0, "note": NOTHING}
    values |= {"message": NOTHING, "settings": {}, "metrics": Metrics(), "attempts": 1, "created_ms": 0}
    return Run(**values | changes)
