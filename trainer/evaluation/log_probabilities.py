"""How likely a served model finds texts: log-probabilities, asked for behind everybody who chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bot.serving.client import ModelClient
from bot.serving.protocol import ChatMessage
from trainer.data.encoding import Codec, Example, encode
from trainer.evaluation import to_the_point
from trainer.evaluation.scores import Answer, Pair, Prompt
from trainer.evaluation.to_the_point import MOST_IN_DOUBT, MOST_PROMPTS, OTHERS, Tie, TiedAnswers
from trainer.model_server import AT_ONCE, retry_while_unavailable


async def completion_scores(
    client: ModelClient, model: str, examples: Sequence[Example]
) -> list[list[float]]:
    """Return the log-probabilities of each completion's tokens, the stop token included, in nats."""
    # Those that begin alike one after the other: the server reads what they share once.
    order = sorted(range(len(examples)), key=lambda i: examples[i].ids)
    scores: list[list[float]] = [[] for _ in examples]
    for at in range(0, len(order), AT_ONCE):
        group = order[at : at + AT_ONCE]
        prompts = [list(examples[i].ids) for i in group]

        async def ask(prompts: list[list[int]] = prompts) -> list[list[float]]:
            return await client.score(model=model, prompts=prompts, priority=1)

        for i, values in zip(group, await retry_while_unavailable(ask), strict=True):
            scores[i] = values[examples[i].start :]
    return scores


async def loss_per_token(client: ModelClient, model: str, examples: Sequence[Example]) -> float:
    """Return a model's loss on the completions, in nats per token; 0 without any."""
    scores = await completion_scores(client, model, examples)
    return -sum(map(sum, scores)) / max(1, sum(map(len, scores)))


async def tied_answers(
    client: ModelClient, codec: Codec, base: str, pairs: Sequence[Pair], max_length: int
) -> tuple[TiedAnswers, ...]:
    """Ask the base how likely answers are after their own question and after others.

    They are the answers to the first prompts; where those leave doubt more are looked at.
    """
    numbers: dict[Prompt, int] = {}
    for number, pair in enumerate(pairs):
        numbers.setdefault(pair.prompt, number)
    first = list(numbers.values())[:MOST_PROMPTS]
    looked_at = [pairs[number] for number in first]
    tied = await _tied(client, codec, base, looked_at, range(len(first)), max_length)
    if to_the_point.in_doubt(tied):
        others = sorted({*range(len(pairs))} - {*first})[: MOST_IN_DOUBT - len(first)]
        tied += await _tied(client, codec, base, pairs, others, max_length)
    return tuple(tied)


async def _tied(
    client: ModelClient,
    codec: Codec,
    base: str,
    pairs: Sequence[Pair],
    numbers: Sequence[int],
    max_length: int,
) -> list[TiedAnswers]:
    """Return the ties of some of the pairs; other questions are those of all of them."""
    given = [(at, answer) for at in numbers for answer in _answers(pairs[at])]
    prompts = [pair.prompt.messages for pair in pairs]
    found = await ties(client, codec, base, prompts, given, others=OTHERS, max_length=max_length)
    by_pair: dict[int, list[Tie]] = {at: [] for at in numbers}
    for (at, _), tie in zip(given, found, strict=True):
        by_pair[at].append(tie)
    return [TiedAnswers(pairs[at].prompt.cluster, *each) for at, each in by_pair.items() if each[0].others]


async def ties(
    client: ModelClient,
    codec: Codec,
    base: str,
    prompts: Sequence[tuple[ChatMessage, ...]],
    given: Sequence[tuple[int, Answer]],
    *,
    others: int,
    max_length: int,
) -> list[Tie]:
    """Return how each answer is tied to its prompt, which is named by its number among `prompts`."""
    contexts = [contexts_of(prompts, at, others) for at in range(len(prompts))]
    examples = [
        encode(codec, messages, answer.text, finished=answer.finished, max_length=max_length)
        for at, answer in given
        for messages in contexts[at]
    ]
    sums = iter([sum(values) for values in await completion_scores(client, base, examples)])
    found = []
    for at, _ in given:
        own, *rest = (next(sums) for _ in contexts[at])
        found.append(Tie(own, tuple(rest)))
    return found


def contexts_of(
    prompts: Sequence[tuple[ChatMessage, ...]], at: int, others: int = OTHERS
) -> list[tuple[ChatMessage, ...]]:
    """Return a prompt, and the same with the last messages of others that are spread over the rest."""
    own = prompts[at]
    questions = dict.fromkeys(prompts[(at + step) % len(prompts)][-1].content for step in range(len(prompts)))
    rest = list(questions)[1:]
    chosen = dict.fromkeys(rest[len(rest) * turn // others] for turn in range(others)) if rest else {}
    return [own, *((*own[:-1], replace(own[-1], content=question)) for question in chosen)]


def _answers(pair: Pair) -> list[Answer]:
    return [answer for answer in (pair.challenger, pair.champion, pair.base) if answer is not None]
