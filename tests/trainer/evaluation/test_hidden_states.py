"""Hidden states of the base as features: read once, by the plain base, and few after all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from trainer.data.question_features import Exchange
from trainer.evaluation.hidden_states.components import Components

# Imported where it is used: tests that need no model load no model library.
if TYPE_CHECKING:
    from bot.serving.model.loading import LoadedBase

EXCHANGES = (
    Exchange("Why is it late?", "It rained all day."),
    Exchange("Well?", "I see a bird in the old tree."),
    Exchange("Why is it late?", ""),
)


def test_an_answer_has_the_same_states_to_the_bit_whatever_else_is_read(base: LoadedBase) -> None:
    from trainer.evaluation.hidden_states.reader import HiddenStates

    together = HiddenStates("Answer briefly.", 160)
    with together.reading_by(base):
        assert not base.model.training
        found = together(EXCHANGES)
    assert base.model.training
    assert found.shape[0] == len(EXCHANGES) == together.replies and np.isfinite(found).all()
    for exchange, states in zip(EXCHANGES, found, strict=True):
        alone = HiddenStates("Answer briefly.", 160)
        with alone.reading_by(base):
            assert np.array_equal(alone([exchange])[0], states)
    assert np.array_equal(together(EXCHANGES[::-1]), found[::-1]), "what was read needs no base any more"
    with pytest.raises(LookupError):
        together([Exchange("Why is it late?", "I see a bird in the old tree.")])


def test_the_question_changes_an_answer_s_states(base: LoadedBase) -> None:
    from trainer.evaluation.hidden_states.reader import HiddenStates

    states = HiddenStates("Answer briefly.", 160)
    with states.reading_by(base):
        asked, other = states([Exchange("Do you like rain?", "No."), Exchange("Is it cold?", "No.")])
    assert np.abs(asked - other).max() > 1e-4


def test_an_adapter_that_is_being_trained_is_switched_off_while_replies_are_read(base: LoadedBase) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from trainer.evaluation.hidden_states.reader import HiddenStates

    plain, adapted, switched_off = (HiddenStates("", 160) for _ in range(3))
    with plain.reading_by(base):
        expected = plain(EXCHANGES)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(base.model, lora)
    with adapted.reading_by(base):
        assert np.abs(adapted(EXCHANGES) - expected).max() > 1e-4
    with model.disable_adapter(), switched_off.reading_by(base):
        assert np.array_equal(switched_off(EXCHANGES), expected)


def test_components_are_those_of_the_rows_that_they_were_found_in() -> None:
    rated = np.random.default_rng(1).normal(size=(60, 30)) * np.arange(1, 31) + 100
    components = Components(rated, 5)
    found = components(rated)
    assert found.shape == (60, 5)
    assert np.allclose(found.mean(0), 0) and np.allclose(found.T @ found / 60, np.eye(5))
    assert Components(rated[:4], 16)(rated).shape == (60, 3), "few rows have few components"
