"""Download a base from the Hugging Face hub, once its size is known to fit."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bot.serving.errors import BaseRefusedError, BaseUnreachableError
from bot.serving.messages import Message
from bot.serving.model.memory import in_gb
from bot.serving.model.sources import BaseSource

_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
_TIMEOUT_S = 20.0
# What a hub out of reach raises: the failures of whichever HTTP library this version of huggingface_hub is
# built on (their base stands first among the bases of its own error; they are no OSErrors), and OSErrors.
_CONNECTION_FAILURES: tuple[type[BaseException], ...] = HfHubHTTPError.__bases__
_DISK_TROUBLE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM))


def download(source: BaseSource, *, room_bytes: int, progress: Callable[[Message], None]) -> BaseSource:
    """Return the source with its local path and exact revision.

    Raises:
        BaseUnreachableError: the hub does not answer.
        BaseRefusedError: no such model, no access, or too large for this machine.
    """
    found = find_downloaded(source)
    if found is None:
        progress(Message("Asking the hub for {model}.", model=source.id))
        found = _at(source, _fetch(source, room_bytes, progress))
    return found


def find_downloaded(source: BaseSource) -> BaseSource | None:
    """Return the source where the hub's cache on this machine holds all of it, else None; asks nobody."""
    try:
        return _at(source, Path(_snapshot(source, offline=True)))
    except (LocalEntryNotFoundError, ValueError):
        return None


def _at(source: BaseSource, path: Path) -> BaseSource:
    return dataclasses.replace(source, path=path, revision=source.revision or path.name)


def _snapshot(source: BaseSource, *, offline: bool) -> str:
    return str(
        snapshot_download(
            source.id,
            revision=source.revision or None,
            allow_patterns=_PATTERNS,
            local_files_only=offline,
            etag_timeout=_TIMEOUT_S,
        )
    )


def _fetch(source: BaseSource, room_bytes: int, progress: Callable[[Message], None]) -> Path:
    try:
        size = _weights_bytes(source)
        _check_size(source, size, room_bytes)
        progress(Message("Downloading {model} ({value}).", model=source.id, value=in_gb(size)))
        return Path(_snapshot(source, offline=False))
    except GatedRepoError as error:
        raise BaseRefusedError(
            f"The base {source.id} is gated; accept its licence on the hub and set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise BaseRefusedError(f"The base {source.id} has no revision {source.revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise BaseRefusedError(f"There is no model {source.id} on the hub (or it is private).") from error
    except HfHubHTTPError as error:
        raise _refused_by_hub(source, error.response.status_code) from error
    except _CONNECTION_FAILURES as error:
        if isinstance(error, OSError) and error.errno in _DISK_TROUBLE:
            raise BaseRefusedError(
                f"The base {source.id} cannot be stored in {constants.HF_HUB_CACHE}: {error.strerror}."
            ) from error
        raise BaseUnreachableError(
            "The base {base} cannot be downloaded: the hub does not answer ({error}).",
            base=source.id,
            error=type(error).__name__,
        ) from error


def _refused_by_hub(source: BaseSource, status: int) -> BaseRefusedError:
    """A hub that is overloaded or broken is asked again; one that says no is not."""
    sentence = Message(
        "The base {base} cannot be downloaded: the hub answers with HTTP status {status}.",
        base=source.id,
        status=status,
    )
    later = status >= 500 or status in (408, 429)
    return BaseUnreachableError(sentence) if later else BaseRefusedError(sentence)


def _weights_bytes(source: BaseSource) -> int:
    info = HfApi().model_info(
        source.id, revision=source.revision or None, files_metadata=True, timeout=_TIMEOUT_S
    )
    files = info.siblings or []
    size = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
    if not size:
        raise BaseRefusedError(
            f"The base {source.id} has no .safetensors weights; pickled ones are not loaded."
        )
    return size


def _check_size(source: BaseSource, size_bytes: int, room_bytes: int) -> None:
    """A third of a bf16 checkpoint is a low estimate of its 4-bit form: refuse only what cannot work."""
    needed = size_bytes // 3
    if needed > room_bytes:
        raise BaseRefusedError(
            f"The base {source.id} needs at least {in_gb(needed)} of memory in 4 bits and "
            f"{in_gb(room_bytes)} is available; choose a smaller [model] base."
        )
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if size_bytes * 1.4 > free:
        raise BaseRefusedError(
            f"The base {source.id} needs {in_gb(int(size_bytes * 1.4))} of disk and {in_gb(free)} is free."
        )
