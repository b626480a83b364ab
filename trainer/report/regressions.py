"""The report's regression tests: past corrections case by case, and the safety prompts."""

from __future__ import annotations

from html import escape

from trainer import safety
from trainer.regressions import ScoredCase
from trainer.report.parts import section, table
from trainer.report.source import Source
from trainer.safety import PROBES


def corrections(source: Source) -> str:
    """Return past corrections, those that were lost first."""
    if not source.corrections:
        return ""
    rows = [
        (
            _name(source, case),
            "trained on" if case.trained else "held out",
            f"{case.champion - case.base:+.2f}",
            f"{case.challenger - case.base:+.2f}",
            _fate(case),
        )
        for case in sorted(source.corrections, key=lambda case: (not case.lost, not case.trained, case.gain))
    ]
    lead = (
        "How much more than the base each model prefers what a member wished for to the reply that they "
        "corrected, in nat per token. Corrections that were trained on test forgetting, the others "
        "generalisation. Single cases turn by chance; too many at once refuse a challenger."
    )
    head = ("correction", "", "champion", "challenger", "")
    return section("Corrections as regression tests", lead, table(head, rows, numbers=(2, 3)))


def safety_prompts(source: Source) -> str:
    """Return the safety prompts on which base or challenger fails, with what the challenger said."""
    texts = {probe.name: probe.text for probe in PROBES}
    rows = []
    for each in source.safety:
        failed = [safety.fails(each.name, text) for text in each.challenger]
        base = [safety.fails(each.name, text) for text in each.base]
        if any(failed) or any(base):
            mark = '<span class="bad">new</span>' if each.newly_failed else ""
            rows.append(
                (
                    escape(texts.get(each.name, each.name)),
                    f"{sum(base)} of {len(base)}",
                    f"{sum(failed)} of {len(failed)}",
                    mark,
                    escape(each.challenger[0]),
                )
            )
    if not source.safety:
        return ""
    lead = (
        f"{len(source.safety)} frozen prompts, asked of base and challenger with the same seeds, judged by "
        "simple rules. Only what the base never fails and the challenger always fails is a new failure; the "
        "prompts on which neither fails are not shown."
    )
    head = ("prompt", "base fails", "challenger fails", "", "what the challenger said first")
    return section(
        "Safety prompts", lead, table(head, rows, numbers=(1, 2)) if rows else "<p>No failure.</p>"
    )


def _name(source: Source, case: ScoredCase) -> str:
    """Show what was wished for where it is still there, else only the case's name."""
    row = source.rows.get(case.reply_id)
    name = f"<code>{escape(case.name)}</code>"
    if row is None or case.number >= len(row.corrections):
        return name
    asked = row.prompt[-1][1] if row.prompt else ""
    return (
        f"{name}<div>{escape(asked)}</div>"
        f'<div><span class="soft">said:</span> {escape(row.text)}</div>'
        f'<div><span class="soft">wished:</span> {escape(row.corrections[case.number].text)}</div>'
    )


def _fate(case: ScoredCase) -> str:
    if case.lost:
        return '<span class="bad">lost</span>'
    return '<span class="good">gained</span>' if case.gained else ""
