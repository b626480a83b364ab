"""Which sampling keeps a small base from running in loops: `python -m tests.bench.sampling`.

The bundled base answers fixed prompts under each setting with the same seeds, through the engine that serves
it, asked as a chat is. Counted are replies that run in a loop, those that the length limit cut, words, and
how much of a question's own words the answer takes up; differences are paired by prompt, with a bootstrap
over prompts. The cost of a penalty is the processor time of a token with and without it, in turns.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bot.playground.simulation.prompts import REHEARSAL_PROMPTS, SAMPLE_PROMPTS
from bot.serving.engine.events import Event, Failed, Finished, JobOptions, SamplingOptions, TextPiece
from bot.serving.protocol import ChatMessage
from storage.config_sections import ChatConfig
from tests.bench.learning.errors import BenchError
from tests.bench.serving.strop_side import EngineSide
from trainer.data.question_features import RARE, Rarity, terms
from trainer.data.text_features import repetition

# What newcomers ask first; the sample's prompts are mostly statements.
QUESTIONS = (
    "Hello! Who are you?",
    "Tell me something about the sea.",
    "How do I get a stain out of a shirt?",
    "What is the capital of Portugal?",
    "Write a short poem about autumn.",
    "Explain why the sky is blue.",
    "Give me three tips for a job interview.",
    "What is the difference between a frog and a toad?",
    "Tell me a joke.",
    "How do I boil an egg?",
    "Write a Python function that adds two numbers.",
    "Why do we dream?",
)
PROMPTS = (*QUESTIONS, *SAMPLE_PROMPTS[::2])
RARITY = Rarity([*QUESTIONS, *SAMPLE_PROMPTS, *REHEARSAL_PROMPTS])
# A reply of which more than this share of word 4-grams is a repetition runs in a loop.
LOOP = 0.25
AT_ONCE = 8
RESAMPLES = 2000
SPEED_TOKENS = 96
SPEED_TURNS = 5


@dataclass(frozen=True)
class Setting:
    """A repetition penalty and a min-p; (1, 0) changes nothing."""

    penalty: float
    min_p: float

    @classmethod
    def of(cls, text: str) -> Setting:
        """Read ``PENALTY:MIN_P``."""
        penalty, _, min_p = text.partition(":")
        return cls(float(penalty), float(min_p or 0))


PLAIN = Setting(1.0, 0.0)
GRID = tuple(Setting(penalty, min_p) for min_p in (0.0, 0.05, 0.1) for penalty in (1.0, 1.05, 1.1, 1.15, 1.2))


@dataclass(frozen=True)
class Reply:
    """One answer: its prompt's place, its text, and whether the limit cut it."""

    prompt: int
    text: str
    cut: bool

    @property
    def words(self) -> int:
        """Return how many words it has."""
        return len(self.text.split())

    @property
    def loops(self) -> bool:
        """Whether it runs in a loop."""
        return repetition(self.text) > LOOP


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every setting and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.sampling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", type=Path, required=True, help="the folder of a prepared base")
    parser.add_argument("--seeds", type=int, default=2, help="answers a prompt")
    parser.add_argument("--settings", nargs="*", type=Setting.of, default=GRID, metavar="PENALTY:MIN_P")
    parser.add_argument(
        "--keep", type=Path, help="a file for the answers: those in it aren't asked for again"
    )
    parser.add_argument("--cost", action="store_true", help="also measure what a penalty costs a token")
    parser.add_argument("--show", type=int, default=0, help="print so many answers of each setting")
    options = parser.parse_args(argv)
    side = EngineSide(options.base, options.base.parent)
    kept = Kept(options.keep, side, options.seeds)
    try:
        plain = kept.answers(PLAIN)
        print(HEAD)
        for setting in options.settings:
            found = kept.answers(setting)
            print(row(setting, found, plain), flush=True)
            for reply in found[: options.show * options.seeds : options.seeds]:
                print(f"    > {PROMPTS[reply.prompt]}\n    {' '.join(reply.text.split())}")
        if options.cost:
            print(cost(side))
    finally:
        side.close()
    return 0


class Kept:
    """Answers by setting, in a file where one is named, so that an interrupted measurement goes on."""

    def __init__(self, path: Path | None, side: EngineSide, seeds: int) -> None:
        self._path, self._side, self._seeds = path, side, seeds
        self._found: dict[str, list[list[Any]]] = {}
        if path is not None and path.exists():
            self._found = json.loads(path.read_text(encoding="utf-8"))

    def answers(self, setting: Setting) -> list[Reply]:
        """Return a setting's answers, asking for them if the file lacks them."""
        name = f"{setting.penalty}:{setting.min_p}:{self._seeds}"
        if name not in self._found:
            asked = answers(self._side, setting, self._seeds)
            self._found[name] = [[each.prompt, each.text, each.cut] for each in asked]
            if self._path is not None:
                self._path.write_text(json.dumps(self._found), encoding="utf-8")
        return [Reply(*each) for each in self._found[name]]


def answers(side: EngineSide, setting: Setting, seeds: int) -> list[Reply]:
    """Return the answers to every prompt, each with `seeds` seeds that are the same for every setting."""
    chat = ChatConfig()
    sampling = SamplingOptions(chat.temperature, chat.top_p, chat.top_k, setting.min_p, setting.penalty)
    asked = [(prompt, seed) for prompt in range(len(PROMPTS)) for seed in range(seeds)]
    events: list[queue.Queue[Event]] = [queue.Queue() for _ in asked]
    found = []
    for place, (prompt, seed) in enumerate(asked):
        if place >= AT_ONCE:
            found.append(_reply(asked[place - AT_ONCE][0], events[place - AT_ONCE]))
        messages = [ChatMessage("system", chat.system_prompt), ChatMessage("user", PROMPTS[prompt])]
        drawn = replace(sampling, seed=1000 * prompt + seed)
        job = JobOptions(max_tokens=chat.max_new_tokens, sampling=drawn)
        side.runtime.submit(side.model, side.runtime.render(messages), job, events[place].put)
    rest = range(max(0, len(asked) - AT_ONCE), len(asked))
    return found + [_reply(asked[place][0], events[place]) for place in rest]


def _reply(prompt: int, events: queue.Queue[Event]) -> Reply:
    text = ""
    while isinstance(event := events.get(), TextPiece):
        text += event.text
    if isinstance(event, Failed):
        raise BenchError(event.message)
    return Reply(prompt, text, isinstance(event, Finished) and event.reason == "length")


def taken_up(reply: Reply) -> float:
    """Return which share of the question's rare words the answer has, 0 where it has none."""
    wanted = {term for term in terms(PROMPTS[reply.prompt]) if RARITY.of(term) >= RARE}
    return len(wanted & set(terms(reply.text))) / len(wanted) if wanted else 0.0


HEAD = (
    "| penalty | min-p | in a loop | cut by the limit | words | question's words taken up | "
    "loops against plain | taken up against plain |\n|---|---|---|---|---|---|---|---|"
)


def row(setting: Setting, found: Sequence[Reply], plain: Sequence[Reply]) -> str:
    """Return a setting's line of the table."""
    loops = [float(reply.loops) for reply in found]
    shares = [taken_up(reply) for reply in found]
    fewer = apart(found, loops, [float(reply.loops) for reply in plain])
    more = apart(found, shares, [taken_up(reply) for reply in plain])
    return (
        f"| {setting.penalty} | {setting.min_p} | {statistics.mean(loops):.1%} "
        f"| {statistics.mean(reply.cut for reply in found):.1%} "
        f"| {statistics.mean(reply.words for reply in found):.1f} | {statistics.mean(shares):.3f} "
        f"| {fewer} | {more} |"
    )


def apart(found: Sequence[Reply], values: Sequence[float], plain: Sequence[float]) -> str:
    """Return the mean difference, paired by prompt and seed, with its 95 % interval over prompts."""
    gains: dict[int, list[float]] = {}
    for reply, new, old in zip(found, values, plain, strict=True):
        gains.setdefault(reply.prompt, []).append(new - old)
    by_prompt = [statistics.mean(each) for each in gains.values()]
    dice = random.Random(0)
    means = sorted(statistics.mean(dice.choices(by_prompt, k=len(by_prompt))) for _ in range(RESAMPLES))
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
    return f"{statistics.mean(by_prompt):+.3f} ({low:+.3f} to {high:+.3f})"


def cost(side: EngineSide) -> str:
    """Say what a penalty costs a token in processor time, in turns with and without it."""
    lines = []
    for streams in (1, AT_ONCE):
        times: dict[float, list[float]] = {1.0: [], 1.1: []}
        for turn in range(SPEED_TURNS):
            for penalty in (1.0, 1.1) if turn % 2 else (1.1, 1.0):
                times[penalty].append(_token_ms(side, streams, penalty))
        plain, penalised = (statistics.median(times[penalty]) for penalty in (1.0, 1.1))
        lines.append(
            f"{streams} at once: {plain:.2f} ms of processor time a token, {penalised:.2f} with a penalty"
        )
    return "\n".join(lines)


def _token_ms(side: EngineSide, streams: int, penalty: float) -> float:
    sampling = SamplingOptions(0.7, 0.9, repetition_penalty=penalty, seed=1)
    events: queue.Queue[Event] = queue.Queue()
    prompt = side.runtime.render([ChatMessage("user", QUESTIONS[1])])
    job = JobOptions(max_tokens=SPEED_TOKENS, sampling=sampling, ignore_end=True)
    before = side.clock.now()
    for _ in range(streams):
        side.runtime.submit(side.model, prompt, job, events.put)
    ended = 0
    while ended < streams:
        ended += not isinstance(events.get(), TextPiece)
    side.clock.settle(before.generated_tokens + streams * SPEED_TOKENS)
    return (side.clock.steps[-1].cpu_s - before.cpu_s) * 1000 / (streams * SPEED_TOKENS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
