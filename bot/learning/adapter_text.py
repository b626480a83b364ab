"""Adapters in words: what each learned from, how it did, when it came to answer and when it went."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from bot.language.names import short_adapter_name
from bot.language.texts import mark, number, tr
from storage.learning.adapters import Promotion
from storage.learning.evaluations import Headline
from storage.learning.lineage import Life

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


def page_text(lives: Sequence[Life], champion_id: str | None, *, number: int, pages: int) -> str:
    """Return one page of the history: who answers, then each adapter with its lineage, the newest first."""
    if champion_id is None:
        lines = [tr("The base model answers.")]
    else:
        lines = [tr("Adapter `{adapter}` answers.", adapter=champion_id)]
    if not lives:
        return " ".join([*lines, tr("There are no adapters yet: `/retrain` trains the first one.")])
    if pages > 1:
        lines[0] += f" {tr('Page {number} of {pages}.', number=number, pages=pages)}"
    text = lines[0]
    for life in lives:
        entry = "\n".join([_first_line(life), *(f"-# {line}" for line in lineage(life))])
        if len(text) + len(entry) + 1 <= _LIMIT:
            text = f"{text}\n{entry}"
    return text


def choice_name(life: Life) -> str:
    """Return an adapter as one line to choose: its id, its date, its score and its state."""
    made = datetime.fromtimestamp(life.adapter.created_ms / 1000, UTC).strftime("%Y-%m-%d")
    score = _score_of(life)
    value = [number(score.value, "+.2f")] if score else []
    return " · ".join([life.adapter.id, made, *value, tr(_STATES[life.adapter.state])])


def _first_line(life: Life) -> str:
    adapter = life.adapter
    sign = "▶" if life.answers else "•"
    rehearsed = f", {tr('from a rehearsal')}" if adapter.rehearsal else ""
    return (
        f"{sign} `{adapter.id}` {tr(_STATES[adapter.state])}{rehearsed}, <t:{adapter.created_ms // 1000}:R>"
    )


def lineage(life: Life) -> list[str]:
    """Return what is known of its making, its score and its time of answering, a line each."""
    return [line for line in (_made(life), _score(life), _reign(life)) if line]


def _made(life: Life) -> str:
    if life.run is None:
        return ""
    data = life.run.metrics.data
    train = data.train
    if train is None:
        return tr("Trained from the base model by run `{run}`.", run=life.run.id)
    return tr(
        "Trained from the base model by run `{run}`: {liked} liked, {disliked} disliked, {corrections} "
        "corrections, {raters} raters.",
        run=life.run.id,
        liked=train.liked,
        disliked=train.disliked,
        corrections=train.corrections,
        raters=data.raters or 0,
    )


def _score(life: Life) -> str:
    score = _score_of(life)
    if score is None or life.run is None:
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
        rival=short_adapter_name(life.run.champion_id),
    )


def _reign(life: Life) -> str:
    came, went = life.came, life.went
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


def _score_of(life: Life) -> Headline | None:
    return life.run.metrics.headline if life.run else None


def _by_hand(change: Promotion) -> bool:
    return change.actor.isdecimal() or change.actor.startswith("cli:")


def _when(change: Promotion) -> str:
    return f"<t:{change.created_ms // 1000}:f>"
