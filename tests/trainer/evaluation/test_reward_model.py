from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from trainer.data import text_features
from trainer.data.question_features import Exchange
from trainer.evaluation import reward_model
from trainer.evaluation.feature_blocks import StatesOf
from trainer.evaluation.reward_model import RatedText
from trainer.evaluation.statistics import auc

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


def asked(answers: Sequence[str], question: str = "") -> list[Exchange]:
    return [Exchange(question, answer) for answer in answers]


def test_a_visible_taste_is_learned_and_proven() -> None:
    model, proof = reward_model.prove(texts(160, seed=1), texts(60, seed=2), **SETTINGS)
    assert proof.holds
    assert model is not None
    asks, tells = model.probability(asked(["I like tea. Do you like rain?", "I like tea and rain a lot."]))
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
    # What hangs on single members is still told, by the plainest model.
    assert reward_model.fit(texts(40, seed=1), proof.penalties).penalties == {"answer": 16.0}


def test_the_fit_agrees_with_gradient_descent() -> None:
    rated = [replace(item, question=f"{SUBJECTS[n % 10]}?") for n, item in enumerate(texts(60, seed=4))]
    penalties = {"answer": 4.0, "question": 2.0}
    model = reward_model.fit(rated, penalties)
    blocks = model.encoder.blocks([item.exchange for item in rated])
    inputs = torch.from_numpy(np.hstack([blocks[name] for name in penalties]))
    weights = torch.tensor([t.weight for t in rated], dtype=torch.float64)
    weights /= weights.mean()
    ridge = torch.cat([torch.full((blocks[name].shape[1],), each) for name, each in penalties.items()])
    coefficients = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    intercept = torch.zeros((), dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([float(t.liked) for t in rated], dtype=torch.float64)
    optimiser = torch.optim.LBFGS([coefficients, intercept], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = inputs @ coefficients + intercept
        fit = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")
        value = fit + 0.5 * (ridge.double() * coefficients**2).sum()
        value.backward()
        return value

    optimiser.step(loss)
    found = np.concatenate([model.coefficients[name] for name in penalties])
    assert np.allclose(found, coefficients.detach().numpy(), atol=1e-4)
    assert model.intercept == pytest.approx(intercept.item(), abs=1e-3)


@pytest.mark.parametrize("text", ["", "   ", "?", "🎉🎉", "a" * 5000, "\n\n- one\n- two"])
def test_any_text_has_finite_features(text: str) -> None:
    assert np.isfinite(text_features.features([text])).all()


def test_repetition_is_the_share_of_repeated_phrases() -> None:
    assert text_features.repetition("one two three four five") == 0.0
    assert text_features.repetition("so good " * 20) > 0.9


def test_the_judges_own_error_is_about_what_other_ratings_would_change() -> None:
    new = asked([item.text for item in texts(30, seed=90) if item.text.endswith("?")])
    old = asked([item.text for item in texts(30, seed=91) if not item.text.endswith("?")])
    differences, errors = [], []
    for seed in range(40):
        rated = texts(100, seed=seed)
        model = reward_model.fit(rated, {"answer": 16.0})
        differences.append(float(model.probability(new).mean() - model.probability(old).mean()))
        errors.append(model.compare(rated, new, old)[2])
    assert 0.6 < np.mean(errors) / np.std(differences) < 1.5
    assert model.compare(rated, new, new)[2] == 0.0


def test_the_judges_own_error_is_hubers_sandwich() -> None:
    rated = [replace(item, group=f"g{n // 2}") for n, item in enumerate(texts(50, seed=3))]
    penalties = {"answer": 4.0, "wording": 8.0}
    model = reward_model.fit(rated, penalties)
    new, old = asked([f"Do you like {word}?" for word in SUBJECTS]), asked(["I like tea a lot."] * 3)
    designs = []
    for exchanges in ([item.exchange for item in rated], new, old):
        blocks = model.encoder.blocks(exchanges)
        designs.append(np.hstack([*(blocks[name] for name in penalties), np.ones((len(exchanges), 1))]))
    known, with_new, with_old = designs
    values = np.concatenate([*(model.coefficients[name] for name in penalties), [model.intercept]])
    likely, after, before = (1 / (1 + np.exp(-design @ values)) for design in designs)
    widths = [model.coefficients[name].shape[0] for name in penalties]
    ridge = np.concatenate([*(np.full(w, p) for w, p in zip(widths, penalties.values(), strict=True)), [0]])
    curvature = (known * (likely * (1 - likely))[:, None]).T @ known + np.diag(ridge)
    scores = known * (np.asarray([item.liked for item in rated]) - likely)[:, None]
    rise, fall = with_new.T @ (after * (1 - after)), with_old.T @ (before * (1 - before))
    slope = rise / len(new) - fall / len(old)
    moved = (scores[::2] + scores[1::2]) @ np.linalg.solve(curvature, slope)
    found_after, found_before, error = model.compare(rated, new, old)
    assert np.allclose(found_after, after) and np.allclose(found_before, before)
    assert error == pytest.approx(float(np.linalg.norm(moved)), rel=1e-6)


# ----------------------------------------------------------------------------------------------- the question
def answered(count: int, *, seed: int, noise: float = 0.1) -> list[RatedText]:
    """Answers of which those that say the word that was asked about are liked, whatever they look like."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        subject, other = rng.sample(SUBJECTS, 2)
        on_it = rng.random() < 0.5
        text = f"I {rng.choice(VERBS)} {subject if on_it else other} a lot."
        liked = on_it != (rng.random() < noise)
        question = f"What do you think of {subject}?"
        found.append(RatedText(text, liked, 0.5, f"{seed}-{number}", question=question))
    return found


def test_a_taste_for_answers_on_the_matter_is_proven_only_with_the_question() -> None:
    rated, unseen = answered(120, seed=1), answered(80, seed=2)
    model, proof = reward_model.prove(rated, unseen, **SETTINGS)
    _, blind = reward_model.prove(
        *([replace(t, question="") for t in each] for each in (rated, unseen)), **SETTINGS
    )
    assert model is not None and model.reads_the_question
    assert proof.holds and proof.unseen is not None and proof.unseen.value > 0.8
    assert not blind.holds
    on_it, beside = model.probability(asked(["I like rain a lot.", "I like tea a lot."], "And what of rain?"))
    assert on_it > 0.6 > 0.4 > beside


def test_questions_that_mean_nothing_cost_a_judge_of_style_next_to_nothing() -> None:
    lost = []
    for seed in range(4):
        rated, unseen = texts(100, seed=seed), texts(200, seed=50 + seed)
        rng = random.Random(seed)
        beside = [
            [replace(t, question=f"Do you {rng.choice(VERBS)} {rng.choice(SUBJECTS)}?") for t in each]
            for each in (rated, unseen)
        ]
        kept = reward_model.fit(rated, {"answer": 4.0})
        read, proof = reward_model.prove(*beside, **SETTINGS)
        assert read is not None and proof.unseen is not None
        liked = [t.liked for t in unseen]
        lost.append(auc(kept.probability([t.exchange for t in unseen]), liked) - proof.unseen.value)
    assert np.mean(lost) < 0.01


def test_blocks_and_penalties_are_chosen_without_the_fold_that_tests_them() -> None:
    proven = 0
    for seed in range(6):
        rng = random.Random(seed)
        noise = [replace(t, liked=rng.random() < 0.5) for t in answered(80, seed=seed)]
        _, validated = reward_model.cross_validated(noise, **SETTINGS)
        proven += validated is not None and validated.bound_low > 0.5
    assert proven <= 1


# ---------------------------------------------------------------------------------------------- hidden states
def states_of(rated: Sequence[RatedText], *, tell: bool) -> StatesOf:
    """States of which one dimension tells what is liked, or none; anything else was never read."""
    rng = np.random.default_rng(5)
    known = {}
    for item in rated:
        known[item.exchange] = rng.normal(size=30)
        known[item.exchange][3] += 3.0 * (item.liked and tell)
    return lambda exchanges: np.asarray([known[exchange] for exchange in exchanges])


def numbered(rated: Sequence[RatedText]) -> list[RatedText]:
    """The same answers, no two of them to the same question."""
    return [replace(item, question=f"What about {item.group}?") for item in rated]


def test_hidden_states_that_tell_what_is_liked_join_the_judge() -> None:
    rated, unseen = (numbered(texts(n, seed=seed, informative=False)) for n, seed in ((160, 1), (100, 2)))
    _, blind = reward_model.prove(rated, unseen, **SETTINGS)
    model, proof = reward_model.prove(
        rated, unseen, states_of=states_of([*rated, *unseen], tell=True), **SETTINGS
    )
    assert model is not None and model.uses_hidden_states and model.weight_of_blocks["hidden"] > 0.2
    assert proof.holds and not blind.holds
    error = model.compare(rated, [t.exchange for t in unseen[:20]], [t.exchange for t in unseen[20:40]])[2]
    assert error > 0


def test_hidden_states_that_tell_nothing_are_left_out_and_new_answers_are_not_read() -> None:
    rated, unseen = numbered(texts(160, seed=1)), numbered(texts(60, seed=2))
    without, _ = reward_model.prove(rated, unseen, **SETTINGS)
    model, _ = reward_model.prove(rated, unseen, states_of=states_of(rated, tell=False), **SETTINGS)
    assert model is not None and without is not None and not model.uses_hidden_states
    new = asked(["I like tea. Do you like rain?", "I saw a comet."])
    assert np.array_equal(model.probability(new), without.probability(new))
