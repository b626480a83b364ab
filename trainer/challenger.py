"""A challenger: a fresh LoRA adapter on all eligible training rows, saved under its content hash.

Never continued from the champion: drift doesn't compound, and erasing a member's data is an omission.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from bot.serving import adapter_files
from bot.serving.base import LoadedBase
from bot.serving.prompts import plain_content, render_chat
from bot.serving.protocol import ChatMessage
from storage.config import TrainerConfig
from trainer import objectives, training
from trainer.encoding import Codec, Example, encode
from trainer.errors import TrainingError
from trainer.evaluation import messages_of
from trainer.objectives import Plan
from trainer.replay import BaseReply
from trainer.snapshot import Row, Snapshot
from trainer.training import KtoSettings, SftSettings, TrainingReport

CARD = "card.json"
CARD_TEXT = "card.md"
# The share of the training phase's progress that goes to supervised tuning when KTO follows.
SFT_PART = 0.35

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Challenger:
    """A saved adapter. `plan` is what was really trained; the reports say how."""

    adapter_id: str
    folder: Path
    plan: Plan
    sft: TrainingReport
    kto: TrainingReport | None

    @property
    def seconds(self) -> float:
        """Return how long the gradient steps took."""
        return self.sft.seconds + (self.kto.seconds if self.kto else 0.0)


@dataclass(frozen=True)
class BaseCodec:
    """Encodes with the base's own tokenizer and template, by the functions that the server uses."""

    tokenizer: Any

    @property
    def stop_id(self) -> int:
        """Return the token that ends a turn."""
        return int(self.tokenizer.eos_token_id)

    def prompt_ids(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return a chat up to and including the header of the assistant's turn."""
        return render_chat(self.tokenizer, messages, add_generation_prompt=True)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of plain text: what looks like a control token is broken or cut out."""
        plain = plain_content(self.tokenizer, text)
        return [int(token) for token in self.tokenizer(plain, add_special_tokens=False)["input_ids"]]


def train_challenger(
    base: LoadedBase,
    snapshot: Snapshot,
    replay: Sequence[BaseReply],
    plan: Plan,
    settings: TrainerConfig,
    *,
    work: Path,
    adapters_dir: Path,
    on_progress: Progress = lambda share, note: None,
) -> Challenger:
    """Train and save one challenger; `work` is the run's own folder.

    The same snapshot, replay, plan, settings, versions and thread count give the same adapter id.

    Raises:
        TrainingError: nothing to learn from, no gradient, or a loss that is not a number.
    """
    codec = BaseCodec(base.tokenizer)
    settings = objectives.for_size(settings, base.info.linear_parameters + base.info.other_parameters)
    liked = supervised_examples(codec, snapshot.of("train"), settings.max_length)
    rated = kto_examples(codec, snapshot.of("train"), settings.max_length)
    if not liked:
        raise TrainingError("There is no liked reply to train on.")
    model = add_adapter(base.model, settings)
    sft_part = SFT_PART if plan.objective == "sft_kto" else 1.0
    sft = training.train_sft(
        model,
        liked,
        replay_examples(codec, replay, settings.max_length),
        SftSettings(
            learning_rate=settings.sft_learning_rate,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            replay_share=settings.replay_share,
            seed=settings.seed,
            max_seconds=settings.max_train_minutes * 60,
        ),
        pad_id=codec.stop_id,
        on_step=lambda done, total: on_progress(
            sft_part * done / total, f"liked replies, step {done} of {total}"
        ),
    )
    plan = objectives.within_budget(
        plan,
        kto_tokens=sum(len(example.ids) for example in rated) * settings.kto_epochs,
        tokens_per_second=sft.tokens_per_second,
        spent_s=sft.seconds,
        settings=settings,
    )
    kto = None
    if plan.objective == "sft_kto":
        kto = training.train_kto(
            model,
            rated,
            KtoSettings(
                learning_rate=settings.kto_learning_rate,
                epochs=settings.kto_epochs,
                batch_size=settings.batch_size,
                beta=settings.beta,
                seed=settings.seed,
            ),
            pad_id=codec.stop_id,
            on_step=lambda done, total: on_progress(
                SFT_PART + (1 - SFT_PART) * done / total, f"all ratings, step {done} of {total}"
            ),
        )
    card = describe(base, snapshot, plan, settings, len(liked), len(rated) if kto else 0)
    card["steps"] = {"sft": sft.steps, "kto": kto.steps if kto else 0}
    adapter_id, folder = save(model, base, card, work=work, adapters_dir=adapters_dir)
    return Challenger(adapter_id, folder, plan, sft, kto)


def supervised_examples(codec: Codec, rows: Sequence[Row], max_length: int) -> list[Example]:
    """Return liked replies and corrections with their weights; a correction is a whole reply by a person."""
    found = []
    for row in rows:
        messages = messages_of(row)
        if row.verdict == "liked" and row.weight > 0:
            found.append(
                encode(
                    codec, messages, row.text, finished=row.finished, max_length=max_length, weight=row.weight
                )
            )
        found += [
            encode(codec, messages, c.text, finished=True, max_length=max_length, weight=c.weight)
            for c in row.corrections
        ]
    return found


def kto_examples(codec: Codec, rows: Sequence[Row], max_length: int) -> list[Example]:
    """Return everything to push towards, and disliked replies to push away from."""
    disliked = [
        encode(
            codec,
            messages_of(row),
            row.text,
            finished=row.finished,
            max_length=max_length,
            weight=row.weight,
            liked=False,
        )
        for row in rows
        if row.verdict == "disliked" and row.weight > 0
    ]
    return supervised_examples(codec, rows, max_length) + disliked


def replay_examples(codec: Codec, replies: Sequence[BaseReply], max_length: int) -> list[Example]:
    """Return the base's own replies as completions."""
    return [
        encode(codec, reply.messages, reply.text, finished=reply.finished, max_length=max_length)
        for reply in replies
    ]


def add_adapter(model: nn.Module, settings: TrainerConfig) -> PeftModel:
    """Put a fresh LoRA adapter with float32 weights on every linear layer but the output head."""
    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, config)
    # In bfloat16 most updates of a small learning rate round to nothing (LEARNING: pitfalls).
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return peft_model


def save(
    model: PeftModel, base: LoadedBase, card: dict[str, Any], *, work: Path, adapters_dir: Path
) -> tuple[str, Path]:
    """Write the adapter in PEFT's layout, hash it and rename it once to its final place.

    Never through `state_dict()` or `save_pretrained`: on some CPUs that unpacks and damages a 4-bit base.
    """
    partial = work / "adapter"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(adapter_tensors(model), partial / adapter_files.WEIGHTS, metadata={"format": "pt"})
    config = _config_json(model, base.info.id)
    (partial / adapter_files.CONFIG).write_text(
        json.dumps(config, indent=2, sort_keys=True), encoding="utf-8"
    )
    (partial / CARD).write_text(json.dumps(card, indent=2, sort_keys=True), encoding="utf-8")
    (partial / CARD_TEXT).write_text(card_text(card), encoding="utf-8")
    adapter_id = adapter_files.write_manifest(
        partial,
        base_hash=base.info.hash,
        chat_template_hash=base.info.chat_template_hash,
        extra={"rehearsal": card["rehearsal"], "snapshot": card["snapshot"]},
    )
    return adapter_id, _move(partial, adapters_dir / adapter_id)


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the adapter's weights by PEFT's names, without the adapter's own name in them."""
    return {
        name.replace(".default.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }


def describe(
    base: LoadedBase, snapshot: Snapshot, plan: Plan, settings: TrainerConfig, supervised: int, rated: int
) -> dict[str, Any]:
    """Return the adapter's card: what it is and what made it. No words of members, no times."""
    hyper_parameters = settings.model_dump(
        include={
            "rank",
            "alpha",
            "sft_learning_rate",
            "kto_learning_rate",
            "epochs",
            "kto_epochs",
            "beta",
            "batch_size",
            "max_length",
            "replay_share",
            "seed",
        }
    )
    return {
        "base": base.info.id,
        "base_hash": base.info.hash,
        "objective": plan.objective,
        "snapshot": snapshot.content_hash,
        "rehearsal": snapshot.rehearsal,
        "supervised_examples": supervised,
        "kto_examples": rated,
        "raters": snapshot.raters,
        "settings": hyper_parameters,
        "versions": {"torch": torch.__version__, "threads": torch.get_num_threads()},
    }


def card_text(card: dict[str, Any]) -> str:
    """Return the card for people."""
    origin = "simulated or playground members (a rehearsal)" if card["rehearsal"] else "a community's members"
    lines = [
        f"# A LoRA adapter for {card['base']}",
        "",
        f"Trained by Strop on the ratings of {origin}: "
        f"{card['supervised_examples']} liked or corrected replies"
        + (f", then {card['kto_examples']} rated ones" if card["kto_examples"] else "")
        + f", by {card['raters']} raters.",
        "",
        f"- objective: {card['objective']}",
        f"- base hash: {card['base_hash']}",
        f"- dataset snapshot: {card['snapshot']}",
        *(f"- {name}: {value}" for name, value in sorted(card["settings"].items())),
        "",
        "It carries the habits of the community that rated it, and the limits of its base.",
        "",
    ]
    return "\n".join(lines)


def _config_json(model: PeftModel, base_id: str) -> dict[str, Any]:
    """Return PEFT's configuration without this machine's paths and in an order that never changes."""
    config = replace(
        model.peft_config["default"], base_model_name_or_path=base_id, inference_mode=True
    ).to_dict()
    return {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in config.items()
    }


def _move(partial: Path, final: Path) -> Path:
    """Rename once; an adapter that is there already has the same bytes, for its name is their hash."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        shutil.rmtree(partial)
        return final
    partial.rename(final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return final
