"""What an experiment tries, each beside what is configured: settings of the trainer, or another base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from storage.config_sections import TrainerConfig
from storage.errors import ExperimentError

BASE = "base"
# What decides an adapter: the base that it is trained on (`model.base`), and settings of the trainer.
CHANGEABLE = (
    BASE,
    "objective",
    "rank",
    "alpha",
    "sft_learning_rate",
    "kto_learning_rate",
    "dpo_learning_rate",
    "epochs",
    "kto_epochs",
    "dpo_epochs",
    "dpo_sft_weight",
    "ranked_rounds",
    "ranked_replies",
    "beta",
    "sft_batch_size",
    "batch_size",
    "dpo_batch_size",
    "replay_share",
    "max_train_minutes",
    "seed",
)
AS_CONFIGURED = "as configured"
MOST = 12

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """An experiment as it was asked for; `resumes` names the run whose results it goes on from."""

    changes: tuple[Changes, ...]
    minutes: float
    resumes: str = ""

    def as_settings(self) -> dict[str, Any]:
        """Return it as a run's own settings."""
        asked = {"changes": [dict(each) for each in self.changes], "minutes": self.minutes}
        return {"experiment": asked | ({"resumes": self.resumes} if self.resumes else {})}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Asked:
        """Read it from a run's settings."""
        asked = settings["experiment"]
        return cls(tuple(asked["changes"]), float(asked["minutes"]), str(asked.get("resumes", "")))


def parse(text: str) -> dict[str, Any]:
    """Read one setting to try: "rank=8 epochs=2", commas allowed; values are checked by :func:`settings`.

    Raises:
        ExperimentError: it is not written like this, or names what can't be tried.
    """
    found: dict[str, Any] = {}
    for part in text.replace(",", " ").split():
        key, equals, value = part.partition("=")
        key = BASE if key == "model.base" else key.removeprefix("trainer.")
        if not equals or not value:
            raise ExperimentError(f"{part!r} is no setting: write it as rank=8.")
        if key not in CHANGEABLE:
            raise ExperimentError(f"An experiment can't try {key!r}: it takes {', '.join(CHANGEABLE)}.")
        found[key] = value if key == BASE else _value(value)
    if not found:
        raise ExperimentError("There is nothing to try: write it as rank=8.")
    return found


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def base_of(changes: Changes) -> str:
    """Return the base that is tried, as `model.base` would name it; "" is the one that answers."""
    return str(changes.get(BASE, ""))


def of_trainer(changes: Changes) -> dict[str, Any]:
    """Return what is changed of the trainer's own settings."""
    return {key: value for key, value in changes.items() if key != BASE}


def settings(configured: TrainerConfig, changes: Changes) -> TrainerConfig:
    """Return the trainer's settings with some changed; the base is none of them.

    Raises:
        ExperimentError: a value that the trainer does not take.
    """
    try:
        return TrainerConfig.model_validate(configured.model_dump(exclude_unset=True) | of_trainer(changes))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ExperimentError(
            f"{key} = {first['input']!r} can't be tried: {str(first['msg']).lower()}."
        ) from error


def name_of(changes: Changes) -> str:
    """Return what a setting is called: "rank 8, epochs 2"."""
    return ", ".join(f"{key} {value}" for key, value in changes.items()) or AS_CONFIGURED


def parse_changes(configured: TrainerConfig, texts: Sequence[str]) -> tuple[Changes, ...]:
    """Read what is to be tried, each once; raises ExperimentError with the first that can't be."""
    found = [parse(text) for text in texts]
    for changes in found:
        settings(configured, changes)
    if len(found) > MOST:
        raise ExperimentError(f"{len(found)} settings are too many: try {MOST} at most.")
    return tuple(_once(found))


def _once(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({name_of(changes): changes for changes in found}.values())
