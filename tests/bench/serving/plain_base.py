"""Write the 4-bit base as a plain bfloat16 model folder, for servers that cannot read the 4-bit form."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from bot.serving.model.loading import load_base


def write_plain_base(folder: Path, target: Path) -> None:
    """Write the base's NF4 values, unfolded, to ``target`` as Hugging Face names and types; once."""
    if target.exists():
        return
    base = load_base(folder, "cpu", "train", execution="dense")
    work = target.with_name(f"{target.name}.new-{os.getpid()}")
    work.mkdir(parents=True)
    base.model.config.dtype = torch.bfloat16
    base.model.config.save_pretrained(work)
    base.tokenizer.save_pretrained(work)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in base.model.state_dict().items()}
    if base.model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
    work.rename(target)
