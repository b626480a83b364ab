"""Measure the engine beside transformers' ``generate`` with PEFT, in pairs: ``python -m bot.serving.bench``.

Both sides hold the same base in the same execution with the same adapter, decode the same number of tokens
for the same prompts, and take turns, since a busy machine drifts by tens of percent within minutes. On a CPU
the figures are tokens per second of processor time, which other programs disturb less.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import queue
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from bot.serving.base import load_base, resolve_device
from bot.serving.engine import Engine, EngineOptions
from bot.serving.events import Event, Failed, Finished, JobOptions, SamplingOptions
from bot.serving.jobs import Job
from bot.serving.lora import Adapter
from bot.serving.quantize import prepare_base

RANK, ALPHA = 16, 32


def _now() -> float:
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


class EngineSide:
    """Our engine with one adapter."""

    def __init__(self, folder: Path, device: str, threads: int, streams: int, tuned: Any) -> None:
        self._base = load_base(folder, device)
        self._engine = Engine(self._base, EngineOptions(slots=streams, threads=threads))
        self._adapter = _copy_adapter(tuned)
        self._engine.shelf.add(self._adapter)
        self._engine.start()

    def run(self, prompts: list[list[int]], tokens: int) -> float:
        """Return seconds for ``tokens`` new tokens on every prompt."""
        events: queue.Queue[Event] = queue.Queue()
        greedy = SamplingOptions(temperature=0.0)
        options = JobOptions(max_tokens=tokens, sampling=greedy, ignore_end=True)
        started = _now()
        for prompt in prompts:
            adapter = self._engine.shelf.pin(self._adapter.name)
            self._engine.submit(
                Job(prompt, options, sink=events.put, tokenizer=self._base.tokenizer, adapter=adapter)
            )
        ended = 0
        while ended < len(prompts):
            ended += isinstance(events.get(), Finished | Failed)
        return _now() - started

    def close(self) -> None:
        """End the engine."""
        self._engine.stop()


def main() -> None:
    """Print a table of tokens per second at 1, 4 and 8 streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--base", default="auto")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    options = parser.parse_args()
    device = resolve_device("auto")
    folder = prepare_base(options.base, "", device=device, models_dir=options.models_dir, progress=print)
    torch.set_num_threads(options.threads)
    tuned = _peft_side(folder, device)
    print(f"{'streams':>8} {'strop tok/s':>12} {'generate tok/s':>15} {'ratio':>6}")
    for streams in options.streams:
        _print_row(streams, options, folder, device, tuned)


def _print_row(streams: int, options: argparse.Namespace, folder: Path, device: str, tuned: Any) -> None:
    generator = torch.Generator().manual_seed(streams)
    prompts = torch.randint(1000, 20000, (streams, options.prompt_tokens), generator=generator).tolist()
    ours = EngineSide(folder, device, options.threads, streams, tuned)
    try:
        ours.run(prompts, 2)
        pairs = [
            (ours.run(prompts, options.tokens), _generate(tuned, prompts, options.tokens))
            for _ in range(options.pairs)
        ]
    finally:
        ours.close()
    made = streams * options.tokens
    speed, other = (made / statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    print(f"{streams:>8} {speed:>12.1f} {other:>15.1f} {ratio:>6.2f}", flush=True)


def _peft_side(folder: Path, device: str) -> Any:
    base = load_base(folder, device)
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    return get_peft_model(base.model, config).eval()


def _copy_adapter(tuned: Any) -> Adapter:
    """Take PEFT's weights over into our form."""
    weights = {}
    for name, module in tuned.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            weights[name.removeprefix("base_model.model.")] = (
                down.detach().t().contiguous(),
                (up.detach().t() * (ALPHA / RANK)).contiguous(),
            )
    return Adapter("bench", weights, RANK)


def _generate(tuned: Any, prompts: list[list[int]], tokens: int) -> float:
    ids = torch.tensor(prompts, device=tuned.device)
    started = _now()
    with torch.inference_mode():
        tuned.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            do_sample=False,
        )
    return _now() - started


if __name__ == "__main__":
    main()
