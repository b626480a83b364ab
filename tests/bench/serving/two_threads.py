"""Two threads beside one, by the wall's clock: what a second core adds to decoding and to reading prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from bot.serving.engine.engine import EngineOptions
from bot.serving.model.processors import usable_cores
from tests.bench.serving.profile import FULL, Setting
from tests.bench.serving.results import Row
from tests.bench.serving.strop_side import EngineSide
from tests.bench.serving.timing import Timing, ratio_of_pairs
from tests.bench.serving.workload import random_prompts

THREADS = (1, 2)
TURNS = 3
CONTEXT_TOKENS, DECODED_STEPS = 64, 32
# Of a prompt's answer two tokens are written in the steps that read, the others in steps of their own.
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 1, 1000, 4


@dataclass(frozen=True, slots=True)
class Case:
    """Streams with prompts of ``prompt`` tokens that write ``tokens`` each, and the rate that counts."""

    name: str
    streams: int
    prompt: int
    tokens: int
    rate: Callable[[Timing], float]
    at_least: float


def _read_rate(timing: Timing) -> float:
    """Tokens of prompts a second."""
    return PROMPTS * PROMPT_TOKENS / (timing.whole_wall_s - timing.decode_wall_s)


def _write_rate(timing: Timing) -> float:
    return timing.decode_rate("wall")


def _tokens_for(streams: int) -> int:
    """How many tokens each stream writes, so that all write at once for ``DECODED_STEPS``."""
    return replace(FULL, prompt_tokens=CONTEXT_TOKENS, tokens=DECODED_STEPS).tokens_for(streams)


AIM = 1.8
CASES = (
    Case("1 stream", 1, CONTEXT_TOKENS, DECODED_STEPS, _write_rate, 1.2),
    Case("8 streams", 8, CONTEXT_TOKENS, _tokens_for(8), _write_rate, 1.6),
    Case("prompts", PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS, _read_rate, 1.7),
)


def measure_two_threads(setting: Setting) -> list[Row]:
    """Run each case with one and with two threads in turns; both cores should be idle."""
    if setting.on_gpu or usable_cores() < max(THREADS):
        reason = "a GPU does the work" if setting.on_gpu else "there is one core"
        return [_row(case, reason=reason) for case in CASES]
    sides = [_engine(setting, threads) for threads in THREADS]
    try:
        return [_measure(setting, case, sides) for case in CASES]
    finally:
        for side in sides:
            side.close()


def _engine(setting: Setting, threads: int) -> EngineSide:
    options = EngineOptions(slots=max(case.streams for case in CASES), threads=threads)
    side = EngineSide(setting.folder, setting.adapters_dir, device=setting.device, options=options)
    side.use(setting.adapters[0])
    side.run(random_prompts(1, 8, setting.vocabulary, seed=1), ANSWER_TOKENS)
    return side


def _measure(setting: Setting, case: Case, sides: Sequence[EngineSide]) -> Row:
    rates: list[list[float]] = [[] for _ in sides]
    for turn in range(TURNS):
        prompts = random_prompts(case.streams, case.prompt, setting.vocabulary, seed=100 + turn)
        for side, seen in zip(sides, rates, strict=True):
            seen.append(case.rate(side.run(prompts, case.tokens)))
    one, two = rates
    return _row(case, one, two)


def _row(case: Case, one: Sequence[float] = (), two: Sequence[float] = (), reason: str = "") -> Row:
    """Compare tokens a second of the same turns, or say why there are none."""
    if reason:
        return Row(
            section="threads", case=case.name, unit="tokens/s", reason=reason, at_least=case.at_least, aim=AIM
        )
    ratio = ratio_of_pairs(two, one)
    return Row(
        section="threads",
        case=case.name,
        unit="tokens/s",
        ours=median(two),
        theirs=median(one),
        ratio=ratio.median,
        low=ratio.low,
        high=ratio.high,
        at_least=case.at_least,
        aim=AIM,
        note=f"by the wall's clock, {TURNS} turns; the machine should do nothing else",
        raw={"two threads": list(two), "one thread": list(one)},
    )
