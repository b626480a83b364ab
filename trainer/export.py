"""`python -m trainer.export --base FOLDER --adapter FOLDER --out FOLDER`: an adapter in another form.

Merged into its base, or with `--format gguf` as a file for llama.cpp. For merging, the base is held as it
serves and trains, 4-bit values unfolded to float32: the whole model answers as base and adapter did together.
Started by the command line, which has checked the adapter's files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from bot.serving.errors import AdapterRefusedError, BaseRefusedError
from bot.serving.model import adapter_files
from bot.serving.model.loading import LoadedBase, available_bytes, load_base, read_info
from bot.serving.model.lora.config import check_lora_config, pair_halves
from bot.serving.model.memory import format_gb
from trainer.lora_gguf import write_lora_gguf

GGUF_FILE = "adapter.gguf"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def merge(base: LoadedBase, adapter: Path) -> None:
    """Add an adapter to a base's own weights: W + scale * B A, for W of shape (out, in)."""
    config = json.loads((adapter / adapter_files.CONFIG).read_text(encoding="utf-8"))
    check_lora_config(adapter.name, config)
    rank = float(config["r"])
    scale = float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    pairs = pair_halves(adapter.name, load_file(adapter / adapter_files.WEIGHTS))
    with torch.no_grad():
        for module, (down, up) in pairs.items():
            weight = base.model.get_submodule(module).weight
            weight += scale * (up.float() @ down.float()).to(weight.device)


def write_merged(base_folder: Path, adapter: Path, out: Path, dtype: torch.dtype) -> None:
    """Write the whole model with its tokenizer. Raises BaseRefusedError where it doesn't fit into memory."""
    info = read_info(base_folder)
    needed, available = info.counts().dense_bytes(), available_bytes("cpu")
    if needed > available:
        raise BaseRefusedError(
            f"Merging into {info.id} needs {format_gb(needed)} of memory and {format_gb(available)} is "
            "available."
        )
    base = load_base(base_folder, "cpu", "serve", execution="dense")
    merge(base, adapter)
    model = base.model.to(dtype)
    model.config.dtype = dtype
    # The base's file held 4-bit values, and the way back to them is not wanted.
    model.save_pretrained(out, save_original_format=False)
    base.tokenizer.save_pretrained(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model or the file, and return the exit code; what went wrong is one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m trainer.export", description=__doc__)
    for name in ("--base", "--adapter", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--format", choices=("merged", "gguf"), default="merged")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.format == "gguf":
            base_config = json.loads((parsed.base / "config.json").read_text(encoding="utf-8"))
            write_lora_gguf(parsed.adapter, base_config, parsed.out / GGUF_FILE)
        else:
            write_merged(parsed.base, parsed.adapter, parsed.out, DTYPES[parsed.dtype])
    except (AdapterRefusedError, BaseRefusedError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The model can't be written to {parsed.out}: {error.strerror or error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
