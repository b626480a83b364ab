"""A batch's tokens, chosen together, are those that each request's own sampler chooses."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.serving.engine.events import SamplingOptions
from bot.serving.engine.gpu.sampling import choose
from bot.serving.engine.sampling import SHORTLIST, Sampler

OPTIONS = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.5]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 7, 400]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 10_000),
)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(OPTIONS, min_size=1, max_size=5),
    seed=st.integers(0, 10_000),
    size=st.sampled_from([5, 300, 2000]),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_the_batch_chooses_what_each_sampler_chooses(
    rows: list[SamplingOptions], seed: int, size: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), size, generator=generator) * spread
    seen = [
        torch.randint(0, size, (3 + row,), generator=generator).unique().tolist()
        if options.repetition_penalty != 1.0
        else None
        for row, options in enumerate(rows)
    ]
    alone = [
        Sampler(options).choose(each, None if ids is None else torch.tensor(ids))
        for options, each, ids in zip(rows, logits, seen, strict=True)
    ]
    assert choose(logits, [Sampler(options) for options in rows], seen) == alone


def test_a_flat_row_is_chosen_on_the_host_with_the_same_draw() -> None:
    logits = torch.zeros(2, SHORTLIST * 8)
    logits[1, 3] = 50.0
    rows = [SamplingOptions(seed=5, top_p=0.9), SamplingOptions(seed=6, top_p=0.9)]
    flat = Sampler(rows[0]).choose(logits[0])
    assert choose(logits, [Sampler(options) for options in rows], [None, None]) == [flat, 3]
    # The likeliest tokens, all that is looked at first, would never have given it.
    assert flat not in torch.topk(logits[0], SHORTLIST).indices.tolist()


def test_a_request_draws_one_number_a_token_and_none_where_it_is_greedy() -> None:
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(1))
    greedy, drawing = Sampler(SamplingOptions(temperature=0.0, seed=1)), Sampler(SamplingOptions(seed=1))
    for _ in range(3):
        assert choose(logits, [greedy, drawing], [None, None])[0] == int(logits[0].argmax())
    fresh = [Sampler(SamplingOptions(seed=1)) for _ in range(2)]
    assert greedy.draw() == fresh[0].draw()
    assert drawing.draw() == [fresh[1].draw() for _ in range(4)][-1]
