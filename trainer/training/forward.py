"""One forward of the model over packed examples: what it says about their completions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.data.encoding import Example
from trainer.training import ranks
from trainer.training.fitting import BATCH_TOKENS_CPU, BATCH_TOKENS_GPU
from trainer.training.losses import TokenScores
from trainer.training.packing import Packed, pack, within_blocks


def score(model: nn.Module, examples: Sequence[Example]) -> TokenScores:
    """Run one forward over a few examples and return how likely their completions are."""
    packed = pack(examples)
    targets = packed.targets.to(device_of(model))
    # (N, V) -> (N, V) -> (N, 1) -> (N,): keep only each target's log-probability, in nats.
    logps = _logits(model, packed).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    return TokenScores(logps=logps, lengths=packed.lengths)


def distributions(model: nn.Module, examples: Sequence[Example]) -> Tensor:
    """Run one forward over a few examples and return the logits `(N, V)` of their completion tokens."""
    return _logits(model, pack(examples))


def _logits(model: nn.Module, packed: Packed) -> Tensor:
    device = device_of(model)
    with within_blocks(model):
        output = model(
            input_ids=packed.ids.to(device),
            position_ids=packed.positions.to(device),
            use_cache=False,
            # Only positions that predict a completion token pass the output head, the largest product.
            logits_to_keep=packed.predicting.to(device),
            blocks=packed.blocks,
        )
    # (1, N, V) -> (N, V); float32, since bfloat16 loses the small differences that losses are made of.
    logits: Tensor = output.logits[0]
    return logits.float()


def accumulate(model: nn.Module, loss: Tensor) -> float:
    """Add a loss's gradient to what the adapter has; return the loss.

    Examples keep to themselves here too: a layer whose activations were not kept is computed again.
    """
    with within_blocks(model):
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def totals(model: nn.Module, examples: Sequence[Example], limit: int) -> Tensor:
    """Return summed completion log-probabilities `(B,)` in the order of the examples, without a gradient."""
    found = torch.zeros(len(examples), device=device_of(model))
    with torch.no_grad():
        for group in ranks.own_bins(examples, limit):
            found[group] = score(model, [examples[i] for i in group]).totals
    return ranks.sum_over_ranks(found)


def base_distributions(model: nn.Module, replay: Sequence[Example]) -> list[Tensor]:
    """Return the base's logits `(T, V)` over each replay completion, the adapter switched off.

    Kept as bfloat16 in main memory, since a step needs few of them: 64 replies of 40 tokens take 250 MB with
    a vocabulary of 49,152.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]
        kept = [distributions(model, [example]).to("cpu", torch.bfloat16) for example in replay]
    model.train(was_training)
    return kept


def batch_tokens(model: nn.Module) -> int:
    """Return how many tokens one forward takes on the model's device, unless the operator says otherwise."""
    return BATCH_TOKENS_GPU if device_of(model).type == "cuda" else BATCH_TOKENS_CPU


def device_of(model: nn.Module) -> torch.device:
    """Return where the model lies."""
    return next(model.parameters()).device
