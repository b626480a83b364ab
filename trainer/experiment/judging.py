"""One model on the development split, through the server: its replies, its losses, its perplexity.

The gate's held-out conversations are not looked at: whoever picks the best of several by them would be judged
by what was picked for it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bot.serving.client import ModelClient
from storage.config_sections import ChatConfig, GateConfig
from trainer.data import general_replies
from trainer.data.encoding import Codec, Example, encode
from trainer.data.general_replies import BaseReply
from trainer.data.rows import Row, messages_of
from trainer.data.snapshot import Snapshot
from trainer.evaluation import evaluate, statistics
from trainer.evaluation.log_probabilities import completion_scores, loss_per_token
from trainer.evaluation.scores import Answer, Prompt
from trainer.model_server import AT_ONCE

DEVELOPMENT = "development"


@dataclass(frozen=True)
class ComparisonData:
    """What every setting is judged on: prompts to answer, rated replies, and the base's general ones.

    `base_loss` is the base's on the last, in nats per token.
    """

    prompts: tuple[Prompt, ...]
    rated: tuple[Row, ...]
    rated_examples: tuple[Example, ...]
    general: tuple[Example, ...]
    base_loss: float


async def ground_of(
    client: ModelClient,
    codec: Codec,
    base: str,
    snapshot: Snapshot,
    general: Sequence[BaseReply],
    *,
    gate: GateConfig,
    chat: ChatConfig,
    max_length: int,
) -> ComparisonData:
    """Prepare it; the base is asked how likely it finds its own general replies."""
    rated = tuple(row for row in snapshot.of(DEVELOPMENT) if row.verdict in ("liked", "disliked"))
    own = [
        encode(codec, messages_of(row), row.text, finished=row.finished, max_length=max_length)
        for row in rated
    ]
    held_out = general_replies.encoded(codec, general, max_length)
    prompts = evaluate.held_out_prompts(snapshot, chat.system_prompt, gate.max_prompts, (DEVELOPMENT,))
    loss = await loss_per_token(client, base, held_out)
    return ComparisonData(tuple(prompts), rated, tuple(own), tuple(held_out), loss)


@dataclass(frozen=True)
class Judged:
    """What one model said and how it scored."""

    answers: tuple[Answer, ...]
    perplexity: float | None
    accuracy: float | None
    general_rise: float


async def judge(
    client: ModelClient,
    model: str,
    data: ComparisonData,
    *,
    gate: GateConfig,
    chat: ChatConfig,
    seed: int,
    on_answer: Callable[[int, int], None] = lambda done, total: None,
) -> Judged:
    """Let a served model answer every prompt and score what is known, behind everybody who chats."""
    scored = await completion_scores(client, model, data.rated_examples)
    perplexity, accuracy = _held_out(scored, [row.verdict == "liked" for row in data.rated])
    general = await loss_per_token(client, model, data.general)
    slots, done = asyncio.Semaphore(AT_ONCE), 0

    async def answer(prompt: Prompt) -> Answer:
        nonlocal done
        async with slots:
            completion = await evaluate.complete(client, model, prompt, 0, chat=chat, gate=gate, seed=seed)
        done += 1
        on_answer(done, len(data.prompts))
        return Answer(completion.text.strip(), completion.finish_reason == "stop")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(prompt)) for prompt in data.prompts]
    rise = general / data.base_loss - 1 if data.base_loss else 0.0
    return Judged(tuple(task.result() for task in tasks), perplexity, accuracy, rise)


def _held_out(scores: Sequence[Sequence[float]], liked: Sequence[bool]) -> tuple[float | None, float | None]:
    """Return the perplexity of liked replies, and how often one is likelier than a disliked one."""
    if not any(liked) or all(liked):
        return None, None
    per_token = [sum(values) / max(1, len(values)) for values in scores]
    of_liked = [value for value, good in zip(per_token, liked, strict=True) if good]
    return math.exp(-sum(of_liked) / len(of_liked)), statistics.auc(per_token, liked)
