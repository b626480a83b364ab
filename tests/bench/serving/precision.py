"""How far the fast products move the model, on real conversations: divergence per token, scores of replies.

    python -m tests.bench.serving.precision --models-dir data/models [--adapter FOLDER]

Prompts and replies are the sample community's. Each prompt is read as the server reads it, then its reply is
decoded token by token in a batch, once with ``model.precision`` exact and once fast.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bot.serving.engine.lora import Adapter, read_adapter
from bot.serving.engine.model_runner import ModelRunner
from bot.serving.model.chat_template import ChatTemplate
from bot.serving.model.loading import LoadedBase, Precision, load_base
from bot.serving.model.quantize import prepare_base
from bot.serving.protocol import ChatMessage
from tests.bench.serving.timing import quantile

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "bot/playground/simulation/sample_community.json"
CONTEXT = 512
BATCH = 8


@dataclass(frozen=True, slots=True)
class Conversation:
    """Token ids of a prompt and of a reply to it."""

    prompt: list[int]
    reply: list[int]


@dataclass(frozen=True, slots=True)
class Difference:
    """Kullback-Leibler divergence of fast from exact per token in nats, the share of tokens after which the
    likeliest next one is the same, and by how many nats the log-probability of a whole reply differs.
    """

    tokens: int
    mean: float
    p99: float
    highest: float
    same_choice: float
    score_mean: float
    score_highest: float


def conversations(base: LoadedBase, count: int) -> list[Conversation]:
    """Return the sample community's first conversations, each with its longest reply."""
    sample = json.loads(SAMPLE.read_text(encoding="utf-8"))
    template = ChatTemplate(base.tokenizer)
    found = []
    for each in sample["conversations"][:count]:
        messages = [ChatMessage("system", sample["system_prompt"]), ChatMessage("user", each["prompt"])]
        text = max((reply["text"] for reply in each["replies"]), key=len)
        reply = [int(token) for token in base.tokenizer(text)["input_ids"]]
        found.append(Conversation(list(template.render(messages, add_generation_prompt=True)), reply))
    return found


def next_token_logs(
    runner: ModelRunner, batch: Sequence[Conversation], adapter: Adapter | None
) -> list[torch.Tensor]:
    """Return the log-probabilities (tokens, V) of what follows each prompt token and each reply token."""
    logs: list[list[torch.Tensor]] = []
    for row, each in enumerate(batch):
        logits = runner.read(each.prompt, 0, row, adapter, len(each.prompt))
        logs.append([torch.log_softmax(logits, -1)])
    for step in range(max(len(each.reply) for each in batch)):
        rows = [row for row, each in enumerate(batch) if step < len(each.reply)]
        tokens = [batch[row].reply[step] for row in rows]
        positions = [len(batch[row].prompt) + step for row in rows]
        logits = torch.log_softmax(runner.decode(tokens, positions, rows, [adapter] * len(rows)), -1)
        for row, one in zip(rows, logits, strict=True):
            logs[row].append(one[None])
    return [torch.cat(parts) for parts in logs]


def difference(
    batch: Sequence[Conversation], exact: Sequence[torch.Tensor], fast: Sequence[torch.Tensor]
) -> Difference:
    """Compare the log-probabilities (tokens, V) of several conversations."""
    divergences, same, scores = [], [], []
    for each, right, seen in zip(batch, exact, fast, strict=True):
        divergences += (right.exp() * (right - seen)).sum(-1).tolist()
        same += (right.argmax(-1) == seen.argmax(-1)).tolist()
        # The token before a reply token says how likely that is.
        places = torch.arange(len(each.reply)) + len(each.prompt) - 1
        scores.append(abs(float((seen - right)[places, torch.tensor(each.reply)].sum())))
    return Difference(
        tokens=len(divergences),
        mean=sum(divergences) / len(divergences),
        p99=quantile(divergences, 0.99),
        highest=max(divergences),
        same_choice=sum(same) / len(same),
        score_mean=sum(scores) / len(scores),
        score_highest=max(scores),
    )


def measure(folder: Path, count: int, adapter: Path | None) -> Difference:
    """Compare exact and fast products of the base in ``folder``, with an adapter of it or without."""
    sides = []
    precisions: tuple[Precision, ...] = ("exact", "fast")
    for precision in precisions:
        base = load_base(folder, "cpu", precision=precision)
        runner = ModelRunner(base, BATCH, CONTEXT, 1)
        loaded = _read(adapter, base, runner) if adapter else None
        talks = conversations(base, count)
        with torch.inference_mode():
            batches = [talks[at : at + BATCH] for at in range(0, count, BATCH)]
            sides.append([logs for batch in batches for logs in next_token_logs(runner, batch, loaded)])
    return difference(talks, *sides)


def _read(folder: Path, base: LoadedBase, runner: ModelRunner) -> Adapter:
    return read_adapter(
        folder.name,
        folder,
        adapters_dir=folder.parent,
        base_hash=base.info.hash,
        chat_template_hash=base.info.chat_template_hash,
        widths=runner.widths,
        dtype=base.dtype,
        device=base.device,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.serving.precision")
    parser.add_argument("--base", default="auto", help="the base model, as [model] base (auto)")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--adapter", type=Path, help="an adapter folder; without it the bare base")
    parser.add_argument("--conversations", type=int, default=32)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder = prepare_base(options.base, "", device="cpu", models_dir=options.models_dir, progress=print)
    seen = measure(folder, options.conversations, options.adapter)
    print(
        f"{seen.tokens} tokens: divergence {seen.mean:.1e} nats on average, {seen.p99:.1e} at the 99th "
        f"percentile, {seen.highest:.1e} at most; the same likeliest token {seen.same_choice:.2%}; "
        f"scores of replies differ by {seen.score_mean:.1e} nats on average, {seen.score_highest:.1e} at most"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
