"""The base in the place that trains: found by its hash, else fetched from where it comes."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bot.serving.errors import BaseRefusedError
from bot.serving.model.catalogue import PACKAGED_BASE
from bot.serving.model.identity import HUB
from bot.serving.model.loading import read_info
from bot.serving.model.quantize import prepare_source
from bot.serving.model.sources import BaseSource, packaged_base
from trainer.errors import TrainingError
from trainer.placement.request import WantedBase


def folder_of(wanted: WantedBase, models: Path, device: str) -> Path:
    """Return the folder of the wanted 4-bit base below `models`, preparing it where it isn't there.

    Raises:
        TrainingError: it comes from files that only its owner has, or another base was found in its place.
        BaseRefusedError: it can't be had here, or doesn't fit.
    """
    for file in sorted(models.glob("*/base.json")):
        with contextlib.suppress(BaseRefusedError):
            if read_info(file.parent).hash == wanted.hash:
                return file.parent
    source = _source(wanted)
    if source is not None:
        folder = prepare_source(source, device=device, models_dir=models, progress=lambda _: None)
        if read_info(folder).hash == wanted.hash:
            return folder
    raise TrainingError(
        "The place that trains doesn't have the base {base}: copy its folder in models/ there.",
        base=wanted.id,
    )


def _source(wanted: WantedBase) -> BaseSource | None:
    """Return where anybody can get the base from; None for somebody's own files."""
    identity = wanted.identity
    if identity is not None and identity.source.startswith(HUB):
        return BaseSource("hub", identity.source.removeprefix(HUB), revision=identity.revision)
    return packaged_base() if wanted.id == PACKAGED_BASE else None
