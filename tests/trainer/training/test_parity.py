"""Our losses on TRL's own batches: its trainers are the oracle. Weights are one: they know no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from bot.serving.model.loading import LoadedBase
from storage.config_sections import TrainerConfig
from trainer.data.encoding import Example, PreferenceExample
from trainer.training import forward, losses, terms
from trainer.training.adapter import add_adapter

LIMIT = 10_000
TEXTS = [
    ("How are you? ", "I like tea.", "No."),
    ("Hello there! ", "The quick brown fox.", "The lazy dog jumps."),
    ("What do you think? ", "Bread.", "Long answers that end with a question?"),
    ("Again: ", "Long walks in the rain.", "Tea"),
]


@pytest.fixture
def model(base: LoadedBase) -> torch.nn.Module:
    """An adapter that does something, as after supervised tuning."""
    adapted = add_adapter(base.model, TrainerConfig(rank=4, alpha=8))
    move_adapter(adapted, seed=3)
    return adapted


def move_adapter(model: torch.nn.Module, *, seed: int) -> None:
    """Give the trained adapter other weights; TRL's frozen copy, its reference, stays."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5


def options(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "report_to": [],
        "gradient_checkpointing": False,
    }


def test_the_supervised_loss_equals_trls(model: torch.nn.Module, base: LoadedBase, tmp_path: Path) -> None:
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**options(tmp_path), completion_only_loss=True, max_length=None),
        train_dataset=Dataset.from_list([{"prompt": p, "completion": c} for p, c, _ in TEXTS]),
        processing_class=base.tokenizer,
    )
    rows = [dict(item) for item in trainer.train_dataset]
    batch = trainer.data_collator(rows)
    oracle = trainer.compute_loss(trainer.model, batch).item()
    examples = [
        Example(ids=tuple(row["input_ids"]), start=sum(label == -100 for label in row["labels"]))
        for row in rows
    ]
    scores = forward.score(trainer.model, examples)
    ours = losses.supervised_loss(scores, torch.ones(4)).item() / sum(scores.lengths)
    assert oracle > 1
    assert ours == pytest.approx(oracle, rel=1e-5)


@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
def test_the_dpo_loss_equals_trls_with_and_without_its_sft_term(
    model: torch.nn.Module, base: LoadedBase, tmp_path: Path, sft_weight: float
) -> None:
    config = DPOConfig(
        **options(tmp_path),
        beta=0.1,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, sft_weight],
        max_length=None,
    )
    records = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in TEXTS]
    trainer = DPOTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(records), processing_class=base.tokenizer
    )
    rows = [
        {key: item[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")}
        for item in trainer.train_dataset
    ]
    pairs = [
        PreferenceExample(
            *(
                Example(ids=(*row["prompt_ids"], *row[side]), start=len(row["prompt_ids"]))
                for side in ("chosen_ids", "rejected_ids")
            )
        )
        for row in rows
    ]
    term = terms.Dpo(pairs, 0.1, sft_weight, LIMIT)
    term.prepare(trainer.model, [], None)
    move_adapter(trainer.model, seed=4)
    oracle = trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()
    ours = terms.backward_of(trainer.model, [(term, (0, 1, 2, 3))], 0)
    assert abs(oracle - 0.693) > 0.01
    assert ours == pytest.approx(oracle, rel=1e-5)


def test_the_kto_loss_equals_trls(model: torch.nn.Module, base: LoadedBase, tmp_path: Path) -> None:
    """Given a PEFT model TRL keeps a frozen copy of its adapter as the reference: SFT, then KTO, as we do."""
    records = [
        {"prompt": p, "completion": c, "label": number % 2 == 0} for number, (p, c, _) in enumerate(TEXTS)
    ]
    trainer = KTOTrainer(
        model=model,
        args=KTOConfig(**options(tmp_path), beta=0.1, remove_unused_columns=False),
        train_dataset=Dataset.from_list(records),
        processing_class=base.tokenizer,
    )
    columns = ["prompt_ids", "completion_ids", "KL_completion_ids", "label"]
    rows = [{key: item[key] for key in columns} for item in trainer.train_dataset]
    examples = kto_examples(rows)
    term = terms.Kto(examples, 0.1, LIMIT)
    # Two of each kind: TRL knows no class weights, and ours are set aside.
    term._scale = (1.0, 1.0)
    term.prepare(trainer.model, [(0, 1, 2, 3)], None)
    move_adapter(trainer.model, seed=4)
    oracle = trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()
    ours = terms.backward_of(trainer.model, [(term, (0, 1, 2, 3))], 0)
    assert abs(oracle - 0.5) > 0.01
    assert ours == pytest.approx(oracle, rel=1e-5)


def kto_examples(rows: Sequence[dict[str, Any]]) -> list[Example]:
    return [
        Example(
            ids=(*row["prompt_ids"], *row["completion_ids"]),
            start=len(row["prompt_ids"]),
            liked=bool(row["label"]),
        )
        for row in rows
    ]
