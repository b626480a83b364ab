import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.serving.engine.events import SamplingOptions
from bot.serving.engine.sampling import SHORTLIST, Sampler, penalise, shortlist


def reference(logits: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """Slow and plain: sort everything, then top-k, then top-p among what is left, and min-p."""
    probabilities = torch.softmax(logits / options.temperature, dim=-1)
    values, ids = torch.sort(probabilities, descending=True, stable=True)
    count = options.top_k if options.top_k else len(ids)
    values, ids = values[:count], ids[:count]
    before = torch.cumsum(values / values.sum(), 0) - values / values.sum()
    keep = before < options.top_p if options.top_p < 1 else torch.ones_like(values, dtype=torch.bool)
    keep &= values >= options.min_p * values[0]
    keep[0] = True
    return ids[keep]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([5, 300, 2000]),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    temperature=st.sampled_from([0.3, 0.7, 1.5]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 7, 400]),
    min_p=st.sampled_from([0.0, 0.05]),
)
def test_the_shortlist_is_what_sorting_everything_gives(
    seed: int, size: int, spread: float, temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    options = SamplingOptions(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    ids, probabilities = shortlist(logits, options)
    assert sorted(ids.tolist()) == sorted(reference(logits, options).tolist())
    assert torch.all(probabilities > 0)


def test_draws_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([0.6, 0.3, 0.1]))
    sampler = Sampler(SamplingOptions(seed=7))
    counts = torch.bincount(torch.tensor([sampler.choose(logits) for _ in range(4000)]), minlength=3) / 4000
    assert torch.allclose(counts, torch.tensor([0.6, 0.3, 0.1]), atol=0.03)


def test_equal_seeds_choose_equal_tokens_and_others_do_not() -> None:
    logits = torch.randn(SHORTLIST * 4, generator=torch.Generator().manual_seed(0))

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(seed=seed))
        return [sampler.choose(logits) for _ in range(20)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(None) != draw(None)


def test_temperature_zero_takes_the_most_likely() -> None:
    assert Sampler(SamplingOptions(temperature=0.0)).choose(torch.tensor([0.1, 2.0, 1.0])) == 1


def test_repetition_penalty_lowers_seen_tokens_on_both_sides_of_zero() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0])
    assert penalise(logits, torch.tensor([0, 1]), 2.0).tolist() == pytest.approx([1.0, -4.0, 1.0])
