"""The device that a training runs on: which one, how much of its memory, and what repeats there."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from bot.serving.gpu_claim import card_to_itself
from bot.serving.model.loading import available_bytes
from storage.config import Config
from storage.config_sections import ModelConfig, TrainerConfig

# cuBLAS adds in a fixed order only with a workspace of its own:
# https://docs.nvidia.com/cuda/cublas/#results-reproducibility
CUBLAS_WORKSPACE = ":4096:8"


def device_for(trainer: TrainerConfig, model: ModelConfig) -> str:
    """Return the device as the configuration names it: the trainer's own, else the server's."""
    return model.device if trainer.device == "auto" else trainer.device


def own_card(config: Config, on_wait: Callable[[], None]) -> AbstractContextManager[bool]:
    """Have this machine's server give its GPU up for a training, where that is configured.

    The context says whether it did, and so can't say what the model has become; `on_wait` is called while it
    ends, and may raise.
    """
    if not config.trainer.server_sleeps or config.server.base_url:
        return nullcontext(False)
    return card_to_itself(config.run, on_wait)


def give_back_memory() -> None:
    """Free what is no longer used, also on a GPU, where torch would keep it for itself."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compute_in_fixed_order() -> None:
    """Ask for sums in a fixed order on a GPU, where they otherwise end in whatever order threads finish.

    Only warns where an operation has no such form. To be called before anything is computed.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling memory before it is written costs time and shows no difference here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def claim(device: str, share: float) -> None:
    """Keep this process within its share of a GPU's memory: it fails before a server beside it does."""
    if device.startswith("cuda"):
        torch.cuda.set_per_process_memory_fraction(share, torch.device(device))


def room(device: str, share: float) -> int:
    """Return how many bytes a training may take beside what this process holds there."""
    free = available_bytes(device)
    if not device.startswith("cuda"):
        return free
    total = torch.cuda.mem_get_info(torch.device(device))[1]
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(free + unused, int(share * total) - torch.cuda.memory_allocated(device))
