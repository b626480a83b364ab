"""The adapter that is measured, as the product exports it for llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

from trainer import lora_gguf
from trainer.lora_gguf import interleave_rotary

__all__ = ["interleave_rotary", "write_lora_gguf"]


def write_lora_gguf(adapter: Path, base: Path, target: Path) -> None:
    """Convert an adapter folder to a GGUF file at ``target``; ``base`` is the folder of its base."""
    lora_gguf.write_lora_gguf(adapter, json.loads((base / "config.json").read_text(encoding="utf-8")), target)
