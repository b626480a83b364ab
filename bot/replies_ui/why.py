"""Where a reply came from, in words: which adapter, what it learned from, and how fast it answered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from bot.glance import duration
from bot.replies_ui.rows import Known
from storage import adapters, runs, trials
from storage.adapters import Adapter
from storage.trials import Trial


@dataclass(frozen=True, slots=True)
class Training:
    """What an adapter learned from: replies by label, and when it was made.

    `trial` is why it answered instead of the champion, where it did.
    """

    adapter: Adapter | None
    labels: Counter[str]
    trial: Trial | None = None


def training_of(db: Any, adapter_id: str | None, reply_id: str = "") -> Training:
    """Return what is known of an adapter's training, and of the trial in which it wrote a reply."""
    trial = trials.behind(db, reply_id)
    adapter = adapters.get(db, adapter_id) if adapter_id is not None else None
    if adapter is None or adapter.run_id is None:
        return Training(adapter, Counter(), trial)
    rows = runs.rows_of(db, adapter.run_id)
    return Training(adapter, Counter(row.label for row in rows if row.split == "train"), trial)


def why_text(known: Known, training: Training) -> str:
    """Return the explanation of one reply, a line for each question that people have."""
    reply = known.reply
    lines = [_who(reply.adapter_id, training), _trial(training.trial)]
    versions = known.versions
    if versions.total > 1:
        lines.append(f"Version {versions.reply_ids.index(reply.id) + 1} of {versions.total}")
    sampling = [f"temperature {reply.sampling['temperature']:g}"] if "temperature" in reply.sampling else []
    seed = [f"seed `{reply.seed}`"] if reply.seed is not None else []
    lines.append(", ".join([*seed, *sampling]).capitalize() or "No seed was recorded")
    lines += [_tokens(known), _times(known)]
    lines.append(
        f"-# Base model `{reply.base_hash[:12]}`, reply `{reply.id}`, <t:{reply.created_ms // 1000}:f>"
    )
    return "\n".join(line for line in lines if line)


def _who(adapter_id: str | None, training: Training) -> str:
    if adapter_id is None:
        return "**The base model** wrote this, without anything learned here."
    if training.adapter is None:
        return f"**Adapter `{adapter_id}`** wrote this; its record is gone."
    made = f"trained <t:{training.adapter.created_ms // 1000}:R>"
    rehearsal = ", in a rehearsal" if training.adapter.rehearsal else ""
    learned = ", ".join(f"{count} {label}" for label, count in sorted(training.labels.items()))
    total = sum(training.labels.values())
    on = f" on {total} rated replies ({learned})" if total else ""
    return f"**Adapter `{adapter_id}`** wrote this, {made}{on}{rehearsal}."


def _trial(trial: Trial | None) -> str:
    if trial is None:
        return ""
    over = "" if trial.ended_ms is None else " That is over now."
    if trial.kind == "canary":
        return (
            f"It answered as a **canary**: {trial.share:.0%} of new conversations tried it, until the "
            f"ratings of both decide whether it takes over.{over}"
        )
    return (
        f"It answered as a **holdback**: {trial.share:.0%} of new conversations keep the one before the "
        f"present champion for a while, so that the ratings of both can be compared.{over}"
    )


def _tokens(known: Known) -> str:
    reply = known.reply
    if reply.completion_tokens is None:
        return f"It read {reply.prompt_tokens} tokens." if reply.prompt_tokens else ""
    writing_ms = (reply.duration_ms or 0) - (reply.first_token_ms or 0)
    speed = f" at {reply.completion_tokens / writing_ms * 1000:.1f} a second" if writing_ms > 0 else ""
    read = f"It read {reply.prompt_tokens} tokens and wrote " if reply.prompt_tokens else "It wrote "
    return f"{read}{reply.completion_tokens}{speed}."


def _times(known: Known) -> str:
    reply = known.reply
    if reply.duration_ms is None:
        return ""
    first = ""
    if reply.first_token_ms is not None:
        first = f" first word after {_seconds(reply.first_token_ms)},"
    waited = f"waited {_seconds(reply.queue_ms)}," if reply.queue_ms is not None else ""
    return f"It {waited}{first} done after {_seconds(reply.duration_ms)}.".replace("It  ", "It ")


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.1f} s" if ms < 90_000 else duration(ms / 1000)
