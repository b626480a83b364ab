"""Writing an adapter: PEFT's layout, hashed, and renamed once to its final place."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from bot.serving.model import adapter_files
from bot.serving.model.loading import LoadedBase
from storage.learning import unregistered_adapters
from trainer.data.snapshot import Snapshot
from trainer.errors import RunCancelledError
from trainer.training import ranks

CARD = "card.json"
CARD_TEXT = "card.md"


def save(
    model: PeftModel,
    base: LoadedBase,
    card: dict[str, Any] | None,
    *,
    snapshot: Snapshot,
    work: Path,
    adapters_dir: Path,
) -> tuple[str, Path]:
    """Write the adapter in PEFT's layout, hash it and rename it once to its final place; the first rank does.

    One that only serves while it is trained has no card. Before the adapter is renamed its id is noted in the
    run's folder: what a killed run leaves behind is found there (`storage.learning.unregistered_adapters`).
    Never through `state_dict()` or `save_pretrained`: on some CPUs that unpacks and damages a 4-bit base.
    """
    saved = None
    if ranks.is_first():
        saved = _save(model, base, card, snapshot=snapshot, work=work, adapters_dir=adapters_dir)
    return cast(tuple[str, Path], ranks.broadcast_first(saved))


def _save(
    model: PeftModel,
    base: LoadedBase,
    card: dict[str, Any] | None,
    *,
    snapshot: Snapshot,
    work: Path,
    adapters_dir: Path,
) -> tuple[str, Path]:
    return _write(
        adapter_tensors(model),
        _config_json(model, base.info.id),
        card,
        manifest={
            "base_hash": base.info.hash,
            "chat_template_hash": base.info.chat_template_hash,
            "extra": {"rehearsal": snapshot.rehearsal, "snapshot": snapshot.content_hash},
        },
        work=work,
        adapters_dir=adapters_dir,
    )


def rescale(folder: Path, scale: float, *, work: Path, adapters_dir: Path) -> tuple[str, Path]:
    """Write a trained adapter once more with its B matrices times `scale`, which its card then says.

    Raises RunCancelledError.
    """
    manifest, config, card = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in (adapter_files.MANIFEST, adapter_files.CONFIG, CARD)
    )
    tensors = {
        name: tensor * scale if ".lora_B." in name else tensor
        for name, tensor in load_file(folder / adapter_files.WEIGHTS).items()
    }
    return _write(
        tensors,
        config,
        card | {"scale": scale},
        manifest={key: manifest[key] for key in ("base_hash", "chat_template_hash", "extra")},
        work=work,
        adapters_dir=adapters_dir,
    )


def _write(
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    card: Mapping[str, Any] | None,
    *,
    manifest: Mapping[str, Any],
    work: Path,
    adapters_dir: Path,
) -> tuple[str, Path]:
    written = work / "adapter"
    shutil.rmtree(written, ignore_errors=True)
    try:
        written.mkdir(mode=0o700)
    except FileNotFoundError as error:
        raise RunCancelledError("The run's folder was removed, as by an erasure.") from error
    save_file(dict(tensors), written / adapter_files.WEIGHTS, metadata={"format": "pt"})
    (written / adapter_files.CONFIG).write_text(
        json.dumps(config, indent=2, sort_keys=True), encoding="utf-8"
    )
    if card is not None:
        (written / CARD).write_text(json.dumps(card, indent=2, sort_keys=True), encoding="utf-8")
        (written / CARD_TEXT).write_text(card_text(card), encoding="utf-8")
    adapter_id = adapter_files.write_manifest(written, **manifest)
    unregistered_adapters.note(work, adapter_id)
    return adapter_id, move(written, adapters_dir / adapter_id)


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the adapter's weights by PEFT's names, without the adapter's own name in them."""
    return {
        name.replace(".default.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def card_text(card: Mapping[str, Any]) -> str:
    """Return the card for people."""
    origin = "simulated or playground members (a rehearsal)" if card["rehearsal"] else "a community's members"
    lines = [
        f"# A LoRA adapter for {card['base']}",
        "",
        f"Trained by Strop on the ratings of {origin}: "
        f"{card['supervised_examples']} liked or corrected replies"
        + (f", then {card['kto_examples']} rated ones" if card["kto_examples"] else "")
        + (f", then {card['dpo_pairs']} preference pairs" if card["dpo_pairs"] else "")
        + (
            f", then its own replies, ranked, in {card['ranked_rounds']} rounds"
            if card["ranked_rounds"]
            else ""
        )
        + f", by {card['raters']} raters.",
        "",
        f"- objective: {card['objective']}",
        f"- base hash: {card['base_hash']}",
        f"- dataset snapshot: {card['snapshot']}",
        *(f"- {name}: {value}" for name, value in sorted(card["settings"].items())),
        *([f"- scale: {card['scale']}"] if "scale" in card else []),
        "",
        "It carries the habits of the community that rated it, and the limits of its base.",
        "",
    ]
    return "\n".join(lines)


def _config_json(model: PeftModel, base_id: str) -> dict[str, Any]:
    """Return PEFT's configuration without this machine's paths and in an order that never changes."""
    config = replace(
        model.peft_config["default"], base_model_name_or_path=base_id, inference_mode=True
    ).to_dict()
    return {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in config.items()
    }


def _copied_beside(partial: Path, final: Path) -> Path:
    """Copy an adapter into the folder of adapters, under nobody's name; what a kill left is replaced."""
    beside = final.with_name(f".{final.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(partial, beside)
    for file in beside.iterdir():
        with file.open("rb+") as copied:
            os.fsync(copied.fileno())
    return beside


def move(partial: Path, final: Path) -> Path:
    """Rename once; an adapter that is there already has the same bytes, for its name is their hash.

    Where the adapters lie on another file system, as on storage that is shared, it is copied there first.
    """
    final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(PermissionError):  # a mounted folder may be the system's
        final.parent.chmod(0o700)  # also where an older version made it
    if final.exists():
        shutil.rmtree(partial)
        return final
    try:
        partial.rename(final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copied_beside(partial, final).rename(final)
        shutil.rmtree(partial)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return final
