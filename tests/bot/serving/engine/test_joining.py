"""Several prompts that come at once: their pieces share a step, and are read as they are alone."""

import pytest

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.engine.events import Finished
from bot.serving.model.loading import LoadedBase, load_base
from tests.bot.serving.builders import Caller, drain, memory_adapter
from tests.bot.serving.engine.test_engine import GREEDY

SYSTEM = list(range(20, 60))


def engine_of(base: LoadedBase, slots: int) -> Engine:
    engine = Engine(base, EngineOptions(context_tokens=128, slots=slots))
    for seed, name in enumerate(("champion", "candidate"), start=1):
        engine.loaded_adapters.add(memory_adapter(name, engine.widths, seed=seed))
    return engine


def asked_at_once(engine: Engine, base: LoadedBase, prompts: list[list[int]], tokens: int) -> list[Finished]:
    """The replies to prompts that all wait as the engine begins, under several adapters in turns."""
    caller = Caller(engine, base)
    adapters = [(None, "champion", "candidate")[at % 3] for at in range(len(prompts))]
    waiting = [
        caller.submit(ids, adapter, max_tokens=tokens, sampling=GREEDY, ignore_end=True)[1]
        for ids, adapter in zip(prompts, adapters, strict=True)
    ]
    engine.start()
    ends = [drain(events)[1] for events in waiting]
    return [end for end in ends if isinstance(end, Finished)]


def test_short_prompts_that_come_at_once_are_read_in_one_step(base: LoadedBase) -> None:
    # Seven of two tokens join the first one's reply: also the kernels for few rows take so many.
    prompts = [[30 + 3 * n, 70 + n] for n in range(8)]
    engine = engine_of(base, slots=8)
    first_words = [end.token_ids for end in asked_at_once(engine, base, prompts, tokens=1)]
    assert engine._steps == 1
    engine.stop()
    # On layers that no other engine has wrapped.
    again = load_base(base.folder, "cpu", precision=base.precision)
    alone = engine_of(again, slots=1)
    assert first_words == [end.token_ids for end in asked_at_once(alone, again, prompts, tokens=1)]
    alone.stop()


@pytest.mark.parametrize("score", [False, True])
def test_what_is_being_read_is_awaited_where_prompts_begin_alike(base: LoadedBase, score: bool) -> None:
    """Also where both could be read in the same step."""
    engine = engine_of(base, slots=4)
    caller = Caller(engine, base)
    engine.start()
    _, writing = caller.submit([5, 6, 7], max_tokens=60, priority=1, ignore_end=True)
    writing.get(timeout=30)
    read = engine.metrics.prompt_tokens
    with engine._wake:
        prompts = [[*SYSTEM, 7, 8], [*SYSTEM, 9, 10], [61, 62]]
        asked = [
            caller.submit(ids, max_tokens=4, sampling=GREEDY, priority=1, score=score) for ids in prompts
        ]
    ends = [drain(events)[1] for _, events in asked]
    assert all(isinstance(end, Finished) for end in ends)
    # To score what follows the shared part its last token is read again.
    assert engine.metrics.prompt_tokens - read == len(SYSTEM) + 2 + (3 if score else 2) + 2
    engine.stop()
