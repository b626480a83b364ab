"""The report as one HTML page: no script, no network, every word of a member or a model escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from storage.learning import eligibility
from storage.learning.evaluations import Metrics, TrainingFigures
from storage.learning.run_summary import may_be_shown
from trainer.evaluation.scores import Answer
from trainer.report import charts, regressions, verdict
from trainer.report.parts import bar, case, cases, section, table
from trainer.report.source import Source
from trainer.report.style import STYLE

SAMPLES = 12
# Nothing may be fetched and nothing may run, whatever a reply contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
OUTCOMES = {
    "promoted": "Promoted: it replaced the champion of its time.",
    "refused": "Refused: the champion stays.",
    "votes": "Not decided yet: the members vote.",
    "not_yet": "Not trained: there is too little to learn from.",
    "failed": "The run failed; the champion stays.",
    "cancelled": "The run was cancelled; the champion stays.",
}
PHASES = {
    "sft": "liked replies (SFT)",
    "kto": "all ratings (KTO)",
    "dpo": "pairs (DPO)",
    "ranked": "its own replies, ranked (DPO)",
}


def render(source: Source) -> str:
    """Return the whole page."""
    metrics = source.metrics
    sections = [
        _head(source),
        verdict.key_figures(source),
        verdict.scores(source),
        verdict.guardrails(metrics.guardrails),
        verdict.robustness(metrics.evaluation.get("robustness") or {}),
        verdict.signals(metrics),
        *_replies(source),
        _training(metrics.training),
        _data(metrics),
        _influence(metrics.data.influence),
        _provenance(source),
    ]
    title = f"Strop: run {source.run.id}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, sections)) + "\n</body></html>\n"
    )


def _head(source: Source) -> str:
    run = source.run
    ended = _time(run.finished_ms)
    outcome = OUTCOMES.get(run.outcome or "", f"The run is {run.state}.")
    rehearsal = source.adapter is not None and source.adapter.rehearsal
    note = '<p class="soft">A rehearsal: simulated or playground members rated.</p>' if rehearsal else ""
    where = f"Run {run.id} of {run.scope}" + (f", {ended}" if ended else "")
    return (
        f'<header class="{escape(run.outcome or "")}"><p class="soft">{escape(where)}</p>'
        f"<h1>{escape(outcome)}</h1>"
        f'<p class="verdict">{escape(run.message or "It has no result yet.")}</p>{note}</header>'
    )


def _training(training: TrainingFigures) -> str:
    parts = []
    for key, figures in training.phases.items():
        if not figures.steps:
            continue
        kind, _, number = key.partition("_")
        name = PHASES.get(kind, kind) + (f", round {number}" if number else "")
        speed = f"{figures.steps} steps, {figures.seconds:.0f} s"
        speed += f" at {figures.tokens_per_second:.0f} tokens/s"
        cut = "; shortened by trainer.max_train_minutes" if figures.shortened else ""
        parts.append(charts.curve(name, speed + cut, figures.losses))
    if not parts:
        return ""
    return section("Training", training.reason, f'<div class="curves">{"".join(parts)}</div>')


def _replies(source: Source) -> list[str]:
    """Show what both wrote, but never under their names while members vote on these very replies."""
    if source.run.outcome == "votes":
        return [section("Replies", "They are shown once the vote is over: it is blind.", "")]
    return [_samples(source), regressions.corrections(source), regressions.safety_prompts(source)]


def _samples(source: Source) -> str:
    if source.run.outcome in (None, "not_yet"):
        return ""
    if not source.pairs:
        return section(
            "Samples", "The replies of this run are gone: an erasure scrubbed them, or it made none.", ""
        )
    shown = [pair for pair in source.pairs if may_be_shown(pair.prompt.question)][:SAMPLES]
    found = [
        case(pair.prompt.question, [_side("champion", pair.champion), _side("challenger", pair.challenger)])
        for pair in shown
    ]
    lead = (
        f"{len(found)} of {len(source.pairs)} held-out prompts, answered by both with the same seed. "
        "The others are kept for blind votes, also those of later runs."
    )
    return section("Samples", lead, cases(found, "samples"))


def _side(name: str, answer: Answer) -> tuple[str, str]:
    return (name if answer.finished else f"{name}, cut off"), answer.text


def _data(metrics: Metrics) -> str:
    data = metrics.data
    rows = [
        (escape(split), *map(str, (counts.liked, counts.disliked, counts.unclear, counts.corrections)))
        for split, counts in data.splits.items()
    ]
    body = (
        table(("split", "liked", "disliked", "unclear", "corrections"), rows, numbers=(1, 2, 3, 4))
        if rows
        else ""
    )
    if planted := data.planted_corrections:
        body += f"<p>{planted} corrections were set aside: the same words answer several prompts.</p>"
    excluded = sorted((metrics.excluded or {}).items(), key=lambda item: -item[1])
    if excluded:
        items = [(str(count), escape(eligibility.reason(reason))) for reason, count in excluded]
        body += "<h3>Left out</h3>" + table(("replies", "because"), items, numbers=(0,))
    sources = ", ".join(f"{count} from {name}" for name, count in sorted(data.sources.items()))
    return section("Data", sources and f"Replies by source: {sources}.", body) if body else ""


def _influence(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    largest = max(float(each["share"]) for each in found) or 1.0
    rows = [
        (
            escape(str(each["name"])),
            bar(each["share"] / largest),
            f"{each['share']:.1%}",
            str(each["votes"]),
            _belief(each),
        )
        for each in found
    ]
    return section(
        "Influence",
        "Members under names of this page only. Nobody holds more than a tenth of the mass, or 1.5 "
        "equal shares; who agrees with the others no more often than chance counts nothing.",
        table(("member", "", "share", "votes", "believed to rate rightly"), rows, numbers=(2, 3)),
    )


def _belief(member: Mapping[str, Any]) -> str:
    believed = "set aside" if member["quarantined"] else f"{member['accuracy']:.0%}"
    return escape(f"{believed}: {member['doubt']}" if member.get("doubt") else believed)


def _provenance(source: Source) -> str:
    run, adapter = source.run, source.adapter
    rows = [
        ("adapter", run.adapter_id),
        ("against", run.champion_id or "the base model"),
        ("base", adapter.base_hash if adapter else None),
        ("dataset snapshot", run.snapshot_hash),
        ("can be repeated", "yes" if run.repeatable else "no: a member erased data that it used"),
        ("started by", f"{run.trigger}, {run.requested_by}"),
        ("begun", _time(run.started_ms)),
        ("ended", _time(run.finished_ms)),
    ]
    shown = [(escape(name), f"<code>{escape(str(value))}</code>") for name, value in rows if value]
    return section("Provenance", "", table(("", ""), shown))


def _time(at_ms: int | None) -> str:
    return "" if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
