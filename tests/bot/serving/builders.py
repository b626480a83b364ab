"""Adapter folders and jobs for the serving tests."""

import json
import queue
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bot.serving.engine.engine import Engine
from bot.serving.engine.events import Event, Failed, Finished, JobOptions, TextPiece
from bot.serving.engine.lora import Adapter
from bot.serving.engine.request import Job
from bot.serving.errors import ServingError
from bot.serving.model.adapter_files import write_manifest
from bot.serving.model.loading import LoadedBase

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def lora_config(rank: int = 4, alpha: float = 8, **changes: Any) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(TARGETS),
        "bias": "none",
        **changes,
    }


def lora_tensors(
    widths: Mapping[str, tuple[int, int]], *, rank: int = 4, seed: int = 1, size: float = 0.3
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (width_in, width_out) in sorted(widths.items()):
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(rank, width_in, generator=generator) * size
        tensors[f"{key}.lora_B.weight"] = torch.randn(width_out, rank, generator=generator) * size
    return tensors


def write_adapter(
    adapters_dir: Path,
    *,
    base_hash: str,
    chat_template_hash: str,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any] | None = None,
) -> Path:
    """Write, as the trainer does: a work folder, the manifest, one rename to ``adapters/<id>``."""
    work = adapters_dir.parent / "work-adapter"
    work.mkdir(parents=True)
    (work / "adapter_config.json").write_text(json.dumps(config or lora_config()))
    save_file(tensors, work / "adapter_model.safetensors")
    adapter_id = write_manifest(work, base_hash=base_hash, chat_template_hash=chat_template_hash, extra={})
    adapters_dir.mkdir(parents=True, exist_ok=True)
    return work.rename(adapters_dir / adapter_id)


def memory_adapter(
    name: str, widths: Mapping[str, tuple[int, int]], *, seed: int, scale: float = 2.0
) -> Adapter:
    """An adapter that never saw a disk."""
    tensors = lora_tensors(widths, seed=seed)
    return Adapter(
        name,
        {
            module: (
                tensors[f"base_model.model.{module}.lora_A.weight"].t().contiguous(),
                (tensors[f"base_model.model.{module}.lora_B.weight"].t() * scale).contiguous(),
            )
            for module in widths
        },
        rank=4,
    )


class Caller:
    """Submits jobs to an engine and collects their events."""

    def __init__(self, engine: Engine, base: LoadedBase) -> None:
        self.engine = engine
        self.base = base

    def submit(
        self, prompt: str | Sequence[int], adapter: str | None = None, **options: Any
    ) -> tuple[Job, "queue.Queue[Event]"]:
        events: queue.Queue[Event] = queue.Queue()
        ids = self.base.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        pinned = self.engine.loaded_adapters.pin(adapter) if adapter else None
        job = Job(ids, JobOptions(**options), sink=events.put, tokenizer=self.base.tokenizer, adapter=pinned)
        try:
            self.engine.submit(job)
        except ServingError:
            if pinned is not None:
                self.engine.loaded_adapters.unpin(pinned)
            raise
        return job, events

    def run(self, prompt: str | Sequence[int], adapter: str | None = None, **options: Any) -> Finished:
        _, end = drain(self.submit(prompt, adapter, **options)[1])
        assert isinstance(end, Finished)
        return end


def drain(events: "queue.Queue[Event]", timeout_s: float = 60.0) -> tuple[str, Finished | Failed]:
    """Return the text and the terminal event; fails the test where none comes in time."""
    pieces = []
    while True:
        event = events.get(timeout=timeout_s)
        if isinstance(event, TextPiece):
            pieces.append(event.text)
        else:
            return "".join(pieces), event
