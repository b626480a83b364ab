"""The card of a run that is over: what was measured and decided, and on which data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import discord

from storage import adapters, dataset, evaluations, trials
from storage.adapters import Adapter
from storage.evaluations import Evaluation
from storage.run_samples import Sample
from storage.runs import Run
from storage.trials import Trial

SAMPLES = 3
_FIELD = 1024
_SHOWN_PROMPT = 120
_SHOWN_REPLY = 260
# Beside the words, which carry the meaning: blue and orange stay apart for colour-blind eyes.
_BLUE, _ORANGE, _GREY = 0x3987E5, 0xD95926, 0x8A8A8A


@dataclass(frozen=True, slots=True)
class Card:
    """What a card shows: the run, its adapter, and who answers now.

    ``watched`` is the comparison with the champion before it, by fresh ratings after its promotion.
    """

    run: Run
    adapter: Adapter
    champion_id: str | None
    judged_against: str | None
    measured: tuple[Evaluation, ...]
    watched: Trial | None = None

    @property
    def answers(self) -> bool:
        """Whether the run's adapter is champion now."""
        return self.champion_id == self.adapter.id

    @property
    def undecided(self) -> bool:
        """Whether the adapter still waits for an operator's word."""
        return self.adapter.state == "candidate" and not self.answers

    @property
    def stale(self) -> bool:
        """Whether another champion answers than the one that the adapter was judged against."""
        return not self.answers and self.champion_id != self.judged_against


def find(db: Any, run: Run) -> Card | None:
    """Return the card of a decided run that made an adapter; None for every other run.

    While members vote there is none: it would tell them which answer is whose.
    """
    adapter = adapters.get(db, run.adapter_id) if run.adapter_id else None
    if adapter is None or run.outcome not in ("promoted", "refused"):
        return None
    measured = tuple(evaluations.for_run(db, run.id))
    against = measured[0].champion_id if measured else run.champion_id
    champion_id = adapters.champion(db, adapter.scope, adapter.base_hash)
    watched = trials.of_run(db, run.id, "holdback")
    # What is counted meanwhile changes with every rating: the card is drawn anew for the end only.
    settled = None if watched is None else replace(watched, standing={}, seen="", judged_ms=0)
    return Card(run, adapter, champion_id, against, measured, settled)


def embed(card: Card, samples: Sequence[Sample]) -> discord.Embed:
    """Draw a card; `samples` are replies to general prompts, with nobody's words in them."""
    color = _BLUE if card.answers else _ORANGE if card.undecided else _GREY
    drawn = discord.Embed(title=f"Adapter {card.adapter.id}", description=_standing(card), color=color)
    drawn.add_field(name="Score", value=_score(card.run.metrics, card.judged_against), inline=False)
    if watched := _watched(card.watched):
        drawn.add_field(name="Since its promotion", value=watched, inline=False)
    if others := _other_measures(card.measured, card.run.metrics):
        drawn.add_field(name="Also measured", value=others, inline=False)
    if regressions := _regressions(card.run.metrics):
        drawn.add_field(name="Regressions", value=regressions, inline=False)
    drawn.add_field(name="Data used", value=_data_used(card.run.metrics), inline=False)
    drawn.add_field(name="Left out", value=_left_out(card.run.metrics), inline=False)
    for number, sample in enumerate(samples[:SAMPLES], 1):
        drawn.add_field(name=f"Sample {number}", value=sample_text(sample), inline=False)
    return drawn


def sample_text(sample: Sample) -> str:
    """Return both replies to one prompt, cut to what fits one field of a card."""
    return (
        f"> {_line(sample.prompt, _SHOWN_PROMPT)}\n**Challenger:** {_line(sample.challenger, _SHOWN_REPLY)}\n"
        f"**Champion:** {_line(sample.champion, _SHOWN_REPLY)}"
    )[:_FIELD]


def _line(text: str, limit: int) -> str:
    """One line of somebody's text without its markup."""
    flat = " ".join(text.split())
    shown = flat if len(flat) <= limit else f"{flat[: limit - 1]}…"
    return discord.utils.escape_markdown(shown)


def _standing(card: Card) -> str:
    if card.adapter.state == "tainted":
        return "It was trained on words that their author has since erased, and can't answer any more."
    if card.answers:
        return "It answers now."
    if card.watched is not None and card.watched.outcome == "worse":
        return "It was rolled back: members liked the one before it better."
    if card.undecided and card.stale:
        return "The champion changed since it was judged: judge again with `/retrain`."
    if card.undecided:
        return "It waits for an operator's decision."
    return (
        "It is retired: another answers now." if card.adapter.state == "retired" else "It was not promoted."
    )


def _score(metrics: Mapping[str, Any], judged_against: str | None) -> str:
    rival = f"adapter `{judged_against}`" if judged_against else "the base model"
    lines = []
    headline = metrics.get("headline")
    if headline:
        interval = f"{headline['low']:+.2f} to {headline['high']:+.2f}"
        lines.append(
            f"{headline['value']:+.2f} (interval {interval}) against {rival}, on {_prompts(metrics)}"
        )
    if votes := metrics.get("votes"):
        lines.append(
            f"Blind votes: {votes['wins']} won, {votes['losses']} lost, {votes['ties']} ties against {rival}"
        )
    if canary := metrics.get("canary"):
        lines.append(_canary(canary, rival))
    return "\n".join(lines) or f"Not measured offline; judged against {rival}."


def _canary(figures: Mapping[str, Any], rival: str) -> str:
    return (
        f"As a canary: liked in {figures['newcomer_liked']:.0%} of {figures['newcomer']} rated "
        f"conversations, {rival} in {figures['incumbent_liked']:.0%} of {figures['incumbent']}, "
        f"by {figures['raters']} raters"
    )


def _watched(trial: Trial | None) -> str:
    """Say how fresh ratings are watched, or what they said."""
    if trial is None or trial.outcome == "superseded":
        return ""
    old = f"adapter `{trial.incumbent_id}`" if trial.incumbent_id else "the base model"
    if trial.outcome is None:
        return (
            f"{trial.share:.0%} of new conversations stay with {old} until <t:{trial.until_ms // 1000}:D>; "
            "if members like this one less, it is rolled back by itself."
        )
    said = {
        "better": "Liked more",
        "worse": "Liked less, and rolled back",
        "undecided": "No clear difference",
    }
    return f"{said[trial.outcome]}: {trial.reason}"[:_FIELD]


def _prompts(metrics: Mapping[str, Any]) -> str:
    count, figures = metrics["headline"]["n"], metrics.get("evaluation") or {}
    extra = int(figures.get("extra_prompts") or 0)
    if not extra:
        return f"{count} held-out conversations"
    return f"{max(count - extra, 0)} held-out conversations and {extra} general prompts"


def _other_measures(measured: Sequence[Evaluation], metrics: Mapping[str, Any]) -> str:
    lines = [
        f"{_MEASURES[each.metric]}: {each.value:+.2f}{_interval(each)}"
        for each in measured
        if each.metric in _MEASURES and each.value is not None
    ]
    same = (metrics.get("evaluation") or {}).get("same_replies")
    return "\n".join([*lines, f"The very same replies: {same:.0%}"] if same is not None else lines)[:_FIELD]


_MEASURES = {
    "margin": "Liked over disliked held-out replies (nat a token; below 0 is a regression)",
    "general_nll_increase": "Loss on general prompts, as a share (above 0: something was forgotten)",
}


def _regressions(metrics: Mapping[str, Any]) -> str:
    """Name the limits that were broken; empty for a run that did not record its limits."""
    limits = metrics.get("guardrails") or []
    broken = [
        f"{each['name']}: {each['value']:.2f}, at most {each['limit']:.2f} allowed"
        for each in limits
        if not each["kept"]
    ]
    if limits and not broken:
        return f"None: all {len(limits)} limits were kept"
    return "\n".join(broken)[:_FIELD]


def _interval(each: Evaluation) -> str:
    if each.low is None or each.high is None:
        return ""
    return f" (interval {each.low:+.2f} to {each.high:+.2f})"


def _data_used(metrics: Mapping[str, Any]) -> str:
    data = metrics.get("data") or {}
    train = data.get("train")
    if train is None:
        return "This run did not record its data."
    lines = [
        f"Trained on {train.get('liked', 0)} liked and {train.get('disliked', 0)} disliked replies and "
        f"{train.get('corrections', 0)} corrections, by {data.get('raters', 0)} raters"
    ]
    held_out = [data.get(split) or {} for split in ("development", "gate")]
    rated = sum(part.get(kind, 0) for part in held_out for kind in ("liked", "disliked"))
    lines.append(f"Held out: {rated} liked or disliked replies")
    if data.get("quarantined_raters"):
        lines.append(f"Raters whose ratings contradict the others', set aside: {data['quarantined_raters']}")
    if data.get("doubted_raters"):
        lines.append(f"Raters doubted for rating in one burst: {data['doubted_raters']}")
    training = metrics.get("training") or {}
    if training.get("objective"):
        reason = f" ({training['reason']})" if training.get("reason") else ""
        lines.append(f"Objective: {training['objective']}{reason}")
    return "\n".join(lines)[:_FIELD]


def _left_out(metrics: Mapping[str, Any]) -> str:
    excluded = metrics.get("excluded") or {}
    lines = [
        f"{count}: {dataset.REASONS.get(reason, reason)}"
        for reason, count in sorted(excluded.items(), key=lambda item: -item[1])
    ]
    return "\n".join(lines)[:_FIELD] or "Nothing"
