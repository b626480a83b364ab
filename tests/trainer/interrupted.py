"""A training in a child process that tells of every step, so that a test can kill it at any of them."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from bot.serving.model.loading import load_base
from storage.config_sections import TrainerConfig
from tests.trainer.rows import pair, row
from trainer.data.general_replies import BaseReply
from trainer.data.snapshot import Snapshot
from trainer.training import challenger
from trainer.training.challenger import Challenger
from trainer.training.objectives import Plan

SETTINGS = TrainerConfig(
    objective="sft_kto_dpo",
    rank=4,
    alpha=8,
    epochs=4,
    kto_epochs=2,
    dpo_epochs=2,
    batch_size=2,
    sft_batch_size=2,
    dpo_batch_size=2,
    sft_learning_rate=5e-3,
    max_length=128,
    # After every step: most kills then hit the middle of a write.
    checkpoint_seconds=1e-9,
)
SNAPSHOT = Snapshot(
    tuple(
        row(f"r{n}", "liked" if n % 2 else "disliked", asked=f"Question {n}?", text=f"Answer {n}, and you?")
        for n in range(12)
    ),
    "c" * 64,
    raters=5,
    pairs=tuple(pair(f"p{n}") for n in range(6)),
)
REPLAY = tuple(BaseReply(f"What is {n}?", f"It is {n}, of course.", True) for n in range(4))

processes = multiprocessing.get_context("forkserver")
# Importing torch takes seconds: it is done once, and every child begins with it.
processes.set_forkserver_preload(["tests.trainer.interrupted"])


def train(
    folder: Path,
    work: Path,
    settings: TrainerConfig = SETTINGS,
    on_progress: challenger.Progress = lambda share, note: None,
) -> Challenger:
    """Train on the tiny base, in this process."""
    return challenger.train_challenger(
        load_base(folder, "cpu", "train"),
        SNAPSHOT,
        REPLAY,
        Plan(settings.objective),  # type: ignore[arg-type]
        settings,
        work=work,
        adapters_dir=work.parent / "adapters",
        on_progress=on_progress,
    )


def killed_and_resumed(
    folder: Path, work: Path, *, kills: int, seed: int, settings: TrainerConfig = SETTINGS
) -> tuple[str, int]:
    """Start the training again and again, kill it so often at random moments, then let it end.

    Returns the adapter's id and how many of the killed ones had got further than the one before.
    """
    dice, further, seen = random.Random(seed), 0, ""
    for _ in range(kills):
        ours, child = _start(folder, work, settings)
        steps = dice.choice((0, 1, 1, 2, 3))
        notes = [str(ours.recv()) for _ in range(1 + steps)]
        time.sleep(dice.random() * 0.05)
        assert child.is_alive() or notes[-1].startswith("done"), "the training ended before it was killed"
        child.kill()
        child.join()
        further += notes[-1] != seen
        seen = notes[-1]
    ours, child = _start(folder, work, settings)
    note = ""
    while not note.startswith("done "):
        note = str(ours.recv())
    child.join()
    return note.removeprefix("done "), further


def _start(folder: Path, work: Path, settings: TrainerConfig) -> tuple[Connection, multiprocessing.Process]:
    ours, theirs = processes.Pipe()
    child = processes.Process(target=_child, args=(folder, work, settings, theirs), daemon=True)
    child.start()
    theirs.close()
    return ours, child  # type: ignore[return-value]


def _child(folder: Path, work: Path, settings: TrainerConfig, tell: Connection) -> None:
    torch.set_num_threads(1)
    trained = train(folder, work, settings, lambda share, note: tell.send(note))
    tell.send(f"done {trained.adapter_id}")
    # Killed or read to its end: nothing is left to say.
    time.sleep(0.2)
