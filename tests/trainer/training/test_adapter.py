"""What a training keeps for its backward pass, and in which precision an adapter multiplies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bot.serving.model.loading import LoadedBase, load_base
from storage.config_sections import TrainerConfig
from trainer.data.encoding import Example, PreferenceExample
from trainer.training.adapter import add_adapter, giving_way, recompute_activations
from trainer.training.terms import BaseLogits, Dpo, Kto, Replay, Supervised, Term, backward_of

SETTINGS = TrainerConfig(rank=4, alpha=8)
LIMIT = 60


def examples(count: int) -> list[Example]:
    return [
        Example(ids=tuple(range(3, 20 + 3 * n)), start=9 + n, liked=n % 2 == 0, weight=1 + n / 4)
        for n in range(count)
    ]


def all_terms() -> list[Term]:
    one, two, three, four = examples(4)
    pairs = [PreferenceExample(one, two), PreferenceExample(three, four, weight=1.5)]
    return [
        Supervised(examples(4), LIMIT),
        Replay(BaseLogits(examples(4)), 0.3, LIMIT),
        Kto(examples(4), 0.1, LIMIT),
        Dpo(pairs, 0.1, 0.3, LIMIT),
    ]


def gradients(
    folder: Path, *, recompute: bool, give_way: Callable[[], None] = lambda: None
) -> tuple[dict[str, Tensor], list[float], int]:
    """Return the gradients of one step of every term, the losses, and how often a layer ran."""
    base = load_base(folder, "cpu", "train")
    model = add_adapter(base.model, SETTINGS)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    recompute_activations(base.model, recompute)
    runs: list[None] = []
    base.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(None))
    found = []
    for term in all_terms():
        chosen = (0, 1) if isinstance(term, Dpo) else (0, 1, 2, 3)
        model.eval()
        with torch.no_grad():
            term.prepare(model, [chosen], None)
        model.train()
        with giving_way(base.model, give_way):
            found.append(backward_of(model, [(term, chosen)], 0))
    named = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return named, found, len(runs)


def test_activations_that_are_computed_again_give_the_same_gradients_to_the_bit(tiny_folder: Path) -> None:
    kept, losses, runs = gradients(tiny_folder, recompute=False)
    again, same_losses, more_runs = gradients(tiny_folder, recompute=True)
    assert len(kept) == 28 and all(gradient.count_nonzero() for gradient in kept.values())
    assert same_losses == losses
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    # Every forward that has a backward pass runs the layer once more.
    assert more_runs > runs


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_that_gives_way_between_layers_has_the_same_gradients_to_the_bit(
    tiny_folder: Path, recompute: bool
) -> None:
    plain, losses, _ = gradients(tiny_folder, recompute=recompute)
    looks: list[None] = []
    paused, same_losses, _ = gradients(tiny_folder, recompute=recompute, give_way=lambda: looks.append(None))
    assert same_losses == losses
    assert all(torch.equal(plain[name], paused[name]) for name in plain)
    # Five forwards and four backward passes of two layers; the first layer's input has no gradient.
    assert len(looks) >= 5 * 2 + 4


def kept_bytes(model: nn.Module, term: Term) -> int:
    """Return the size of all that autograd keeps during one backward of a term, weights aside."""
    storages: dict[int, int] = {}
    frozen = {each.untyped_storage().data_ptr() for each in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backward_of(model, [(term, (0, 1, 2, 3))], 0)
    return sum(storages.values())


@pytest.fixture
def bfloat16_base(tiny_folder: Path) -> LoadedBase:
    """A base as CUDA has it: the 4-bit values, multiplied in bfloat16."""
    base = load_base(tiny_folder, "cpu", "train", execution="dense")
    base.model.bfloat16()
    base.model.config.dtype = torch.bfloat16
    return base


def test_an_adapter_beside_a_bfloat16_base_keeps_float32_weights_and_multiplies_in_bfloat16(
    bfloat16_base: LoadedBase,
) -> None:
    model = add_adapter(bfloat16_base.model, SETTINGS)
    seen: set[torch.dtype] = set()
    for name, module in model.named_modules():
        if name.endswith(("lora_A.default", "lora_B.default")):
            module.register_forward_hook(lambda _, given, out: seen.update((given[0].dtype, out.dtype)))
    term = Supervised(examples(4), LIMIT)
    model.train()
    backward_of(model, [(term, (0, 1, 2, 3))], 0)
    assert seen == {torch.bfloat16}
    trained = [each for each in model.parameters() if each.requires_grad]
    assert {each.dtype for each in trained} == {torch.float32}
    assert {each.grad.dtype for each in trained if each.grad is not None} == {torch.float32}


def test_its_gradients_are_those_of_float32_products_but_for_rounding(
    bfloat16_base: LoadedBase, tiny_folder: Path
) -> None:
    exact_base = load_base(tiny_folder, "cpu", "train", execution="dense")
    found = []
    for base in (bfloat16_base, exact_base):
        model = add_adapter(base.model, SETTINGS)
        model.train()
        backward_of(model, [(Supervised(examples(4), LIMIT), (0, 1, 2, 3))], 0)
        found.append(
            torch.cat(
                [
                    each.grad.flatten()
                    for name, each in model.named_parameters()
                    if "lora_B" in name and each.grad is not None
                ]
            )
        )
    assert torch.cosine_similarity(*found, dim=0) > 0.999


def test_activations_that_are_computed_again_are_not_kept(tiny_folder: Path) -> None:
    sizes = []
    for recompute in (False, True):
        base = load_base(tiny_folder, "cpu", "train")
        model = add_adapter(base.model, SETTINGS)
        recompute_activations(base.model, recompute)
        # saved_tensors_hooks of a checkpointed layer are torch's own: what is seen here is what stays.
        sizes.append(kept_bytes(model, Supervised(examples(4), LIMIT)))
    assert sizes[1] < sizes[0]
