"""Writes runs into Trackio: JSON on standard input, one object a run. It runs by the Python of Trackio.

Trackio's environment need not have Strop: only the standard library and trackio are imported.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# What Trackio asks the machine for is not what a run took.
os.environ["TRACKIO_AUTO_LOG_CPU"] = os.environ["TRACKIO_AUTO_LOG_GPU"] = "0"


def main() -> int:
    """Write every run that isn't there yet; print how many were written."""
    import trackio

    project = sys.argv[1]
    try:
        there = {run.name for run in trackio.Api().runs(project)}
    except (ValueError, FileNotFoundError):  # No such project yet.
        there = set()
    written = 0
    for line in sys.stdin:
        run = json.loads(line)
        if run["name"] not in there:
            _write(trackio, project, run)
            written += 1
    print(f"WRITTEN {written}", flush=True)
    return 0


def _write(trackio: Any, project: str, run: dict[str, Any]) -> None:
    trackio.init(
        project=project,
        name=run["name"],
        group=run["group"],
        config=run["config"],
        embed=False,
        auto_log_cpu=False,
        auto_log_gpu=False,
    )
    for step, values in enumerate(run["curves"]):
        trackio.log(values, step=step)
    last: dict[str, Any] = dict(run["summary"])
    if run["card"]:
        last["card"] = trackio.Markdown(run["card"])
    trackio.log(last, step=len(run["curves"]))
    trackio.finish()


if __name__ == "__main__":
    sys.exit(main())
