"""The form in which a training fits the memory that is there: the fastest one that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import structlog

from bot.serving.model.training_memory import Estimate, Form, Load, Widths
from storage.config_sections import TrainerConfig
from storage.sentences import Figure, Sentence
from trainer.errors import MemoryShortError

# What needs torch is imported where it is used: sizes and sentences need no model library.
if TYPE_CHECKING:
    from trainer.training.checkpoints import Checkpointer

log = structlog.get_logger()

Claim = Callable[[Callable[[int], tuple[Form, int]]], Form]
"""Has a form chosen that fits beside the bytes that others will still take, and keeps its need free."""

# Tokens in one forward: more gains nothing on a CPU and costs memory in the output head.
BATCH_TOKENS_CPU = 768
BATCH_TOKENS_GPU = 8192
# Smaller than this, settings are not proposed: nothing useful would be learned.
LEAST_TOKENS = 128
LEAST_RANK = 4


@dataclass(frozen=True)
class Task:
    """A training that is to fit: the base's widths, what is to be learned, and with what.

    `exactly` forbids smaller forwards, which would round differently: a repeat gives the same bytes or none.
    """

    widths: Widths
    load: Load
    settings: TrainerConfig
    device: str
    exactly: bool = False

    def forms(self) -> Iterator[Form]:
        """Yield every form, the fastest first.

        Computing a layer again costs a third of a step, a smaller forward costs little while it fills the
        device: so all sizes come first without, then all with it. One row never goes through in pieces.
        """
        for recompute in (False, True):
            yield from (Form(tokens, recompute) for tokens in self._sizes())

    def estimate_bytes(self, form: Form) -> int:
        """Return the estimated peak beside the base."""
        return Estimate(self.widths, self.load, self.settings.rank, form, self.device).needed_bytes

    def _sizes(self) -> Iterator[int]:
        tokens = max(self._most(), self.load.longest, 1)
        yield tokens
        while not self.exactly and tokens > max(self.load.longest, LEAST_TOKENS):
            tokens = max(tokens // 2, self.load.longest, LEAST_TOKENS)
            yield tokens

    def _most(self) -> int:
        if self.settings.batch_tokens:
            return self.settings.batch_tokens
        if not self.device.startswith("cuda"):
            return BATCH_TOKENS_CPU
        # More than a step holds is never asked for, but by the references, which are scored all together.
        return BATCH_TOKENS_GPU if self.exactly else min(BATCH_TOKENS_GPU, self.load.step_tokens)


def choose(task: Task, available_bytes: int) -> Form:
    """Return the fastest form that fits.

    Raises:
        MemoryShortError: none does; with both figures, and the settings that would fit.
    """
    least = 0
    for form in task.forms():
        needed = task.estimate_bytes(form)
        if needed <= available_bytes:
            return form
        least = min(least or needed, needed)
    raise MemoryShortError(
        "Training needs about {needed} GB of memory beside the base and {available} GB is available; "
        "{advice}.",
        needed=Figure(least / 1e9, ".1f"),
        available=Figure(available_bytes / 1e9, ".1f"),
        advice=_advice(task, available_bytes),
    )


def alone(choose_beside: Callable[[int], tuple[Form, int]]) -> Form:
    """Choose the form where nobody else trains: a Claim."""
    return choose_beside(0)[0]


def choose_beside(task: Task, checkpointer: Checkpointer, taken: int) -> tuple[Form, int]:
    """Choose the form by what is free, but for `taken` bytes; return it with what it needs.

    A training that goes on keeps the size of its forwards. Only where that doesn't fit though nobody else
    takes anything, it starts again with another.

    Raises MemoryShortError.
    """
    from trainer.training import gpu, ranks

    room = gpu.room(task.device, task.settings.gpu_memory_share)
    available = max(min(ranks.everyone(room)) - taken, 0)
    form = None
    if begun_with := checkpointer.state.get("batch_tokens"):
        settings = task.settings.model_copy(update={"batch_tokens": begun_with})
        try:
            form = choose(replace(task, settings=settings, exactly=True), available)
        except MemoryShortError:
            if taken:
                raise
            log.warning("the training starts again: its forwards don't fit any more", tokens=begun_with)
            checkpointer.forget()
    form = form or choose(task, available)
    checkpointer.state["batch_tokens"] = form.batch_tokens
    needed = task.estimate_bytes(form)
    log.info("training.fits", **asdict(form), needed=needed, available=available)
    return form, needed


def smaller_settings(task: Task, available_bytes: int) -> dict[str, int]:
    """Return settings that would fit, the mildest first: shorter rows, then a smaller adapter.

    Empty where nothing reasonable would.
    """
    found: dict[str, int] = {}
    while True:
        if any(task.estimate_bytes(form) <= available_bytes for form in task.forms()):
            return found
        length = found.get("max_length", min(task.settings.max_length, task.load.longest))
        if length > LEAST_TOKENS:
            found["max_length"] = max(LEAST_TOKENS, length // 2)
            # A pair goes through together and is longer than a row may be.
            cut = task.load.longest * found["max_length"] // length
            task = replace(task, load=task.load.limit_length(cut))
        elif task.settings.rank > LEAST_RANK:
            found["rank"] = max(LEAST_RANK, task.settings.rank // 2)
            task = replace(task, settings=task.settings.model_copy(update={"rank": found["rank"]}))
        else:
            return {}


def _advice(task: Task, available_bytes: int) -> Sentence:
    found = smaller_settings(replace(task, exactly=False), available_bytes)
    if task.exactly:
        return Sentence("free memory")
    if not found:
        return Sentence("choose a smaller [model] base or free memory")
    return Sentence("set {settings}, or free memory", settings=_listed(found))


def _listed(found: Mapping[str, int]) -> Sentence:
    """Return settings with "and" between them."""
    first, *others = (Sentence(f"trainer.{key} = {value}") for key, value in found.items())
    for setting in others:
        first = Sentence("{before} and {setting}", before=first, setting=setting)
    return first
