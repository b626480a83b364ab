"""An adapter's card: where it comes from, what made it, how it was judged. For scripts (JSON) and for people.

Written into the run's folder once the run is over, not into the adapter's own: that folder's content is its
name. It holds no member's words and no member's identity, and goes with the run when an erasure scrubs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from storage.config import Config
from storage.db.database import Database
from storage.learning import adapters, evaluations, runs
from storage.learning.adapters import Adapter
from storage.learning.evaluations import Evaluation
from storage.learning.runs import Run
from trainer.evaluation import scores
from trainer.evaluation.safety import PROBES

log = structlog.get_logger()

JSON = "card.json"
TEXT = "card.md"


def write(database: Database, config: Config, run_id: str) -> Path | None:
    """Write the card of a run's adapter and return its path; None where the run made none or was scrubbed."""
    run = database.read(lambda db: runs.expect(db, run_id))
    adapter = database.read(lambda db: adapters.get(db, run.adapter_id) if run.adapter_id else None)
    folder = config.runs / run.id
    if adapter is None or not folder.is_dir():
        return None
    found = database.read(lambda db: evaluations.list_for_run(db, run.id))
    made_with = _made_with(config.adapters / adapter.id)
    card = describe(run, adapter, found, made_with, _samples(folder))
    (folder / JSON).write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")
    path = folder / TEXT
    path.write_text(as_text(card), encoding="utf-8")
    return path


def describe(
    run: Run,
    adapter: Adapter,
    found: Sequence[Evaluation],
    made_with: Mapping[str, Any],
    samples: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Return the card as plain values."""
    evaluation, training, stored = run.metrics.evaluation, run.metrics.training, run.metrics.as_json()
    influence = run.metrics.data.influence
    data = {name: value for name, value in (stored.get("data") or {}).items() if name != "influence"}
    return {
        "adapter": adapter.id,
        "scope": adapter.scope,
        "rehearsal": adapter.rehearsal,
        "outcome": run.outcome,
        "decision": run.message,
        "data": {**data, "excluded": dict(run.metrics.excluded or {})},
        "member_shares": [
            {key: each.get(key) for key in ("name", "share", "votes", "quarantined", "doubt")}
            for each in influence
        ],
        "label_quality": _label_quality(influence),
        "objective": training.objective or None,
        "objective_reason": training.reason,
        "settings": made_with.get("settings") or {},
        "steps": made_with.get("steps") or {},
        "scale": made_with.get("scale", 1.0),
        "versions": made_with.get("versions") or {},
        "curves": {name: list(phase.losses) for name, phase in training.phases.items()},
        "scores": [
            {key: getattr(each, key) for key in ("metric", "value", "low", "high", "n")} for each in found
        ],
        "guardrails": [asdict(limit) for limit in run.metrics.guardrails],
        "also_measured": {
            key: evaluation.get(key) for key in ("held_out_replies", "flattery", "general_nll")
        },
        "corrections_kept": evaluation.get("corrections") or {},
        "safety": evaluation.get("safety"),
        "robustness": evaluation.get("robustness") or {},
        "samples": list(samples),
        "lineage": {
            "run": run.id,
            "judged_against": run.champion_id or "base",
            "trained_from": "base",
            "base_hash": adapter.base_hash,
            "dataset_snapshot": run.snapshot_hash,
            "repeatable": run.repeatable,
        },
        "files": (adapter.manifest or {}).get("files") or {},
    }


def as_text(card: Mapping[str, Any]) -> str:
    """Return the card for people, as Markdown."""
    lineage, quality = card["lineage"], card["label_quality"]
    origin = "a rehearsal (simulated or playground members)" if card["rehearsal"] else "a community's members"
    lines = [
        f"# Adapter {card['adapter']}",
        "",
        f"Of {card['scope']}, from the ratings of {origin}. {card['decision']}",
        "",
        "## Data",
        *_split_lines(card["data"]),
        f"- sources: {_pairs(card['data'].get('sources') or {})}",
        f"- left out: {_pairs(card['data'].get('excluded') or {})}",
        f"- raters: {quality['raters']}, of whom {quality['set_aside']} set aside "
        f"and {quality['doubted']} doubted for rating in one burst; "
        f"mean believed accuracy {_share(quality['mean_accuracy'])}; "
        f"largest share of one member {_share(quality['largest_share'])}",
        "",
        "## Training",
        f"- objective: {card['objective']}"
        + (f" ({card['objective_reason']})" if card["objective_reason"] else ""),
        *(f"- {name}: {value}" for name, value in sorted(card["settings"].items())),
        f"- steps: {_pairs(card['steps'])}",
        f"- adapter scale: {card['scale']:g}",
        *(f"- loss, {name}: {losses[0]:.2f} to {losses[-1]:.2f}" for name, losses in _curves(card)),
        "",
        "## Scores",
        "| score | value | 95 % interval | n |",
        "|---|---|---|---|",
        *(_score_line(each) for each in card["scores"]),
        "",
        "## Guardrails",
        "| limit | measured | at most | |",
        "|---|---|---|---|",
        *(
            f"| {each['name']} | {each['value']:.3f} | {each['limit']:.3f} | "
            f"{'kept' if each['kept'] else 'broken'} |"
            for each in card["guardrails"]
        ),
        "",
        *_corrections_lines(card["corrections_kept"]),
        *_safety_lines(card["safety"]),
        *_also_lines(card["also_measured"]),
        *_robustness_lines(card["robustness"]),
        *_sample_lines(card["samples"]),
        "",
        "## Lineage",
        f"- run {lineage['run']}, trained from the {lineage['trained_from']}, judged against "
        f"{lineage['judged_against']}",
        f"- base hash: {lineage['base_hash']}",
        f"- dataset snapshot: {lineage['dataset_snapshot']}"
        + ("" if lineage["repeatable"] else " (no longer complete: a member erased data)"),
        f"- versions: {_pairs(card['versions'])}",
        *(f"- sha256 of {name}: {digest}" for name, digest in sorted(card["files"].items())),
    ]
    return "\n".join(lines) + "\n"


def _corrections_lines(kept: Mapping[str, Any]) -> list[str]:
    lines = []
    for kind, what in (("trained", "trained on"), ("held_out", "held out")):
        found = kept.get(kind)
        if found:
            lost = f"; lost: {', '.join(found['lost'])}" if found["lost"] else "; none lost"
            lines.append(
                f"- {what}: towards {found['towards']} of {found['cases']} it has moved from the base"
                f"{lost}; gained: {found['gained']}"
            )
    return ["", "## Corrections as regression tests", *lines] if lines else []


def _safety_lines(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return []
    return [
        "",
        "## Safety prompts",
        f"- {found['prompts']} prompts; new failures: {', '.join(found['new_failures']) or 'none'}",
        f"- first tries lost beside the base: {found['lost']}, won: {found['won']}",
    ]


def _also_lines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    if held_out := found.get("held_out_replies"):
        new, old = held_out["challenger"], held_out["champion"]
        lines += [
            f"- perplexity of liked held-out replies: {new['perplexity_of_liked']:.2f} "
            f"(champion {old['perplexity_of_liked']:.2f})",
            f"- accuracy, liked held-out replies likelier than disliked ones: {new['accuracy']:.0%} "
            f"(champion {old['accuracy']:.0%})",
        ]
    if flattery := found.get("flattery"):
        lines.append(f"- flattery: {flattery['challenger']:.2f} (base {flattery['base']:.2f})")
    return ["", "## Also measured (it decides nothing, but for flattery's limit)", *lines] if lines else []


def _robustness_lines(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- without {each['name']}: {each['value']:+.3f} ({each['low']:.3f} to {each['high']:.3f})"
        + ("" if each["still_better"] else ", no longer certain")
        for each in found.get("without_members") or []
    ]
    if forward := found.get("time_forward_auc"):
        lines.append(
            f"- AUC on the newest ratings, learned from the older ones: {forward['value']:.2f} "
            f"({forward['low']:.2f} to {forward['high']:.2f})"
        )
    return ["", "## What the gain in P(liked) hangs on", *lines] if lines else []


def _sample_lines(samples: Sequence[Mapping[str, str]]) -> list[str]:
    lines = []
    for each in samples:
        lines += ["", f"**{each['prompt']}**", "", *(f"> {who}: {_one_line(each[who])}  " for who in _SIDES)]
    return ["", "## Samples, on frozen prompts", *lines] if lines else []


def _one_line(text: str) -> str:
    return " ".join(text.split())


_SIDES = ("base", "adapter")


def _samples(folder: Path) -> list[dict[str, str]]:
    """Return both models' answers to the harmless frozen prompts: no member wrote those."""
    try:
        probed = {each.name: each for each in scores.read(folder).safety}
    except (OSError, ValueError, KeyError, TypeError):
        # A run that ended before it was judged, was scrubbed, or is another version's.
        return []
    return [
        {
            "prompt": probe.text,
            "base": probed[probe.name].base[0],
            "adapter": probed[probe.name].challenger[0],
        }
        for probe in PROBES
        if probe.kind == "ordinary" and probe.name in probed
    ]


def _made_with(folder: Path) -> dict[str, Any]:
    """Return the part of the card that lies in the adapter's own folder, written when it was trained."""
    try:
        return dict(json.loads((folder / JSON).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        log.warning(
            "the adapter's own card can't be read", adapter_id=folder.name, error=type(error).__name__
        )
        return {}


def _label_quality(influence: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = [each for each in influence if not each["quarantined"]]
    return {
        "raters": len(influence),
        "set_aside": len(influence) - len(kept),
        "doubted": sum(bool(each.get("doubt")) for each in influence),
        "mean_accuracy": sum(each["accuracy"] for each in kept) / len(kept) if kept else None,
        "largest_share": max((each["share"] for each in influence), default=None),
    }


def _split_lines(data: Mapping[str, Any]) -> list[str]:
    return [
        f"- {split}: {_pairs(data[split])}" for split in ("train", "development", "gate") if split in data
    ]


def _curves(card: Mapping[str, Any]) -> list[tuple[str, list[float]]]:
    return [(name, losses) for name, losses in card["curves"].items() if losses]


def _score_line(score: Mapping[str, Any]) -> str:
    value = "" if score["value"] is None else f"{score['value']:+.3f}"
    interval = "" if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"
    return f"| {score['metric']} | {value} | {interval} | {score['n'] or ''} |"


def _pairs(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"
