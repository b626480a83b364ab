"""What a check is made with: the device, the precision, and how much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """Sizes of the measurements. `stream_counts` are pairs of streams and of adapters among them."""

    device: str
    in_4_bits: bool
    stream_counts: tuple[tuple[int, int], ...] = ((1, 1), (8, 1), (8, 8), (32, 1), (32, 8))
    prompt_tokens: int = 256
    tokens: int = 96
    rows: int = 24
    row_tokens: int = 512
    completion_tokens: int = 128

    @property
    def precision(self) -> str:
        """How weights are held."""
        return "4-bit" if self.in_4_bits else "bfloat16"

    @property
    def on_gpu(self) -> bool:
        """Whether CUDA counts memory here."""
        return self.device.startswith("cuda")


def tiny(device: str, in_4_bits: bool) -> Setting:
    """Return the least that goes through every line, for a machine without a GPU."""
    return Setting(
        device,
        in_4_bits,
        stream_counts=((1, 1), (3, 2)),
        prompt_tokens=12,
        tokens=8,
        rows=4,
        row_tokens=24,
        completion_tokens=8,
    )
