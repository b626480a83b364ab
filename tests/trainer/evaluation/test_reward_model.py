from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from trainer.data import text_features
from trainer.evaluation import reward_model
from trainer.evaluation.reward_model import RatedText

SUBJECTS = ("tea", "rain", "chess", "bread", "cats", "films", "music", "trains", "gardens", "books")
VERBS = ("like", "know", "want", "need", "love", "watch")
SETTINGS = {"resamples": 400, "confidence": 0.95, "seed": 0}


def texts(count: int, *, seed: int, noise: float = 0.1, informative: bool = True) -> list[RatedText]:
    """Replies of which those that end with a question are liked, but for some noise."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        asks = rng.random() < 0.3
        body = f"I {rng.choice(VERBS)} {rng.choice(SUBJECTS)} and {rng.choice(SUBJECTS)}"
        text = f"{body}. Do you {rng.choice(VERBS)} {rng.choice(SUBJECTS)}?" if asks else f"{body} a lot."
        liked = asks != (rng.random() < noise) if informative else rng.random() < 0.3
        found.append(RatedText(text, liked, 0.5, f"{seed}-{number}"))
    return found


def test_a_visible_taste_is_learned_and_proven() -> None:
    model, proof = reward_model.prove(texts(160, seed=1), texts(60, seed=2), **SETTINGS)
    assert proof.holds
    assert model is not None
    asks, tells = model.probability(["I like tea. Do you like rain?", "I like tea and rain a lot."])
    assert asks > 0.6 > 0.3 > tells


def test_ratings_at_random_prove_nothing() -> None:
    proven = 0
    for seed in range(10):
        _, proof = reward_model.prove(
            texts(120, seed=seed, informative=False),
            texts(60, seed=100 + seed, informative=False),
            **SETTINGS,
        )
        proven += proof.holds
    assert proven <= 1


def test_a_taste_that_the_held_out_members_do_not_share_is_not_proven() -> None:
    inverted = [RatedText(t.text, not t.liked, t.weight, t.group) for t in texts(60, seed=2)]
    _, proof = reward_model.prove(texts(160, seed=1), inverted, **SETTINGS)
    assert not proof.holds
    assert "AUC" in proof.why_not()


def test_too_few_of_one_kind_prove_nothing() -> None:
    few = [t for t in texts(80, seed=1) if not t.liked] + [t for t in texts(80, seed=3) if t.liked][:4]
    model, proof = reward_model.prove(few, texts(60, seed=2), **SETTINGS)
    assert model is None
    assert "fewer than 5" in proof.why_not()


def test_the_fit_agrees_with_gradient_descent() -> None:
    rated = texts(60, seed=4)
    model = reward_model.fit(rated, 4.0)
    inputs = (text_features.features([t.text for t in rated]) - model.mean) / model.scale
    weights = torch.tensor([t.weight for t in rated], dtype=torch.float64)
    weights /= weights.mean()
    ridge = torch.cat(
        [
            torch.full((len(text_features.FEATURES),), 4.0),
            torch.full((text_features.HASH_BUCKETS,), 4.0 * reward_model.HASH_PENALTY),
        ]
    ).double()
    coefficients = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    intercept = torch.zeros((), dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([float(t.liked) for t in rated], dtype=torch.float64)
    optimiser = torch.optim.LBFGS([coefficients, intercept], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = torch.from_numpy(inputs) @ coefficients + intercept
        fit = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")
        value = fit + 0.5 * (ridge * coefficients**2).sum()
        value.backward()
        return value

    optimiser.step(loss)
    assert np.allclose(model.coefficients, coefficients.detach().numpy(), atol=1e-4)
    assert model.intercept == pytest.approx(intercept.item(), abs=1e-3)


@pytest.mark.parametrize("text", ["", "   ", "?", "🎉🎉", "a" * 5000, "\n\n- one\n- two"])
def test_any_text_has_finite_features(text: str) -> None:
    assert np.isfinite(text_features.features([text])).all()


def test_repetition_is_the_share_of_repeated_phrases() -> None:
    assert text_features.repetition("one two three four five") == 0.0
    assert text_features.repetition("so good " * 20) > 0.9


def test_the_judges_own_error_is_about_what_other_ratings_would_change() -> None:
    new = [item.text for item in texts(30, seed=90) if item.text.endswith("?")]
    old = [item.text for item in texts(30, seed=91) if not item.text.endswith("?")]
    differences, errors = [], []
    for seed in range(40):
        rated = texts(100, seed=seed)
        model = reward_model.fit(rated, 16.0)
        differences.append(float(model.probability(new).mean() - model.probability(old).mean()))
        errors.append(model.compared(rated, 16.0, new, old)[2])
    assert 0.6 < np.mean(errors) / np.std(differences) < 1.5
    assert model.compared(rated, 16.0, new, new)[2] == 0.0
