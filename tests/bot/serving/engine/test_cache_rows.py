"""Prefix reuse: what a request takes over from an earlier one, and from whom it must not."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from bot.serving.engine.cache_rows import WORTH_COPYING, Rows
from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.events import Finished, JobOptions
from bot.serving.engine.kv_cache import RowCache
from bot.serving.engine.lora import Adapter
from bot.serving.engine.request import Job
from bot.serving.model.loading import LoadedBase, load_base
from tests.bot.serving.builders import Caller, drain, memory_adapter
from tests.bot.serving.engine.test_engine import GREEDY

SYSTEM = list(range(20, 60))


@pytest.fixture
def engine(base: LoadedBase) -> Iterator[Engine]:
    engine = Engine(base, EngineOptions(context_tokens=256, slots=3, chunk_tokens=16, shared_chunk_tokens=8))
    engine.start()
    yield engine
    engine.stop()


def fresh(base: LoadedBase, ids: list[int], adapter: Adapter | None = None) -> tuple[int, ...]:
    """The reply of an engine that has seen nothing else, on layers that no other has wrapped."""
    base = load_base(base.folder, "cpu", precision=base.precision)
    engine = Engine(base, EngineOptions(context_tokens=256, slots=1))
    engine.start()
    if adapter is not None:
        engine.loaded_adapters.add(adapter)
    reply = Caller(engine, base).run(
        ids, adapter.name if adapter else None, max_tokens=12, sampling=GREEDY, ignore_end=True
    )
    engine.stop()
    return tuple(reply.token_ids)


def ask(caller: Caller, ids: list[int], adapter: str | None = None) -> tuple[int, ...]:
    return tuple(caller.run(ids, adapter, max_tokens=12, sampling=GREEDY, ignore_end=True).token_ids)


def test_a_second_turn_reads_only_what_is_new(caller: Caller) -> None:
    first = [*SYSTEM, 7, 8, 9]
    reply = ask(caller, first)
    read = caller.engine.metrics.prompt_tokens
    second = [*first, *reply, 5, 6]
    answer = ask(caller, second)
    # The reply's last token was never fed to the model.
    assert caller.engine.metrics.prompt_tokens - read == 3
    assert answer == fresh(caller.base, second)


def test_another_conversation_takes_over_the_system_prompt(caller: Caller) -> None:
    ask(caller, [*SYSTEM, 7, 8, 9])
    reused = caller.engine.metrics.reused_tokens
    assert ask(caller, [*SYSTEM, 30, 31]) == fresh(caller.base, [*SYSTEM, 30, 31])
    assert caller.engine.metrics.reused_tokens - reused == len(SYSTEM)


def test_a_running_request_lends_its_beginning(caller: Caller) -> None:
    _, events = caller.submit([*SYSTEM, 7], max_tokens=80, sampling=GREEDY, ignore_end=True)
    events.get(timeout=30)
    assert ask(caller, [*SYSTEM, 30, 31]) == fresh(caller.base, [*SYSTEM, 30, 31])
    drain(events)


def test_nothing_is_taken_over_from_another_adapter(caller: Caller) -> None:
    champion = memory_adapter("champion", caller.engine.widths, seed=1)
    candidate = memory_adapter("candidate", caller.engine.widths, seed=2)
    caller.engine.loaded_adapters.add(champion)
    caller.engine.loaded_adapters.add(candidate)
    for adapter in (None, champion, candidate):
        before = caller.engine.metrics.reused_tokens
        name = adapter.name if adapter else None
        assert ask(caller, [*SYSTEM, 7], name) == fresh(caller.base, [*SYSTEM, 7], adapter)
        assert caller.engine.metrics.reused_tokens == before


def test_a_scored_prompt_is_read_whole(caller: Caller) -> None:
    ask(caller, SYSTEM)
    end = caller.run(SYSTEM, score=True, priority=1)
    assert end.scores is not None and len(end.scores) == len(SYSTEM) - 1


def test_answers_to_one_question_that_are_scored_at_once_read_it_once(caller: Caller) -> None:
    answers = [[*SYSTEM, *range(70 + 9 * n, 78 + 9 * n)] for n in range(4)]
    # Each alone, by an engine that knows nothing of the others.
    expected = [scored_alone(caller.base, ids) for ids in answers]
    read = caller.engine.metrics.prompt_tokens
    asked = [caller.submit(ids, score=True, priority=1)[1] for ids in answers]
    for events, alone in zip(asked, expected, strict=True):
        end = drain(events)[1]
        assert isinstance(end, Finished) and end.scores is not None
        assert torch.allclose(torch.tensor(end.scores), torch.tensor(alone), atol=1e-4)
    # The question's last token is read again: its logits score the answer's first.
    assert caller.engine.metrics.prompt_tokens - read == len(SYSTEM) + 4 * 8 + 3


def test_a_scored_row_serves_neither_another_adapter_nor_past_what_was_scored(caller: Caller) -> None:
    caller.engine.loaded_adapters.add(memory_adapter("champion", caller.engine.widths, seed=1))
    caller.run(SYSTEM, score=True, priority=1)
    read = caller.engine.metrics.prompt_tokens
    caller.run(SYSTEM, "champion", score=True, priority=1)
    assert caller.engine.metrics.prompt_tokens - read == len(SYSTEM)
    # A reply goes on where the scored prompt ended; its own tokens have no scores.
    reply = ask(caller, [*SYSTEM, 7])
    longer = [*SYSTEM, 7, *reply, 9]
    end = caller.run(longer, score=True, priority=1)
    assert end.scores is not None
    assert torch.allclose(
        torch.tensor(end.scores), torch.tensor(scored_alone(caller.base, longer)), atol=1e-4
    )


def scored_alone(base: LoadedBase, ids: list[int]) -> tuple[float, ...]:
    """On layers that no other engine has wrapped, so that the kernels read them too."""
    base = load_base(base.folder, "cpu", precision=base.precision)
    engine = Engine(base, EngineOptions(context_tokens=256, slots=1))
    engine.start()
    end = Caller(engine, base).run(ids, score=True, priority=1)
    engine.stop()
    assert end.scores is not None
    return end.scores


def test_replies_to_one_question_that_are_asked_for_at_once_read_it_once(caller: Caller) -> None:
    question = [*SYSTEM, 7, 8, 9]
    read = caller.engine.metrics.prompt_tokens
    asked = [
        caller.submit(question, max_tokens=12, sampling=GREEDY, ignore_end=True, priority=1)[1]
        for _ in range(3)
    ]
    replies = [drain(events)[1] for events in asked]
    assert caller.engine.metrics.prompt_tokens - read == len(question) + 2
    expected = fresh(caller.base, question)
    assert [end.token_ids for end in replies if isinstance(end, Finished)] == [expected] * 3


def test_an_evicted_scoring_does_not_count_a_token_twice(caller: Caller) -> None:
    jobs = [caller.submit([*SYSTEM * 5, n], score=True, priority=1)[1] for n in range(3)]
    people = [caller.submit([*SYSTEM, n], max_tokens=20)[1] for n in range(3)]
    for events in (*people, *jobs):
        _, end = drain(events)
        if getattr(end, "scores", None) is not None:
            assert len(end.scores) == 5 * len(SYSTEM)


def test_after_a_word_from_an_erasure_nothing_is_taken_over_any_more(caller: Caller) -> None:
    words = [*SYSTEM, 7, 8, 9]
    ask(caller, words)
    _, running = caller.submit([*SYSTEM, 11], max_tokens=80, sampling=GREEDY, ignore_end=True)
    running.get(timeout=30)
    reused = caller.engine.metrics.reused_tokens
    caller.engine.forget_prompts()
    assert ask(caller, words) == fresh(caller.base, words)
    assert caller.engine.metrics.reused_tokens == reused
    drain(running)
    assert ask(caller, words) == fresh(caller.base, words)
    assert caller.engine.metrics.reused_tokens == reused + len(words) - 1


def test_what_is_forgotten_is_overwritten_at_once_or_when_its_request_has_ended() -> None:
    rows, cache = rows_of(2)
    done, running = (
        Job(tokens, JobOptions(), sink=lambda _: None, tokenizer=None) for tokens in (SYSTEM, [9])
    )
    for job in (done, running):
        rows.take(job)
        write(cache, rows.of(job), [5] * 64)
        job.cached = len(job.tokens)
    free, taken = rows.of(done), rows.of(running)
    rows.leave(done)
    rows.forget()
    assert not cache.keys[0][free].any() and cache.keys[0][taken].all()
    rows.leave(running)
    assert not cache.keys[0][taken].any()


def test_nobody_waits_for_what_is_forgotten() -> None:
    rows, _ = rows_of(2)
    first, second = (Job(SYSTEM, JobOptions(), sink=lambda _: None, tokenizer=None) for _ in range(2))
    for job in (first, second):
        rows.take(job)
    rows.begin_reading(first)
    assert rows.waits_for(second, first, len(SYSTEM))
    rows.forget()
    assert not rows.waits_for(second, first, len(SYSTEM))


def test_rows_that_nobody_has_used_cost_no_memory() -> None:
    config = LlamaConfig(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8)
    before = resident_bytes()
    cache = RowCache(config, 8, 2048, torch.float32, torch.device("cpu"))
    reserved = cache.all_keys.nbytes + cache.all_values.nbytes
    assert reserved > 250e6
    assert resident_bytes() - before < reserved / 10
    before = resident_bytes()
    for tensor in (*cache.keys, *cache.values):
        tensor[2, :, 0] = 0.0
    assert resident_bytes() - before < reserved / 50, "one word takes the memory of one word"
    cache.keys[1][2] += 1
    assert float(cache.all_keys.sum()) == cache.keys[1][2].numel()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def rows_of(count: int) -> tuple[Rows, RowCache]:
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )
    cache = RowCache(config, count, 64, torch.float32, torch.device("cpu"))
    return Rows(cache, count), cache


def write(cache: RowCache, row: int, tokens: list[int]) -> None:
    """Stand in for the model: the key of a token is the token."""
    for place, token in enumerate(tokens):
        cache.keys[0][row, 0, place] = token


def test_one_that_lost_its_row_and_finds_nothing_to_take_over_reads_its_prompt_again() -> None:
    rows, cache = rows_of(1)
    first, second = (Job([start] * 30, JobOptions(), sink=lambda _: None, tokenizer=None) for start in (3, 4))
    for job in (first, second):
        rows.take(job)
        write(cache, rows.of(job), job.tokens)
        job.cached = len(job.tokens)
        rows.leave(job)
    rows.take(first)
    assert first.cached == 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 30), st.booleans()), max_size=25)
)
def test_a_row_always_holds_the_tokens_that_it_claims(plan: list[tuple[int, int, int, bool]]) -> None:
    """Whatever joins and leaves, the first ``cached`` keys of a request's row are those of its own tokens."""
    rows, cache = rows_of(3)
    running: list[Job] = []
    for kind, branch, length, stays in plan:
        if not rows.free():
            rows.leave(running.pop(0))
        tokens = [*range(100 * kind, 100 * kind + WORTH_COPYING + 4), *[1000 + branch] * length]
        job = Job(tokens, JobOptions(), sink=lambda _: None, tokenizer=None)
        rows.take(job)
        assert job.cached < len(tokens)
        row = rows.of(job)
        assert cache.keys[0][row, 0, : job.cached, 0].tolist() == tokens[: job.cached]
        write(cache, row, tokens)
        job.cached = len(tokens)
        running.append(job)
        if not stays:
            rows.leave(running.pop())
        assert len({rows.of(job) for job in running}) == len(running)
        for job in running:
            assert cache.keys[0][rows.of(job), 0, : job.cached, 0].tolist() == job.tokens
