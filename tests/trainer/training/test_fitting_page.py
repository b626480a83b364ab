"""The table of what fits which card: the page shows it as it is now, and no cell needs more than it says."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from bot.serving.model.training_memory import ADAPTER_COPIES, FLOAT, FULLEST, Form
from tests.bench import training_fit
from tests.bench.shapes import SIZES, Size
from tests.bench.training_fit import Shaped
from tests.fake_device import fake_device, shaped_base
from trainer.data.encoding import Example, PreferenceExample
from trainer.training.adapter import add_adapter, recompute_activations
from trainer.training.terms import Dpo, backward_of


def test_the_page_shows_the_table_as_it_is_now() -> None:
    assert training_fit.PAGE.read_text(encoding="utf-8") == training_fit.page(), (
        "run python -m tests.bench.training_fit"
    )


def step_bytes(size: Size, form: Form, layers: int) -> int:
    """Return the peak of a step on pairs of the longest rows, counted on a fake device."""
    base = shaped_base(size.config(layers))
    with torch.device("meta"):
        model = add_adapter(base, training_fit.TrainerConfig())
    recompute_activations(base, form.recompute)
    model.train()
    half, count = FULLEST.longest // 2, form.batch_tokens // FULLEST.longest
    # Nothing in common: what several examples begin with lies in a row only once.
    sides = [Example((3 + n,) * half, half - 128) for n in range(2 * count)]
    pairs = [PreferenceExample(*sides[at : at + 2]) for at in range(0, 2 * count, 2)]
    weights = sum(each.numel() * FLOAT for each in model.parameters() if each.requires_grad)
    term = Dpo(pairs, 0.1, 0.3, form.batch_tokens)
    with fake_device(model, "cpu") as live:
        term._reference = torch.zeros(len(pairs), 2)
        before = live.now
        with contextlib.suppress(DataDependentOutputException):
            backward_of(model, [(term, tuple(range(len(pairs))))], 0)
        return live.peak - before + (ADAPTER_COPIES - 1) * weights


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_no_cell_needs_more_than_the_card_has_left(size: Size) -> None:
    shaped = Shaped.of(size)
    tightest: dict[Form, int] = {}
    for card in training_fit.CARDS_GIB:
        for situation in training_fit.SITUATIONS:
            free = shaped.free_bytes(card, situation)
            with contextlib.suppress(training_fit.MemoryShortError):
                form = training_fit.fitting.choose(shaped.task(), free)
                tightest[form] = min(free, tightest.get(form, free))
    forms = {form: free for form, free in tightest.items() if form.batch_tokens <= 2048}
    assert len(forms) >= 3
    for form, free in forms.items():
        # Everything grows by the same with each layer.
        few, more = (step_bytes(size, form, layers) for layers in (1, 2))
        assert few + (more - few) * (size.layers - 1) <= free
