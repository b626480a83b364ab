"""The base on the training host: the server's own files, a copy found by its hash, or one made anew."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bot.serving.errors import BaseRefusedError
from bot.serving.model.catalogue import BUNDLED, PACKAGED_BASE
from bot.serving.model.identity import HUB
from bot.serving.model.loading import read_info
from bot.serving.model.quantize import prepare_source
from bot.serving.model.sources import BaseSource, packaged_base, resolve
from bot.serving.protocol import BaseDescription
from storage.config import Config
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
        "The training host doesn't have the base {base}: copy its folder into models/ there.",
        base=wanted.id,
    )


def _source(wanted: WantedBase) -> BaseSource | None:
    """Return where anybody can get the base from; None for somebody's own files."""
    identity = wanted.identity
    if identity is not None and identity.source.startswith(HUB):
        return BaseSource("hub", identity.source.removeprefix(HUB), revision=identity.revision)
    return packaged_base() if wanted.id == PACKAGED_BASE else None


def local_folder(base: BaseDescription, config: Config, device: str) -> Path:
    """Return the folder of the served base on this machine, preparing a copy where the server is elsewhere.

    Raises:
        TrainingError: what `model.base` and `model.revision` name here is another base.
        BaseRefusedError: it can't be had here, or doesn't fit.
    """
    served = Path(base.folder)
    if not config.server.base_url or served.is_dir():
        return served
    source = _configured(base, config)
    folder = prepare_source(source, device=device, models_dir=config.models, progress=lambda _: None)
    if read_info(folder).hash != base.hash:
        raise TrainingError(
            "The trainer's own copy of {base} is not the base that the model server has: set model.base and "
            "model.revision to what it serves.",
            base=base.id,
        )
    return folder


def _configured(base: BaseDescription, config: Config) -> BaseSource:
    """Return what is to be copied: the configured base, at the served revision where none is named."""
    identity = base.identity
    if identity is not None and identity.source.startswith(HUB):
        served = identity.source.removeprefix(HUB)
        if config.model.base in ("auto", served):
            return BaseSource("hub", served, revision=config.model.revision or identity.revision)
    return resolve(config.model.base, config.model.revision, automatic=BUNDLED)
