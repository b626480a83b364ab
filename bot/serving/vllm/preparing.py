"""What vLLM needs before it starts: a base in bfloat16, in 4 bits for the trainer, and its description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bot.serving.messages import Message
from bot.serving.model.chat_template import ChatTemplate, control_strings
from bot.serving.model.identity import BFLOAT16, NF4
from bot.serving.model.loading import read_info, resolve_device
from bot.serving.model.quantize import configured_source, prepare_plain, prepare_source
from bot.serving.protocol import BaseDescription
from bot.serving.settings import Settings


@dataclass(frozen=True, slots=True)
class PreparedBase:
    """A base on disk in both forms, and the names of the layers that an adapter changes."""

    weights: Path
    description: BaseDescription
    linear_layers: tuple[str, ...]


def prepare(
    settings: Settings, progress: Callable[[Message], None], *, in_4_bits: bool = False
) -> PreparedBase:
    """Prepare the configured base, in 4 bits or in bfloat16; blocks for minutes the first time.

    The hash is that of the 4-bit form, under which champions are kept; the precision says what multiplies.

    Raises:
        BaseRefusedError: it can't be had, or doesn't fit.
    """
    device = resolve_device(settings.device)
    source = configured_source(settings, device)
    folder = prepare_source(source, device=device, models_dir=settings.models_dir, progress=progress)
    weights = folder if in_4_bits else prepare_plain(source, folder, device=device, progress=progress)
    info = read_info(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    description = BaseDescription(
        id=info.id,
        source=info.source,
        hash=info.hash,
        chat_template_hash=info.chat_template_hash,
        folder=str(folder.resolve()),
        context_tokens=min(settings.context_tokens, info.context_tokens),
        device=device,
        execution="vllm",
        special_tokens=control_strings(tokenizer),
        capabilities=ChatTemplate(tokenizer).capabilities,
        identity=info.identity,
        precision=NF4 if in_4_bits else BFLOAT16,
        parameters=info.parameters,
    )
    return PreparedBase(weights, description, linear_layers(folder))


def linear_layers(folder: Path) -> tuple[str, ...]:
    """Return the last names of a base's linear layers, its output head left out."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    head = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear) and each is not head
    }
    return tuple(sorted(found))
