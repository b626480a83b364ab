"""The report as one HTML page: no script, no network, every word of a member or a model escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from storage.dataset import REASONS
from trainer.report import charts, regressions
from trainer.report.parts import section, table
from trainer.report.source import Source
from trainer.report.style import STYLE
from trainer.weighing import Answer

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
METRICS = {
    "preference": "predicted P(liked), challenger minus champion",
    "margin": "log-probability of liked minus disliked replies, gain in nat per token",
    "reward_auc": "judge: AUC on ratings that it did not see",
    "reward_auc_cross_validated": "judge: AUC in cross-validation",
    "general_nll_increase": "loss on general prompts, relative to the base",
    "blind_votes": "share of blind votes won",
    "flattery": "flattery of its replies, 0 to 1",
    "perplexity_of_liked": "perplexity of liked held-out replies",
    "accuracy": "liked held-out replies likelier than disliked ones",
    "canary": "share of rated conversations liked as a canary, minus the champion's",
}


def rendered(source: Source) -> str:
    """Return the whole page."""
    sections = [
        _head(source),
        _guardrails(source.metrics.get("guardrails") or []),
        _scores(source),
        _robustness((source.metrics.get("evaluation") or {}).get("robustness") or {}),
        regressions.corrections(source),
        regressions.safety_prompts(source),
        _training(source.metrics.get("training") or {}),
        _samples(source),
        _data(source.metrics),
        _influence((source.metrics.get("data") or {}).get("influence") or []),
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
        f'<header><p class="soft">{escape(where)}</p>'
        f"<h1>{escape(outcome)}</h1>"
        f'<div class="verdict">{escape(run.message or "It has no result yet.")}</div>{note}</header>'
    )


def _guardrails(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    rows = [
        (
            escape(str(each["name"])),
            f"{each['value']:.3f}",
            f"{each['limit']:.3f}",
            '<span class="good">kept</span>' if each["kept"] else '<span class="bad">broken</span>',
        )
        for each in found
    ]
    return section(
        "Guardrails",
        "Each can refuse a challenger, whatever else speaks for it. Smaller is safer.",
        table(("limit", "measured", "at most", ""), rows, numbers=(1, 2)),
    )


def _scores(source: Source) -> str:
    found = [each for each in source.evaluations if each.value is not None]
    if not found:
        return ""
    rows = [
        (
            escape(METRICS.get(each.metric, each.metric)),
            f"{each.value:+.3f}" + _beside(each.detail),
            "" if each.low is None or each.high is None else f"{each.low:.3f} to {each.high:.3f}",
            "" if each.n is None else str(each.n),
        )
        for each in found
    ]
    spans = [
        (METRICS.get(each.metric, each.metric), each.value, each.low, each.high)
        for each in found
        if each.metric in ("preference", "margin") and each.low is not None and each.high is not None
    ]
    chart = charts.intervals(spans) if spans else ""  # type: ignore[arg-type]
    return section(
        "Scores",
        "Intervals are 95 % bootstrap intervals over whole conversations. Loss, perplexity and accuracy are "
        "reported because people expect them; only the limit on the loss of general prompts decides.",
        chart + table(("score", "value", "interval", "conversations"), rows, numbers=(1, 3)),
    )


def _beside(detail: Mapping[str, Any]) -> str:
    """Say what the champion or the base has where that is known."""
    return "".join(
        f' <span class="soft">({who} {detail[who]:.3f})</span>'
        for who in ("champion", "base")
        if who in detail
    )


def _robustness(found: Mapping[str, Any]) -> str:
    others, forward = found.get("without_members") or [], found.get("time_forward_auc")
    if not others and not forward:
        return ""
    spans = [(f"without {each['name']}", each["value"], each["low"], each["high"]) for each in others]
    body = charts.intervals(spans) if spans else ""
    if uncertain := [each["name"] for each in others if not each["still_better"]]:
        body += f"<p>The gain is not certain without {escape(', '.join(uncertain))}.</p>"
    if forward:
        body += (
            f"<p>From the older ratings the newest are told apart with an AUC of {forward['value']:.2f} "
            f"({forward['low']:.2f} to {forward['high']:.2f}); at one half, tastes have changed.</p>"
        )
    lead = "The gain in predicted P(liked), judged without each of the most influential members."
    return section("What the verdict hangs on", lead, body)


def _training(training: Mapping[str, Any]) -> str:
    parts = []
    for key, figures in training.items():
        if not isinstance(figures, Mapping) or not figures.get("steps"):
            continue
        kind, _, number = key.partition("_")
        name = PHASES.get(kind, kind) + (f", round {number}" if number else "")
        speed = f"{figures['steps']} steps, {figures['seconds']:.0f} s"
        speed += f" at {figures['tokens_per_second']:.0f} tokens/s"
        cut = "; shortened by trainer.max_train_minutes" if figures.get("shortened") else ""
        parts.append(f"<p>{escape(name)}: {escape(speed + cut)}</p>" + charts.curve(figures["losses"]))
    if not parts:
        return ""
    reason = str(training.get("reason") or "")
    return section("Training", reason, "".join(parts))


def _samples(source: Source) -> str:
    if source.run.outcome in (None, "not_yet"):
        return ""
    if not source.pairs:
        return section(
            "Samples", "The replies of this run are gone: an erasure scrubbed them, or it made none.", ""
        )
    pairs = []
    for pair in source.pairs[:SAMPLES]:
        asked = pair.prompt.messages[-1].content if pair.prompt.messages else ""
        sides = _side("champion", pair.champion) + _side("challenger", pair.challenger)
        pairs.append(f'<div class="pair"><p>{escape(asked)}</p><div class="sides">{sides}</div></div>')
    shown = f"{len(pairs)} of {len(source.pairs)} held-out prompts, answered by both with the same seed."
    return section("Samples", shown, "".join(pairs))


def _side(name: str, answer: Answer) -> str:
    label = name if answer.finished else f"{name}, cut off"
    return f'<div><span class="soft">{label}</span>\n{escape(answer.text)}</div>'


def _data(metrics: Mapping[str, Any]) -> str:
    data = metrics.get("data") or {}
    rows = [
        (
            escape(split),
            *(
                str((data.get(split) or {}).get(key, 0))
                for key in ("liked", "disliked", "unclear", "corrections")
            ),
        )
        for split in ("train", "development", "gate")
        if split in data
    ]
    body = (
        table(("split", "liked", "disliked", "unclear", "corrections"), rows, numbers=(1, 2, 3, 4))
        if rows
        else ""
    )
    if planted := data.get("planted_corrections"):
        body += f"<p>{planted} corrections were set aside: the same words answer several prompts.</p>"
    excluded = sorted((metrics.get("excluded") or {}).items(), key=lambda item: -item[1])
    if excluded:
        items = [(str(count), escape(REASONS.get(reason, reason))) for reason, count in excluded]
        body += "<h3>Left out</h3>" + table(("replies", "because"), items, numbers=(0,))
    sources = ", ".join(f"{count} from {name}" for name, count in sorted((data.get("sources") or {}).items()))
    return section("Data", sources and f"Replies by source: {sources}.", body) if body else ""


def _influence(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    rows = [
        (
            escape(str(each["name"])),
            f'<div class="bar" style="width:{min(1.0, each["share"]) * 100:.1f}%"></div>',
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
