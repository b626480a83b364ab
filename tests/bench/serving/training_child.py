"""A QLoRA training that goes on until it is ended: what the trainer's gradient steps cost those beside it.

``python -m tests.bench.serving.training_child FOLDER``: loads the base as the trainer does, and prints one
JSON line after each of the first steps, which a reader may use to know that it is under way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bot.serving.first_word import GiveWay
from tests.bench.serving.memory_use import read_memory_use

# The trainer's own sizes on a CPU: rows and tokens of a micro-batch, micro-batches of an optimiser step.
ROWS, TOKENS, MICRO_BATCHES = 4, 192, 2
RANK, ALPHA, RATE = 16, 32, 5e-4
REPORTED_STEPS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Train until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="a prepared base")
    parser.add_argument("--device", default="cpu", help="where to train (cpu)")
    parser.add_argument("--run-dir", type=Path, help="give way to a server that keeps its files here")
    options = parser.parse_args(argv)
    train(options.folder, options.device, options.run_dir)
    return 0


def train(folder: Path, device: str, run_dir: Path | None = None) -> None:
    """Take gradient steps on random rows."""
    import torch
    from peft import LoraConfig, get_peft_model

    from bot.serving.model.loading import load_base
    from trainer.training.adapter import giving_way

    libraries = asdict(read_memory_use(os.getpid()))
    base = load_base(folder, device, "train")
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base.model, config)
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=RATE)
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(base.model.config.vocab_size)
    with giving_way(base.model, GiveWay(run_dir) if run_dir else lambda: None):
        for step in itertools.count():
            started = time.process_time()
            for _ in range(MICRO_BATCHES):
                ids = torch.randint(0, vocabulary, (ROWS, TOKENS), generator=generator).to(device)
                (model(input_ids=ids, labels=ids, use_cache=False).loss / MICRO_BATCHES).backward()
            optimiser.step()
            optimiser.zero_grad()
            spent = time.process_time() - started
            tokens = ROWS * TOKENS * MICRO_BATCHES
            if step < REPORTED_STEPS:
                print(json.dumps({"tokens": tokens, "cpu_s": spent, "libraries": libraries}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
