"""An adapter that was trained elsewhere: its folder checked, and brought into our own layout (torch-free).

Read are only `adapter_config.json` and the header of `adapter_model.safetensors`; everything that trainers
leave beside them (checkpoints, tokenizers, arguments) is named and left where it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.serving.errors import AdapterRefusedError
from bot.serving.model.adapter_files import CONFIG, MAX_JSON_BYTES, MAX_WEIGHTS_BYTES, WEIGHTS, write_manifest
from bot.serving.model.lora.config import check_lora_config, check_lora_pair, pair_halves

CARD = "card.json"
CARD_TEXT = "card.md"
PICKLED = "adapter_model.bin"
FLOATS = frozenset(("F64", "F32", "F16", "BF16"))
# bitsandbytes keeps the shape of a packed 4-bit weight in a tensor of its own, as JSON.
_PACKED = ".weight.quant_state.bitsandbytes__nf4"
_HEADER_BYTES = 64 * 1024 * 1024
# Under these endings hubs and trainers keep the same weights in other precisions.
_PRECISION = re.compile(r"(?:-unsloth|-bnb-4bit|-gguf|-awq|-gptq|[.-]q\d\w{0,8})$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ForeignAdapter:
    """A folder whose configuration can be served.

    ``pairs`` maps each module to the shapes of its two halves, ``ignored`` names what lies beside.
    """

    folder: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    ignored: tuple[str, ...]

    @property
    def base_name(self) -> str:
        """What it says that it was trained for; may be empty."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def rank(self) -> int:
        """Its rank."""
        return int(self.config["r"])


def read_foreign(folder: Path) -> ForeignAdapter:
    """Read a folder as PEFT, unsloth, axolotl or TRL leave it.

    Raises:
        AdapterRefusedError: it holds no adapter, a pickled one, or one that the engine can't serve; by name.
    """
    names = _names(folder)
    if CONFIG not in names:
        inner = sorted(name for name in names if (folder / name / CONFIG).is_file())
        hint = f" There is one in {folder / inner[-1]}." if inner else ""
        raise AdapterRefusedError(f"{folder} has no {CONFIG}: it is no PEFT adapter.{hint}")
    if WEIGHTS not in names:
        if PICKLED in names:
            raise AdapterRefusedError(
                f"{folder / PICKLED} may hold pickled code and is never loaded: "
                "save the adapter as safetensors."
            )
        raise AdapterRefusedError(f"{folder} has no {WEIGHTS}.")
    name = folder.name
    config = _read_config(folder / CONFIG)
    check_lora_config(name, config)
    tensors, _ = read_header(folder / WEIGHTS)
    for key, tensor in tensors.items():
        if tensor["dtype"] not in FLOATS:
            raise AdapterRefusedError(f"Adapter {name}: {key} is of type {tensor['dtype']}, not a float.")
    shapes = {key: tuple(tensor["shape"]) for key, tensor in tensors.items()}
    return ForeignAdapter(
        folder,
        config,
        pair_halves(name, shapes),
        tuple(sorted(names - {CONFIG, WEIGHTS})),
    )


def check_fits(adapter: ForeignAdapter, widths: Mapping[str, tuple[int, int]]) -> None:
    """Check every shape against the base's (in, out) widths. Raises AdapterRefusedError."""
    for module, (down, up) in adapter.pairs.items():
        check_lora_pair(adapter.folder.name, module, down, up, adapter.rank, widths)


def check_base(adapter: ForeignAdapter, served: Iterable[str]) -> None:
    """Check that the base it names is one of the names of the base that serves; no name is no contradiction.

    Raises:
        AdapterRefusedError: it names another one.
    """
    known = [name for name in served if name]
    if adapter.base_name and _plain(adapter.base_name) not in map(_plain, known):
        raise AdapterRefusedError(
            f"Adapter {adapter.folder.name} says that it was trained for {adapter.base_name}, and "
            f"{known[0]} is served. If that is the same model under another name, say so with --same-base."
        )


def has_other_template(adapter: ForeignAdapter, chat_template_hash: str) -> bool:
    """Whether a chat template lies beside it that isn't the base's."""
    template = _template(adapter.folder)
    return template is not None and hashlib.sha256(template.encode()).hexdigest() != chat_template_hash


def base_widths(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the (in, out) widths of every linear layer of a prepared base by module name.

    Raises:
        AdapterRefusedError: the folder isn't one of a base in 4 bits.
    """
    widths: dict[str, tuple[int, int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors, start = read_header(file)
        with file.open("rb") as opened:
            for key, tensor in tensors.items():
                if key.endswith(_PACKED):
                    begin, end = tensor["data_offsets"]
                    opened.seek(start + begin)
                    width_out, width_in = json.loads(opened.read(end - begin))["shape"]
                    widths[key.removesuffix(_PACKED)] = (width_in, width_out)
    if not widths:
        raise AdapterRefusedError(f"{folder} holds no base in 4 bits to compare with.")
    return widths


def bring_in(
    adapter: ForeignAdapter,
    adapters_dir: Path,
    work: Path,
    *,
    base_id: str,
    base_hash: str,
    chat_template_hash: str,
) -> str:
    """Copy an adapter into the immutable layout through the empty folder `work`; return its id.

    The same adapter for the same base has the same id, whatever lay beside it.

    Raises AdapterRefusedError where the files changed meanwhile.
    """
    shutil.copyfile(adapter.folder / WEIGHTS, work / WEIGHTS)
    # What was checked is what is written: the file may change meanwhile, and names paths of another machine.
    config = {**adapter.config, "base_model_name_or_path": base_id, "inference_mode": True}
    (work / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    card = _card(adapter, base_id, base_hash)
    (work / CARD).write_text(json.dumps(card, indent=2, sort_keys=True), encoding="utf-8")
    (work / CARD_TEXT).write_text(_card_text(card), encoding="utf-8")
    if {key: tuple(each["shape"]) for key, each in read_header(work / WEIGHTS)[0].items()} != _shapes(
        adapter
    ):
        raise AdapterRefusedError(f"{adapter.folder / WEIGHTS} changed while it was read: import it again.")
    adapter_id = write_manifest(
        work, base_hash=base_hash, chat_template_hash=chat_template_hash, extra={"imported": True}
    )
    final = adapters_dir / adapter_id
    if not final.exists():
        work.rename(final)
    return adapter_id


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return what a safetensors file holds, by name, and where its data begin.

    The format: https://huggingface.co/docs/safetensors/index#format

    Raises:
        AdapterRefusedError: it isn't one, or it is cut off.
    """
    wrong = AdapterRefusedError(f"{path} is not a valid safetensors file.")
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES and path.name == WEIGHTS:
        raise AdapterRefusedError(f"{path} is larger than {MAX_WEIGHTS_BYTES:,} bytes.")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_HEADER_BYTES, size - 8):
            raise wrong
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((int(each["data_offsets"][1]) for each in header.values()), default=0)
            shapes = [
                (str(each["dtype"]), [int(width) for width in each["shape"]]) for each in header.values()
            ]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise wrong from error
    if 8 + length + end != size or len(shapes) != len(header):
        raise wrong
    return header, 8 + length


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise AdapterRefusedError(f"The folder {folder} cannot be read: {error.strerror}.") from error


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise AdapterRefusedError(f"{path} is larger than {MAX_JSON_BYTES:,} bytes.")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AdapterRefusedError(f"{path} is not valid JSON.") from error
    if not isinstance(config, dict):
        raise AdapterRefusedError(f"{path} does not hold a JSON object.")
    return config


def _template(folder: Path) -> str | None:
    """Return the chat template as transformers saves it: in a file of its own or with the tokenizer."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, ValueError):
        pass
    try:
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get(
            "chat_template"
        )
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _shapes(adapter: ForeignAdapter) -> dict[str, tuple[int, ...]]:
    return {
        f"base_model.model.{module}.lora_{half}.weight": shape
        for module, pair in adapter.pairs.items()
        for half, shape in zip("AB", pair, strict=True)
    }


def _plain(name: str) -> str:
    """Return the last part of a model's name or path, without the precision that it is kept in."""
    plain = re.split(r"[/\\]", name.rstrip("/\\"))[-1].split("@")[0]
    while ending := _PRECISION.search(plain):
        plain = plain[: ending.start()]
    return plain.lower()


def _card(adapter: ForeignAdapter, base_id: str, base_hash: str) -> dict[str, Any]:
    settings = {"rank": adapter.rank, "alpha": adapter.config["lora_alpha"]}
    return {
        "base": base_id,
        "base_hash": base_hash,
        "trained_for": adapter.base_name,
        "objective": "imported",
        "settings": settings,
    }


def _card_text(card: Mapping[str, Any]) -> str:
    settings = card["settings"]
    return (
        f"# A LoRA adapter for {card['base']}\n\nTrained elsewhere and imported: what it learned from is not "
        f"known here.\n\n- rank: {settings['rank']}\n- alpha: {settings['alpha']}\n"
        f"- base hash: {card['base_hash']}\n"
    )
