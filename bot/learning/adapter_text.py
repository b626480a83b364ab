"""Adapters in words: what each learned from, how it did, when it came to answer and when it went."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from bot.language.names import short_adapter_name
from bot.language.texts import mark, number, tr
from storage.learning.adapters import Promotion
from storage.learning.evaluations import Headline
from storage.learning.lineage import AdapterHistory

_STATES = {
    "candidate": mark("candidate"),
    "promoted": mark("promoted"),
    "rejected": mark("rejected"),
    "retired": mark("retired"),
    "tainted": mark("withdrawn: its data was erased"),
}
_WENT = {
    "promote": mark("replaced by {successor} {when}"),
    "rollback": mark("rolled back to {successor} {when}"),
    "erase": mark("withdrawn because of an erasure {when}, then {successor}"),
}
# Discord takes 2000 characters.
_LIMIT = 2000


def page_text(
    histories: Sequence[AdapterHistory], champion_id: str | None, *, number: int, pages: int
) -> str:
    """Return one page of the history: who answers, then each adapter with its lineage, the newest first."""
    if champion_id is None:
        lines = [tr("The base model answers.")]
    else:
        lines = [tr("Adapter `{adapter}` answers.", adapter=champion_id)]
    if not histories:
        return " ".join([*lines, tr("There are no adapters yet: `/retrain` trains the first one.")])
    if pages > 1:
        lines[0] += f" {tr('Page {number} of {pages}.', number=number, pages=pages)}"
    text = lines[0]
    for history in histories:
        entry = "\n".join([_first_line(history), *(f"-# {line}" for line in lineage(history))])
        if len(text) + len(entry) + 1 <= _LIMIT:
            text = f"{text}\n{entry}"
    return text


def choice_name(history: AdapterHistory) -> str:
    """Return an adapter as one line to choose: its id, its date, its score and its state."""
    made = datetime.fromtimestamp(history.adapter.created_ms / 1000, UTC).strftime("%Y-%m-%d")
    score = _score_of(history)
    value = [number(score.value, "+.2f")] if score else []
    return " · ".join([history.adapter.id, made, *value, tr(_STATES[history.adapter.state])])


def _first_line(history: AdapterHistory) -> str:
    adapter = history.adapter
    sign = "▶" if history.answers else "•"
    rehearsed = f", {tr('from a rehearsal')}" if adapter.rehearsal else ""
    return (
        f"{sign} `{adapter.id}` {tr(_STATES[adapter.state])}{rehearsed}, <t:{adapter.created_ms // 1000}:R>"
    )


def lineage(history: AdapterHistory) -> list[str]:
    """Return what is known of its making, its score and its time of answering, a line each."""
    return [line for line in (_made(history), _score(history), _reign(history)) if line]


def _made(history: AdapterHistory) -> str:
    if history.run is None:
        return ""
    data = history.run.metrics.data
    train = data.train
    if train is None:
        return tr("Trained from the base model by run `{run}`.", run=history.run.id)
    return tr(
        "Trained from the base model by run `{run}`: {liked} liked, {disliked} disliked, {corrections} "
        "corrections, {raters} raters.",
        run=history.run.id,
        liked=train.liked,
        disliked=train.disliked,
        corrections=train.corrections,
        raters=data.raters or 0,
    )


def _score(history: AdapterHistory) -> str:
    score = _score_of(history)
    if score is None or history.run is None:
        return ""
    interval = ""
    if score.low is not None and score.high is not None:
        low, high = (number(end, "+.2f") for end in (score.low, score.high))
        interval = f" ({tr('{low} to {high}', low=low, high=high)})"
    return tr(
        "Score {value}{interval} on {count} conversations, against {rival}.",
        value=number(score.value, "+.2f"),
        interval=interval,
        count=score.n,
        rival=short_adapter_name(history.run.champion_id),
    )


def _reign(history: AdapterHistory) -> str:
    came, went = history.came, history.went
    if came is None:
        return ""
    means = tr("by hand") if _by_hand(came) else tr("by itself")
    began = tr(
        "Promoted {means} in place of {previous} {when}",
        means=means,
        previous=short_adapter_name(came.previous_id),
        when=_when(came),
    )
    if came.kind != "promote":
        began = tr(
            "Back in place of {previous} {when}",
            previous=short_adapter_name(came.previous_id),
            when=_when(came),
        )
    if went is None:
        return f"{began}."
    ended = tr(
        _WENT.get(went.kind, _WENT["promote"]),
        successor=short_adapter_name(went.adapter_id),
        when=_when(went),
    )
    return f"{began}; {ended}."


def _score_of(history: AdapterHistory) -> Headline | None:
    return history.run.metrics.headline if history.run else None


def _by_hand(change: Promotion) -> bool:
    return change.actor.isdecimal() or change.actor.startswith("cli:")


def _when(change: Promotion) -> str:
    return f"<t:{change.created_ms // 1000}:f>"
