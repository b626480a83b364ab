"""What a run measures with: the base, its adapters, the sizes of a profile, and where files go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bot.serving.engine.engine import EngineOptions
from bot.serving.model.loading import BaseInfo

Say = Callable[[str], None]
OTHERS = ("generate", "llama.cpp", "vllm")


@dataclass(frozen=True, slots=True)
class Profile:
    """How much is measured. Tokens are for each stream; the last streams of a batch begin late.

    ``as_loaded_streams`` are the numbers of streams at which ``generate`` also runs on the 4-bit weights as
    transformers loads them, which is several times slower than unfolded where there is no fast CPU kernel.
    ``beside`` are the systems beside which decoding is measured. Without ``replies`` only answers to one
    question are scored. ``waits`` are turns of a first word with a prompt of ``first_word_tokens``;
    ``training_load`` is a size of `tests.bench.training_speed`, ``ratings`` that of the database whose
    queries are measured.
    """

    name: str
    streams: tuple[int, ...]
    pairs: int
    prompt_tokens: int
    tokens: int
    swaps: int
    replies: int
    training_phases: int
    phase_s: float
    as_loaded_streams: tuple[int, ...]
    beside: tuple[str, ...] = OTHERS
    most_tokens: int | None = None
    waits: int = 3
    first_word_tokens: int = 1000
    training_load: Literal["quick", "full"] = "quick"
    ratings: int = 1_000_000

    def tokens_for(self, streams: int) -> int:
        """Return how many tokens each stream writes: enough for all to write at once for ``tokens`` steps.

        The last stream's prompt is read after all others', in pieces of the least size where a token costs
        much beside a row; elsewhere ``most_tokens`` saves time.
        """
        pieces = -(-self.prompt_tokens // EngineOptions().least_chunk_tokens)
        needed = self.tokens + (streams - 1) * pieces
        return min(needed, self.most_tokens or needed)


QUICK = Profile(
    name="quick",
    streams=(1, 4),
    pairs=2,
    prompt_tokens=256,
    tokens=16,
    swaps=3,
    replies=16,
    training_phases=1,
    phase_s=12.0,
    as_loaded_streams=(),
)
FULL = Profile(
    name="full",
    streams=(1, 4, 8, 16),
    pairs=3,
    prompt_tokens=256,
    tokens=48,
    swaps=10,
    replies=200,
    training_phases=4,
    phase_s=20.0,
    as_loaded_streams=(1, 4),
    waits=5,
    training_load="full",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """The base in ``folder``, two adapters for it, and the folder of the peers' environments."""

    folder: Path
    info: BaseInfo
    device: str
    threads: int
    adapters_dir: Path
    adapters: tuple[Path, Path]
    vocabulary: int
    peers_dir: Path
    profile: Profile
    say: Say

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU does the work, so that processor time says nothing."""
        return self.device.startswith("cuda")
