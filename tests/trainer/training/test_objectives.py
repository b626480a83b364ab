from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage.config import load_config
from storage.config_sections import TrainerConfig
from tests.trainer.rows import pair, row
from trainer.data.labels import Correction
from trainer.data.snapshot import Snapshot
from trainer.errors import NotYetError
from trainer.training import objectives
from trainer.training.objectives import Plan

SETTINGS = TrainerConfig()


def of(liked: int, disliked: int, *, split: str = "train", raters: int = 8) -> Snapshot:
    rows = [row(f"l{n}", split=split) for n in range(liked)]
    rows += [row(f"d{n}", "disliked", split=split) for n in range(disliked)]
    return Snapshot(tuple(rows), "c" * 64, raters=raters)


def test_too_little_data_says_what_is_missing() -> None:
    with pytest.raises(NotYetError) as raised:
        objectives.require_enough(of(11, 50, raters=3), SETTINGS, {})
    assert str(raised.value) == "not yet: 11 of 25 liked replies, 3 of 5 raters"


def test_corrections_count_as_liked_replies() -> None:
    corrected = [row(f"c{n}", "disliked", corrections=(Correction("x", 1.0),)) for n in range(25)]
    objectives.require_enough(Snapshot(tuple(corrected), "c" * 64, raters=5), SETTINGS, {})


def test_nothing_rated_says_how_to_rate() -> None:
    with pytest.raises(NotYetError, match="react to the bot's replies"):
        objectives.require_enough(Snapshot((), "c" * 64), SETTINGS, {})


def test_nothing_eligible_says_why_and_what_to_do() -> None:
    with pytest.raises(NotYetError) as raised:
        objectives.require_enough(Snapshot((), "c" * 64), SETTINGS, {"no_consent": 40, "not_public": 2})
    text = str(raised.value)
    assert text.startswith("not yet: none of the rated replies may be trained on; 40 left out because")
    assert "Ask members to opt in with /privacy. Or start a tasting" in text


def test_a_tasting_is_not_offered_where_it_would_not_help() -> None:
    with pytest.raises(NotYetError) as raised:
        objectives.require_enough(Snapshot((), "c" * 64), SETTINGS, {"no_eligible_rating": 3})
    assert str(raised.value).endswith("Ask raters to opt in with /privacy.")


def test_likes_in_held_out_conversations_only_are_no_reason_to_train() -> None:
    with pytest.raises(NotYetError, match="held-out"):
        objectives.require_enough(of(30, 5, split="gate"), SETTINGS, {})


@pytest.mark.parametrize(
    ("liked", "disliked", "expected"),
    [(25, 0, "sft"), (24, 200, "sft"), (60, 24, "sft"), (25, 74, "sft"), (25, 75, "sft_kto")],
)
def test_the_objective_follows_the_data(liked: int, disliked: int, expected: str) -> None:
    plan = objectives.choose(of(liked, disliked), SETTINGS)
    assert plan.objective == expected
    assert ("KTO needs" in plan.reason) == (expected == "sft")
    assert "DPO needs 50 preference pairs to train on; there are 0" in plan.reason


@pytest.mark.parametrize(("liked", "disliked", "expected"), [(25, 0, "sft_dpo"), (60, 60, "sft_kto_dpo")])
def test_fifty_pairs_to_train_on_add_dpo(liked: int, disliked: int, expected: str) -> None:
    rated = of(liked, disliked)
    corrected = tuple(row(f"c{n}", "unclear", corrections=(Correction("Better.", 1.5),)) for n in range(30))
    pairs = tuple(pair(f"p{n}") for n in range(20))
    held_out = tuple(pair(f"h{n}", split="gate") for n in range(40))
    enough = replace(rated, rows=(*rated.rows, *corrected), pairs=(*pairs, *held_out))
    assert objectives.choose(enough, SETTINGS).objective == expected
    assert "dpo" not in objectives.choose(replace(enough, pairs=pairs[1:]), SETTINGS).objective


def test_an_objective_from_the_configuration_is_obeyed() -> None:
    assert objectives.choose(of(3, 3), TrainerConfig(objective="sft_kto")).objective == "sft_kto"


@pytest.mark.parametrize(("speed", "expected"), [(2000.0, "sft_kto_dpo"), (300.0, "sft_kto"), (20.0, "sft")])
def test_what_would_take_too_long_by_the_measured_speed_is_left_out(speed: float, expected: str) -> None:
    plan = objectives.within_budget(
        Plan("sft_kto_dpo"),
        tokens={"kto": 20_000, "dpo": 40_000},
        tokens_per_second=speed,
        spent_s=60.0,
        settings=TrainerConfig(max_train_minutes=5.0),
    )
    assert plan.objective == expected
    assert ("tokens/s" in plan.reason) == (expected != "sft_kto_dpo")


@pytest.mark.parametrize(
    ("settings", "parameters", "ranks", "rates", "epochs"),
    [
        ({}, 135_000_000, False, (5e-4, 1e-4, 1e-4), 4),
        ({}, 135_000_000, True, (5e-4, 1e-4, objectives.RANKED_RATE), 2),
        ({"dpo_learning_rate": 5e-5, "epochs": 3}, 135_000_000, True, (5e-4, 1e-4, 5e-5), 3),
        ({"kto_learning_rate": 3e-5}, 4_000_000_000, False, (2e-4, 3e-5, 4e-5), 4),
        ({}, 4_000_000_000, True, (2e-4, 4e-5, 4e-5), 2),
    ],
)
def test_rates_and_epochs_suit_the_base_and_the_plan_unless_the_operator_set_them(
    settings: dict[str, Any], parameters: int, ranks: bool, rates: tuple[float, ...], epochs: int
) -> None:
    found = objectives.fill_in(TrainerConfig(**settings), parameters, ranks=ranks)
    assert (found.sft_learning_rate, found.kto_learning_rate, found.dpo_learning_rate) == rates
    assert found.epochs == epochs


def test_the_guides_configuration_leaves_the_rates_to_the_size_of_the_base() -> None:
    guide = Path(__file__).parents[3] / "deploy" / "strop.toml"
    settings = load_config(guide, {}).trainer
    large = objectives.fill_in(settings, 4_000_000_000, ranks=False)
    assert (large.sft_learning_rate, large.kto_learning_rate, large.dpo_learning_rate) == (2e-4, 4e-5, 4e-5)
