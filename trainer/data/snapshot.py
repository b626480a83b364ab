"""The exact rows and preference pairs of a run, with labels, weights, split: canonical bytes, hashed, kept.

The same ratings give the same bytes, and a run can be repeated from them. A row never leaves its split: what
is held out is never trained on, and a group of near-identical prompts lies on one side only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlite_utils

from storage.db import sql
from storage.learning.eligibility import RatedReply
from storage.learning.preference_votes import VotedPair
from storage.learning.runs import RunRow
from storage.learning.signals.of_replies import Signals
from trainer.data import labels, preference_pairs
from trainer.data.labels import Correction, Labels, RaterTrust
from trainer.data.rows import PreferencePair, Row, WeakLabel
from trainer.errors import SnapshotError

FILE = "snapshot.jsonl"
# Beside it: counts that say nothing of any row and are not hashed, under names that say nothing of who rated.
ABOUT = "snapshot.json"
FORMAT = 1
# Floats are written with so many digits: enough for training, few enough to be the same on every machine.
DIGITS = 9
REHEARSAL_SOURCES = frozenset({"rehearsal", "sample", "playground"})
# Every look at a held-out conversation tells a little about it: after so many it is used up. With a fresh
# bound at 95 % for each look, twenty looks are expected to let one lucky challenger through.
MAX_LOOKS = 20
# So many of the most influential members are left out, one at a time, to see what hangs on them.
MAX_LEFT_OUT = 5
# Each costs another estimate of all raters; beyond so many replies no member weighs much.
MAX_LEFT_OUT_ROWS = 5_000
# Where a group of prompts lies in several splits the strictest wins.
_STRICTNESS = {"train": 0, "development": 1, "gate": 2}


_COUNTS = ("raters", "quarantined", "retired", "planted", "by_asker_only")


@dataclass(frozen=True)
class Influence:
    """What one member's ratings weigh in a snapshot, under a name that says nothing of who it is.

    `share` is the member's part of all vote mass; a quarantined member has none. `doubt` says what speaks
    against a member besides how often others agree with them.
    """

    name: str
    share: float
    votes: int
    accuracy: float
    quarantined: bool
    doubt: str = ""


@dataclass(frozen=True)
class Snapshot:
    """The rows in the order of their ids, and the hash of their canonical form.

    Who rated is known only while a snapshot is built: what is kept are counts and shares. `retired` replies
    were left out because their conversations have been looked at too often, `planted` corrections because
    they repeat each other. `pairs` are those that members voted on; corrections make more
    (`preference_pairs`). `without` holds the rows as they would be labelled without one of the most
    influential members, by that member's name in `influence`; `by_asker_only` counts the replies that nobody
    but their asker has rated. `retired_corrections` are retired rows, whose corrections are checked all the
    same. `weak` holds unrated replies by their ids, if their free signals proved to tell something, and
    `signals` the figures behind that, for the run's metrics.
    """

    rows: tuple[Row, ...]
    content_hash: str
    raters: int = 0
    quarantined: int = 0
    influence: tuple[Influence, ...] = ()
    retired: int = 0
    planted: int = 0
    pairs: tuple[PreferencePair, ...] = ()
    without: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    by_asker_only: int = 0
    retired_corrections: tuple[Row, ...] = ()
    weak: tuple[WeakLabel, ...] = ()
    signals: Mapping[str, Any] = field(default_factory=dict)

    def of(self, *splits: str) -> list[Row]:
        """Return the rows of these splits."""
        return [row for row in self.rows if row.split in splits]

    def preferences(self, *splits: str) -> list[PreferencePair]:
        """Return the preference pairs of these splits: corrections over their replies, then votes."""
        corrections = preference_pairs.pairs_from_corrections(self.of(*splits))
        return [*corrections, *(pair for pair in self.pairs if pair.split in splits)]

    @property
    def rehearsal(self) -> bool:
        """Whether any row comes from simulated members, the sample community or the playground."""
        parts: tuple[Sequence[Row | PreferencePair | WeakLabel], ...] = (self.rows, self.pairs, self.weak)
        return any(each.source in REHEARSAL_SOURCES for part in parts for each in part)

    def with_weak(self, weak: Sequence[WeakLabel]) -> Snapshot:
        """Return the same with unrated replies beside it, and the hash of all of it."""
        return replace(self, weak=tuple(weak), content_hash=_hash(_lines(self.rows, self.pairs, weak)))


def build(
    rows: Sequence[RatedReply],
    finish_reasons: Mapping[str, str | None],
    looks: Mapping[str, int] | None = None,
    voted: Sequence[VotedPair] = (),
) -> Snapshot:
    """Label the eligible rows and the voted pairs and put them in their canonical order.

    `looks` says how often each reply was held out in a run that was judged. A group that was looked at
    MAX_LOOKS times is retired: it is neither judged on again nor trained on.
    """
    ordered = sorted(rows, key=lambda row: row.reply_id)
    aggregated = labels.aggregate(ordered)
    splits = _splits([*ordered, *voted])
    retired = _retired(ordered, splits, looks or {})

    def labelled(found: Labels, *, retirees: bool = False) -> tuple[Row, ...]:
        return tuple(
            _row(row, label, splits[row.group_key], finish_reasons.get(row.reply_id))
            for row, label in zip(ordered, found.replies, strict=True)
            if (row.group_key in retired) == retirees
        )

    kept = labelled(aggregated)
    pairs = tuple(
        pair
        for pair in preference_pairs.pairs_from_votes(voted, aggregated.raters, splits, DIGITS)
        if pair.group_key not in retired
    )
    return Snapshot(
        kept,
        _hash(_lines(kept, pairs)),
        *_rater_counts(aggregated),
        influence(aggregated),
        retired=len(ordered) - len(kept),
        planted=aggregated.planted,
        pairs=pairs,
        without={
            _name(number): labelled(labels.aggregate([_unrated_by(row, rater.user_id) for row in ordered]))
            for number, rater in enumerate(_by_influence(aggregated)[:MAX_LEFT_OUT], 1)
            if rater.weight > 0 and len(ordered) <= MAX_LEFT_OUT_ROWS
        },
        by_asker_only=sum(row.by_asker_only for row in ordered),
        retired_corrections=tuple(row for row in labelled(aggregated, retirees=True) if row.corrections),
    )


def _unrated_by(row: RatedReply, user_id: int) -> RatedReply:
    return replace(row, ratings=[rating for rating in row.ratings if rating.user_id != user_id])


def _retired(
    rows: Sequence[RatedReply], splits: Mapping[str, str], looks: Mapping[str, int]
) -> frozenset[str]:
    """Return the held-out groups of which some reply has been looked at often enough."""
    return frozenset(
        row.group_key
        for row in rows
        if splits[row.group_key] != "train" and looks.get(row.reply_id, 0) >= MAX_LOOKS
    )


def influence(aggregated: Labels) -> tuple[Influence, ...]:
    """Return the members' shares of the vote mass, the largest first, numbered in that order."""
    whole = sum(rater.weight * rater.votes for rater in aggregated.raters) or 1.0
    return tuple(
        Influence(
            name=_name(number),
            share=round(rater.weight * rater.votes / whole, 4),
            votes=rater.votes,
            accuracy=round(rater.accuracy, 3),
            quarantined=rater.quarantined,
            doubt=rater.doubt,
        )
        for number, rater in enumerate(_by_influence(aggregated), 1)
    )


def _by_influence(aggregated: Labels) -> list[RaterTrust]:
    return sorted(aggregated.raters, key=lambda rater: (-rater.weight * rater.votes, rater.user_id))


def _name(number: int) -> str:
    return f"member {number}"


def finish_reasons(db: sqlite_utils.Database, reply_ids: Iterable[str]) -> dict[str, str | None]:
    """Return why each reply ended ("stop", "length", ...)."""
    found = sql.many(
        db,
        """SELECT replies.id, replies.finish_reason FROM json_each(?) AS wanted
           CROSS JOIN replies ON replies.id = wanted.value""",
        (json.dumps(list(reply_ids)),),
    )
    return {row["id"]: row["finish_reason"] for row in found}


def looks(db: sqlite_utils.Database, scope: str) -> dict[str, int]:
    """Return in how many judged runs of a scope each reply was held out."""
    found = sql.many(
        db,
        """SELECT run_rows.reply_id, count(*) AS looks FROM runs
           JOIN run_rows ON run_rows.run_id = runs.id AND run_rows.split <> 'train'
           WHERE runs.scope = ? AND EXISTS (SELECT 1 FROM evaluations WHERE evaluations.run_id = runs.id)
           GROUP BY run_rows.reply_id""",
        (scope,),
    )
    return {row["reply_id"]: row["looks"] for row in found}


def write(snapshot: Snapshot, folder: Path) -> Path:
    """Write the snapshot durably into a run's folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / FILE
    partial = path.with_suffix(".partial")
    lines = _lines(snapshot.rows, snapshot.pairs, snapshot.weak)
    with partial.open("wb") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())
    about = {name: getattr(snapshot, name) for name in _COUNTS}
    about["influence"] = [asdict(member) for member in snapshot.influence]
    about["signals"] = dict(snapshot.signals)
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    partial.replace(path)
    return path


def read(folder: Path, content_hash: str) -> Snapshot:
    """Read a snapshot back, but for `without` and `retired_corrections`; check it against the run's hash.

    Raises:
        SnapshotError: it is missing (an erasure scrubs snapshots) or its bytes changed.
    """
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SnapshotError(
            "The snapshot in {folder} is gone: this run can't be repeated.", folder=str(folder)
        ) from error
    if _hash(lines) != content_hash:
        raise SnapshotError(
            "The snapshot in {folder} was changed after its run: this run can't be repeated.",
            folder=str(folder),
        )
    read_back = [_from_json(json.loads(line)) for line in lines]
    return Snapshot(
        tuple(each for each in read_back if isinstance(each, Row)),
        content_hash,
        pairs=tuple(each for each in read_back if isinstance(each, PreferencePair)),
        weak=tuple(each for each in read_back if isinstance(each, WeakLabel)),
        **_about(folder),
    )


def still_allowed(
    snapshot: Snapshot,
    rows: Iterable[RatedReply],
    voted: Iterable[VotedPair],
    signals: Iterable[Signals] = (),
) -> bool:
    """Whether everything in a snapshot may still train, given what may train today.

    What was deleted, corrected away or withheld since it was taken must not be learned after all. `signals`
    are today's of the unrated replies in it.
    """
    today = {row.reply_id: row for row in rows}
    corrections = {
        (row.reply_id, (rating.text or "").strip()) for row in today.values() for rating in row.ratings
    }
    if not {(weak.reply_id, weak.question, weak.text) for weak in snapshot.weak} <= {
        (one.reply_id, one.question, one.text) for one in signals
    }:
        return False
    return {pair.pair_id for pair in snapshot.pairs} <= {pair.pair_id for pair in voted} and all(
        row.reply_id in today
        and row.text == today[row.reply_id].text
        and row.prompt == _prompt(today[row.reply_id])
        and all((row.reply_id, correction.text) in corrections for correction in row.corrections)
        for row in snapshot.rows
    )


def _about(folder: Path) -> dict[str, Any]:
    """Return what stands beside a snapshot; nothing where an older version or a crash left nothing."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    influence = tuple(Influence(**member) for member in about["influence"])
    counts = {name: about.get(name, 0) for name in _COUNTS}
    return counts | {"influence": influence, "signals": about.get("signals", {})}


def run_rows(snapshot: Snapshot) -> list[RunRow]:
    """Return what the database keeps of a snapshot: ids, splits, labels and weights, no text.

    A reply that only lends its prompt to a pair is there as well, so that an erasure finds it.
    """
    rated = {
        row.reply_id: RunRow(
            row.reply_id, row.split, "corrected" if row.corrections else row.verdict, row.weight
        )
        for row in snapshot.rows
    }
    lent = {
        pair.reply_id: RunRow(pair.reply_id, pair.split, "compared", pair.weight) for pair in snapshot.pairs
    }
    weak = {each.reply_id: RunRow(each.reply_id, "train", "signals", each.weight) for each in snapshot.weak}
    return list((weak | lent | rated).values())


def summary(snapshot: Snapshot) -> dict[str, Any]:
    """Return counts by split and label, for the run's metrics."""
    counts = {
        split: dict(Counter(row.verdict for row in snapshot.of(split)))
        | {"corrections": sum(len(row.corrections) for row in snapshot.of(split))}
        | {"pairs": len(snapshot.preferences(split))}
        for split in _STRICTNESS
    }
    return counts | {
        "raters": snapshot.raters,
        "quarantined_raters": snapshot.quarantined,
        "doubted_raters": sum(bool(member.doubt) for member in snapshot.influence),
        "planted_corrections": snapshot.planted,
        "replies": len(snapshot.rows),
        "rated_by_asker_only": snapshot.by_asker_only,
        "sources": dict(Counter(row.source for row in snapshot.rows)),
        "influence": [asdict(member) for member in snapshot.influence],
    }


def _row(row: RatedReply, label: labels.ReplyLabel, split: str, finish_reason: str | None) -> Row:
    return Row(
        reply_id=row.reply_id,
        conversation_id=row.conversation_id,
        group_key=row.group_key,
        split=split,
        prompt=_prompt(row),
        text=row.text,
        finished=finish_reason == "stop",
        verdict=label.verdict,
        weight=round(label.weight, DIGITS),
        corrections=tuple(Correction(c.text, round(c.weight, DIGITS)) for c in label.corrections),
        source=row.source,
        created_ms=row.created_ms,
    )


def _prompt(row: RatedReply) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in row.prompt_messages)


def _splits(rows: Sequence[RatedReply | VotedPair]) -> dict[str, str]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        found[row.group_key].add(row.split)
    return {key: max(splits, key=_STRICTNESS.__getitem__) for key, splits in found.items()}


def _rater_counts(aggregated: Labels) -> tuple[int, int]:
    return len(aggregated.raters), sum(rater.quarantined for rater in aggregated.raters)


def _lines(rows: Iterable[Row], pairs: Iterable[PreferencePair], weak: Iterable[WeakLabel] = ()) -> list[str]:
    values = [asdict(row) | {"format": FORMAT} for row in rows]
    values += [asdict(pair) | {"format": FORMAT, "kind": "pair"} for pair in pairs]
    values += [asdict(each) | {"format": FORMAT, "kind": "signals"} for each in weak]
    return [json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":")) for value in values]


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _from_json(value: dict[str, Any]) -> Row | PreferencePair | WeakLabel:
    kind = value.pop("kind", "row")
    if value.pop("format", None) != FORMAT or kind not in ("row", "pair", "signals"):
        raise SnapshotError("The snapshot was written by another version: this run can't be repeated.")
    if kind == "pair":
        return preference_pairs.from_json(value)
    if kind == "signals":
        return WeakLabel(**value)
    value["prompt"] = tuple((role, content) for role, content in value["prompt"])
    value["corrections"] = tuple(Correction(**correction) for correction in value["corrections"])
    return Row(**value)
