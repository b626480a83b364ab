"""What an experiment measures of each setting: plain values, kept after each, to go on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from trainer.errors import SnapshotError
from trainer.evaluation.scores import Answer

FIGURES = "experiment.json"
ANSWERS = "experiment-answers.json"
BASE = "the base"


@dataclass(frozen=True)
class Curve:
    """The loss by step of one phase of a training."""

    phase: str
    steps: int
    seconds: float
    tokens_per_second: float
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """One setting's adapter, or the base: what it said, and figures.

    `perplexity` is of liked development replies, `accuracy` how often a liked one is likelier than a disliked
    one; both are None without replies of both kinds. `general_rise` is that of the loss on the base's own
    general replies. `answers` are to the experiment's prompts, in their order. `base` is empty for the one
    that answers people, else as `model.base` would name it; `revision` is the hub's commit of it.
    """

    name: str
    answers: tuple[Answer, ...]
    perplexity: float | None
    accuracy: float | None
    general_rise: float
    changes: Mapping[str, Any] = field(default_factory=dict)
    objective: str = ""
    minutes: float = 0.0
    peak_mib: int = 0
    curves: tuple[Curve, ...] = ()
    base: str = ""
    revision: str = ""

    @property
    def is_base(self) -> bool:
        """Whether it is a base as it is, which settings began from."""
        return self.name == name_of_base(self.base)

    def as_json(self) -> dict[str, Any]:
        """Return its figures: nothing of what anybody said."""
        found = asdict(self)
        del found["answers"]
        return found


def expected_minutes(found: Sequence[Measured], base: str, larger: float) -> float | None:
    """Return what one more setting takes, as those before it took; None where none was trained yet.

    On a base that none was trained on it takes longer by as much as that is `larger` than the one that
    answers, and never less.
    """
    trained = [each for each in found if not each.is_base]
    if alike := [each.minutes for each in trained if each.base == base]:
        return mean(alike)
    served = [each.minutes for each in trained if not each.base]
    return mean(served) * max(1.0, larger) if served else None


def name_of_base(base: str) -> str:
    """Return what a base itself is called beside the settings that were trained on it."""
    return f"{BASE} {base}" if base else BASE


def write(measured: list[Measured], snapshot_hash: str, base_hash: str, folder: Path) -> None:
    """Keep the figures, and apart from them what the models said, which an erasure has to find.

    `base_hash` is of the base that answers people.
    """
    for name, value in (
        (ANSWERS, [[asdict(answer) for answer in each.answers] for each in measured]),
        (
            FIGURES,
            {"snapshot": snapshot_hash, "base": base_hash, "measured": [each.as_json() for each in measured]},
        ),
    ):
        path = folder / name
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(value, indent=1), encoding="utf-8")
        partial.replace(path)


def read(folder: Path, snapshot_hash: str, base_hash: str) -> list[Measured]:
    """Return what an earlier attempt has measured on this snapshot, the same base answering people.

    Raises:
        SnapshotError: it can't be read.
    """
    try:
        figures = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
        answers = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
        # Earlier versions did not say which base it was.
        if figures["snapshot"] != snapshot_hash or figures.get("base", base_hash) != base_hash:
            return []
        # The figures are written last: what was said of a setting whose figures are missing is left out.
        return [_measured(each, said) for each, said in zip(figures["measured"], answers, strict=False)]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotError("The results in {folder} can't be read.", folder=str(folder)) from error


def _measured(figures: dict[str, Any], said: list[dict[str, Any]]) -> Measured:
    curves = tuple(Curve(**each | {"losses": tuple(each["losses"])}) for each in figures.pop("curves"))
    return Measured(answers=tuple(Answer(**each) for each in said), curves=curves, **figures)
