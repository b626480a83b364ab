"""The trainer of TRL that ours is measured beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from storage.config_sections import TrainerConfig


def trl_trainer(
    model: Any, tokenizer: Any, seen: Sequence[Any], settings: TrainerConfig, folder: str, *, on_cpu: bool
) -> Any:
    """Return TRL's trainer over the same examples and schedule, in its fastest form."""
    # Imported where it is used: it takes seconds, and is not everywhere.
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": list(each.ids),
            "completion_mask": [0] * each.start + [1] * each.completion_length,
        }
        for each in seen
    ]
    steps = math.ceil(len(seen) / settings.batch_size) * settings.epochs
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=folder,
            use_cpu=on_cpu,
            bf16=not on_cpu,
            per_device_train_batch_size=settings.batch_size,
            num_train_epochs=settings.epochs,
            learning_rate=settings.sft_learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=max(1, round(0.1 * steps)),
            weight_decay=0.0,
            max_grad_norm=1.0,
            completion_only_loss=True,
            max_length=None,
            gradient_checkpointing=False,
            train_sampling_strategy="group_by_length",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=settings.seed,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer
