"""Where a reply came from, in words: which adapter, what it learned from, and how fast it answered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bot.feedback.reply_view import ReplyRecord
from bot.language.durations import exact_time
from bot.language.texts import number, tr
from storage.chat.replies import Reply
from storage.db.database import Connection
from storage.learning import adapters, runs, trials
from storage.learning.adapters import Adapter
from storage.learning.trials import Trial

# Replies of a run that nobody rated: read for their signals, or lending a prompt to a pair that was voted on.
_UNRATED = ("signals", "compared")


@dataclass(frozen=True, slots=True)
class Training:
    """What an adapter learned from: rated replies by label, and when it was made.

    `trial` is why it answered instead of the champion, where it did.
    """

    adapter: Adapter | None
    labels: Counter[str]
    trial: Trial | None = None


def training_of(db: Connection, adapter_id: str | None, reply_id: str = "") -> Training:
    """Return what is known of an adapter's training, and of the trial in which it wrote a reply."""
    trial = trials.behind(db, reply_id)
    adapter = adapters.get(db, adapter_id) if adapter_id is not None else None
    if adapter is None or adapter.run_id is None:
        return Training(adapter, Counter(), trial)
    rows = [row for row in runs.rows_of(db, adapter.run_id) if row.split == "train"]
    return Training(adapter, Counter(row.label for row in rows if row.label not in _UNRATED), trial)


def why_text(known: ReplyRecord, training: Training) -> str:
    """Return the explanation of one reply, a line for each question that people have."""
    reply = known.reply
    lines = [_who(reply.adapter_id, training), _trial(training.trial)]
    versions = known.versions
    if versions.total > 1:
        place = versions.reply_ids.index(reply.id) + 1
        lines.append(tr("Version {number} of {total}", number=place, total=versions.total))
    lines.append(_drawn(reply))
    lines += [_tokens(known), _times(known)]
    lines.append(
        tr(
            "-# Base model `{base}`, reply `{reply}`, {when}",
            base=reply.base_hash[:12],
            reply=reply.id,
            when=f"<t:{reply.created_ms // 1000}:f>",
        )
    )
    return "\n".join(line for line in lines if line)


def _who(adapter_id: str | None, training: Training) -> str:
    if adapter_id is None:
        return tr("**The base model** wrote this, without anything learned here.")
    if training.adapter is None:
        return tr("**Adapter `{adapter}`** wrote this; its record is gone.", adapter=adapter_id)
    rehearsal = tr(", in a rehearsal") if training.adapter.rehearsal else ""
    learned = ", ".join(f"{count} {tr(label)}" for label, count in sorted(training.labels.items()))
    total = sum(training.labels.values())
    on = tr(" on {count} rated replies ({learned})", count=total, learned=learned) if total else ""
    return tr(
        "**Adapter `{adapter}`** wrote this, trained {when}{on}{rehearsal}.",
        adapter=adapter_id,
        when=f"<t:{training.adapter.created_ms // 1000}:R>",
        on=on,
        rehearsal=rehearsal,
    )


def _drawn(reply: Reply) -> str:
    """Say how the words were drawn."""
    degrees = number(reply.sampling["temperature"]) if "temperature" in reply.sampling else ""
    if reply.seed is None:
        return tr("Temperature {temperature}", temperature=degrees) if degrees else tr("No seed was recorded")
    if not degrees:
        return tr("Seed `{seed}`", seed=reply.seed)
    return tr("Seed `{seed}`, temperature {temperature}", seed=reply.seed, temperature=degrees)


def _trial(trial: Trial | None) -> str:
    if trial is None:
        return ""
    over = "" if trial.ended_ms is None else tr(" That is over now.")
    share = number(trial.share, ".0%")
    if trial.kind == "canary":
        told = tr(
            "It answered as a **canary**: {share} of new conversations tried it, until the ratings of both "
            "decide whether it takes over.",
            share=share,
        )
    else:
        told = tr(
            "It answered as a **holdback**: {share} of new conversations keep the one before the present "
            "champion for a while, so that the ratings of both can be compared.",
            share=share,
        )
    return told + over


def _tokens(known: ReplyRecord) -> str:
    reply = known.reply
    if reply.completion_tokens is None:
        return tr("It read {count} tokens.", count=reply.prompt_tokens) if reply.prompt_tokens else ""
    writing_ms = (reply.duration_ms or 0) - (reply.first_token_ms or 0)
    speed = number(reply.completion_tokens / writing_ms * 1000, ".1f") if writing_ms > 0 else ""
    paced = tr(" at {speed} a second", speed=speed) if speed else ""
    if reply.prompt_tokens:
        return tr(
            "It read {read} tokens and wrote {written}{paced}.",
            read=reply.prompt_tokens,
            written=reply.completion_tokens,
            paced=paced,
        )
    return tr("It wrote {written} tokens{paced}.", written=reply.completion_tokens, paced=paced)


# Shorter than this is 0.0 s where it is written.
_LEAST_SHOWN_MS = 50


def _times(known: ReplyRecord) -> str:
    reply = known.reply
    if reply.duration_ms is None:
        return ""
    steps = []
    if reply.queue_ms is not None and reply.queue_ms >= _LEAST_SHOWN_MS:
        steps.append(tr("waited {time}", time=exact_time(reply.queue_ms)))
    if reply.first_token_ms is not None:
        steps.append(tr("first word after {time}", time=exact_time(reply.first_token_ms)))
    steps.append(tr("done after {time}", time=exact_time(reply.duration_ms)))
    return tr("Times: {steps}.", steps=", ".join(steps))
