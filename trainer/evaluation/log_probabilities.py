"""How likely a served model finds texts: log-probabilities, asked for behind everybody who chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bot.serving.client import ModelClient
from bot.serving.protocol import ChatMessage
from trainer.data.encoding import Codec, Example, encode
from trainer.evaluation.scores import Answer, Pair
from trainer.evaluation.to_the_point import MOST_PROMPTS, OTHERS, Tie, TiedAnswers
from trainer.model_server import AT_ONCE, retry_while_unavailable


async def completion_scores(
    client: ModelClient, model: str, examples: Sequence[Example]
) -> list[list[float]]:
    """Return the log-probabilities of each completion's tokens, the stop token included, in nats."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    scores: list[list[float]] = [[] for _ in examples]
    for at in range(0, len(order), AT_ONCE):
        group = order[at : at + AT_ONCE]
        prompts = [list(examples[i].ids) for i in group]

        async def ask(prompts: list[list[int]] = prompts) -> list[list[float]]:
            return await client.score(model=model, prompts=prompts, priority=1)

        for i, values in zip(group, await retry_while_unavailable(ask), strict=True):
            scores[i] = values[examples[i].start :]
    return scores


async def tied_answers(
    client: ModelClient, codec: Codec, base: str, pairs: Sequence[Pair], max_length: int
) -> tuple[TiedAnswers, ...]:
    """Ask the base how likely the first prompts' answers are after their own question and after others."""
    asked = list({pair.prompt: pair for pair in pairs}.values())[:MOST_PROMPTS]
    contexts = [contexts_of([pair.prompt.messages for pair in asked], at) for at in range(len(asked))]
    given = [(at, answer) for at, pair in enumerate(asked) for answer in _answers(pair)]
    examples = [
        encode(codec, messages, answer.text, finished=answer.finished, max_length=max_length)
        for at, answer in given
        for messages in contexts[at]
    ]
    sums = iter([sum(values) for values in await completion_scores(client, base, examples)])
    ties: list[list[Tie]] = [[] for _ in asked]
    for at, _ in given:
        own, *others = (next(sums) for _ in contexts[at])
        ties[at].append(Tie(own, tuple(others)))
    return tuple(
        TiedAnswers(pair.prompt.cluster, *found)
        for pair, found in zip(asked, ties, strict=True)
        if found[0].others
    )


def _answers(pair: Pair) -> list[Answer]:
    return [answer for answer in (pair.challenger, pair.champion, pair.base) if answer is not None]


def contexts_of(prompts: Sequence[tuple[ChatMessage, ...]], at: int) -> list[tuple[ChatMessage, ...]]:
    """Return a prompt, and the same with the last messages of others that are spread over the rest."""
    own = prompts[at]
    questions = dict.fromkeys(prompts[(at + step) % len(prompts)][-1].content for step in range(len(prompts)))
    others = list(questions)[1:]
    chosen = dict.fromkeys(others[len(others) * turn // OTHERS] for turn in range(OTHERS)) if others else {}
    return [own, *((*own[:-1], replace(own[-1], content=question)) for question in chosen)]
