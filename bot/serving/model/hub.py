"""Download a base from the Hugging Face hub, once its architecture and size are known to fit (torch-free).

`config.json` comes first: an architecture that can't be served is refused before its weights are asked for.
Weights are kept as far as they came, also when the process ends, and go on from there (huggingface_hub itself
begins a file anew); a file whose name is its sha256 is checked against it.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils.tqdm import disable_progress_bars

from bot.serving.errors import BaseRefusedError, BaseUnreachableError
from bot.serving.messages import Message
from bot.serving.model.memory import format_gb
from bot.serving.model.shapes import refuse_unsupported
from bot.serving.model.sources import BaseSource

_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]
_WEIGHTS = ".safetensors"
_PARTIAL = ".partial"
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
        folder = Path(_snapshot(source, offline=True))
    except (LocalEntryNotFoundError, ValueError):
        return None
    return _at(source, folder) if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has all its parts: huggingface_hub returns one that has any."""
    if not (folder / "config.json").is_file() or not any(folder.glob("tokenizer*")):
        return False
    weights = {file.name for file in folder.glob(f"*{_WEIGHTS}")}
    try:
        index = json.loads((folder / f"model{_WEIGHTS}.index.json").read_text(encoding="utf-8"))
        return set(index["weight_map"].values()) <= weights
    except FileNotFoundError:
        return bool(weights)
    except (OSError, ValueError, KeyError, AttributeError):
        return False


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


def downloaded_bytes(source: BaseSource) -> int:
    """Return how much of a base's files is on this machine, complete or not."""
    blobs = _blobs(source)
    return sum(file.stat().st_size for file in blobs.iterdir()) if blobs.is_dir() else 0


def read_config(source: BaseSource, *, offline: bool = False) -> dict[str, Any]:
    """Return a base's `config.json`; with ``offline`` the hub is not asked.

    Raises:
        BaseUnreachableError: it isn't on this machine, and the hub isn't asked or does not answer.
        BaseRefusedError: there is none, or it can't be read.
    """
    with translate_errors(source):
        file = hf_hub_download(
            source.id,
            "config.json",
            revision=source.revision or None,
            local_files_only=offline,
            etag_timeout=_TIMEOUT_S,
        )
    try:
        return dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BaseRefusedError(f"The base {source.id} has a config.json that can't be read.") from error


def _fetch(source: BaseSource, room_bytes: int, progress: Callable[[Message], None]) -> Path:
    disable_progress_bars()
    with translate_errors(source):
        weights = _weights(source)
        refuse_unsupported(source.id, read_config(source))
        size = sum(weights.values())
        _check_size(source, size, room_bytes)
        progress(Message("Downloading {model} ({value}).", model=source.id, value=format_gb(size)))
        for name in weights:
            _fetch_weights(source, name)
        return Path(_snapshot(source, offline=False))


@contextmanager
def translate_errors(source: BaseSource) -> Iterator[None]:
    """Turn the failures of a request to the hub into ours."""
    try:
        yield
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


def _weights(source: BaseSource) -> dict[str, int]:
    """Return the size of each file of weights by its name."""
    info = HfApi().model_info(
        source.id, revision=source.revision or None, files_metadata=True, timeout=_TIMEOUT_S
    )
    files = info.siblings or []
    found = {file.rfilename: file.size or 0 for file in files if file.rfilename.endswith(_WEIGHTS)}
    if not any(found.values()):
        raise BaseRefusedError(
            f"The base {source.id} has no .safetensors weights; pickled ones are not loaded."
        )
    return found


def _fetch_weights(source: BaseSource, name: str) -> None:
    """Download a file into the hub's cache under its etag, from where an earlier attempt ended.

    huggingface_hub then finds it there and only links it.
    """
    url = hf_hub_url(source.id, name, revision=source.revision or None)
    found = get_hf_file_metadata(url, timeout=_TIMEOUT_S)
    if not found.etag or found.size is None:
        return
    blob = _blobs(source) / found.etag
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(blob.name + _PARTIAL)
    with partial.open("ab") as file:
        # Two processes that want the same base take turns.
        fcntl.flock(file, fcntl.LOCK_EX)
        if blob.exists():
            partial.unlink(missing_ok=True)
            return
        if file.tell() > found.size:
            file.truncate(0)
        http_get(url, file, resume_size=file.tell(), headers=build_hf_headers(), expected_size=found.size)
    _check_hash(source, partial, found.etag)
    partial.rename(blob)


def _check_hash(source: BaseSource, partial: Path, etag: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", etag):
        return
    with partial.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != etag:
        partial.unlink()
        raise BaseUnreachableError(
            "The base {base} was damaged on the way; it is downloaded again.", base=source.id
        )


def _blobs(source: BaseSource) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source.id, repo_type="model") / "blobs"


def _check_size(source: BaseSource, size_bytes: int, room_bytes: int) -> None:
    """A third of a bf16 checkpoint is a low estimate of its 4-bit form: refuse only what cannot work."""
    needed = size_bytes // 3
    if needed > room_bytes:
        raise BaseRefusedError(
            f"The base {source.id} needs at least {format_gb(needed)} of memory in 4 bits and "
            f"{format_gb(room_bytes)} is available; choose a smaller [model] base."
        )
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    # 4 bits a weight beside the 16 that are downloaded, less what came earlier.
    wanted = int(size_bytes * 1.4) - downloaded_bytes(source)
    if wanted > free:
        raise BaseRefusedError(
            f"The base {source.id} needs {format_gb(wanted)} of disk and {format_gb(free)} is free."
        )
