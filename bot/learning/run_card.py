"""The card of a run that is over: what was measured and decided, and on which data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import discord

from bot.language.names import adapter_name
from bot.language.sentences import translate
from bot.language.texts import mark, number, plural, tr
from storage.db.database import Connection
from storage.learning import adapters, eligibility, evaluations, trials
from storage.learning.adapters import Adapter
from storage.learning.evaluations import CanaryFigures, Evaluation, Headline, Metrics
from storage.learning.run_summary import Sample
from storage.learning.runs import Run
from storage.learning.trials import Trial

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


def find(db: Connection, run: Run) -> Card | None:
    """Return the card of a decided run that made an adapter; None for every other run.

    While members vote there is none: it would tell them which answer is whose.
    """
    adapter = adapters.get(db, run.adapter_id) if run.adapter_id else None
    if adapter is None or run.outcome not in ("promoted", "refused"):
        return None
    measured = tuple(evaluations.list_for_run(db, run.id))
    against = measured[0].champion_id if measured else run.champion_id
    champion_id = adapters.champion(db, adapter.scope, adapter.base_hash)
    watched = trials.find_for_run(db, run.id, "holdback")
    # What is counted meanwhile changes with every rating: the card is drawn anew for the end only.
    settled = None if watched is None else replace(watched, standing={}, seen="", judged_ms=0)
    # Nor is it drawn anew because the message that shows it has been posted.
    shown = replace(run, report_message_id=None, report_outcome=None)
    return Card(shown, adapter, champion_id, against, measured, settled)


def embed(card: Card, samples: Sequence[Sample]) -> discord.Embed:
    """Draw a card; `samples` are replies to general prompts, with nobody's words in them."""
    color = _BLUE if card.answers else _ORANGE if card.undecided else _GREY
    drawn = discord.Embed(
        title=tr("Adapter {adapter}", adapter=card.adapter.id), description=_standing(card), color=color
    )
    drawn.add_field(name=tr("Score"), value=_score(card.run.metrics, card.judged_against), inline=False)
    if watched := _watched(card.watched):
        drawn.add_field(name=tr("Since its promotion"), value=watched, inline=False)
    if others := _other_measures(card.measured, card.run.metrics):
        drawn.add_field(name=tr("Also measured"), value=others, inline=False)
    if regressions := _regressions(card.run.metrics):
        drawn.add_field(name=tr("Regressions"), value=regressions, inline=False)
    drawn.add_field(name=tr("Data used"), value=_data_used(card.run.metrics), inline=False)
    drawn.add_field(name=tr("Left out"), value=_left_out(card.run.metrics), inline=False)
    for position, sample in enumerate(samples[:SAMPLES], 1):
        drawn.add_field(
            name=tr("Sample {number}", number=position), value=sample_text(sample, card), inline=False
        )
    return drawn


def sample_text(sample: Sample, card: Card) -> str:
    """Return both replies to one prompt under the names of their writers, cut to one field of a card.

    Names and not roles: the challenger of then may be the champion of now.
    """
    return (
        f"> {_line(sample.prompt, _SHOWN_PROMPT)}\n"
        f"**{adapter_name(card.adapter.id)}:** {_line(sample.challenger, _SHOWN_REPLY)}\n"
        f"**{adapter_name(card.judged_against)}:** {_line(sample.champion, _SHOWN_REPLY)}"
    )[:_FIELD]


def _line(text: str, limit: int) -> str:
    """One line of somebody's text without its markup."""
    flat = " ".join(text.split())
    shown = flat if len(flat) <= limit else f"{flat[: limit - 1]}…"
    return discord.utils.escape_markdown(shown)


def _standing(card: Card) -> str:
    if card.adapter.state == "tainted":
        return tr("It was trained on words that their author has since erased, and can't answer any more.")
    if card.answers:
        return tr("It answers now.")
    if card.watched is not None and card.watched.outcome == "worse":
        return tr("It was rolled back: members liked the one before it better.")
    if card.undecided and card.stale:
        return tr("The champion changed since it was judged: judge again with `/retrain`.")
    if card.undecided:
        return tr("It waits for an operator's decision.")
    if card.adapter.state == "retired":
        return tr("It is retired: another answers now.")
    return tr("It was not promoted.")


def _score(metrics: Metrics, judged_against: str | None) -> str:
    rival = adapter_name(judged_against)
    lines = []
    headline = metrics.headline
    if headline is not None and headline.low is not None and headline.high is not None:
        lines.append(
            tr(
                "Gain in the chance of a like: {value} (95 % interval {low} to {high}) "
                "against {rival}, on {prompts}",
                value=number(headline.value, "+.2f"),
                low=number(headline.low, "+.2f"),
                high=number(headline.high, "+.2f"),
                rival=rival,
                prompts=_prompts(headline, metrics.evaluation),
            )
        )
    if votes := metrics.votes:
        lines.append(
            tr(
                "Blind votes against {rival}: won {wins}, lost {losses}, tied {ties}",
                wins=votes.wins,
                losses=votes.losses,
                ties=votes.ties,
                rival=rival,
            )
        )
    if canary := metrics.canary:
        lines.append(_canary(canary, rival))
    lines += filter(None, (judge_saw(metrics), signals_told(metrics)))
    return "\n".join(lines) or tr("Not measured offline; judged against {rival}.", rival=rival)


def judge_saw(metrics: Metrics) -> str:
    """Say in a line what the judge saw of the questions; empty for a run that none could be fitted for."""
    parts = metrics.evaluation.get("judge_sees")
    if not parts:
        return ""
    share, hidden = sum(parts.get(name, 0.0) for name in _OF_THE_QUESTION), parts.get(_HIDDEN, 0.0)
    said = []
    if share:
        said.append(
            tr(
                "The reward model read the questions: how replies relate to them makes up {share} of its "
                "score.",
                share=number(share, ".0%"),
            )
        )
    if hidden:
        said.append(
            tr(
                "The base's hidden states of question and reply make up {share} of the reward model's score.",
                share=number(hidden, ".0%"),
            )
        )
    return " ".join(said) or tr(
        "The reward model used the replies alone: nothing about the questions predicts ratings here."
    )


def signals_told(metrics: Metrics) -> str:
    """Say in a line whether members' free signals were used; empty where there were too few to use."""
    found = metrics.signals or {}
    if found.get("weight"):
        # Chosen before training: then no reward model proved itself, or no server was there to ask.
        if metrics.training.unranked:
            return ""
        return tr(
            "Signals: used for unrated replies ({replies}), each {weight} of a rating.",
            replies=found["replies"],
            weight=number(found["weight"], ".1f"),
        )
    if "auc" not in found or not found["replies"]:
        return ""
    figures = {"auc": number(found["auc"], ".2f"), "bound": number(found["bound"], ".2f")}
    if found["bound"] <= 0.5:
        return tr(
            "Signals: not used, they don't predict ratings here (AUC {auc}, at least {bound}).", **figures
        )
    return tr(
        "Signals: not used, they predict ratings (AUC {auc}, at least {bound}) but don't help to rank "
        "replies.",
        **figures,
    )


# The blocks of the judge's features that know the question (trainer/evaluation/feature_blocks.py).
_OF_THE_QUESTION, _HIDDEN = ("question", "kind"), "hidden"


def _canary(figures: CanaryFigures, rival: str) -> str:
    return tr(
        "As a canary: liked in {newcomer_liked} of {newcomer} rated conversations, {rival} in "
        "{incumbent_liked} of {incumbent}, by {raters}",
        newcomer_liked=number(figures.newcomer_liked, ".0%"),
        newcomer=figures.newcomer,
        rival=rival,
        incumbent_liked=number(figures.incumbent_liked, ".0%"),
        incumbent=figures.incumbent,
        raters=_raters(figures.raters),
    )


def _watched(trial: Trial | None) -> str:
    """Say how fresh ratings are watched, or what they said."""
    if trial is None or trial.outcome == "superseded":
        return ""
    old = adapter_name(trial.incumbent_id)
    if trial.outcome is None:
        return tr(
            "{share} of new conversations stay with {old} until {when}; if members like this one "
            "less, it is rolled back automatically.",
            share=number(trial.share, ".0%"),
            old=old,
            when=f"<t:{trial.until_ms // 1000}:D>",
        )
    said = {
        "better": mark("Liked more: {reason}"),
        "worse": mark("Liked less, and rolled back: {reason}"),
        "undecided": mark("No clear difference: {reason}"),
    }
    return tr(said[trial.outcome], reason=translate(trial.reason))[:_FIELD]


def _prompts(headline: Headline, figures: Mapping[str, Any]) -> str:
    count = headline.n
    extra = int(figures.get("extra_prompts") or 0)
    if not extra:
        return _held_out(count)
    return tr(
        "{own} and {extra}",
        own=_held_out(max(count - extra, 0)),
        extra=plural("{count} general prompt", "{count} general prompts", extra),
    )


def _held_out(count: int) -> str:
    return plural("{count} held-out conversation", "{count} held-out conversations", count)


def _other_measures(measured: Sequence[Evaluation], metrics: Metrics) -> str:
    lines = [
        f"{tr(_MEASURES[each.metric])}: {number(each.value, '+.2f')}{_interval(each)}"
        for each in measured
        if each.metric in _MEASURES and each.value is not None
    ]
    same = metrics.evaluation.get("same_replies")
    if same is not None:
        lines.append(tr("Identical replies: {share}", share=number(same, ".0%")))
    return "\n".join(lines)[:_FIELD]


_MEASURES = {
    "margin": mark("How much more likely liked held-out replies became than disliked ones (nats per token)"),
    "general_nll_increase": mark("Change of the loss on general prompts (above 0: something was forgotten)"),
}


def _regressions(metrics: Metrics) -> str:
    """Name the limits that were broken; empty for a run that did not record its limits."""
    limits = metrics.guardrails
    broken = [
        tr(
            "{name}: {value}, at most {limit} allowed",
            name=tr(each.name or "?"),
            value=number(each.value, ".2f"),
            limit=number(each.limit, ".2f"),
        )
        for each in limits
        if not each.kept
    ]
    if limits and not broken:
        return tr("None: all {count} limits were kept", count=len(limits))
    return "\n".join(broken)[:_FIELD]


def _interval(each: Evaluation) -> str:
    if each.low is None or each.high is None:
        return ""
    return tr(" (interval {low} to {high})", low=number(each.low, "+.2f"), high=number(each.high, "+.2f"))


def _data_used(metrics: Metrics) -> str:
    data = metrics.data
    train = data.train
    if train is None:
        return tr("This run did not record its data.")
    lines = [
        tr(
            "Trained on replies liked {liked}, disliked {disliked}, corrected {corrections}, by {raters}",
            liked=train.liked,
            disliked=train.disliked,
            corrections=train.corrections,
            raters=_raters(data.raters or 0),
        )
    ]
    held_out = [counts for split, counts in data.splits.items() if split != "train"]
    rated = sum(counts.liked + counts.disliked for counts in held_out)
    lines.append(tr("Held out: {count} liked or disliked replies", count=rated))
    if data.quarantined_raters:
        lines.append(
            tr(
                "Raters whose ratings contradict the others', set aside: {count}",
                count=data.quarantined_raters,
            )
        )
    if data.doubted_raters:
        lines.append(tr("Raters doubted for rating in one burst: {count}", count=data.doubted_raters))
    training = metrics.training
    if training.objective:
        reason = f" ({translate(training.reason)})" if training.reason else ""
        lines.append(tr("Objective: {objective}", objective=training.objective) + reason)
    if said := cut_short(metrics):
        lines.append(said)
    return "\n".join(lines)[:_FIELD]


def cut_short(metrics: Metrics) -> str:
    """Say that the time limit ended a training early, and where; empty of one that took all its steps."""
    found = metrics.training.cut_short
    if found is None:
        return ""
    return tr(
        "Its time limit ended the training after {done} of {planned} steps: it learned from less than there "
        "is.",
        done=found[0],
        planned=found[1],
    )


def _raters(count: int) -> str:
    return plural("{count} rater", "{count} raters", count)


def _left_out(metrics: Metrics) -> str:
    excluded = metrics.excluded or {}
    lines = [
        f"{count}: {translate(eligibility.reason(reason))}"
        for reason, count in sorted(excluded.items(), key=lambda item: -item[1])
    ]
    return "\n".join(lines)[:_FIELD] or tr("Nothing")
