"""`strop runs`: every run in a row, and two of them side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from bot.cli.errors import UsageError
from bot.cli.session import ConfigOption, JsonOption, ScopeOption, Session, choose_scope, session
from bot.language.durations import duration
from bot.learning import run_list
from storage.db.database import Connection
from storage.learning import adapters, evaluations, run_summary
from storage.learning.adapters import Adapter
from storage.learning.evaluations import Evaluation
from storage.learning.run_summary import Summary
from storage.learning.runs import Run

LIST, COMPARE = "list", "compare"
COLUMNS = (
    "run", "began (UTC)", "outcome", "gain in P(liked)", "trained on", "time", "processor", "memory",
    "energy", "steps",
)  # fmt: skip
UNKNOWN = "–"


@dataclass(frozen=True)
class Found:
    """A run with its adapter and all that was measured of it."""

    run: Run
    adapter: Adapter | None
    measured: Sequence[Evaluation]
    card: dict[str, Any]


def run_history(
    action: Annotated[
        str, typer.Argument(help="`list`, or `compare` with two runs.", metavar="[list|compare]")
    ] = LIST,
    names: Annotated[
        list[str] | None, typer.Argument(help="Two runs' ids (their beginnings are enough).", metavar="A B")
    ] = None,
    config: ConfigOption = None,
    scope: ScopeOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, the newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the training runs, the newest first, or show two of them side by side.

    The list says how each came out, its gain with the 95 % interval, and how many liked, disliked and
    corrected replies it was trained on. Then it says what the run's process took: time, processor time,
    resident memory at its peak, energy where the machine counts it, and steps, of those planned where the
    clock cut it short.
    The comparison has settings, data, measures and limits.

    Examples:

        strop runs

        strop runs --limit 100 --json

        strop runs compare r4fab88d73ac6 r9c1
    """
    if action not in (LIST, COMPARE) or (len(names or ()) != 2 if action == COMPARE else names):
        raise UsageError("Write `strop runs`, or `strop runs compare A B`.")
    with session(config) as opened:
        if action == COMPARE:
            first, second = (_found(opened, name) for name in names or ())
            typer.echo(_comparison(first, second, as_json=as_json))
            return
        found = opened.database.read(lambda db: _page(db, opened, scope, limit))
    if as_json:
        typer.echo(json.dumps([each.as_json() for each in found], ensure_ascii=False))
    elif not found:
        typer.echo("There are no runs yet: `strop retrain` starts the first one.")
    else:
        typer.echo("\n".join(align_columns([COLUMNS, *map(_cells, found)])))


def _page(db: Connection, opened: Session, scope: str | None, limit: int) -> list[Summary]:
    chosen = None if scope is None else choose_scope(db, opened.config, scope)
    return run_summary.page(db, chosen, limit=limit)


def _cells(run: Summary) -> tuple[str, ...]:
    began = datetime.fromtimestamp((run.started_ms or run.created_ms) / 1000, UTC)
    return (
        run.id,
        f"{began:%Y-%m-%d %H:%M}",
        run_list.OUTCOMES.get(run.outcome or "", run.state),
        _gain(run),
        UNKNOWN if run.train is None else f"{run.train.liked}+{run.train.disliked}+{run.train.corrections}",
        UNKNOWN if run.seconds is None else duration(run.seconds),
        UNKNOWN if run.cpu_s is None else duration(run.cpu_s),
        f"{run.peak_bytes / 1e9:.1f} GB" if run.peak_bytes else UNKNOWN,
        UNKNOWN if run.energy_j is None else f"{run.energy_j / 3600:.1f} Wh",
        UNKNOWN if run.steps is None else run_list.steps(run).removesuffix(" steps"),
    )


def _gain(run: Summary) -> str:
    if run.gain is None:
        return UNKNOWN
    interval = "" if run.gain.low is None else f" ({run.gain.low:+.2f} to {run.gain.high or 0:+.2f})"
    return f"{run.gain.value:+.2f}{interval}"


def align_columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


# --------------------------------------------------------------------------------------------- side by side
def _found(opened: Session, name: str) -> Found:
    def work(db: Connection) -> tuple[Run, Adapter | None, list[Evaluation]]:
        run = run_summary.find_by_prefix(db, name)
        adapter = adapters.get(db, run.adapter_id) if run.adapter_id else None
        return run, adapter, evaluations.list_for_run(db, run.id)

    run, adapter, measured = opened.database.read(work)
    return Found(run, adapter, measured, _card(opened, run))


def _card(opened: Session, run: Run) -> dict[str, Any]:
    """Return what the run's card says of its settings; empty where it has none (any more)."""
    try:
        return dict(json.loads((opened.config.runs / run.id / "card.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _comparison(first: Found, second: Found, *, as_json: bool) -> str:
    sections = {
        title: {name: (values[0].get(name), values[1].get(name)) for name in {**values[0], **values[1]}}
        for title, values in {
            "run": (_head(first), _head(second)),
            "settings": (_settings(first), _settings(second)),
            "data": (_data(first), _data(second)),
            "measures": (_measures(first), _measures(second)),
            "limits": (_limits(first), _limits(second)),
        }.items()
    }
    if as_json:
        return json.dumps(sections, ensure_ascii=False)
    rows = [("", first.run.id, "", second.run.id)]
    for title, values in sections.items():
        rows.append((title.upper(), "", "", ""))
        rows += [
            (f"  {name}", _shown(a), "=" if a == b else "≠", _shown(b)) for name, (a, b) in values.items()
        ]
    lines = align_columns(rows)
    said = [f"{each.run.id}: {each.run.message}" for each in (first, second) if each.run.message]
    return "\n".join([*lines, "", *said])


def _shown(value: Any) -> str:
    return UNKNOWN if value is None or value == "" else str(value)


def _head(found: Found) -> dict[str, Any]:
    run = Summary.of(found.run)
    return {
        "scope": run.scope,
        "outcome": run_list.OUTCOMES.get(run.outcome or "", run.state),
        "adapter": run.adapter_id,
        "judged against": run.champion_id or "base",
        "snapshot": (found.run.snapshot_hash or "")[:12],
        "time": None if run.seconds is None else duration(run.seconds),
        "processor time": None if run.cpu_s is None else duration(run.cpu_s),
        "memory": f"{run.peak_bytes / 1e9:.1f} GB" if run.peak_bytes else None,
        "energy": None if run.energy_j is None else f"{run.energy_j / 3600:.1f} Wh",
        "steps": None if run.steps is None else run_list.steps(run),
    }


def _settings(found: Found) -> dict[str, Any]:
    own = found.run.settings.get("trainer") or {}
    known = found.card.get("settings") or own
    return {"objective": found.run.metrics.training.objective or None, **dict(sorted(known.items()))}


def _data(found: Found) -> dict[str, Any]:
    data = found.run.metrics.data
    counts = {
        f"{split}, {name}": number
        for split, each in data.splits.items()
        for name, number in asdict(each).items()
    }
    return {**counts, "raters": data.raters}


def _measures(found: Found) -> dict[str, Any]:
    return {
        each.metric: f"{each.value:+.3f}"
        + ("" if each.low is None or each.high is None else f" ({each.low:+.3f} to {each.high:+.3f})")
        for each in found.measured
        if each.value is not None
    }


def _limits(found: Found) -> dict[str, Any]:
    return {
        limit.name: f"{limit.value:.3f} of {limit.limit:.3f}, {'kept' if limit.kept else 'broken'}"
        for limit in found.run.metrics.guardrails
    }


def register(app: typer.Typer) -> None:
    """Add this topic's command."""
    app.command("runs", rich_help_panel="Learn")(run_history)
