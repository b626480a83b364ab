"""What a training is asked to do: a request file in a folder, and the files with its data beside it.

Nothing in it names a machine, a path or a database, so that any place can carry it out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bot.serving.model.identity import BaseIdentity
from bot.serving.protocol import BaseDescription
from storage.config_sections import TrainerConfig
from storage.sentences import Sentence
from trainer.data import snapshot
from trainer.data.general_replies import BaseReply
from trainer.data.rows import PreferencePair
from trainer.data.snapshot import Snapshot
from trainer.errors import RequestError, RunCancelledError
from trainer.on_policy import ranking
from trainer.training.challenger import DECIDING
from trainer.training.objectives import Plan

FILE = "request.json"
REPLAY = "replay.jsonl"
FORMAT = 1
# Settings by which a training takes its course, and all that it reads, wherever it takes place; the device is
# each place's own affair.
COURSE = DECIDING | {"objective", "max_train_minutes"}
SETTINGS = COURSE | {"checkpoint_seconds", "gpu_memory_share"}


@dataclass(frozen=True)
class WantedBase:
    """The base to train on. `hash` decides; `source` and `identity` say where it can be had."""

    id: str
    source: str
    hash: str
    identity: BaseIdentity | None = None

    @classmethod
    def of(cls, served: BaseDescription) -> WantedBase:
        """Return what a place has to know of the served base."""
        return cls(served.id, served.source, served.hash, served.identity)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> WantedBase:
        """Return the base of a request file."""
        identity = value["identity"]
        return cls(**(dict(value) | {"identity": BaseIdentity(**identity) if identity else None}))


@dataclass(frozen=True)
class TrainingRequest:
    """One training. `data` are the names of its files and their sha256, once they are written.

    `steps` by phase repeats a training that the clock shortened to so many. There is no parent: each
    training begins with a fresh adapter on the base.
    """

    base: WantedBase
    plan: Plan
    settings: TrainerConfig
    snapshot_hash: str
    steps: Mapping[str, int] | None = None
    data: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        base: BaseDescription,
        plan: Plan,
        settings: TrainerConfig,
        rows: Snapshot,
        steps: Mapping[str, int] | None = None,
    ) -> TrainingRequest:
        """Return the request for a training on a served base."""
        return cls(WantedBase.of(base), plan, settings, rows.content_hash, steps)

    def to_json(self) -> dict[str, Any]:
        """Return the request as plain JSON values."""
        return {
            "format": FORMAT,
            "base": asdict(self.base),
            "plan": {"objective": self.plan.objective, "reason": self.plan.reason.as_json()},
            "settings": self.settings.model_dump(include=SETTINGS),
            "snapshot": self.snapshot_hash,
            "data": dict(self.data),
            "steps": None if self.steps is None else dict(self.steps),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingRequest:
        """Return the request of a file.

        Raises:
            RequestError: it is of another version, or not complete.
        """
        if value.get("format") != FORMAT:
            raise RequestError("The training's {file} is of another version of Strop.", file=FILE)
        try:
            plan = value["plan"]
            return cls(
                base=WantedBase.from_json(value["base"]),
                plan=Plan(plan["objective"], Sentence.from_json(plan["reason"])),
                settings=TrainerConfig.model_validate(value["settings"]),
                snapshot_hash=value["snapshot"],
                data=dict(value["data"]),
                steps=value["steps"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(
                "The training's {file} can't be read: {reason}", file=FILE, reason=str(error)
            ) from error


@dataclass(frozen=True)
class TrainingInput:
    """A request and its data in memory; `ranked` are the rounds whose ranked replies are there."""

    request: TrainingRequest
    snapshot: Snapshot
    replay: Sequence[BaseReply]
    ranked: Mapping[int, Sequence[PreferencePair]] = field(default_factory=dict)


def write(training: TrainingInput, folder: Path) -> None:
    """Put a training's request and its replay beside its snapshot, which is in the folder already.

    Raises:
        RunCancelledError: the folder was removed, as by an erasure.
    """
    if not folder.is_dir():
        raise RunCancelledError("The run's folder was removed, as by an erasure.")
    _replace(folder / REPLAY, _lines(training.replay))
    names = (snapshot.FILE, snapshot.ABOUT, REPLAY)
    data = {name: _sha256(folder / name) for name in names if (folder / name).exists()}
    value = training.request.to_json() | {"data": data}
    _replace(folder / FILE, json.dumps(value, indent=2, sort_keys=True))


def read(folder: Path) -> TrainingInput:
    """Read a training back and check every file of its data.

    Raises:
        RequestError: there is none, it is of another version, or a file is missing or was changed.
        SnapshotError: the snapshot's rows were written by another version.
    """
    try:
        value = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError("There is no training in this folder: it has no {file}.", file=FILE) from error
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise RequestError(
            "The training's {file} can't be read: {reason}", file=FILE, reason=reason
        ) from error
    request = TrainingRequest.from_json(value)
    for name in sorted({snapshot.FILE, REPLAY} | request.data.keys()):
        there = Path(name).name == name and (folder / name).is_file()
        if not there or _sha256(folder / name) != request.data.get(name):
            raise RequestError("The training's {file} is missing or was changed.", file=name)
    lines = (folder / REPLAY).read_text(encoding="utf-8").splitlines()
    replay = tuple(BaseReply(**json.loads(line)) for line in lines)
    rows = snapshot.read(folder, request.snapshot_hash)
    return TrainingInput(request, rows, replay, _ranked(folder, request.settings.ranked_rounds))


def forget(folder: Path) -> None:
    """Remove every file of a training that may hold members' words, once it is read."""
    for name in (snapshot.FILE, snapshot.ABOUT):
        (folder / name).unlink(missing_ok=True)
    ranking.forget(folder)


def forget_other(
    folder: Path, base_hash: str, settings: TrainerConfig, rows: Snapshot, replay: Sequence[BaseReply]
) -> None:
    """Remove the replies that an earlier attempt kept if it trained otherwise: they are another model's.

    An update or a changed configuration may come between two attempts. What is left of a checkpoint is the
    training's own affair.
    """
    now = [base_hash, settings.model_dump(include=COURSE), rows.content_hash, _hash(_lines(replay))]
    try:
        then = json.loads((folder / FILE).read_text(encoding="utf-8"))
        course = {name: value for name, value in then["settings"].items() if name in COURSE}
        goes_on = now == [then["base"]["hash"], course, then["snapshot"], then["data"][REPLAY]]
    except (OSError, ValueError, KeyError, TypeError):
        goes_on = False
    if not goes_on:
        ranking.forget(folder)


def _lines(replay: Sequence[BaseReply]) -> str:
    return "".join(f"{json.dumps(asdict(reply), sort_keys=True)}\n" for reply in replay)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _ranked(folder: Path, rounds: int) -> dict[int, Sequence[PreferencePair]]:
    found = {number: ranking.read(folder / ranking.file_of(number)) for number in range(1, rounds + 1)}
    return {number: pairs for number, pairs in found.items() if pairs is not None}


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
