"""Quantize a base once to NF4 and keep it under ``models/<key>/`` for every later start.

A base is written to a temporary folder, flushed, and renamed once, so that a kill never leaves half a base.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PretrainedConfig,
)

from bot.serving.errors import BaseRefusedError
from bot.serving.messages import Message
from bot.serving.model.catalogue import BUNDLED
from bot.serving.model.chat_template import ChatTemplate
from bot.serving.model.hub import download, find_downloaded
from bot.serving.model.loading import (
    FORMAT,
    INFO_FILE,
    QUANTIZATION,
    BaseInfo,
    available_bytes,
    hash_template,
    machine,
    read_info,
    write_info,
)
from bot.serving.model.memory import PIECE_BYTES, ParameterCounts, format_gb
from bot.serving.model.shapes import refuse_unsupported
from bot.serving.model.sources import (
    BaseSource,
    automatic,
    base_hash,
    content_hash,
    hash_sources,
    keep,
    remember,
    remembered,
    resolve,
)
from bot.serving.settings import Settings

log = structlog.get_logger(__name__)

Progress = Callable[[Message], None]

# bitsandbytes' CPU kernel packs 32 outputs at a time; a block of 64 inputs shares one scale.
OUTPUT_MULTIPLE = 32
INPUT_MULTIPLE = 64


def prepare_base(
    base: str, revision: str, *, device: str, models_dir: Path, progress: Progress = lambda _: None
) -> Path:
    """Return the folder of the 4-bit base of this name ("auto" is the bundled one), making it where needed.

    Raises:
        BaseUnreachableError: the base has to be downloaded and the hub does not answer.
        BaseRefusedError: the base does not exist, is not supported, or does not fit.
    """
    source = resolve(base, revision, automatic=BUNDLED)
    return prepare_source(source, device=device, models_dir=models_dir, progress=progress)


def configured_source(settings: Settings, device: str) -> BaseSource:
    """Return the base that the settings name; what "auto" takes is said, and kept for later starts.

    Raises:
        BaseRefusedError: they name nothing that exists here and is no hub id.
    """
    if settings.base != "auto":
        return resolve(settings.base, settings.revision, automatic=BUNDLED)
    there = machine(device)
    choice = automatic(there, settings.models_dir, playground=settings.playground)
    log.info("base.chosen", base=choice.entry.id, why=choice.why)
    if not settings.playground:
        keep(choice, there, settings.models_dir)
    return resolve(settings.base, settings.revision, automatic=choice.entry)


def has_to_be_downloaded(source: BaseSource, models_dir: Path) -> bool:
    """Whether nothing of a hub base is on this machine that it could be loaded from."""
    return (
        source.kind == "hub"
        and _find_prepared(source, models_dir) is None
        and find_downloaded(source) is None
    )


def prepare_source(source: BaseSource, *, device: str, models_dir: Path, progress: Progress) -> Path:
    """Return the 4-bit folder of a source, from the cache where it is there."""
    models_dir.mkdir(parents=True, exist_ok=True)
    if cached := find_prepared(source, models_dir):
        return cached
    if source.kind == "hub":
        source = download(source, room_bytes=available_bytes(device), progress=progress)
    progress(Message("Checking {model}.", model=source.id))
    sources = hash_sources(source)
    identity = base_hash(sources, QUANTIZATION, FORMAT)
    folder = models_dir / identity[:16]
    if not _is_whole(folder, sources):
        shutil.rmtree(folder, ignore_errors=True)
        progress(Message("Quantizing {model} to 4 bits (once).", model=source.id))
        with reading_gguf_once():
            _quantize(source, identity, content_hash(sources), folder, device)
    remember(source, sources, folder)
    return folder


def find_prepared(source: BaseSource, models_dir: Path) -> Path | None:
    """Return the folder of a source that was prepared before, None where it has to be made or looked for.

    A hub's base is found by its id and revision; files by their sizes and times, so that none is read whole.
    """
    if source.kind == "hub" and source.path is None:
        return _find_prepared(source, models_dir)
    for folder, sources in remembered(source, models_dir):
        if folder.name == base_hash(sources, QUANTIZATION, FORMAT)[:16] and _is_whole(folder, sources):
            return folder
    return None


def _is_whole(folder: Path, sources: dict[str, str]) -> bool:
    """Whether a prepared base is there in full; what an earlier version did not write is added."""
    if not folder.exists():
        return False
    try:
        _complete_info(folder, read_info(folder), sources)
    except BaseRefusedError:
        return False
    return True


def prepare_plain(source: BaseSource, prepared: Path, *, device: str, progress: Progress) -> Path:
    """Return a folder with the base in 16 bits, for engines that can't read its 4-bit form.

    A hub's or a folder's own files will do; a GGUF file is written out once, beside its ``prepared`` form.

    Raises BaseRefusedError where it does not fit into memory or cannot be written.
    """
    if source.kind == "hub":
        source = download(source, room_bytes=available_bytes(device), progress=progress)
    if source.kind != "gguf" and source.path is not None:
        return source.path
    folder = prepared.with_name(f"{prepared.name}-bfloat16")
    if folder.is_dir():
        return folder
    progress(Message("Writing {model} in 16 bits (once).", model=source.id))
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        done = work / "base"
        _load_plain(source, _read_config(source)).save_pretrained(done)
        _read_tokenizer(source).save_pretrained(done)
        _flush(done)
        done.rename(folder)
        _flush_folder(folder.parent)
    except OSError as error:
        raise BaseRefusedError(f"The 16-bit base cannot be written to {folder}: {error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _complete_info(folder: Path, info: BaseInfo, sources: dict[str, str]) -> None:
    """Add to a base that an earlier version prepared what that version did not write."""
    if not info.content:
        write_info(folder, dataclasses.replace(info, content=content_hash(sources)))


def _find_prepared(source: BaseSource, models_dir: Path) -> Path | None:
    """Find a prepared hub base by its id and revision, so that a start needs no network."""
    matches = []
    for info_file in models_dir.glob(f"*/{INFO_FILE}"):
        try:
            info = read_info(info_file.parent)
        except BaseRefusedError:
            continue
        if info.source == source.key() or (not source.revision and info.source.startswith(source.key())):
            matches.append(info_file)
    return max(matches, key=lambda file: file.stat().st_mtime_ns).parent if matches else None


def _quantize(source: BaseSource, identity: str, content: str, folder: Path, device: str) -> None:
    config = _read_config(source)
    counts = _check_architecture(source, config)
    on_gpu = device.startswith("cuda")
    # A GGUF file passes through a plain copy in main memory on any machine.
    streams = on_gpu and source.kind != "gguf"
    _require(source, counts.prepare_on_gpu_bytes() if streams else counts.prepare_bytes(), "cpu")
    if on_gpu:
        _require(source, counts.cuda_bytes(), device)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        tokenizer = _read_tokenizer(source)
        model = _load_in_4bit(source, config, work, device)
        done = work / "base"
        model.save_pretrained(done, max_shard_size=PIECE_BYTES if on_gpu else "50GB")
        tokenizer.save_pretrained(done)
        write_info(
            done,
            BaseInfo(
                id=source.id,
                source=source.key(),
                hash=identity,
                chat_template_hash=hash_template(tokenizer),
                model_type=str(config.model_type),
                context_tokens=int(config.max_position_embeddings),
                linear_parameters=counts.linear,
                other_parameters=counts.other,
                files={file.name: file.stat().st_size for file in sorted(done.iterdir())},
                content=content,
            ),
        )
        _flush(done)
        done.rename(folder)
        _flush_folder(folder.parent)
    except OSError as error:
        raise BaseRefusedError(f"The 4-bit base cannot be written to {folder}: {error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def reading_gguf_once() -> Iterator[None]:
    """Let transformers parse a GGUF file's header once, and list its names of tensors once.

    It does the first for the configuration, the tokenizer and the weights, 2 s each for a vocabulary of
    49,152, and the second for each of the model's modules.
    """
    import gguf

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        """Cuts its fields out of a plain view of the mapped file: a third of the time of a numpy.memmap's."""

        @property
        def data(self) -> np.ndarray[Any, Any]:
            return self._data

        @data.setter
        def data(self, mapped: np.ndarray[Any, Any]) -> None:
            self._data = mapped.view(np.ndarray)

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = map(functools.cache, (Reader, gguf.get_tensor_name_map))
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = before


def _require(source: BaseSource, needed: int, device: str) -> None:
    available = available_bytes(device)
    if needed > available:
        raise BaseRefusedError(
            f"Quantizing {source.id} needs {format_gb(needed)} of memory and {format_gb(available)} is "
            "available; choose a smaller [model] base or free memory."
        )


def _read_config(source: BaseSource) -> PretrainedConfig:
    place, options = _location(source)
    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise BaseRefusedError(f"The configuration of base {source.id} cannot be read: {error}") from error
    refuse_unsupported(source.id, config.to_dict())
    return config


def _read_tokenizer(source: BaseSource) -> Any:
    place, options = _location(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise BaseRefusedError(f"The tokenizer of base {source.id} cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise BaseRefusedError(f"The base {source.id} has no fast tokenizer (tokenizer.json).")
    try:
        ChatTemplate(tokenizer)
    except BaseRefusedError as error:
        raise BaseRefusedError(f"{source.id} can't chat. {error}") from error
    return tokenizer


def _location(source: BaseSource) -> tuple[Path, dict[str, str]]:
    if source.path is None:
        raise BaseRefusedError(f"The base {source.id} is not downloaded.")
    if source.kind == "gguf":
        return source.path.parent, {"gguf_file": source.path.name}
    return source.path, {}


def _check_architecture(source: BaseSource, config: PretrainedConfig) -> ParameterCounts:
    """Count the parameters on a model without memory; refuse widths that the 4-bit kernels cannot pack."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is head:
            continue
        if module.out_features % OUTPUT_MULTIPLE or module.in_features % INPUT_MULTIPLE:
            raise BaseRefusedError(
                f"The base {source.id} cannot be packed to 4 bits: {name} is {module.out_features} x "
                f"{module.in_features}, and widths must divide by {OUTPUT_MULTIPLE} x {INPUT_MULTIPLE}."
            )
        linear += module.weight.numel()
    return ParameterCounts(linear, sum(p.numel() for p in model.parameters()) - linear)


def _load_plain(source: BaseSource, config: PretrainedConfig) -> Any:
    """Load a GGUF file as a plain bfloat16 model."""
    place, options = _location(source)
    return AutoModelForCausalLM.from_pretrained(
        place,
        config=config,  # reading it again takes seconds: the reader parses the whole vocabulary
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        **options,
    )


def _load_in_4bit(source: BaseSource, config: PretrainedConfig, work: Path, device: str) -> Any:
    place, _ = _location(source)
    if source.kind == "gguf":
        # A GGUF file cannot be read and quantized in one step: it goes through a plain bfloat16 copy.
        plain = _load_plain(source, config)
        place = work / "plain"
        plain.save_pretrained(place)
        del plain
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=torch.bfloat16,
            device_map={"": device},
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            ),
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BaseRefusedError(f"The weights of base {source.id} cannot be read: {error}") from error
    if report["missing_keys"]:
        # transformers would fill these with random numbers and go on.
        raise BaseRefusedError(f"The base {source.id} lacks the weights {sorted(report['missing_keys'])[0]}.")
    return model


def _flush(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
