"""Every measurement once, on the tiny model: that the rows come out, not how fast anything is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader

from bot.serving.engine.engine import EngineOptions
from bot.serving.model.loading import LoadedBase, load_base, read_info
from tests.bench.retrain import Part, Profile
from tests.bench.serving.beside_training import measure_beside_training
from tests.bench.serving.countdown import Countdown, duration, expected_seconds
from tests.bench.serving.errors import BenchError
from tests.bench.serving.first_start import Start, start_rows
from tests.bench.serving.first_word import Wait, first_word_row, measure_first_word
from tests.bench.serving.lora_gguf import interleave_rotary, write_lora_gguf
from tests.bench.serving.machine import describe_machine, describe_versions
from tests.bench.serving.memory_bound import BytesPerStep, held_bytes, nf4_bytes
from tests.bench.serving.memory_use import MemoryUse, parse_smaps
from tests.bench.serving.others import learning_rows, query_rows, retrain_row
from tests.bench.serving.peft_side import PeftSide
from tests.bench.serving.plain_base import write_plain_base
from tests.bench.serving.profile import QUICK, Setting
from tests.bench.serving.scoring import held_out_texts, largest_difference, measure_scoring
from tests.bench.serving.speed import SpeedTest
from tests.bench.serving.strop_side import EngineSide, Step, decode_steps
from tests.bench.serving.swap import SwapWatch, Window, measure_swap, swap_rows, window_of
from tests.bench.serving.workload import linear_widths, random_prompts, vocabulary_size, write_random_adapter

TINY = replace(
    QUICK,
    streams=(1, 3),
    pairs=2,
    prompt_tokens=20,
    tokens=6,
    swaps=1,
    replies=3,
    phase_s=1.0,
    as_loaded_streams=(1,),
    waits=1,
    first_word_tokens=20,
)


@pytest.fixture
def setting(tiny_folder: Path, tmp_path: Path) -> Setting:
    info = read_info(tiny_folder)
    adapters_dir = tmp_path / "adapters"
    first, second = (write_random_adapter(tiny_folder, info, adapters_dir, seed=seed) for seed in (1, 2))
    return Setting(
        folder=tiny_folder,
        info=info,
        device="cpu",
        threads=1,
        adapters_dir=adapters_dir,
        adapters=(first, second),
        vocabulary=vocabulary_size(tiny_folder),
        peers_dir=tmp_path / "peers",
        profile=TINY,
        say=lambda _: None,
    )


def test_the_engine_is_measured_beside_generate_and_absent_peers_say_how_to_install_them(
    setting: Setting,
) -> None:
    speed = SpeedTest(setting)
    try:
        rows = [row for streams in TINY.streams for row in speed.rows_for(streams)]
    finally:
        speed.close()
    compared = [row for row in rows if row.section == "generate"]
    assert [row.case for row in compared] == ["1 stream", "1 stream", "3 streams"]
    for row in compared:
        assert row.ours and row.theirs and row.ratio
        assert len(row.raw["strop"]) == TINY.pairs
    assert {row.reason for row in rows if row.section == "vllm"} == {"not installed: make bench-peers"}
    assert {row.reason for row in rows if row.section == "llama.cpp"} == {
        "not measured: only SmolLM2-135M-Instruct has a GGUF file here"
    }
    assert [row.case for row in rows if row.section == "ceiling"] == [
        "of the 4-bit weights",
        "of the weights as held",
    ]


def test_both_sides_write_the_same_tokens_with_the_same_adapter(setting: Setting) -> None:
    """Otherwise they would not do the same work: the engine's scores are those of PEFT's model."""
    engine = EngineSide(setting.folder, setting.adapters_dir, options=EngineOptions(slots=2))
    peft = PeftSide(setting.folder, setting.adapters[0])
    try:
        engine.use(setting.adapters[0])
        texts = random_prompts(2, 30, setting.vocabulary, seed=3)
        scores = engine.score(texts, setting.adapters[0].name)
        # The engine may multiply the 4-bit values as they are; unfolding rounds them to bfloat16.
        rounding = largest_difference(scores, peft.score(texts))
        assert rounding < 5e-2
        bare = engine.score(texts, engine.runtime.description.id)
        assert largest_difference(bare, scores) > 3 * rounding
    finally:
        engine.close()
        peft.close()


def test_a_timing_counts_only_steps_in_which_all_streams_write() -> None:
    steps = [
        Step(0.0, 0.0, 0, 0),
        Step(1.0, 0.5, 8, 1),  # reads a prompt
        Step(2.0, 1.0, 8, 3),
        Step(3.0, 1.5, 8, 5),
        Step(4.0, 2.0, 8, 6),  # one stream has ended
    ]
    assert [(before.wall_s, after.wall_s) for before, after in decode_steps(steps, 2)] == [(1, 2), (2, 3)]


def test_a_swap_is_measured_beside_hotswap_and_beside_a_join_on_the_old_adapter(setting: Setting) -> None:
    stall, longest = measure_swap(setting)
    assert stall.ours is not None and stall.theirs is not None and stall.theirs > 0
    assert longest.ours is not None and longest.ours >= 1.0
    assert len(stall.raw["hotswap_s"]) == TINY.swaps


def test_the_stall_is_what_the_longest_step_takes_beyond_the_median() -> None:
    steps = [Step(at, 0.0, 0, 0) for at in (0.0, 0.1, 0.2, 0.5, 0.6)]
    window = window_of(steps)
    assert window.stall_s == pytest.approx(0.2)
    watch = SwapWatch(Window(0.1, 0.12), Window(0.1, 0.15), window, Window(0.1, 0.2))
    stall, longest = swap_rows([watch], [2.0])
    assert stall.ratio == pytest.approx(10.0)
    assert stall.verdict() == "yes"
    assert (longest.ours, longest.theirs) == (pytest.approx(3.0), pytest.approx(1.5))
    assert longest.verdict() == "no"


def test_scoring_is_measured_and_checked_against_a_plain_pass(setting: Setting) -> None:
    shared, speed, exact, loaded = measure_scoring(setting)
    assert shared.case == "4 answers to one question, two adapters"
    assert shared.ratio and shared.ratio > 0
    assert loaded.ratio and loaded.ratio > 0
    assert speed.case == "3 replies, two adapters"
    assert speed.ratio and speed.ratio > 0
    assert exact.ours is not None and exact.ours < 1e-3
    assert exact.verdict() == "yes"


def test_held_out_texts_share_their_system_prompt_and_nothing_else() -> None:
    first, second = held_out_texts(2, 30_000)
    assert len(first) == len(second) == 148
    assert first[:24] == second[:24]
    assert first[24:] != second[24:]


def test_serving_is_measured_beside_a_training_with_the_memory_of_both(setting: Setting) -> None:
    steps, memory = measure_beside_training(setting)
    assert steps.ours and steps.theirs and steps.ratio
    assert memory.ours and memory.ours > 50
    assert "of these" in memory.note


def test_a_first_word_is_waited_for_beside_a_training_and_alone(setting: Setting) -> None:
    [row] = measure_first_word(setting)
    assert row.ours and row.theirs and row.ratio
    assert (len(row.raw["beside"]), row.case) == (TINY.waits, "prompt of 20 tokens")


def test_a_first_words_row_compares_each_turn_with_the_one_alone() -> None:
    beside, alone = [Wait(2.0, 1.0), Wait(3.0, 1.0)], [Wait(2.0, 1.0), Wait(2.0, 0.5)]
    row = first_word_row(1000, beside, alone)
    assert (row.ratio, row.low, row.high, row.verdict()) == (1.25, 1.0, 1.5, "yes")
    assert "1.50 times" in row.note


def test_training_counts_only_at_an_equal_loss() -> None:
    turn = {"tokens": 100, "cpu_s": 1.0, "loss": 2.3, "before": 2.8}
    slow = {**turn, "cpu_s": 4.0, "loss": 2.2}
    speed, loss = learning_rows([{**turn, "side": "strop"}, {**slow, "side": "trl"}])
    assert (speed.ratio, speed.verdict()) == (4.0, "yes")
    assert loss.ours == pytest.approx(0.1) and loss.verdict() == "no"


def test_queries_are_judged_by_the_slowest_of_each_kind() -> None:
    statements = [
        {"operation": "chat: chain", "text": "a", "cpu_ms": [3.0, 4.0, 90.0]},
        {"operation": "chat: chain", "text": "b", "cpu_ms": [6.0, 6.0, 6.0]},
        {"operation": "statistic: /stats", "text": "c", "cpu_ms": [50.0]},
    ]
    chat, statistics = query_rows(1_000_000, statements)
    assert (chat.ours, chat.raw["text"], chat.verdict()) == (6.0, "b", "yes")
    assert (statistics.ours, statistics.verdict()) == (50.0, "no")
    assert "1,000,000 ratings" in statistics.note


def test_a_first_run_counts_to_its_verdict_and_a_failed_one_not_at_all() -> None:
    parts = {"train: a": Part(wall=150.0, run=140.0), "evaluate: b": Part(wall=80.0, run=30.0, server=45.0)}
    row = retrain_row(Profile(parts, {"outcome": "promoted", "message": "better"}))
    assert (row.ours, row.verdict()) == (230.0, "yes")
    assert "the run 170, the model server 45" in row.note
    with pytest.raises(BenchError, match="out of memory"):
        retrain_row(Profile(parts, {"outcome": "failed", "message": "out of memory"}))


def test_memory_after_the_first_start_has_another_goal_than_later() -> None:
    seconds, first, later = start_rows([Start(20.0, 790_000_000, 700_000_000), Start(9.0, 790_000_000, 1)])
    assert (seconds.verdict(), first.verdict(), later.verdict()) == ("yes", "yes", "no")
    assert "9.0 s" in seconds.note and "0.70 GB" in first.note


def test_the_memory_of_a_process_is_read_in_bytes() -> None:
    rollup = (
        "00400000-7fff rollup\nRss: 300 kB\nPss: 200 kB\nShared_Clean: 60 kB\nShared_Dirty: 4 kB\n"
        "Private_Clean: 6 kB\nPrivate_Dirty: 100 kB\n"
    )
    assert parse_smaps(rollup) == MemoryUse(200 * 1024, 64 * 1024, 106 * 1024)


def test_the_ceiling_divides_the_bandwidth_by_what_a_step_reads() -> None:
    step = BytesPerStep(weights=900.0, kv_per_token=1.0)
    assert step.ceiling(10_000.0, 1, 100) == 10.0
    assert step.ceiling(10_000.0, 2, 50) == 20.0


def test_weights_as_held_are_counted_once_each(tiny_folder: Path, base: LoadedBase) -> None:
    dense = load_base(tiny_folder, "cpu", "train", execution="dense")
    parameters = sum(parameter.numel() for parameter in dense.model.parameters())
    # The embedding's table is the head's too. Rotary frequencies come on top.
    assert held_bytes(dense).weights == pytest.approx(4 * parameters, rel=0.01)
    ideal = nf4_bytes(read_info(tiny_folder), tiny_folder)
    assert 0 < ideal.weights < held_bytes(dense).weights / 2
    assert ideal.kv_per_token == held_bytes(dense).kv_per_token / 2
    if base.execution == "mapped":
        # As the 4-bit form, but for scales and norms in float32.
        assert ideal.weights < held_bytes(base).weights < 1.2 * ideal.weights


def test_prompts_repeat_for_a_seed_and_stay_within_the_vocabulary() -> None:
    assert random_prompts(2, 5, 300, seed=1) == random_prompts(2, 5, 300, seed=1)
    assert random_prompts(2, 5, 300, seed=1) != random_prompts(2, 5, 300, seed=2)
    assert max(max(prompt) for prompt in random_prompts(8, 50, 300, seed=1)) < 300


def test_the_adapter_covers_every_linear_layer_and_becomes_a_gguf_file(
    setting: Setting, tmp_path: Path
) -> None:
    widths = linear_widths(setting.folder)
    write_lora_gguf(setting.adapters[0], setting.folder, tmp_path / "lora.gguf")
    reader = GGUFReader(tmp_path / "lora.gguf")
    names = {tensor.name for tensor in reader.tensors}
    assert len(names) == 2 * len(widths)
    assert {"blk.0.attn_q.weight.lora_a", "blk.1.ffn_down.weight.lora_b"} <= names
    assert float(reader.get_field("adapter.lora.alpha").contents()) == 32.0


def test_rotary_rows_of_a_head_are_interleaved() -> None:
    rows = torch.arange(8.0)[:, None]
    assert interleave_rotary(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_plain_base_holds_the_values_of_the_4_bit_base(setting: Setting, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_plain_base(setting.folder, tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    unfolded = load_base(setting.folder, "cpu", "train", execution="dense").model
    for name, tensor in unfolded.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name].float(), tensor, rtol=0.01, atol=0.01)
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_machine_and_the_versions_are_named() -> None:
    machine, versions = describe_machine(), describe_versions()
    assert machine.processor and machine.cores >= 1 and machine.memory_gb > 0
    assert versions.strop and versions.packages["torch"]


def test_the_countdown_learns_from_what_has_run() -> None:
    said: list[str] = []
    countdown = Countdown(TINY, ["swap", "scoring"], said.append)
    whole = countdown.left_s()
    assert whole == sum(expected_seconds(TINY, ["swap", "scoring"]).values())
    with countdown.stage("swap"):
        pass
    assert countdown.left_s() < 0.01 * whole  # it took no time, so the rest won't either
    assert said == [f"[1/2] swap: {duration(whole)} left"]
    with countdown.stage("scoring"):
        raise BenchError("no memory")
    assert (countdown.failed, said[-1]) == (["scoring"], "scoring failed: BenchError: no memory")
    assert (duration(120.0), duration(5.4)) == ("about 2 min", "about 5 s")
