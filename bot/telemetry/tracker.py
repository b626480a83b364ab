"""Training runs for Trackio, a tracker that keeps its runs on this machine: figures and curves, no words.

An erasure doesn't reach a tracker's own database, so nothing that holds members' words is given to it.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bot.errors import BotError
from storage.learning.runs import Run

WRITER = Path(__file__).parent / "trackio_writer.py"
# Sections of a card that hold figures alone; others quote corrections and replies.
_WITHOUT_WORDS = ("Data", "Training", "Scores", "Lineage")


class TrackerError(BotError):
    """Trackio is not there, or does not take the runs."""


def interpreter() -> str:
    """Return the Python that has Trackio: this one, or that of a `trackio` on the PATH.

    Raises TrackerError.
    """
    if importlib.util.find_spec("trackio") is not None:
        return sys.executable
    program = shutil.which("trackio")
    python = Path(program).resolve().with_name("python") if program else None
    if python is None or not python.exists():
        raise TrackerError(
            f"Trackio is not installed: run `{sys.executable} -m pip install trackio`, "
            "or `pipx install trackio`."
        )
    return str(python)


def record(run: Run, card: str) -> dict[str, Any]:
    """Return what is written of a run: its settings, a curve for each phase, what came of it, its card."""
    metrics = run.metrics
    summary: dict[str, Any] = {"outcome": run.outcome or run.state}
    if metrics.headline is not None:
        gain = metrics.headline
        summary |= {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high, "prompts": gain.n}
    if metrics.process is not None:
        cost = metrics.process
        summary |= {
            "seconds": cost.seconds,
            "cpu_seconds": cost.cpu_s,
            "peak_memory_bytes": cost.peak_bytes,
            "energy_joules": cost.energy_j,
        }
    if metrics.data.train is not None:
        summary |= {"liked": metrics.data.train.liked, "disliked": metrics.data.train.disliked}
    return {
        "name": run.id,
        "group": run.scope,
        "config": {
            "scope": run.scope,
            "trigger": run.trigger,
            "created_ms": run.created_ms,
            "objective": metrics.training.objective,
            "settings": json.dumps(run.settings),
        },
        "curves": _curves(run),
        "summary": {name: value for name, value in summary.items() if value is not None},
        "card": without_words(card),
    }


def _curves(run: Run) -> list[Mapping[str, float]]:
    """Return the losses step by step, the phases side by side."""
    phases = {name: phase.losses for name, phase in run.metrics.training.phases.items() if phase.losses}
    longest = max(map(len, phases.values()), default=0)
    return [
        {f"{name}/loss": losses[step] for name, losses in phases.items() if step < len(losses)}
        for step in range(longest)
    ]


def without_words(card: str) -> str:
    """Return the title of a card and the sections that hold figures alone."""
    title, *sections = re.split(r"^## ", card, flags=re.MULTILINE)
    kept = [f"## {each}" for each in sections if each.partition("\n")[0] in _WITHOUT_WORDS]
    return "\n\n".join([title.partition("\n")[0], *map(str.strip, kept)]) if card else ""


def send(python: str, project: str, records: Iterable[Mapping[str, Any]]) -> int:
    """Give the runs to Trackio, which skips those that it has; return how many were new.

    Raises TrackerError.
    """
    lines = "".join(f"{json.dumps(each)}\n" for each in records)
    try:
        ran = subprocess.run(
            [python, "-I", str(WRITER), project], input=lines, capture_output=True, text=True
        )
    except OSError as error:
        raise TrackerError(f"Trackio can't be started ({error.strerror}).") from error
    written = re.search(r"^WRITTEN (\d+)$", ran.stdout, flags=re.MULTILINE)
    if ran.returncode or written is None:
        reason = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise TrackerError(f"Trackio did not take the runs: {reason}")
    return int(written[1])
