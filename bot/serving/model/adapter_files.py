"""An adapter on disk: its folder, its manifest, and the checks before its weights are read (torch-free).

A folder ``adapters/<id>/`` holds PEFT's ``adapter_config.json`` and ``adapter_model.safetensors`` and our
``manifest.json``. The id is a hash of the manifest, which holds the hash of every file: a folder cannot
change without losing its name. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from bot.serving.errors import AdapterDamagedError, AdapterRefusedError

MANIFEST = "manifest.json"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FORMAT = 1
MAX_JSON_BYTES = 4 * 1024 * 1024
MAX_WEIGHTS_BYTES = 4 * 1024**3

_REQUIRED = frozenset({CONFIG, WEIGHTS})
_TEXT_SUFFIXES = frozenset({".json", ".md", ".txt"})
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"})


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked adapter folder.

    ``files`` maps each file name to its sha256; ``config`` is PEFT's adapter configuration; ``extra`` is
    whatever the writer recorded (run, scale, rehearsal mark).
    """

    adapter_id: str
    folder: Path
    base_hash: str
    chat_template_hash: str
    files: Mapping[str, str]
    config: Mapping[str, Any]
    extra: Mapping[str, Any]


def write_manifest(folder: Path, *, base_hash: str, chat_template_hash: str, extra: Mapping[str, Any]) -> str:
    """Write ``manifest.json`` into an adapter folder and return the adapter's id.

    The caller then renames the folder once to ``adapters/<id>``. Every file and the folder are flushed to
    disk. ``extra`` is part of the id: put nothing there that differs between two runs that should share one.

    Raises:
        AdapterRefusedError: a required file is missing, or the folder holds a link, a folder or a pickle.
    """
    names = _file_names(folder)
    if missing := _REQUIRED - names:
        raise AdapterRefusedError(f"The adapter folder {folder} has no {sorted(missing)[0]}.")
    files: dict[str, str] = {}
    for name in sorted(names - {MANIFEST}):
        files[name] = _sha256(folder / name)
    body = {
        "format": FORMAT,
        "base_hash": base_hash,
        "chat_template_hash": chat_template_hash,
        "files": files,
        "config": _read_json(folder / CONFIG),
        "extra": json.loads(json.dumps(dict(extra))),
    }
    adapter_id = _identify(body)
    _write_durably(folder / MANIFEST, json.dumps({"id": adapter_id, **body}, indent=2, sort_keys=True))
    for name in names - {MANIFEST}:
        _fsync(folder / name)
    _fsync(folder)
    return adapter_id


def verify(
    folder: Path, *, adapters_dir: Path, base_hash: str, chat_template_hash: str | None = None
) -> Manifest:
    """Check an adapter folder completely and return its manifest.

    Without ``chat_template_hash`` (where no base is loaded to compare it with) any chat template will do.

    Raises:
        AdapterDamagedError: a file is missing, or one does not have the hash that it must have.
        AdapterRefusedError: any other check failed: outside ``adapters_dir``, a link, an unlisted or pickled
            file, a file that cannot be read, another base, another chat template.
    """
    folder = _inside(folder, adapters_dir)
    names = _file_names(folder)
    if missing := (_REQUIRED | {MANIFEST}) - names:
        raise AdapterDamagedError(
            "Adapter {adapter} has no {file}.", adapter=folder.name, file=sorted(missing)[0]
        )
    manifest = _read_manifest(folder)
    _check_files(folder, names, manifest.files)
    if manifest.config != _read_json(folder / CONFIG):
        raise AdapterDamagedError(
            "Adapter {adapter}: {file} differs from the manifest's copy.", adapter=folder.name, file=CONFIG
        )
    if manifest.base_hash != base_hash:
        raise AdapterRefusedError(
            "Adapter {adapter} was trained on base {base}, but base {served} is served; serve that base, or "
            "retrain on this one.",
            adapter=folder.name,
            base=manifest.base_hash[:12],
            served=base_hash[:12],
        )
    if chat_template_hash not in (None, manifest.chat_template_hash):
        raise AdapterRefusedError(
            "Adapter {adapter} was trained with chat template {template}, but {served} is served; "
            "retrain it.",
            adapter=folder.name,
            template=manifest.chat_template_hash[:12],
            served=str(chat_template_hash)[:12],
        )
    return manifest


def read_file(manifest: Manifest, name: str) -> bytes:
    """Return one file of a verified adapter, its hash checked on the very bytes that are returned.

    Raises:
        AdapterDamagedError: the file changed since it was verified.
        AdapterRefusedError: it is not listed, or cannot be read.
    """
    if name not in manifest.files:
        raise AdapterRefusedError("Adapter {adapter} has no {file}.", adapter=manifest.adapter_id, file=name)
    content = _read_bytes(manifest.folder / name, MAX_WEIGHTS_BYTES)
    if hashlib.sha256(content).hexdigest() != manifest.files[name]:
        raise AdapterDamagedError(
            "Adapter {adapter}: {file} changed after it was checked.", adapter=manifest.adapter_id, file=name
        )
    return content


def _inside(folder: Path, adapters_dir: Path) -> Path:
    """Return the folder's real path if it is a plain folder directly inside the adapters folder."""
    if ".." in folder.parts:
        raise AdapterRefusedError(
            f"The adapter path {folder} contains '..'; name a folder in {adapters_dir}."
        )
    root = adapters_dir.resolve()
    if not root.is_dir():
        # A volume that is not mounted says nothing about what lies on it.
        raise AdapterRefusedError(f"The adapters folder {root} is not there.")
    absolute = folder if folder.is_absolute() else root / folder
    if absolute.parent.resolve() != root:
        raise AdapterRefusedError(
            f"The adapter path {folder} is not a folder directly inside {adapters_dir}."
        )
    real = root / absolute.name
    try:
        mode = real.lstat().st_mode
    except FileNotFoundError as error:
        raise AdapterDamagedError("There is no adapter folder {folder}.", folder=str(real)) from error
    except OSError as error:
        raise AdapterRefusedError(f"The adapter folder {real} cannot be read: {error.strerror}.") from error
    if stat.S_ISLNK(mode):
        raise AdapterRefusedError(f"The adapter path {real} is a link; only real folders are loaded.")
    if not stat.S_ISDIR(mode):
        raise AdapterRefusedError(f"The adapter path {real} is not a folder.")
    return real


def _file_names(folder: Path) -> frozenset[str]:
    """List the folder; refuse everything that is not a plain file of an expected kind."""
    names = []
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise AdapterRefusedError(f"The adapter folder {folder} cannot be read: {error.strerror}.") from error
    for entry in entries:
        if entry.is_symlink() or not entry.is_file(follow_symlinks=False):
            raise AdapterRefusedError(f"Adapter {folder.name}: {entry.name} is not a plain file.")
        suffix = Path(entry.name).suffix.lower()
        if suffix in _PICKLES:
            raise AdapterRefusedError(
                f"Adapter {folder.name}: {entry.name} may hold pickled code; only safetensors are loaded."
            )
        if entry.name != WEIGHTS and suffix not in _TEXT_SUFFIXES:
            raise AdapterRefusedError(
                "Adapter {adapter}: unexpected file {file}.", adapter=folder.name, file=entry.name
            )
        names.append(entry.name)
    return frozenset(names)


def _read_manifest(folder: Path) -> Manifest:
    raw = _read_json(folder / MANIFEST)
    keys = ("format", "base_hash", "chat_template_hash", "files", "config", "extra")
    body = {key: raw.get(key) for key in keys}
    strings_ok = isinstance(body["base_hash"], str) and isinstance(body["chat_template_hash"], str)
    if not strings_ok or not all(isinstance(body[key], dict) for key in ("files", "config", "extra")):
        raise AdapterDamagedError("Adapter {adapter}: its manifest is incomplete.", adapter=folder.name)
    if body["format"] != FORMAT:
        raise AdapterRefusedError(
            f"Adapter {folder.name}: manifest format {body['format']!r} is not {FORMAT}."
        )
    if raw.get("id") != _identify(body) or folder.name != raw["id"]:
        raise AdapterDamagedError(
            "Adapter {adapter}: its name does not match its manifest; it was changed.", adapter=folder.name
        )
    return Manifest(
        adapter_id=raw["id"],
        folder=folder,
        base_hash=str(body["base_hash"]),
        chat_template_hash=str(body["chat_template_hash"]),
        files=body["files"] or {},
        config=body["config"] or {},
        extra=body["extra"] or {},
    )


def _check_files(folder: Path, names: frozenset[str], listed: Mapping[str, str]) -> None:
    if unlisted := names - {MANIFEST} - listed.keys():
        raise AdapterRefusedError(
            "Adapter {adapter}: {file} is not in its manifest.", adapter=folder.name, file=sorted(unlisted)[0]
        )
    if missing := listed.keys() - names:
        raise AdapterDamagedError(
            "Adapter {adapter}: {file} is missing.", adapter=folder.name, file=sorted(missing)[0]
        )
    for name, digest in listed.items():
        if _sha256(folder / name) != digest:
            raise AdapterDamagedError(
                "Adapter {adapter}: {file} does not have the hash in its manifest.",
                adapter=folder.name,
                file=name,
            )


def _identify(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "a" + hashlib.sha256(canonical.encode()).hexdigest()[:15]


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """Open a plain file for reading; an error of the machine, also in mid-file, is no proof of damage."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise AdapterDamagedError(f"The adapter file {path} is missing.") from error
    except OSError as error:
        raise AdapterRefusedError(f"The adapter file {path} cannot be read: {error.strerror}.") from error


def _sha256(path: Path) -> str:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_bytes(path: Path, limit: int) -> bytes:
    with _opened(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise AdapterRefusedError(f"The adapter file {path} is larger than {limit:,} bytes.")
        return file.read()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_bytes(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise AdapterDamagedError(f"The adapter file {path} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise AdapterDamagedError(f"The adapter file {path} does not hold a JSON object.")
    return value


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
