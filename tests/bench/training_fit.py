"""Which base can be trained on which card, and how: the table in `deploy/TRAINING.md`.

No card is needed: the figures are the trainer's own estimates, for shapes without memory. `python -m
tests.bench.training_fit` writes the table anew; a test holds the page against it, and each cell against a
count of live tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from bot.serving.engine.kv_cache import row_bytes
from bot.serving.model.memory import CONTEXT_BYTES, ENGINE_BYTES, ParameterCounts
from bot.serving.model.training_memory import FULLEST, Form, Widths
from storage.config_sections import ModelConfig, TrainerConfig
from tests.bench.shapes import SIZES, Size
from tests.fake_device import shaped_base
from trainer.errors import MemoryShortError
from trainer.training import fitting
from trainer.training.adapter import compute_dtype
from trainer.training.fitting import Task
from trainer.training.memory import widths_of

PAGE = Path(__file__).parents[2] / "deploy" / "TRAINING.md"
BEGIN, END = "<!-- fitting -->\n", "<!-- /fitting -->\n"
GIB = 1024**3
CARDS_GIB = (8, 12, 16, 24, 80)


@dataclass(frozen=True)
class Shaped:
    """What a size needs for itself: while it serves in 4 bits or in bfloat16, and while it is trained."""

    size: Size
    widths: Widths
    counts: ParameterCounts
    cache_bytes: int

    @classmethod
    def of(cls, size: Size) -> Shaped:
        """Measure a shape without memory."""
        model = shaped_base(size.config())
        counts = _counts(model)
        defaults = ModelConfig()
        row = row_bytes(model.config, defaults.context_tokens, compute_dtype(model))
        return cls(size, widths_of(model), counts, defaults.slots * row)

    def free_bytes(self, card_gib: int, situation: str) -> int:
        """Return what is left of a card for a training's own tensors."""
        taken = 2 * CONTEXT_BYTES + self.counts.cuda_bytes()
        weights = {
            "asleep": 0,
            "beside 4-bit": self.counts.cuda_bytes() + self.cache_bytes + ENGINE_BYTES,
            "beside bfloat16": 2 * (self.counts.linear + self.counts.other) + self.cache_bytes + ENGINE_BYTES,
        }
        return card_gib * GIB - taken - weights[situation]

    def task(self) -> Task:
        """Return the training that is to fit."""
        return Task(self.widths, FULLEST, TrainerConfig(), "cuda")


SITUATIONS = {
    "asleep": "the server sleeps",
    "beside 4-bit": "beside a 4-bit server",
    "beside bfloat16": "beside a bfloat16 server",
}


def cells() -> Iterator[tuple[Shaped, int, str, Form | None]]:
    """Yield each size, card, situation and the form that a training takes there, or None."""
    for size in SIZES:
        shaped = Shaped.of(size)
        for card in CARDS_GIB:
            for situation in SITUATIONS:
                try:
                    form = fitting.choose(shaped.task(), shaped.free_bytes(card, situation))
                except MemoryShortError:
                    form = None
                yield shaped, card, situation, form


def table() -> str:
    """Return the table in Markdown."""
    lines = [
        f"| base, 4-bit | card | {' | '.join(SITUATIONS.values())} |",
        f"|---|---|{'---|' * len(SITUATIONS)}",
    ]
    rows: dict[tuple[str, int], list[str]] = {}
    for shaped, card, situation, form in cells():
        rows.setdefault((shaped.size.name, card), []).append(_cell(shaped, card, situation, form))
    lines += [f"| {name} | {card} GB | {' | '.join(found)} |" for (name, card), found in rows.items()]
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page with the table as it is now."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


def _cell(shaped: Shaped, card: int, situation: str, form: Form | None) -> str:
    free = shaped.free_bytes(card, situation)
    if form is not None:
        how = ", recomputes" if form.recompute else ""
        needed = shaped.task().estimate_bytes(form)
        return f"{form.batch_tokens} tokens{how}: {needed / GIB:.1f} of {free / GIB:.1f}"
    smaller = fitting.smaller_settings(shaped.task(), free)
    if not smaller:
        return "no"
    return "only with " + ", ".join(f"`{key} = {value}`" for key, value in smaller.items())


def _counts(model: PreTrainedModel) -> ParameterCounts:
    head = model.get_output_embeddings()
    linears = [each for each in model.modules() if isinstance(each, nn.Linear) and each is not head]
    packed = sum(each.weight.numel() for each in linears)
    linear = sum(each.in_features * each.out_features for each in linears)
    return ParameterCounts(linear, sum(each.numel() for each in model.parameters()) - packed)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
