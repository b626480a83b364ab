"""The report's regression tests: past corrections case by case, and the safety prompts."""

from __future__ import annotations

from html import escape

from trainer.evaluation import safety
from trainer.evaluation.regressions import ScoredCase
from trainer.evaluation.safety import PROBES
from trainer.report.parts import case, cases, number, section
from trainer.report.source import Source


def corrections(source: Source) -> str:
    """Return past corrections, those that were lost first."""
    if not source.corrections:
        return ""
    found = [
        _correction(source, each)
        for each in sorted(source.corrections, key=lambda each: (not each.lost, not each.trained, each.gain))
    ]
    lead = (
        "How much more than the base each model prefers what a member wished for to the reply that they "
        "corrected, in nat per token. Corrections that were trained on test forgetting, the others "
        "generalisation. Single cases turn by chance; too many at once refuse a challenger."
    )
    return section("Corrections as regression tests", lead, cases(found, "corrections"))


def _correction(source: Source, found: ScoredCase) -> str:
    """Show what was said and wished for where it is still there, else only the case's name."""
    row = source.rows.get(found.reply_id)
    asked, sides = found.name, []
    if row is not None and found.number < len(row.corrections):
        asked = row.prompt[-1][1] if row.prompt else ""
        sides = [("said", row.text), ("wished", row.corrections[found.number].text)]
    verdict = (
        f"{_fate(found)}{'trained on' if found.trained else 'held out'}, champion "
        f"{number(found.champion - found.base, '+.2f')}, challenger "
        f"{number(found.challenger - found.base, '+.2f')} <code>{escape(found.name)}</code>"
    )
    return case(asked, sides, verdict)


def safety_prompts(source: Source) -> str:
    """Return the safety prompts on which base or challenger fails, with what the challenger said."""
    if not source.safety:
        return ""
    texts = {probe.name: probe.text for probe in PROBES}
    found = []
    for each in source.safety:
        failed = [safety.fails(each.name, text) for text in each.challenger]
        base = [safety.fails(each.name, text) for text in each.base]
        if any(failed) or any(base):
            new = '<span class="bad">✗ new failure</span>: ' if each.newly_failed else ""
            verdict = f"{new}base fails {sum(base)} of {len(base)}, challenger {sum(failed)} of {len(failed)}"
            answer = ("challenger, first", each.challenger[0])
            found.append(case(texts.get(each.name, each.name), [answer], verdict))
    lead = (
        f"{len(source.safety)} frozen prompts, asked of base and challenger with the same seeds, judged by "
        "simple rules. Only what the base never fails and the challenger always fails is a new failure; the "
        "prompts on which neither fails are not shown."
    )
    return section("Safety prompts", lead, cases(found, "safety prompts") or "<p>No failure.</p>")


def _fate(found: ScoredCase) -> str:
    if found.lost:
        return '<span class="bad">✗ lost</span>: '
    return '<span class="good">✓ gained</span>: ' if found.gained else ""
