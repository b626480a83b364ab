"""The base that is trained: the server's own files, or a copy where the server is on another machine."""

from __future__ import annotations

from pathlib import Path

from bot.serving.model.catalogue import BUNDLED
from bot.serving.model.identity import HUB
from bot.serving.model.loading import read_info
from bot.serving.model.quantize import prepare_source
from bot.serving.model.sources import BaseSource, resolve
from bot.serving.protocol import BaseDescription
from storage.config import Config
from trainer.errors import TrainingError


def local_folder(base: BaseDescription, config: Config, device: str) -> Path:
    """Return the folder of the served base on this machine, preparing a copy where the server is elsewhere.

    Raises:
        TrainingError: what `model.base` and `model.revision` name here is another base.
        BaseRefusedError: it can't be had here, or doesn't fit.
    """
    served = Path(base.folder)
    if not config.server.base_url or served.is_dir():
        return served
    source = _source(base, config)
    folder = prepare_source(source, device=device, models_dir=config.models, progress=lambda _: None)
    if read_info(folder).hash != base.hash:
        raise TrainingError(
            "The trainer's own copy of {base} is not the base that the model server has: set model.base and "
            "model.revision to what it serves.",
            base=base.id,
        )
    return folder


def _source(base: BaseDescription, config: Config) -> BaseSource:
    """Return what is to be copied: the configured base, at the served revision where none is named."""
    identity = base.identity
    if identity is not None and identity.source.startswith(HUB):
        served = identity.source.removeprefix(HUB)
        if config.model.base in ("auto", served):
            return BaseSource("hub", served, revision=config.model.revision or identity.revision)
    return resolve(config.model.base, config.model.revision, automatic=BUNDLED)
