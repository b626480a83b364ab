"""Gradient steps on a tiny real model: alignment, oracles, determinism, and loud failure."""

from __future__ import annotations

import json
import math
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from bot.serving.model.adapter_files import verify
from bot.serving.model.loading import LoadedBase, load_base
from storage.config_sections import TrainerConfig
from tests.trainer.rows import pair, row
from trainer.data import examples, general_replies
from trainer.data.encoding import Example, PreferenceExample
from trainer.data.examples import BaseCodec, Material
from trainer.data.general_replies import BaseReply
from trainer.data.rows import Row
from trainer.data.snapshot import Snapshot
from trainer.errors import DivergedError, GradientLostError, TrainingError
from trainer.training import challenger, forward, losses, packing, phases, saving, terms
from trainer.training.adapter import add_adapter
from trainer.training.objectives import Plan
from trainer.training.phases import DpoSettings, KtoSettings, SftSettings

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
    return Snapshot(tuple(rows()), "c" * 64, raters=5, pairs=tuple(pair(f"p{n}") for n in range(6)))


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def adapted(base: LoadedBase) -> torch.nn.Module:
    return add_adapter(base.model, SETTINGS)


def test_scores_equal_one_plain_forward_per_example(base: LoadedBase) -> None:
    scores = forward.score(base.model, EXAMPLES)
    for number, example in enumerate(EXAMPLES):
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([example.ids])).logits[0].float()
        expected = [
            float(logits[at - 1].log_softmax(-1)[example.ids[at]])
            for at in range(example.start, len(example.ids))
        ]
        assert scores.totals[number].item() == pytest.approx(sum(expected), abs=2e-3)
        assert scores.lengths[number] == example.completion_length


def test_nothing_is_learned_from_prompts(base: LoadedBase) -> None:
    """The loss depends on prompt tokens through attention only: no prompt position carries a target."""
    scores = forward.score(base.model, EXAMPLES)
    logits = forward.distributions(base.model, EXAMPLES)
    completions = [token for example in EXAMPLES for token in example.ids[example.start :]]
    assert scores.logps.tolist() == logits.log_softmax(-1)[range(len(completions)), completions].tolist()
    assert losses.supervised_loss(scores, torch.ones(4)).item() == pytest.approx(-scores.logps.sum().item())


def test_the_stop_token_carries_loss(base: LoadedBase) -> None:
    codec = BaseCodec(base.tokenizer)
    (with_stop,) = examples.supervised_examples(codec, [row("a", finished=True)], 128)
    (without,) = examples.supervised_examples(codec, [row("a", finished=False)], 128)
    assert with_stop.completion_length == without.completion_length + 1
    assert with_stop.ids[-1] == codec.stop_id


def test_no_attention_crosses_from_one_example_into_another(base: LoadedBase) -> None:
    """An example scores the same whatever stands before it in the row, to the last bit."""
    alone = forward.score(base.model, [EXAMPLES[2]])
    for before in (EXAMPLES[0], Example(ids=(400,) * 30, start=2)):
        beside = forward.score(base.model, [before, EXAMPLES[2], EXAMPLES[1]])
        logps = beside.logps.split(beside.lengths)[1]
        assert torch.allclose(logps, alone.logps, atol=1e-5)
    # And the gradient of one example does not depend on the tokens of another.
    query = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    two = (packing.Block(5), packing.Block(7))
    attended, _ = packing.attend_within_blocks(base.model, query, query, query, None, blocks=two)
    attended[:, 5:].sum().backward()
    assert query.grad is not None
    assert not query.grad[:, :, :5].any()
    assert query.grad[:, :, 5:].any()


def test_a_model_that_hides_where_examples_begin_is_not_trained(base: LoadedBase) -> None:
    with (
        packing.within_blocks(base.model),
        pytest.raises(TrainingError, match="can be served, but not trained"),
    ):
        base.model(input_ids=torch.tensor([[3, 4, 5]]))
    assert base.model(input_ids=torch.tensor([[3, 4, 5]])).logits.shape == (1, 3, 416)


def test_what_examples_begin_with_lies_in_a_row_once_and_their_gradients_add_up(base: LoadedBase) -> None:
    """The system message of all, the question of two, and a reply that is there twice."""
    system, question, reply = tuple(range(30, 50)), tuple(range(60, 72)), (90, 91, 92, 93, 94, 95, 96, 97, 98)
    rows = [
        Example((*system, *question, *reply), 32),
        Example((*system, *question, 80, 81, 82), 32),
        Example((*system, 100, 101, 102), 22),
        Example((*system, *question, *reply), 32, weight=2.0),
        Example((7, *system[1:], 100, 101), 19),
    ]
    packed = packing.pack(rows)
    assert packed.ids.shape == (1, 20 + 12 + 9 + 3 + 3 + 22)
    assert [block.length for block in packed.blocks] == [20, 12, 9, 3, 3, 22]
    assert packed.blocks[3].after == (0, 1)
    model = adapted(base)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1

    def gradient(batches: list[list[Example]]) -> torch.Tensor:
        model.zero_grad()
        for batch in batches:
            scores = forward.score(model, batch)
            weights = torch.tensor([each.weight for each in batch])
            forward.accumulate(model, losses.supervised_loss(scores, weights))
        return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])

    together, alone = gradient([rows]), gradient([[each] for each in rows])
    assert (together - alone).norm() < 1e-5 * alone.norm()


def test_a_step_in_two_halves_at_once_is_the_whole_step_and_always_the_same_one(base: LoadedBase) -> None:
    rows = [Example(tuple(range(3 + 7 * n, 40 + 9 * n)), 9 + n, weight=1 + n / 4) for n in range(4)]
    pairs = [PreferenceExample(rows[0], rows[1]), PreferenceExample(rows[2], rows[3], weight=1.5)]
    model = adapted(base)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1
    parts: list[tuple[terms.Term, tuple[int, ...]]] = [
        (terms.Supervised(rows, 500), (0, 1, 2, 3)),
        (terms.Replay(terms.BaseLogits(rows), 0.3, 500), (1, 2)),
        (terms.Dpo(pairs, 0.1, 0.3, 500), (0, 1)),
    ]

    def gradient(threads: int) -> torch.Tensor:
        with forward.torch_threads(threads):
            for term, chosen in parts:
                term.prepare(model, [chosen], None)
            model.zero_grad()
            loss = terms.backward_of(model, parts, 0)
            assert torch.get_num_threads() == threads
        found = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
        return torch.cat([*found, torch.tensor([loss])])

    one, two, again = (gradient(threads) for threads in (1, 2, 2))
    assert torch.equal(two, again)
    assert (two - one).norm() < 1e-5 * one.norm()


def test_an_empty_reply_is_worth_nothing_also_where_a_forward_has_no_other(base: LoadedBase) -> None:
    """As a rejected one may be: its pair's reference is scored in whatever group it falls into."""
    empty = Example(tuple(range(3, 15)), 12)
    model = adapted(base)
    assert forward.totals(model, [empty, EXAMPLES[0]], 12).tolist()[0] == 0
    dpo = terms.Dpo([PreferenceExample(EXAMPLES[0], empty)], 0.1, 0.3, 12)
    dpo.prepare(model, [], None)
    assert math.isfinite(terms.backward_of(model, [(dpo, (0,))], 0))


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=40), min_size=1, max_size=6))
def test_every_example_is_whole_whatever_it_shares(sequences: list[list[int]]) -> None:
    packed = packing.pack([Example(tuple(each), 1) for each in sequences])
    starts = [sum(block.length for block in packed.blocks[:at]) for at in range(len(packed.blocks))]
    whole = {}
    for at, block in enumerate(packed.blocks):
        places = [
            place
            for part in (*block.after, at)
            for place in range(starts[part], starts[part] + packed.blocks[part].length)
        ]
        assert packed.positions[0, places].tolist() == list(range(len(places)))
        whole[places[-1]] = packed.ids[0, places].tolist()
    assert all(each in whole.values() for each in sequences)
    assert packed.ids[0, packed.predicting].tolist() == [token for each in sequences for token in each[:-1]]


@pytest.mark.parametrize(
    "variant", [{}, {"sliding_window": 3}, {"softcap": 2.0}, {"softcap": 2.0, "sliding_window": 4}]
)
@pytest.mark.parametrize("blocks", [(packing.Block(9),), (packing.Block(5), packing.Block(4, (0,)))])
def test_windows_and_bent_scores_are_those_of_plain_attention(
    variant: dict[str, Any], blocks: tuple[packing.Block, ...]
) -> None:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 4, 9, 8, generator=generator)
    key, value = (torch.randn(1, 2, 9, 8, generator=generator) for _ in range(2))
    attended, _ = packing.attend_within_blocks(
        torch.nn.Identity(), query, key, value, None, blocks=blocks, **variant
    )
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) / 8**0.5
    if "softcap" in variant:
        scores = 2.0 * torch.tanh(scores / 2.0)
    for at in range(9):
        seen = range(max(0, at + 1 - variant.get("sliding_window", 9)), at + 1)
        weights = scores[0, :, at, list(seen)].softmax(-1)
        expected = torch.einsum("hk,hkd->hd", weights, value.repeat_interleave(2, 1)[0][:, list(seen)])
        assert torch.allclose(attended[0, at], expected, atol=1e-5)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(1, 100))
def test_groups_hold_every_example_once_within_their_limit(lengths: list[int], limit: int) -> None:
    examples = [Example(ids=(3,) * length, start=1) for length in lengths]
    groups = packing.bins(examples, limit)
    assert sorted(i for group in groups for i in group) == list(range(len(examples)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[i] for i in group) <= limit


def test_the_size_of_a_forward_does_not_change_the_gradient(base: LoadedBase) -> None:
    model = adapted(base)
    gradients = []
    for limit in (12, 10_000):
        terms.backward_of(model, [(terms.Supervised(EXAMPLES, limit), (0, 1, 2, 3))], 0)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_step_of_several_terms_has_the_sum_of_their_gradients(base: LoadedBase) -> None:
    """A mixed phase: supervised loss and preference loss in one optimiser step."""
    model = adapted(base)
    preferred = PreferenceExample(EXAMPLES[0], EXAMPLES[1], weight=0.5)
    supervised, dpo = terms.Supervised(EXAMPLES, 10_000), terms.Dpo([preferred], 0.1, 0.0, 10_000)
    dpo.prepare(model, [], None)
    apart = []
    for term, chosen in ((supervised, (0, 2)), (dpo, (0,))):
        terms.backward_of(model, [(term, chosen)], 0)
        apart.append([p.grad.clone() for n, p in model.named_parameters() if "lora_B" in n])
        model.zero_grad()
    terms.backward_of(model, [(supervised, (0, 2)), (dpo, (0,))], 0)
    together = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    for one, other, both in zip(*apart, together, strict=True):
        assert torch.allclose(one + other, both, atol=1e-6)


def test_trust_weighs_a_pair_and_a_pair_without_weight_teaches_nothing(base: LoadedBase) -> None:
    model = adapted(base)
    losses_by_weight = []
    for weight in (1.0, 0.25, 0.0):
        term = terms.Dpo([PreferenceExample(EXAMPLES[0], EXAMPLES[1], weight)], 0.1, 0.0, 10_000)
        term.prepare(model, [], None)
        losses_by_weight.append(terms.backward_of(model, [(term, (0,))], 0))
    assert losses_by_weight == pytest.approx([math.log(2), math.log(2) / 4, 0.0])


def test_what_a_member_wrote_cannot_become_a_control_token_of_a_pair(base: LoadedBase) -> None:
    codec = BaseCodec(base.tokenizer)
    sly = replace(pair("p"), prompt=(("user", "<|im_end|>"),), chosen="<|im_end|>Yes.", rejected="<|im_end|>")
    (example,) = examples.dpo_examples(codec, [sly], 128)
    plain = examples.dpo_examples(codec, [replace(sly, prompt=(("user", "x"),))], 128)[0]
    for side in (example.chosen, example.rejected):
        assert side.ids[: side.start].count(codec.stop_id) == plain.chosen.ids[: plain.chosen.start].count(
            codec.stop_id
        )
        assert side.ids[side.start :].count(codec.stop_id) == 1


def test_dpo_prefers_the_chosen_reply_and_keeps_it_likely(base: LoadedBase) -> None:
    codec = BaseCodec(base.tokenizer)
    pairs = examples.dpo_examples(
        codec, [pair(f"p{n}", chosen=f"Tea, please. Or {n}?") for n in range(8)], 128
    )
    model = adapted(base)
    sides = [[each.chosen for each in pairs], [each.rejected for each in pairs]]
    before = [forward.totals(model, side, 10_000) for side in sides]
    report = phases.train_dpo(model, pairs, DpoSettings(5e-3, 4, 4, 0.1, 1.0, 0))
    gains = [
        (forward.totals(model, side, 10_000) - then).mean() for side, then in zip(sides, before, strict=True)
    ]
    assert report.steps == len(report.losses) == 8
    assert gains[0] > gains[1]
    assert gains[0] > 0


def test_divergence_from_the_base_is_zero_for_the_base_and_equals_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(9, 11, generator=generator) for _ in range(2))
    assert losses.divergence_from_base(logits, logits).item() == pytest.approx(0.0, abs=1e-5)
    expected = torch.nn.functional.kl_div(
        logits.log_softmax(-1), other.log_softmax(-1), reduction="none", log_target=True
    ).sum()
    assert losses.divergence_from_base(logits, other).item() == pytest.approx(expected.item(), rel=1e-4)


def test_sft_raises_the_likelihood_of_liked_replies_and_replay_keeps_the_base_close(
    base: LoadedBase, tiny_folder: Path
) -> None:
    codec = BaseCodec(base.tokenizer)
    liked = examples.supervised_examples(codec, rows(), 128)
    replayed = general_replies.encoded(codec, REPLAY, 128)
    drifts = []
    for share, loaded in ((0.0, base), (0.5, load_base(tiny_folder, "cpu", "train"))):
        model = adapted(loaded)
        before = forward.score(model, liked).totals.sum().item()
        anchors = forward.base_distributions(model, replayed, 128)
        report = phases.train_sft(model, liked, replayed, SftSettings(5e-3, 6, 4, share, 0))
        assert forward.score(model, liked).totals.sum().item() > before
        assert report.steps == len(report.losses) == 12
        drift = 0.0
        for example, anchor in zip(replayed, anchors, strict=True):
            logits = forward.distributions(model, [example])
            drift += losses.divergence_from_base(logits, anchor.float()).item()
        drifts.append(drift)
    assert drifts[1] < drifts[0]


def test_kto_separates_liked_from_disliked_replies(base: LoadedBase) -> None:
    codec = BaseCodec(base.tokenizer)
    rated = examples.kto_examples(codec, rows(), 128)
    liked = torch.tensor([example.liked for example in rated])
    model = adapted(base)
    before = forward.score(model, rated).totals.detach()
    phases.train_kto(model, rated, KtoSettings(1e-2, 6, 4, 0.1, 0))
    gain = forward.score(model, rated).totals.detach() - before
    assert gain[liked].mean() > gain[~liked].mean()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_base_that_passes_no_gradient_back_fails_loudly(base: LoadedBase, threads: int) -> None:
    model = adapted(base)
    # What a packed 4-bit layer does: the forward is right, the backward is silent.
    model.get_base_model().model.layers[1].register_forward_pre_hook(
        lambda module, inputs: (inputs[0].detach(), *inputs[1:])
    )
    with forward.torch_threads(threads), pytest.raises(GradientLostError, match=r"layers\.0"):
        phases.train_sft(model, EXAMPLES, [], SftSettings(1e-3, 1, 4, 0.0, 0))


def test_a_loss_that_is_not_a_number_stops_the_training(base: LoadedBase) -> None:
    model = adapted(base)
    next(p for n, p in model.named_parameters() if "lora_B" in n).data.fill_(float("nan"))
    with pytest.raises(DivergedError):
        phases.train_sft(model, EXAMPLES, [], SftSettings(1e-3, 1, 4, 0.0, 0))


@pytest.mark.parametrize("objective", ["sft", "sft_kto", "sft_kto_dpo"])
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
            work=folder(tmp_path / attempt),
            adapters_dir=tmp_path / "adapters",
        )
        ids.add(trained.adapter_id)
        assert "_".join(trained.reports) == objective
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


def test_an_adapter_at_half_its_scale_moves_every_product_half_as_far(
    base: LoadedBase, tmp_path: Path
) -> None:
    model = add_adapter(base.model, SETTINGS)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    at = {"work": folder(tmp_path / "work"), "adapters_dir": tmp_path / "adapters"}
    card = challenger.describe(base, the_snapshot(), Plan("sft"), SETTINGS, Material([], [], [], []), {})
    whole_id, whole = saving.save(model, base, card, snapshot=the_snapshot(), **at)
    half_id, half = saving.rescale(whole, 0.5, **at)
    assert half_id != whole_id
    assert saving.rescale(whole, 0.5, **at) == (half_id, half)
    verify(half, adapters_dir=tmp_path / "adapters", base_hash=base.info.hash)
    before, after = (load_file(each / "adapter_model.safetensors") for each in (whole, half))
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor * (0.5 if ".lora_B." in name else 1.0))
    assert json.loads((half / "card.json").read_text()) == card | {"scale": 0.5}


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
                work=folder(tmp_path / str(seed)),
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
        phases.train_sft(adapted(base), EXAMPLES, [], SftSettings(1e-3, 5, 2, 0.0, 0), on_step=stop)
    assert seen == [1]


def test_a_training_that_would_take_too_long_is_shortened_and_can_be_repeated(tiny_folder: Path) -> None:
    weights = []
    limits: list[dict[str, Any]] = [{"max_seconds": 1e-6}, {"max_steps": 3}]
    for limit in limits:
        model = adapted(load_base(tiny_folder, "cpu", "train"))
        report = phases.train_sft(model, EXAMPLES, [], SftSettings(1e-3, 50, 2, 0.0, 0, **limit))
        assert (report.steps, report.shortened, report.scheduled > 3) == (3, True, True)
        weights.append(saving.adapter_tensors(model))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_adapters_are_their_owners_alone_also_where_an_older_version_made_the_folder(tmp_path: Path) -> None:
    adapters, partial = tmp_path / "adapters", tmp_path / "adapter"
    adapters.mkdir(mode=0o755)
    partial.mkdir()
    final = saving.move(partial, adapters / ("a" * 64))
    assert final.is_dir() and stat.S_IMODE(adapters.stat().st_mode) == 0o700


def test_an_adapter_moves_to_another_file_system_whole_or_not_at_all(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        partial, final = tmp_path / "adapter", Path(elsewhere, "adapters", "a" * 64)
        assert tmp_path.stat().st_dev != Path(elsewhere).stat().st_dev
        partial.mkdir()
        (partial / "weights").write_bytes(b"whole")
        torn = final.with_name(f".{final.name}.partial")
        torn.mkdir(parents=True)
        (torn / "of a killed run").touch()
        assert saving.move(partial, final) == final
        assert {path.name: path.read_bytes() for path in final.iterdir()} == {"weights": b"whole"}
        assert not partial.exists() and not torn.exists()
