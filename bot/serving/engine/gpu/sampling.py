"""The next tokens of a whole batch, chosen where the logits lie: one copy to the host a step, for all rows.

Each row draws one number from its own generator on the host, as :class:`bot.serving.engine.sampling.Sampler`
does, and gets the token that the sampler itself would choose from the same logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bot.serving.engine.sampling import SHORTLIST, Sampler


def choose(
    logits: torch.Tensor, samplers: Sequence[Sampler], seen: Sequence[Sequence[int] | None]
) -> list[int]:
    """Return a token id for each row of ``logits`` (B, V); ``seen[i]`` are the ids to penalise in row i.

    A row whose likeliest tokens hold too little of the mass that it may choose from is copied and chosen on
    the host.
    """
    logits = _penalise(logits.to(torch.float32), samplers, seen)
    if all(sampler.greedy for sampler in samplers):
        return [int(token) for token in logits.argmax(-1).tolist()]
    draws = [0.0 if sampler.greedy else sampler.draw() for sampler in samplers]
    chosen, enough = _sample(logits, samplers, draws)
    tokens = []
    for row, (token, settled) in enumerate(torch.stack((chosen, enough)).t().tolist()):
        tokens.append(int(token) if settled else samplers[row].pick(logits[row].cpu(), draws[row]))
    return tokens


def _penalise(
    logits: torch.Tensor, samplers: Sequence[Sampler], seen: Sequence[Sequence[int] | None]
) -> torch.Tensor:
    rows = [
        row
        for row, ids in enumerate(seen)
        if ids is not None and samplers[row].options.repetition_penalty != 1
    ]
    if not rows:
        return logits
    # Rows are filled up with a token of their own, which then is written twice with the same value.
    longest = max(len(ids) for ids in seen if ids is not None)
    filled = [[*ids, *[ids[0]] * (longest - len(ids))] for ids in seen if ids is not None]
    factors = [[samplers[row].options.repetition_penalty] for row in rows]
    where = torch.tensor(filled).to(logits.device, non_blocking=True)
    penalty = torch.tensor(factors).to(logits.device, non_blocking=True)
    at = torch.tensor(rows).to(logits.device, non_blocking=True)
    picked = logits[at[:, None], where]
    logits = logits.clone()
    logits[at[:, None], where] = torch.where(picked > 0, picked / penalty, picked * penalty)
    return logits


def _sample(
    logits: torch.Tensor, samplers: Sequence[Sampler], draws: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B,) ids, and (B,) whether the likeliest tokens sufficed to choose them."""
    options = [sampler.options for sampler in samplers]
    size = logits.shape[-1]
    figures = [
        [1.0 if sampler.greedy else each.temperature, each.top_p, each.top_k, each.min_p, draw]
        for sampler, each, draw in zip(samplers, options, draws, strict=True)
    ]
    told = torch.tensor(figures, dtype=torch.float64).to(logits.device, non_blocking=True)
    # Five times (B, 1).
    temperature, top_p, top_k, min_p, draw = told.t()[:, :, None].unbind()
    by_rank, by_mass = top_k > 0, top_p < 1
    probabilities = torch.softmax(logits / temperature.float(), dim=-1)
    count = min(size, max([SHORTLIST, *(each.top_k for each in options)]))
    values, ids = torch.topk(probabilities, count)
    first = torch.arange(count, device=logits.device) < top_k
    listed = torch.where(first | ~by_rank, values, 0.0)
    # Top-p is a share of what top-k leaves.
    listed = torch.where(by_rank, listed / listed.sum(-1, keepdim=True), listed)
    enough = by_rank | (by_mass & (values.sum(-1, keepdim=True) >= top_p))
    before = torch.cumsum(listed, -1) - listed
    keep = (listed >= min_p * listed[:, :1]) & ((before < top_p) | ~by_mass)
    keep[:, 0] = True
    chosen = ids.gather(-1, _place(torch.where(keep, listed, 0.0), draw))
    if any(each.top_k == 0 and each.top_p >= 1 for each in options):
        # Such a row chooses among all tokens, in the order of their ids.
        everything = ~(by_rank | by_mass)
        floor = min_p * values[:, :1]
        kept = torch.where(probabilities >= floor, probabilities, 0.0)
        chosen = torch.where(everything, _place(kept, draw), chosen)
        enough |= everything
    greedy = torch.tensor([sampler.greedy for sampler in samplers]).to(logits.device, non_blocking=True)
    return torch.where(greedy, ids[:, 0], chosen[:, 0]), enough[:, 0] | greedy


def _place(weights: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Return (B, 1): where a draw from [0, 1) falls among ``weights`` (B, n) that need not sum to one."""
    cumulative = torch.cumsum(weights.to(torch.float64), dim=-1)
    total = cumulative[:, -1:].contiguous()
    place = torch.searchsorted(cumulative, draw.contiguous() * total, right=True)
    # Rounding must not lead beyond the last one that has a weight.
    return torch.minimum(place, torch.searchsorted(cumulative, total))
