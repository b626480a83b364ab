"""What every side works on: the same prompts and the same random adapter, as a real adapter folder."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bot.serving.model.adapter_files import CONFIG, WEIGHTS, write_manifest
from bot.serving.model.loading import BaseInfo

RANK = 16
ALPHA = 32
# Ordinary words in the vocabulary of the packaged base; smaller vocabularies are used as a whole.
FIRST_ID, LAST_ID = 1000, 20000
# The size of the up-projection's weights: an adapter that visibly changes replies, as a trained one does.
UP_SIZE = 0.02


def linear_widths(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the (in, out) widths of every linear layer but the head, by module name."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    head = model.get_output_embeddings()
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def vocabulary_size(folder: Path) -> int:
    """Return how many token ids the base's tokenizer has."""
    return len(AutoTokenizer.from_pretrained(folder))


def write_random_adapter(folder: Path, info: BaseInfo, adapters_dir: Path, *, seed: int) -> Path:
    """Write a rank-16 LoRA on all linear layers of the base in ``folder``; return its own folder.

    Random weights cost what trained ones cost. The folder carries a manifest, as the trainer writes it.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    widths = linear_widths(folder)
    for name, (width_in, width_out) in sorted(widths.items()):
        down = torch.randn(RANK, width_in, generator=generator) / math.sqrt(width_in)
        up = torch.randn(width_out, RANK, generator=generator) * UP_SIZE
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    work = adapters_dir / f"new-{seed}"
    work.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": sorted({name.rpartition(".")[2] for name in widths}),
        "bias": "none",
        "inference_mode": True,
    }
    (work / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, work / WEIGHTS)
    adapter_id = write_manifest(
        work, base_hash=info.hash, chat_template_hash=info.chat_template_hash, extra={"random": seed}
    )
    done = adapters_dir / adapter_id
    shutil.rmtree(done, ignore_errors=True)
    return work.rename(done)


def random_prompts(count: int, length: int, vocabulary: int, *, seed: int) -> list[list[int]]:
    """Return ``count`` prompts of ``length`` token ids that no earlier turn has seen: no prefix is reused."""
    low, high = (FIRST_ID, LAST_ID) if vocabulary > LAST_ID else (0, vocabulary)
    generator = torch.Generator().manual_seed(seed)
    prompts: list[list[int]] = torch.randint(low, high, (count, length), generator=generator).tolist()
    return prompts
