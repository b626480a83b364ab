"""Gradient steps on a tiny real model: alignment, oracles, determinism, and loud failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bot.serving.adapter_files import verify
from bot.serving.base import LoadedBase, load_base
from storage.config import TrainerConfig
from tests.trainer.rows import row
from trainer import challenger, losses, training
from trainer.challenger import BaseCodec
from trainer.encoding import Example
from trainer.errors import DivergedError, GradientLostError, TrainingError
from trainer.objectives import Plan
from trainer.replay import BaseReply
from trainer.snapshot import Row, Snapshot
from trainer.training import KtoSettings, SftSettings

SETTINGS = TrainerConfig(rank=4, alpha=8, epochs=3, batch_size=4, sft_learning_rate=5e-3, max_length=128)
EXAMPLES = [
    Example(ids=tuple(range(3, 3 + length)), start=start, liked=liked, weight=weight)
    for length, start, liked, weight in [
        (12, 5, True, 1.0),
        (9, 8, False, 0.5),
        (20, 4, True, 2.0),
        (7, 1, False, 1.0),
    ]
]
REPLAY = tuple(BaseReply(f"What is {n}?", f"It is {n}, of course.", True) for n in range(4))


def rows() -> list[Row]:
    return [
        row(f"r{n}", "liked" if n % 2 else "disliked", asked=f"Question {n}?", text=f"Answer {n}, and you?")
        for n in range(12)
    ]


def the_snapshot() -> Snapshot:
    return Snapshot(tuple(rows()), "c" * 64, raters=5)


def adapted(base: LoadedBase) -> torch.nn.Module:
    return challenger.add_adapter(base.model, SETTINGS)


def test_scores_equal_one_plain_forward_per_example(base: LoadedBase) -> None:
    scores = training.score(base.model, EXAMPLES, pad_id=2)
    for number, example in enumerate(EXAMPLES):
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([example.ids])).logits[0].float()
        expected = [
            float(logits[at - 1].log_softmax(-1)[example.ids[at]])
            for at in range(example.start, len(example.ids))
        ]
        assert scores.totals[number].item() == pytest.approx(sum(expected), abs=2e-3)
        assert scores.mask[number].sum() == example.completion_length


def test_nothing_is_learned_from_prompts(base: LoadedBase) -> None:
    """The loss depends on prompt tokens through attention only: no prompt position carries a target."""
    scores = training.score(base.model, EXAMPLES, pad_id=2)
    masked = losses.supervised(scores, torch.ones(len(EXAMPLES)))
    by_hand = -sum(scores.totals[number] for number in range(len(EXAMPLES)))
    assert masked.item() == pytest.approx(float(by_hand), rel=1e-5)


def test_the_stop_token_carries_loss(base: LoadedBase) -> None:
    codec = BaseCodec(base.tokenizer)
    (with_stop,) = challenger.supervised_examples(codec, [row("a", finished=True)], 128)
    (without,) = challenger.supervised_examples(codec, [row("a", finished=False)], 128)
    assert with_stop.completion_length == without.completion_length + 1
    assert training.score(base.model, [with_stop], 2).mask[0, -1] == 1.0


def test_micro_batches_hold_every_example_once_within_their_limit() -> None:
    groups = list(training.micro_batches(EXAMPLES, 24))
    assert sorted(i for group in groups for i in group) == [0, 1, 2, 3]
    for group in groups:
        assert len(group) == 1 or len(group) * max(len(EXAMPLES[i].ids) for i in group) <= 24


def test_micro_batching_does_not_change_the_gradient(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(base)
    gradients = []
    for limit in (12, 10_000):
        monkeypatch.setattr(training, "MICRO_BATCH_TOKENS_CPU", limit)
        training._sft_backward(model, EXAMPLES, 2)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_divergence_from_the_base_is_zero_for_the_base_and_equals_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(2, 5, 11, generator=generator) for _ in range(2))
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1.0]])
    scores = losses.TokenScores(torch.zeros(2, 5), mask, logits)
    assert losses.divergence_from_base(scores, logits).item() == pytest.approx(0.0, abs=1e-5)
    expected = torch.nn.functional.kl_div(
        logits.log_softmax(-1), other.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    assert losses.divergence_from_base(scores, other).item() == pytest.approx(
        (expected * mask).sum().item(), rel=1e-4
    )


def test_sft_raises_the_likelihood_of_liked_replies_and_replay_keeps_the_base_close(
    base: LoadedBase, tiny_folder: Path
) -> None:
    codec = BaseCodec(base.tokenizer)
    liked = challenger.supervised_examples(codec, rows(), 128)
    replayed = challenger.replay_examples(codec, REPLAY, 128)
    drifts = []
    for share, loaded in ((0.0, base), (0.5, load_base(tiny_folder, "cpu", "train"))):
        model = adapted(loaded)
        before = training.score(model, liked, 2).totals.sum().item()
        anchors = training.base_distributions(model, replayed, 2)
        report = training.train_sft(model, liked, replayed, SftSettings(5e-3, 6, 4, share, 0), pad_id=2)
        assert training.score(model, liked, 2).totals.sum().item() > before
        assert report.steps == len(report.losses) == 12
        drift = 0.0
        for example, anchor in zip(replayed, anchors, strict=True):
            scores = training.score(model, [example], 2)
            drift += losses.divergence_from_base(scores, anchor.float()[None]).item()
        drifts.append(drift)
    assert drifts[1] < drifts[0]


def test_kto_separates_liked_from_disliked_replies(base: LoadedBase) -> None:
    codec = BaseCodec(base.tokenizer)
    rated = challenger.kto_examples(codec, rows(), 128)
    liked = torch.tensor([example.liked for example in rated])
    model = adapted(base)
    before = training.score(model, rated, 2).totals.detach()
    training.train_kto(model, rated, KtoSettings(1e-2, 6, 4, 0.1, 0), pad_id=2)
    gain = training.score(model, rated, 2).totals.detach() - before
    assert gain[liked].mean() > gain[~liked].mean()


def test_kto_equals_trls_loss_on_the_same_batch(base: LoadedBase, tmp_path: Path) -> None:
    """TRL's own trainer on the same tokens is the oracle; the weights are ones, since it knows no others.

    Given a PEFT model TRL keeps a frozen copy of its adapter as the reference: SFT, then KTO, as we do.
    """
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    model = adapted(base)
    _move_adapter(model, "default", seed=3)
    records = [
        {"prompt": "How are you? ", "completion": "I like tea.", "label": True},
        {"prompt": "Hello there! ", "completion": "The quick brown fox.", "label": False},
        {"prompt": "What do you think? ", "completion": "Bread.", "label": True},
        {"prompt": "Again: ", "completion": "Long walks in the rain.", "label": False},
    ]
    config = KTOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        beta=0.1,
        report_to=[],
        remove_unused_columns=False,
        gradient_checkpointing=False,
    )
    trainer = KTOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(records),
        processing_class=base.tokenizer,
    )
    _move_adapter(trainer.model, "default", seed=4)
    columns = ["prompt_ids", "completion_ids", "KL_completion_ids", "label"]
    prepared = [{key: item[key] for key in columns} for item in trainer.train_dataset]
    batch = trainer.data_collator(prepared)
    oracle = trainer.compute_loss(trainer.model, batch).item()

    examples = [
        Example(
            ids=(*item["prompt_ids"], *item["completion_ids"]),
            start=len(item["prompt_ids"]),
            liked=bool(item["label"]),
        )
        for item in prepared
    ]
    ((reference, reference_mismatched),) = _totals_of(trainer.model, "ref", examples)
    ((policy, policy_mismatched),) = _totals_of(trainer.model, "default", examples)
    divergence = losses.mismatch_divergence(policy_mismatched, reference_mismatched)
    ours = losses.kto(
        policy,
        reference,
        torch.tensor([example.liked for example in examples]),
        torch.ones(4),
        divergence=divergence,
        beta=0.1,
    )
    assert abs(oracle - 0.5) > 0.01
    assert ours.mean().item() == pytest.approx(oracle, abs=2e-4)


def _move_adapter(model: torch.nn.Module, name: str, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if f"lora_B.{name}" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5


def _totals_of(
    model: torch.nn.Module, adapter: str, examples: list[Example]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    model.set_adapter(adapter)
    return training._reference_totals(model, [examples], 2)


def test_a_base_that_passes_no_gradient_back_fails_loudly(base: LoadedBase) -> None:
    model = adapted(base)
    # What a packed 4-bit layer does: the forward is right, the backward is silent.
    model.get_base_model().model.layers[1].register_forward_pre_hook(
        lambda module, inputs: (inputs[0].detach(), *inputs[1:])
    )
    with pytest.raises(GradientLostError, match=r"layers\.0"):
        training.train_sft(model, EXAMPLES, [], SftSettings(1e-3, 1, 4, 0.0, 0), pad_id=2)


def test_a_loss_that_is_not_a_number_stops_the_training(base: LoadedBase) -> None:
    model = adapted(base)
    next(p for n, p in model.named_parameters() if "lora_B" in n).data.fill_(float("nan"))
    with pytest.raises(DivergedError):
        training.train_sft(model, EXAMPLES, [], SftSettings(1e-3, 1, 4, 0.0, 0), pad_id=2)


@pytest.mark.parametrize("objective", ["sft", "sft_kto"])
def test_a_challenger_is_repeatable_bit_for_bit_and_can_be_served(
    tiny_folder: Path, tmp_path: Path, objective: str
) -> None:
    ids = set()
    settings = SETTINGS.model_copy(update={"objective": objective, "epochs": 1})
    for attempt in ("one", "two"):
        trained = challenger.train_challenger(
            load_base(tiny_folder, "cpu", "train"),
            the_snapshot(),
            REPLAY,
            Plan(objective),  # type: ignore[arg-type]
            settings,
            work=tmp_path / attempt,
            adapters_dir=tmp_path / "adapters",
        )
        ids.add(trained.adapter_id)
        assert (trained.kto is not None) == (objective == "sft_kto")
    (adapter_id,) = ids
    base = load_base(tiny_folder, "cpu")
    manifest = verify(
        tmp_path / "adapters" / adapter_id,
        adapters_dir=tmp_path / "adapters",
        base_hash=base.info.hash,
        chat_template_hash=base.info.chat_template_hash,
    )
    assert manifest.adapter_id == adapter_id
    assert not (tmp_path / "two" / "adapter").exists()
    tensors = load_file(trained.folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert len(tensors) == 2 * 7 * 2
    card = json.loads((trained.folder / "card.json").read_text())
    assert card["objective"] == objective
    assert "Question" not in (trained.folder / "card.md").read_text()


def test_another_seed_gives_another_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    ids = set()
    for seed in (0, 1):
        settings = SETTINGS.model_copy(update={"seed": seed, "epochs": 1})
        ids.add(
            challenger.train_challenger(
                load_base(tiny_folder, "cpu", "train"),
                the_snapshot(),
                REPLAY,
                Plan("sft"),
                settings,
                work=tmp_path / str(seed),
                adapters_dir=tmp_path / "adapters",
            ).adapter_id
        )
    assert len(ids) == 2


def test_held_out_rows_are_never_trained_on(tiny_folder: Path, tmp_path: Path) -> None:
    held_out = Snapshot(tuple(row(f"r{n}", split="gate") for n in range(4)), "c" * 64)
    with pytest.raises(TrainingError, match="no liked reply"):
        challenger.train_challenger(
            load_base(tiny_folder, "cpu", "train"),
            held_out,
            REPLAY,
            Plan("sft"),
            SETTINGS,
            work=tmp_path,
            adapters_dir=tmp_path / "adapters",
        )


def test_training_stops_at_the_next_step_when_it_is_told_to(base: LoadedBase) -> None:
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train_sft(
            adapted(base), EXAMPLES, [], SftSettings(1e-3, 5, 2, 0.0, 0), pad_id=2, on_step=stop
        )
    assert seen == [1]


def test_a_training_that_would_take_too_long_is_shortened_and_can_be_repeated(tiny_folder: Path) -> None:
    weights = []
    limits: list[dict[str, Any]] = [{"max_seconds": 1e-6}, {"max_steps": 3}]
    for limit in limits:
        model = adapted(load_base(tiny_folder, "cpu", "train"))
        report = training.train_sft(model, EXAMPLES, [], SftSettings(1e-3, 50, 2, 0.0, 0, **limit), pad_id=2)
        assert (report.steps, report.shortened) == (3, True)
        weights.append(challenger.adapter_tensors(model))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
