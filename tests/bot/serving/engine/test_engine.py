import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.events import Failed, Finished, JobOptions, SamplingOptions, TextPiece
from bot.serving.engine.request import Job
from bot.serving.engine.scheduler import LIMITS
from bot.serving.errors import (
    RequestRejectedError,
    ServerBusyError,
    ServerUnavailableError,
    UnknownModelError,
)
from bot.serving.model.loading import BaseInfo, LoadedBase, load_base
from tests.bot.serving.builders import Caller, drain, memory_adapter
from tests.bot.serving.engine.test_lora import CONFIGS
from tests.tiny_model import build_tiny_tokenizer

GREEDY = SamplingOptions(temperature=0.0)
PROMPT = "Hello there! How are you today?"


def loaded(model: Any) -> LoadedBase:
    info = BaseInfo("tiny", "", "", "", model.config.model_type, 256, 0, 0, {})
    return LoadedBase(model.eval(), build_tiny_tokenizer(), info, Path(), "cpu", "dense")


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_replies_equal_transformers_generate(name: str) -> None:
    config = type(CONFIGS[name])(
        **{**CONFIGS[name].to_dict(), "vocab_size": 416, "eos_token_id": None, "bos_token_id": None}
    )
    config._attn_implementation = CONFIGS[name]._attn_implementation
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # peaked logits, so that rounding decides no tie
    prompts = [[5, 9, 13] * 6, [40, 41], [7] * 11, list(range(100, 131))]
    with torch.inference_mode():
        expected = [
            model.generate(
                torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
            )[0, len(ids) :].tolist()
            for ids in prompts
        ]
    base = loaded(model)
    engine = Engine(base, EngineOptions(context_tokens=128, slots=4, chunk_tokens=8))
    engine.start()
    caller = Caller(engine, base)
    try:
        waiting = [caller.submit(ids, max_tokens=24, sampling=GREEDY, ignore_end=True)[1] for ids in prompts]
        got = [drain(events)[1] for events in waiting]
    finally:
        engine.stop()
    assert [list(end.token_ids) for end in got if isinstance(end, Finished)] == expected


def logits_of(engine: Engine, batch: list[list[int]]) -> torch.Tensor:
    """The logits of the last position of each prompt, computed in one batch by the engine's own step."""
    with torch.inference_mode():
        jobs = [Job(ids, JobOptions(), sink=lambda _: None, tokenizer=None) for ids in batch]
        for job in jobs:
            engine._rows.take(job)
            if tokens := job.tokens[job.cached : -1]:
                engine.runner.read(tokens, job.cached, engine._rows.of(job), None, 1)
            job.cached = len(job.tokens) - 1
        logits = engine._next_logits(jobs).clone()
        for job in jobs:
            engine._rows.leave(job)
        return logits


def test_logits_in_a_batch_equal_those_alone(base: LoadedBase) -> None:
    engine = Engine(base, EngineOptions(context_tokens=128, slots=6))
    prompts = [[3 + i] * (4 + 9 * i) for i in range(6)]
    together = logits_of(engine, prompts)
    alone = torch.cat([logits_of(engine, [prompt]) for prompt in prompts])
    assert torch.allclose(together, alone, atol=2e-2)
    assert torch.equal(together.argmax(-1), alone.argmax(-1))


def test_a_seed_gives_the_same_reply_alone_and_in_company(caller: Caller) -> None:
    options = {"max_tokens": 30, "sampling": SamplingOptions(seed=11, top_p=0.9)}
    alone = caller.run(PROMPT, **options).token_ids
    company = [caller.submit("Other words " * n, max_tokens=40) for n in (1, 5, 9)]
    assert caller.run(PROMPT, **options).token_ids == alone
    for _, events in company:
        drain(events)


def test_chunked_prompts_give_the_same_reply_as_whole_ones(tiny_folder: Path) -> None:
    replies = []
    for chunk in (5, 500):
        base = load_base(tiny_folder, "cpu")
        engine = Engine(base, EngineOptions(context_tokens=256, chunk_tokens=chunk))
        engine.start()
        replies.append(Caller(engine, base).run(PROMPT * 4, max_tokens=12, sampling=GREEDY).token_ids)
        engine.stop()
    assert replies[0] == replies[1]


def test_scores_equal_the_log_probabilities_of_one_plain_forward(caller: Caller, base: LoadedBase) -> None:
    ids = base.tokenizer(PROMPT * 3)["input_ids"]
    end = caller.run(ids, score=True, priority=1)
    with torch.inference_mode():
        caller.engine.runner._plan.groups = []
        logits = base.model(input_ids=torch.tensor([ids])).logits[0]
    expected = torch.log_softmax(logits.float(), -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert end.scores is not None
    assert torch.allclose(torch.tensor(end.scores), expected, atol=1e-3)
    assert len(end.scores) == len(ids) - 1


def test_base_champion_and_candidate_share_a_batch(caller: Caller) -> None:
    for seed, name in enumerate(("champion", "candidate"), start=1):
        caller.engine.loaded_adapters.add(memory_adapter(name, caller.engine.widths, seed=seed))
    names = [None, "champion", "candidate"]
    alone = [caller.run(PROMPT, name, max_tokens=20, sampling=GREEDY).token_ids for name in names]
    together = [caller.submit(PROMPT, name, max_tokens=20, sampling=GREEDY)[1] for name in names]
    ends = [drain(events)[1] for events in together]
    assert [end.token_ids for end in ends if isinstance(end, Finished)] == alone
    assert len(set(alone)) == 3


def test_a_swap_in_mid_reply_leaves_replies_in_flight_on_their_adapter(caller: Caller) -> None:
    """Hazard 3: with PEFT's set_adapter every generation in flight changed its adapter."""
    loaded_adapters = caller.engine.loaded_adapters
    loaded_adapters.add(memory_adapter("old", caller.engine.widths, seed=1))
    expected = caller.run(PROMPT, "old", max_tokens=60, sampling=GREEDY).token_ids
    _, events = caller.submit(PROMPT, "old", max_tokens=60, sampling=GREEDY)
    assert isinstance(events.get(timeout=30), TextPiece)
    loaded_adapters.add(memory_adapter("new", caller.engine.widths, seed=2))
    gone = loaded_adapters.remove("old")
    with pytest.raises(UnknownModelError):
        loaded_adapters.pin("old")
    fresh = caller.run(PROMPT, "new", max_tokens=10, sampling=GREEDY).token_ids
    _, end = drain(events)
    assert isinstance(end, Finished)
    assert end.token_ids == expected
    assert fresh != expected[:10]
    assert gone.wait(5)


def test_unloading_waits_for_the_last_reference(caller: Caller) -> None:
    loaded_adapters = caller.engine.loaded_adapters
    loaded_adapters.add(memory_adapter("a", caller.engine.widths, seed=1))
    job, events = caller.submit(PROMPT, "a", max_tokens=200, sampling=GREEDY)
    gone = loaded_adapters.remove("a")
    assert not gone.is_set()
    caller.engine.cancel(job)
    drain(events)
    assert gone.wait(5)


def test_a_full_shelf_drops_what_was_unused_for_longest(caller: Caller) -> None:
    loaded_adapters = caller.engine.loaded_adapters
    loaded_adapters._max = 2
    for name in ("a", "b"):
        loaded_adapters.add(memory_adapter(name, {}, seed=1))
    loaded_adapters.unpin(loaded_adapters.pin("a"))
    loaded_adapters.add(memory_adapter("c", {}, seed=1))
    assert loaded_adapters.names() == ["a", "c"]


def test_a_cancelled_request_stops_within_a_step(caller: Caller) -> None:
    job, events = caller.submit(PROMPT, max_tokens=220, sampling=SamplingOptions(seed=1))
    assert isinstance(events.get(timeout=30), TextPiece)
    caller.engine.cancel(job)
    length = len(job.tokens)
    _, end = drain(events)
    assert isinstance(end, Finished)
    assert end.reason == "cancelled"
    assert len(job.tokens) <= length + 2
    steps = caller.engine._steps
    time.sleep(0.1)
    assert caller.engine._steps == steps
    assert caller.engine.counts() == (0, 0)


def test_a_waiting_request_can_be_cancelled(caller: Caller) -> None:
    running = [caller.submit(PROMPT, max_tokens=150) for _ in range(4)]
    job, events = caller.submit(PROMPT, max_tokens=150)
    caller.engine.cancel(job)
    text, end = drain(events)
    assert isinstance(end, Finished)
    assert (text, end.reason, end.completion_tokens) == ("", "cancelled", 0)
    for job, events in running:
        caller.engine.cancel(job)
        drain(events)


def test_a_deadline_ends_running_and_waiting_requests(caller: Caller) -> None:
    _, events = caller.submit(PROMPT, max_tokens=240, deadline_s=0.02, ignore_end=True)
    _, end = drain(events)
    assert isinstance(end, Failed)
    assert end.code == "deadline"


def test_people_come_before_background_and_take_its_rows(caller: Caller) -> None:
    background = [caller.submit(PROMPT, max_tokens=150, priority=1, sampling=GREEDY) for _ in range(6)]
    assert isinstance(background[0][1].get(timeout=30), TextPiece)
    people = [caller.submit(PROMPT, max_tokens=15, sampling=GREEDY) for _ in range(4)]
    ends = [drain(events)[1] for _, events in people]
    assert all(isinstance(end, Finished) for end in ends)
    assert not any(job.done for job, _ in background)
    replies = [drain(events)[1] for _, events in background]
    # Rows that were taken away are computed again: the replies are those of an undisturbed run.
    undisturbed = caller.run(PROMPT, max_tokens=150, priority=1, sampling=GREEDY).token_ids
    assert {end.token_ids for end in replies if isinstance(end, Finished)} == {undisturbed}


def test_background_work_is_not_starved(caller: Caller) -> None:
    stop = threading.Event()

    def chat_on() -> None:
        while not stop.is_set():
            caller.run(PROMPT, max_tokens=20)

    people = [threading.Thread(target=chat_on) for _ in range(2)]
    for thread in people:
        thread.start()
    try:
        assert isinstance(drain(caller.submit(PROMPT, max_tokens=20, priority=1)[1])[1], Finished)
    finally:
        stop.set()
        for thread in people:
            thread.join()


def test_a_first_word_comes_before_a_runs_own_replies(base: LoadedBase) -> None:
    options = EngineOptions(context_tokens=256, slots=3, chunk_tokens=64, shared_chunk_tokens=4)
    # What each step told: whether somebody waits, and how much of the run's own reply there was then.
    engine, steps = Engine(base, options), list[tuple[bool, int]]()
    engine._on_waiting = lambda waits: steps.append((waits, own.generated if waits else 0))
    engine.start()
    caller = Caller(engine, base)
    try:
        own, replies = caller.submit(PROMPT, max_tokens=200, priority=1, ignore_end=True)
        assert isinstance(replies.get(timeout=30), TextPiece)
        assert not any(waits for waits, _ in steps)
        caller.run(list(range(20, 212)), max_tokens=1)
        drain(replies)
    finally:
        engine.stop()
    waited = [generated for waits, generated in steps if waits]
    # Three pieces of 64 and no step for the run's own reply, but for one that may have been on its way.
    assert 1 <= len(waited) <= 5
    assert waited[-1] - waited[0] <= 3
    assert steps[-1] == (False, 0)


def test_a_hogs_prompts_are_read_in_half_of_the_steps_at_most(base: LoadedBase) -> None:
    options = EngineOptions(context_tokens=256, slots=2, chunk_tokens=8, shared_chunk_tokens=8)
    engine = Engine(base, options)
    read: list[int] = []
    guest = Job(
        [7] * 5,
        JobOptions(max_tokens=200, ignore_end=True, user="guest"),
        sink=lambda _: read.append(engine.metrics.prompt_tokens),
        tokenizer=base.tokenizer,
    )
    caller = Caller(engine, base)
    # Prompts that share no beginning, so that each is read whole: 240 chunks beside a guest's 200 tokens.
    crowd = [caller.submit([20 + n] * 240, max_tokens=1, user="hog") for n in range(LIMITS.per_user)]
    engine.submit(guest)
    engine.start()
    try:
        for _, events in crowd:
            drain(events)
    finally:
        engine.stop()
    chunks = (read[-1] - read[0]) / options.shared_chunk_tokens
    assert guest.generated == 200
    assert 1 <= chunks <= guest.generated / 2 + 1


def test_a_full_queue_is_refused_with_an_estimate(caller: Caller) -> None:
    jobs = [caller.submit(PROMPT, max_tokens=200) for _ in range(4)]
    try:
        with pytest.raises(ServerBusyError) as busy:
            while True:
                jobs.append(caller.submit(PROMPT, max_tokens=200))
        assert busy.value.retry_after_s >= 1
        assert len(jobs) >= LIMITS.unnamed
    finally:
        for job, _ in jobs:
            caller.engine.cancel(job)
    for _, events in jobs:
        drain(events)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [([], "empty"), ([5] * 256, "context holds 255"), ([5, 100_000], "Token ids"), ([-1], "Token ids")],
)
def test_prompts_that_cannot_be_served_are_refused(caller: Caller, prompt: list[int], reason: str) -> None:
    with pytest.raises(RequestRejectedError, match=reason):
        caller.submit(prompt)


def test_a_reply_ends_where_the_context_ends(caller: Caller) -> None:
    end = caller.run([5] * 250, max_tokens=100, ignore_end=True)
    assert (end.reason, end.completion_tokens) == ("length", 6)


def test_an_end_token_ends_the_reply_without_showing(caller: Caller, tiny_folder: Path) -> None:
    first = caller.run(PROMPT, max_tokens=1, sampling=GREEDY).token_ids[0]
    base = load_base(tiny_folder, "cpu")
    base.model.generation_config.eos_token_id = first
    engine = Engine(base, EngineOptions(context_tokens=256))
    engine.start()
    text, end = drain(Caller(engine, base).submit(PROMPT, max_tokens=10, sampling=GREEDY)[1])
    engine.stop()
    assert isinstance(end, Finished)
    assert (text, end.reason, end.completion_tokens) == ("", "stop", 1)


def test_a_penalty_for_what_was_said_leaves_the_end_token_as_likely_as_it_was() -> None:
    end, word = 7, 9  # both stand in the prompt, as a chat template's end of a turn does
    options = JobOptions(max_tokens=9, sampling=SamplingOptions(temperature=0.0, repetition_penalty=1.5))
    job = Job([end, word], options, sink=lambda event: None, tokenizer=build_tiny_tokenizer())
    logits = torch.zeros(416)
    logits[end], logits[word], logits[20] = 2.0, 2.9, 1.95
    assert job.choose(logits, frozenset({end})) == end


def test_a_stop_string_ends_the_reply(caller: Caller) -> None:
    whole, _ = drain(caller.submit(PROMPT, max_tokens=40, sampling=GREEDY)[1])
    stop = whole[len(whole) // 2 :][:3]
    text, end = drain(caller.submit(PROMPT, max_tokens=40, sampling=GREEDY, stop=(stop,))[1])
    assert isinstance(end, Finished)
    assert (text, end.reason) == (whole[: whole.index(stop)], "stop")


# The module that fails here must take part in each step.
@pytest.mark.parametrize("precision", ["exact"])
def test_a_failing_step_fails_its_requests_and_the_engine_goes_on(caller: Caller, base: LoadedBase) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("out of luck")

    handle = base.model.model.norm.register_forward_pre_hook(explode)
    _, end = drain(caller.submit(PROMPT)[1])
    assert isinstance(end, Failed)
    assert end.code == "internal"
    handle.remove()
    assert caller.run(PROMPT, max_tokens=3).completion_tokens >= 1


def test_stopping_lets_replies_finish_and_refuses_new_ones(base: LoadedBase) -> None:
    engine = Engine(base, EngineOptions(context_tokens=256, slots=2))
    engine.start()
    caller = Caller(engine, base)
    _, events = caller.submit(PROMPT, max_tokens=30)
    _, background = caller.submit(PROMPT, max_tokens=200, priority=1)
    engine.stop(drain_s=20)
    assert isinstance(drain(events)[1], Finished)
    end = drain(background)[1]
    assert isinstance(end, Finished)
    assert end.reason == "cancelled"
    with pytest.raises(ServerUnavailableError):
        caller.submit(PROMPT)


def test_stopping_without_a_drain_says_so_to_replies_in_flight(base: LoadedBase) -> None:
    engine = Engine(base, EngineOptions(context_tokens=256, slots=2))
    engine.start()
    _, events = Caller(engine, base).submit(PROMPT, max_tokens=250)
    assert isinstance(events.get(timeout=30), TextPiece)
    engine.stop()
    end = drain(events)[1]
    assert isinstance(end, Failed)
    assert end.code == "shutting_down"


@pytest.fixture(scope="module")
def shared(tiny_folder: Path) -> Iterator[Caller]:
    base = load_base(tiny_folder, "cpu")
    engine = Engine(base, EngineOptions(context_tokens=96, slots=3, chunk_tokens=16))
    engine.start()
    for seed in (1, 2):
        engine.loaded_adapters.add(memory_adapter(f"adapter-{seed}", engine.widths, seed=seed))
    yield Caller(engine, base)
    engine.stop()


actions = st.tuples(
    st.sampled_from([None, "adapter-1", "adapter-2"]),
    st.integers(1, 90),
    st.integers(1, 12),
    st.sampled_from([0, 1]),
    st.sampled_from(["wait", "cancel at once", "cancel later", "deadline"]),
    st.booleans(),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(actions, min_size=1, max_size=12))
def test_every_request_ends_with_exactly_one_terminal_event(shared: Caller, plan: list[Any]) -> None:
    submitted = []
    for adapter, prompt, tokens, priority, fate, score in plan:
        job, events = shared.submit(
            [5 + prompt] * prompt,
            adapter,
            max_tokens=tokens,
            priority=priority,
            score=score,
            deadline_s=0.01 if fate == "deadline" else None,
        )
        submitted.append((job, events))
        if fate == "cancel at once":
            shared.engine.cancel(job)
    for (job, _), (_, _, _, _, fate, _) in zip(submitted, plan, strict=True):
        if fate == "cancel later":
            shared.engine.cancel(job)
    for job, events in submitted:
        drain(events)
        assert job.done
        assert events.empty()
    assert shared.engine.counts() == (0, 0)
    assert all(entry.pins == 0 for entry in shared.engine.loaded_adapters._entries.values())
