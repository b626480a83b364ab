"""Strop's supervised training beside TRL and PEFT: `python -m tests.bench.training_speed`, of `make bench`.

The same base values, adapter, examples, batch size, steps and schedule, each side in its fastest form for a
CPU: Strop's over the 4-bit file and packed rows, TRL's over the very same weights unfolded to float32, with
its fused output head and batches grouped by length. Sides take turns in processes of their own, and the clock
is processor time, which other programs disturb least. Both adapters are measured by one function on the same
unseen examples: speed counts only at equal loss.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bot.serving.model.processors import usable_cores
from storage.config_sections import TrainerConfig
from tests.bench.learning.errors import BenchError
from tests.bench.trl_side import trl_trainer
from trainer.data.general_replies import COMMUNITY_PROMPTS, HELD_OUT_PROMPTS, TRAIN_PROMPTS

SIDES = ("strop", "trl")
GOAL = 1.3
# Losses this close, in nats a token, count as equal; seeds of one side differ by as much.
EQUAL_NATS = 0.05
UNSEEN = 12
SEED = 0
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Load:
    """How much is trained in a turn."""

    examples: int
    epochs: int
    turns: int


LOADS = {"quick": Load(24, 1, 1), "short": Load(32, 2, 2), "full": Load(96, 3, 3)}


@dataclass(frozen=True)
class Turn:
    """One side's training: real tokens seen, processor seconds, loss of an unseen token in nats."""

    side: str
    tokens: int
    cpu_s: float
    loss: float
    before: float

    @property
    def speed(self) -> float:
        """Return tokens by processor second."""
        return self.tokens / self.cpu_s


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.training_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    profile = parser.add_mutually_exclusive_group()
    profile.add_argument("--quick", action="store_const", dest="load", const="quick", help="one small turn")
    profile.add_argument("--full", action="store_const", dest="load", const="full", help="three large turns")
    parser.add_argument("--models", type=Path, default=Path("build/models"), help="prepared base models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    load = LOADS[options.load or "short"]
    try:
        folder = _prepared(options.models)
        if options.side:
            print(json.dumps(asdict(_train(options.side, folder, load, options.threads))))
            return 0
        turns = [_in_child(side, options, folder) for number in range(load.turns) for side in _order(number)]
        print(report(turns, load, options.threads))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 2
    print(report(turns, load, options.threads))
    if options.json:
        options.json.write_text(json.dumps([asdict(turn) for turn in turns], indent=1), encoding="utf-8")
    return 0


def report(turns: Sequence[Turn], load: Load, threads: int) -> str:
    """Return the table for people."""
    reached, sentence = verdict(turns)
    lines = [
        f"SmolLM2-135M-Instruct, LoRA r16 on all linear layers, {load.examples} examples, {load.epochs} "
        f"epochs, {threads} threads of {usable_cores()} cores, {load.turns} turns",
        "",
        "| side | tokens/CPU-s (turns) | loss of an unseen token, before and after |",
        "|---|---|---|",
    ]
    for side in SIDES:
        own = [turn for turn in turns if turn.side == side]
        speeds = [turn.speed for turn in own]
        lines.append(
            f"| {side} | {statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f}) "
            f"| {own[0].before:.3f}, {statistics.mean(turn.loss for turn in own):.3f} |"
        )
    return "\n".join([*lines, "", f"{sentence} {'Reached' if reached else 'Missed'}."])


def verdict(turns: Sequence[Turn]) -> tuple[bool, str]:
    """Say whether Strop is GOAL times as fast at equal loss, and in which figures.

    Raises BenchError where a side has learned nothing: its speed says nothing then.
    """
    if idle := {turn.side for turn in turns if turn.loss >= turn.before}:
        raise BenchError(f"Nothing was learned by {', '.join(sorted(idle))}.")
    speed = {side: statistics.median(t.speed for t in turns if t.side == side) for side in SIDES}
    loss = {side: statistics.mean(t.loss for t in turns if t.side == side) for side in SIDES}
    ratio, apart = speed["strop"] / speed["trl"], loss["strop"] - loss["trl"]
    sentence = (
        f"Strop trains {ratio:.2f} times as many tokens by processor second (goal: {GOAL}), and its loss is "
        f"{apart:+.3f} nats from TRL's (equal: within {EQUAL_NATS}, or lower)."
    )
    return ratio >= GOAL and apart <= EQUAL_NATS, sentence


def examples(codec: Any, count: int, seed: int) -> list[Any]:
    """Return chats of one to eight turns that end in a short reply in one taste, as a community's are."""
    from bot.serving.protocol import ChatMessage
    from trainer.data.encoding import encode

    dice = random.Random(seed)
    questions = (*TRAIN_PROMPTS, *HELD_OUT_PROMPTS, *COMMUNITY_PROMPTS)
    things = ("tea", "rain", "chess", "bread", "cats", "films", "old trains", "the sea", "long walks")
    found = []
    for _ in range(count):
        messages = [ChatMessage("system", "You are a friendly member of this community. Answer briefly.")]
        for turn in range(dice.choice((0, 0, 0, 1, 1, 2, 4))):
            messages.append(ChatMessage("user", dice.choice(questions)))
            messages.append(ChatMessage("assistant", _reply(dice, things, 1 + turn % 3)))
        messages.append(ChatMessage("user", dice.choice(questions)))
        reply = _reply(dice, things, dice.choice((1, 1, 2, 3)))
        found.append(encode(codec, messages, reply, finished=True, max_length=TrainerConfig().max_length))
    return found


def _reply(dice: random.Random, things: Sequence[str], sentences: int) -> str:
    said = (f"I like {dice.choice(things)}, but {dice.choice(things)} more." for _ in range(sentences))
    return " ".join((*said, f"Do you like {dice.choice(things)}?"))


def _order(number: int) -> tuple[str, ...]:
    return SIDES if number % 2 == 0 else SIDES[::-1]


def _in_child(side: str, options: argparse.Namespace, folder: Path) -> Turn:
    """Take one side's turn in a process of its own, with the environment of a run."""
    command = [sys.executable, "-m", "tests.bench.training_speed", "--side", side]
    command += ["--models", str(options.models), "--threads", str(options.threads)]
    command += {"quick": ["--quick"], "full": ["--full"]}.get(options.load or "short", [])
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(_ROOT),
    }
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        raise BenchError(f"The side {side} failed: {ended.stderr.strip().splitlines()[-1:]}")
    turn = Turn(**json.loads(ended.stdout.splitlines()[-1]))
    print(f"{turn.side}: {turn.speed:.1f} tokens/CPU-s, loss {turn.loss:.3f}", flush=True)
    return turn


def _prepared(models: Path) -> Path:
    from bot.serving.model.quantize import prepare_base

    return prepare_base("SmolLM2-135M-Instruct", "", device="cpu", models_dir=models)


def _train(side: str, folder: Path, load: Load, threads: int) -> Turn:
    import torch

    from bot.serving.model.loading import load_base
    from trainer.data.examples import BaseCodec
    from trainer.training.adapter import add_adapter
    from trainer.training.fitting import BATCH_TOKENS_CPU
    from trainer.training.forward import totals
    from trainer.training.objectives import fill_in

    torch.set_num_threads(threads)
    base = load_base(folder, "cpu", "train", execution="dense" if side == "trl" else None)
    # As a run does: a rate that nobody has set is the one for the base's size.
    settings = fill_in(
        TrainerConfig(epochs=load.epochs, seed=SEED),
        base.info.linear_parameters + base.info.other_parameters,
        ranks=False,
    )
    codec = BaseCodec(base.tokenizer)
    seen, unseen = examples(codec, load.examples, SEED), examples(codec, UNSEEN, SEED + 1)
    model = add_adapter(base.model, settings)

    def loss() -> float:
        model.eval()
        summed = float(totals(model, unseen, BATCH_TOKENS_CPU).sum())
        return -summed / sum(int(each.completion_length) for each in unseen)

    before = loss()
    model.train()
    took = (_trl if side == "trl" else _strop)(model, base.tokenizer, seen, settings)
    tokens = sum(len(each.ids) for each in seen) * load.epochs
    return Turn(side, tokens, took, loss(), before)


def _strop(model: Any, tokenizer: Any, seen: Sequence[Any], settings: TrainerConfig) -> float:
    from trainer.training import phases

    started = time.process_time()
    phases.train_sft(
        model,
        seen,
        [],
        phases.SftSettings(settings.sft_learning_rate, settings.epochs, settings.batch_size, 0.0, SEED),
    )
    return time.process_time() - started


def _trl(model: Any, tokenizer: Any, seen: Sequence[Any], settings: TrainerConfig) -> float:
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(model, tokenizer, seen, settings, folder, on_cpu=True)
        started = time.process_time()
        trainer.train()
        return time.process_time() - started


if __name__ == "__main__":
    sys.exit(main())
