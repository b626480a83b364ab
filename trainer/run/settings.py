"""The configuration as one run sees it: with the settings that it was started with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from storage.config import Config
from storage.config_sections import GateConfig, TrainerConfig
from trainer.errors import RunSettingsError


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return the configuration with a run's own settings: {"trainer": {...}, "gate": {...}}.

    Raises:
        RunSettingsError: an unknown section, key or value.
    """
    if unknown := overrides.keys() - {"trainer", "gate", "repeat", "experiment", "judge"}:
        raise RunSettingsError(
            "This run has settings for {value}; only those of trainer and gate can be changed.",
            value=repr(sorted(unknown)[0]),
        )
    try:
        trainer = TrainerConfig.model_validate(_merged(config.trainer, overrides.get("trainer", {})))
        judged = GateConfig.model_validate(_merged(config.gate, overrides.get("gate", {})))
    except (ValidationError, TypeError) as error:
        raise RunSettingsError("This run's settings are not valid: {value}", value=str(error)) from error
    return config.model_copy(update={"trainer": trainer, "gate": judged})


def _merged(section: BaseModel, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section's values with a run's own; what nobody set stays unset and can follow the base."""
    return section.model_dump(exclude_unset=True) | dict(overrides)
