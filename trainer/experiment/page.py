"""An experiment as one HTML page: its table, the differences with their intervals, every training's curves.

Figures and settings only: no word of a member or a model is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from storage.learning.runs import Run
from trainer.experiment.comparison import Comparison, Standing
from trainer.report import charts
from trainer.report.charts import Span
from trainer.report.page import PHASES, POLICY
from trainer.report.parts import number, section, small, table
from trainer.report.style import STYLE

FILE = "experiment.html"
HEAD = (
    "setting",
    "P(liked)",
    "beside the configured",
    "perplexity",
    "accuracy",
    "general loss",
    "minutes",
    "memory",
)


def render(run: Run, comparison: Comparison, left_out: list[str], not_tried: Mapping[str, str]) -> str:
    """Return the whole page; `not_tried` says of settings by name why they could not be tried."""
    title = f"Strop: experiment {run.id}"
    sections = [
        f'<header><p class="soft">{escape(f"Run {run.id} of {run.scope}")}</p><h1>Settings side by side</h1>'
        f'<p class="verdict">{escape(comparison.sentence)}</p></header>',
        section("Settings", _lead(comparison), _table(comparison)),
        _differences(comparison),
        *(_curves(each) for each in comparison.standings),
        section(
            "Left out",
            "The time that was given ran out: the same command with --resume goes on.",
            table(("",), [(escape(name),) for name in left_out]),
        )
        if left_out
        else "",
        section("Not tried", "", table(("", ""), [(escape(n), escape(why)) for n, why in not_tried.items()]))
        if not_tried
        else "",
        section("How to read this", _how(comparison), ""),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, sections)) + "\n</body></html>\n"
    )


def _lead(comparison: Comparison) -> str:
    judged = comparison.judge_auc
    sure = (
        f" The reward model predicts development ratings with an AUC of {judged.value:.2f} "
        f"({judged.low:.2f} to {judged.high:.2f})."
        if judged
        else ""
    )
    return (
        f"{comparison.prompts} prompts of the development split, answered by each with the same seeds.{sure}"
    )


def _table(comparison: Comparison) -> str:
    rows = [_row(each) for each in comparison.standings]
    return table(HEAD, rows, numbers=tuple(range(1, len(HEAD))))


def _row(standing: Standing) -> tuple[str, ...]:
    one = standing.measured
    difference = standing.difference
    mark = {"better": "better", "worse": "worse"}.get(standing.surely, "noise")
    beside = (
        number(difference.value, "+.3f")
        + small(f"{number(difference.low, '+.3f')} to {number(difference.high, '+.3f')}", mark)
        if difference
        else ""
    )
    return (
        escape(one.name) + small(one.objective, "forgets" if standing.forgetful else ""),
        "" if standing.liked is None else f"{standing.liked:.3f}",
        beside,
        "" if one.perplexity is None else f"{one.perplexity:.2f}" + ("*" if one.base else ""),
        "" if one.accuracy is None else f"{one.accuracy:.2f}",
        number(one.general_rise, "+.1%"),
        f"{one.minutes:.1f}" if one.minutes else "",
        f"{one.peak_mib} MiB" if one.peak_mib else "",
    )


def _differences(comparison: Comparison) -> str:
    spans = [
        Span(each.measured.name, each.difference.value, each.difference.low, each.difference.high)
        for each in comparison.standings
        if each.difference is not None
    ]
    lead = (
        "Difference in predicted P(liked) from the configured settings; intervals that hold for all at once."
    )
    return section("Differences", lead, charts.intervals(spans, one_scale=True)) if spans else ""


def _curves(standing: Standing) -> str:
    figures = []
    for curve in standing.measured.curves:
        kind, _, turn = curve.phase.partition("_")
        name = PHASES.get(kind, kind) + (f", round {turn}" if turn else "")
        speed = f"{curve.steps} steps, {curve.seconds:.0f} s at {curve.tokens_per_second:.0f} tokens/s"
        figures.append(charts.curve(name, speed, curve.losses))
    if not figures or standing.measured.is_base:
        return ""
    return section(standing.measured.name, "", f'<div class="curves">{"".join(figures)}</div>')


def _how(comparison: Comparison) -> str:
    other = (
        " Perplexities with a star are counted in the tokens of another base: they compare with those of "
        "that base only. Its general loss is measured against itself."
        if any(each.measured.base for each in comparison.standings)
        else ""
    )
    return (
        "P(liked) is predicted by a reward model of the training ratings, which all of these have learned "
        "from: it favours those that rank their own replies by it. Perplexity is of liked development "
        "replies, accuracy the share of pairs in which a liked one is likelier than a disliked one. The "
        "gate's held-out conversations were not looked at, and a winner still has to prove itself there."
        + other
    )
