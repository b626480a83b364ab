"""What a training will need, held against a count of every live tensor of a step, without any memory."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
)

from bot.serving.model.loading import LoadedBase
from bot.serving.model.training_memory import ADAPTER_COPIES, FLOAT, Estimate, Form, Load
from storage.config_sections import TrainerConfig
from tests.fake_device import fake_device, shaped_base
from trainer.data.encoding import Example
from trainer.training.adapter import add_adapter, recompute_activations
from trainer.training.memory import load_of, widths_of
from trainer.training.terms import BaseLogits, Replay, Supervised, Term, backward_of

SETTINGS = TrainerConfig()
WIDE = {
    "vocab_size": 100_000,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
}
# Qwen3-4B and 8B by their published widths, with a few of their 36 layers: all grows with the layers alike.
QWEN_4B = Qwen3Config(
    **{**WIDE, "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728},
    tie_word_embeddings=True,
)
QWEN_8B = Qwen3Config(
    **{**WIDE, "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12288},
    tie_word_embeddings=False,
)


def counted(
    config: PretrainedConfig, form: Form, predicted: int, *, replay: bool = False, shared: int | None = None
) -> tuple[int, Estimate]:
    """Return the peak of a step on a fake device, the optimiser's moments included, and its estimate."""
    base = shaped_base(config)
    widths = widths_of(base)
    with torch.device("meta"):
        model = add_adapter(base, SETTINGS)
    recompute_activations(base, form.recompute)
    model.train()
    count = form.batch_tokens // 512
    # A single row is the worst case: of several, one after the other goes through the loss.
    rows = [Example((3,) * 512 * count, (512 - predicted) * count)]
    if shared is not None:
        own = 512 - shared
        rows = [Example((*range(shared), *(3 + n,) * own), 512 - predicted) for n in range(count)]
    weights = sum(each.numel() * FLOAT for each in model.parameters() if each.requires_grad)
    with fake_device(model, "cpu") as live:
        before = live.now
        term: Term = Supervised(rows, form.batch_tokens)
        if replay:
            term = Replay(BaseLogits(rows), 0.3, form.batch_tokens)
            term._base = [
                torch.empty(each.completion_length, widths.vocabulary, dtype=torch.bfloat16) for each in rows
            ]
        # The loss is differentiated before its number is asked for, which a fake tensor has not.
        with contextlib.suppress(DataDependentOutputException):
            backward_of(model, [(term, tuple(range(len(rows))))], 0)
        # Gradients are in the count, weights were there before it, moments come with the first step.
        peak = live.peak - before + (ADAPTER_COPIES - 1) * weights
    measured = tuple((len(each.ids), each.completion_length) for each in rows)
    load = Load(() if replay else measured, measured if replay else (), form.batch_tokens)
    return peak, Estimate(widths, load, SETTINGS.rank, form, "cuda")


@pytest.mark.parametrize("predicted", [16, 256])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("config", [QWEN_4B, QWEN_8B], ids=["4B", "8B"])
def test_the_estimate_is_what_is_counted_or_up_to_a_fifth_more(
    config: PretrainedConfig, recompute: bool, predicted: int
) -> None:
    peak, estimate = counted(config, Form(1024, recompute), predicted)
    assert peak <= estimate.needed_bytes
    assert estimate.live_bytes <= 1.2 * peak


@pytest.mark.parametrize("shared", [8, 400])
def test_rows_that_begin_alike_need_what_others_do(shared: int) -> None:
    alike, estimate = counted(QWEN_4B, Form(1024), 64, shared=shared)
    apart, _ = counted(QWEN_4B, Form(1024), 64, shared=0)
    assert alike <= 1.05 * apart
    assert alike <= estimate.needed_bytes


@pytest.mark.parametrize("recompute", [False, True])
def test_replay_whose_loss_is_a_divergence_is_counted_with_its_distributions(recompute: bool) -> None:
    peak, estimate = counted(QWEN_4B, Form(1024, recompute), 64, replay=True)
    assert peak <= estimate.needed_bytes
    assert estimate.live_bytes <= 1.2 * peak


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(**WIDE), Gemma3TextConfig(**WIDE), Olmo2Config(**WIDE), Phi3Config(**WIDE)],
    ids=lambda config: config.model_type,
)
def test_other_architectures_are_estimated_as_closely(config: PretrainedConfig) -> None:
    for recompute in (False, True):
        peak, estimate = counted(config, Form(1024, recompute), 64)
        assert peak <= estimate.needed_bytes
        assert estimate.live_bytes <= 1.2 * peak


def test_a_layer_whose_scores_are_bent_keeps_them() -> None:
    bent = widths_of(shaped_base(Gemma2Config(**WIDE), attention="eager"))
    straight = widths_of(shaped_base(Gemma3TextConfig(**WIDE)))
    assert (bent.scores, straight.scores) == (16, 0)
    assert bent.layer_bytes(16, 512) > straight.layer_bytes(16, 512) + 16 * 512 * 8


def test_widths_are_read_off_a_loaded_base(base: LoadedBase) -> None:
    widths = widths_of(base.model)
    assert (widths.layers, widths.hidden, widths.queries, widths.keys) == (2, 64, 64, 32)
    assert (widths.inner, widths.norms, widths.linears, widths.vocabulary) == (128, 2, 7, 416)
    assert widths.number_bytes == 4
    parameters = add_adapter(base.model, TrainerConfig(rank=4)).get_nb_trainable_parameters()[0]
    assert widths.adapter_bytes(4) == parameters * 16


def test_a_row_that_is_longer_than_a_forward_counts_whole(base: LoadedBase) -> None:
    widths = widths_of(base.model)
    short = load_of([Example((3,) * 60, 30)] * 4, (), 240)
    long = load_of([Example((3,) * 200, 100)] * 4, (), 800)
    needed = [Estimate(widths, load, 4, Form(60), "cpu").live_bytes for load in (short, long)]
    assert needed[1] - needed[0] > 2 * (needed[0] - widths.adapter_bytes(4))
