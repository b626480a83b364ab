"""The report's first answers: is the challenger better, is it safe, and what does the verdict hang on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from storage.learning.evaluations import Evaluation, Limit, Metrics
from trainer.evaluation.feature_blocks import ANSWER, HIDDEN, KIND, OF_THE_QUESTION, QUESTION, WORDING
from trainer.report.charts import Span, intervals
from trainer.report.parts import bar, number, section, small, table
from trainer.report.source import Source

# What each score is called, and how it is written.
METRICS = {
    "preference": ("predicted P(liked), challenger minus champion", "+.3f"),
    "margin": ("log-probability of liked minus disliked replies, gain in nat per token", "+.3f"),
    "reward_auc": ("judge: AUC on ratings that it did not see", ".3f"),
    "reward_auc_cross_validated": ("judge: AUC in cross-validation", ".3f"),
    "general_nll_increase": ("loss on general prompts, relative to the base", "+.3f"),
    "blind_votes": ("share of blind votes won", ".3f"),
    "flattery": ("flattery of its replies, 0 to 1", ".3f"),
    "perplexity_of_liked": ("perplexity of liked held-out replies", ".3f"),
    "accuracy": ("liked held-out replies likelier than disliked ones", ".3f"),
    "canary": ("share of rated conversations liked as a canary, minus the champion's", "+.3f"),
}
# What the judge's blocks of features are called.
PARTS = {
    ANSWER: "how replies look",
    WORDING: "their wording",
    QUESTION: "what they take up of the question",
    KIND: "how they look by the kind of question",
    HIDDEN: "what the base makes of question and reply (hidden states)",
}
# Differences between the two models, which zero divides.
DIFFERENCES = ("preference", "margin", "canary")


def key_figures(source: Source) -> str:
    """Return the few figures that say most."""
    measured = {each.metric: each for each in source.evaluations}
    limits, data = source.metrics.guardrails, source.metrics.data
    tiles = []
    if (each := measured.get("preference")) and (gain := _span(each)):
        note = (_interval(each, ".2f"), _conversations(each))
        tiles.append(_tile(number(gain.value, "+.2f"), "gain in predicted P(liked)", *note, mark=gain.sure))
    if limits:
        broken = [limit.name for limit in limits if not limit.kept]
        kept = f"{len(limits) - len(broken)} of {len(limits)}"
        tiles.append(_tile(kept, "guardrails kept", *broken, mark="bad" if broken else "good"))
    if (each := measured.get("reward_auc")) and each.value is not None:
        note = (_interval(each, ".2f"), "chance is 0.50")
        tiles.append(_tile(number(each.value, ".2f"), "the judge's AUC on unseen ratings", *note))
    if train := data.train:
        rated = f"{train.liked} + {train.disliked}"
        raters = "" if data.raters is None else f"{data.raters} raters"
        tiles.append(_tile(rated, "liked + disliked replies learnt from", raters))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _tile(value: str, label: str, *notes: str, mark: str = "") -> str:
    return f'<div><b class="{mark}">{escape(value)}</b>{escape(label)}{small(*notes)}</div>'


def scores(source: Source) -> str:
    """Return what was measured: differences around zero, then the figures that stand for themselves."""
    found = [each for each in source.evaluations if each.value is not None]
    if not found:
        return ""
    spans = {each.id: span for each in found if each.metric in DIFFERENCES and (span := _span(each))}
    rows = [
        (
            escape(_name(each)) + small(_interval(each, ".3f"), _conversations(each)),
            _value(each) + small(_beside(each)),
        )
        for each in found
        if each.id not in spans
    ]
    evaluation = source.metrics.evaluation
    return section(
        "Scores",
        "Intervals are 95 % bootstrap intervals over whole conversations, each drawn on its own scale: a "
        "gain is certain where all of its bar is right of zero. Loss, perplexity and accuracy are reported "
        "because people expect them; only the limit on the loss of general prompts decides.",
        (intervals(list(spans.values()), one_scale=False) if spans else "")
        + (table(("score", "value"), rows, numbers=(1,)) if rows else "")
        + _judge(evaluation),
    )


def _span(each: Evaluation) -> Span | None:
    if each.value is None or each.low is None or each.high is None:
        return None
    return Span(_name(each), each.value, each.low, each.high, _conversations(each))


def _name(each: Evaluation) -> str:
    return METRICS.get(each.metric, (each.metric, ""))[0]


def _value(each: Evaluation) -> str:
    return number(each.value or 0.0, METRICS.get(each.metric, ("", "+.3f"))[1])


def _interval(each: Evaluation, form: str) -> str:
    if each.low is None or each.high is None:
        return ""
    return f"{number(each.low, form)} to {number(each.high, form)}"


def _conversations(each: Evaluation) -> str:
    return "" if each.n is None else f"{each.n} conversations"


def _beside(each: Evaluation) -> str:
    """Say what the champion or the base has where that is known."""
    known = [who for who in ("champion", "base") if who in each.detail]
    return ", ".join(f"({who} {each.detail[who]:.3f})" for who in known)


def _judge(evaluation: Mapping[str, Any]) -> str:
    """Say what this community likes, so that a gain in manners is not taken for one in substance."""
    features, parts = evaluation.get("reward_features") or {}, evaluation.get("judge_sees") or {}
    if not features:
        return ""
    named = (f"{name.replace('_', ' ')} ({number(weight, '+.2f')})" for name, weight in features.items())
    known = ", ".join(f"{number(share, '.0%')} {PARTS.get(name, name)}" for name, share in parts.items())
    seen = f"<p>The judge's word is made of {escape(known)}.</p>" if known else ""
    if parts and not any(name in parts for name in OF_THE_QUESTION):
        seen += "<p>Nothing about the questions predicts ratings here: it goes by the replies alone.</p>"
    if cost := evaluation.get("hidden_states"):
        seen += f"<p>{escape(_reading(cost, used=HIDDEN in parts))}</p>"
    liked = f"<p>Most of all: {escape(', '.join(named))}, in log-odds by standard deviation.</p>"
    return f"<h3>What this community likes, as far as it can be told</h3>{seen}{liked}"


def signals(metrics: Metrics) -> str:
    """Say whether what members did after unrated replies was learned from."""
    found = metrics.signals
    if not found:
        return ""
    told = "too few rated replies have any"
    if "auc" in found:
        figures = [number(found[name], ".2f") for name in ("auc", "bound")]
        told = f"AUC {figures[0]}, at least {figures[1]}, on rated replies left out"
    used = (
        f"used for {found['replies']} unrated replies, weight {number(found['weight'], '.1f')}"
        if found["weight"] and not metrics.training.unranked
        else "not used"
    )
    return section(
        "Signals that cost nothing",
        "Another version asked for, going on or not, thanks and complaints. They help to rank replies to "
        "learn from where they prove to predict ratings; the judge of the gate goes by ratings alone.",
        f"<p>{used[0].upper()}{used[1:]}: {told}.</p>",
    )


def _reading(cost: Mapping[str, Any], *, used: bool) -> str:
    """Say what hidden states have cost and whether the judge used them."""
    if not cost["fits"]:
        return "Hidden states were asked for, and no memory was left for a copy of the base while judging."
    helped = (
        "the judge uses them" if used else "they don't help to predict ratings, and the judge does without"
    )
    return f"Reading the hidden states of {cost['replies']} replies took {cost['seconds']:.0f} s; {helped}."


def guardrails(found: Sequence[Limit]) -> str:
    """Return every limit, those that were broken first."""
    if not found:
        return ""
    rows = [
        (
            escape(each.name),
            bar(_used(each.value, each.limit), "" if each.kept else "broken"),
            _figure(each.value),
            _figure(each.limit),
            '<span class="good">✓ kept</span>' if each.kept else '<span class="bad">✗ broken</span>',
        )
        for each in sorted(found, key=lambda each: each.kept)
    ]
    return section(
        "Guardrails",
        "Each can refuse a challenger, whatever else speaks for it. Smaller is safer; the bar is the part of "
        "the limit that is used up.",
        table(("limit", "", "measured", "at most", ""), rows, numbers=(2, 3)),
    )


def _used(value: float, limit: float) -> float:
    return value / limit if limit > 0 else float(value > limit)


def _figure(value: float) -> str:
    """Write a count as one, and a share or a distance with its decimals."""
    return str(value) if isinstance(value, int) else number(value, ".3f")


def robustness(found: Mapping[str, Any]) -> str:
    """Return whether single members carry the gain, and whether tastes hold still."""
    others, forward = found.get("without_members") or [], found.get("time_forward_auc")
    if not others and not forward:
        return ""
    spans = [Span(f"without {each['name']}", each["value"], each["low"], each["high"]) for each in others]
    body = intervals(spans, one_scale=True) if spans else ""
    if uncertain := [each["name"] for each in others if not each["still_better"]]:
        body += f"<p>The gain is not certain without {escape(', '.join(uncertain))}.</p>"
    if forward:
        body += (
            f"<p>From the older ratings the newest are told apart with an AUC of {forward['value']:.2f} "
            f"({forward['low']:.2f} to {forward['high']:.2f}); at one half, tastes have changed.</p>"
        )
    lead = "The gain in predicted P(liked), judged without each of the most influential members."
    return section("What the verdict hangs on", lead, body)
