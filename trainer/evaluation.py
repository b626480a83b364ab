"""Challenger and champion side by side, through the path that serves: the model server's own kernels.

Held-out rated replies are scored, the base's general replies are scored, and both models answer held-out
prompts with the same seeds. Everything goes out with background priority: people who chat come first.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bot.serving.client import ModelClient
from bot.serving.plain_text import neutralise
from bot.serving.protocol import ChatMessage, Sampling
from storage.config import ChatConfig, GateConfig
from trainer import reward, statistics
from trainer.encoding import Codec, Example, encode
from trainer.errors import EvaluationError
from trainer.gate import Evidence, ReplyTraits
from trainer.patience import patiently
from trainer.replay import COMMUNITY_PROMPTS, BaseReply
from trainer.reward import RatedText
from trainer.snapshot import Row, Snapshot
from trainer.statistics import Estimate

AT_ONCE = 8
# Prompts a round: both models answer them before the clock is looked at, so that pairs stay complete.
ROUND = 8
# Rated replies that are scored for the margin; more narrows an interval that only ever vetoes.
MAX_SCORED = 40
# With fewer held-out conversations than this, general prompts in the community's voice are added.
ENOUGH_PROMPTS = 24
RECITED_WORDS = 12

Progress = Callable[[float], None]
"""Called with the share of the evaluation that is done, 0 to 1; may raise to stop it."""


@dataclass(frozen=True)
class Prompt:
    """What both models are asked. `group` is the held-out conversation, None for a general prompt."""

    messages: tuple[ChatMessage, ...]
    group: str | None
    reply_id: str | None = None


@dataclass(frozen=True)
class Answer:
    """One generated reply; `finished` says that it ended by itself."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Pair:
    """Both models' answers to one prompt, drawn with the same seed."""

    prompt: Prompt
    challenger: Answer
    champion: Answer


@dataclass(frozen=True)
class Evaluation:
    """The evidence, and the pairs that a vote can be held on."""

    evidence: Evidence
    pairs: tuple[Pair, ...]
    figures: dict[str, object]


@dataclass(frozen=True)
class Contest:
    """Who is compared: model names as the server knows them."""

    challenger: str
    champion: str
    base: str


async def evaluate(
    client: ModelClient,
    codec: Codec,
    snapshot: Snapshot,
    held_out_replay: Sequence[BaseReply],
    contest: Contest,
    *,
    gate: GateConfig,
    chat: ChatConfig,
    max_length: int,
    budget_s: float,
    seed: int,
    on_progress: Progress = lambda share: None,
) -> Evaluation:
    """Measure everything that the gate looks at.

    Raises:
        EvaluationError: the server stayed away for minutes, or there is nothing to compare on.
    """
    judge = _Bootstrap(gate.bootstrap, gate.confidence, seed)
    model, proof = reward.prove(
        rated_texts(snapshot.of("train")),
        rated_texts(snapshot.of("development", "gate"), corrections=False),
        resamples=judge.resamples,
        confidence=judge.confidence,
        seed=seed,
    )
    general = await _general_losses(client, codec, held_out_replay, contest, max_length)
    on_progress(0.1)
    margin = await _margin(client, codec, snapshot, contest, max_length, judge)
    on_progress(0.3)
    prompts = held_out_prompts(snapshot, chat.system_prompt, gate.max_prompts)
    if not prompts:
        raise EvaluationError("There is no held-out conversation to compare the replies on.")
    pairs = await _answer_all(
        client, prompts, contest, gate, chat, budget_s, seed, lambda share: on_progress(0.3 + 0.7 * share)
    )
    preference = _preference(model, pairs, judge) if model is not None else None
    corrections = [c.text for row in snapshot.rows for c in row.corrections]
    asked = list({id(pair.prompt): pair.prompt for pair in pairs}.values())
    evidence = Evidence(
        preference=preference,
        proof=proof,
        margin=margin,
        general_nll_increase=general.challenger / general.base - 1,
        general_divergence=general.challenger - general.base,
        challenger=traits([pair.challenger for pair in pairs], corrections),
        champion=traits([pair.champion for pair in pairs], corrections),
        same_replies=sum(pair.challenger.text == pair.champion.text for pair in pairs) / len(pairs),
        prompts=len(asked),
        extra_prompts=sum(prompt.group is None for prompt in asked),
    )
    return Evaluation(evidence, tuple(pairs), _figures(evidence, general, model))


def rated_texts(rows: Sequence[Row], *, corrections: bool = True) -> list[RatedText]:
    """Return labelled replies for the reward model; corrections are texts that a member likes."""
    found = [
        RatedText(row.text, row.verdict == "liked", row.weight, row.group_key)
        for row in rows
        if row.verdict != "unclear" and row.weight > 0
    ]
    if corrections:
        found += [RatedText(c.text, True, c.weight, row.group_key) for row in rows for c in row.corrections]
    return found


def held_out_prompts(snapshot: Snapshot, system_prompt: str, limit: int) -> list[Prompt]:
    """Return the prompts to compare on, one for each held-out reply, spread over conversations.

    Every conversation's first prompt comes before any second one, in an order that only depends on the ids: a
    budget that runs out cuts the tail, not a kind.
    """
    rows = sorted(snapshot.of("gate", "development"), key=lambda row: _stable(row.reply_id))
    turn: dict[str, int] = {}
    ranked: list[tuple[int, int, Prompt]] = []
    for number, row in enumerate(rows):
        rank = turn.get(row.group_key, 0)
        turn[row.group_key] = rank + 1
        ranked.append((rank, number, Prompt(messages_of(row), row.group_key, row.reply_id)))
    prompts = [prompt for _, _, prompt in sorted(ranked, key=lambda item: item[:2])]
    if len(turn) < ENOUGH_PROMPTS:
        first = [prompt for rank, _, prompt in ranked if rank == 0]
        prompts = first + _community_prompts(system_prompt) + [p for p in prompts if p not in first]
    return prompts[:limit]


def messages_of(row: Row) -> tuple[ChatMessage, ...]:
    """Return a row's prompt as chat messages in which no control token can arise."""
    return tuple(ChatMessage(role, neutralise(content)) for role, content in row.prompt)  # type: ignore[arg-type]


def traits(answers: Sequence[Answer], corrections: Sequence[str]) -> ReplyTraits:
    """Describe generated replies for the guardrails."""
    texts = [answer.text.strip() for answer in answers]
    spoken = [text for text in texts if text]
    own_words = {gram for correction in corrections for gram in _runs(correction)}
    count = max(1, len(texts))
    return ReplyTraits(
        unfinished=sum(not answer.finished for answer in answers) / count,
        repetition=sum(reward.repetition(text) for text in texts) / count,
        duplicates=1 - len(set(spoken)) / len(spoken) if spoken else 0.0,
        empty=1 - len(spoken) / count,
        recited=sum(not own_words.isdisjoint(_runs(text)) for text in texts) / count,
        mean_words=sum(len(text.split()) for text in texts) / count,
    )


def write_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """Keep the generated pairs in the run's folder, where an erasure scrubs them with the rest."""
    lines = [
        json.dumps(
            {
                "group": pair.prompt.group,
                "messages": [message.as_json() for message in pair.prompt.messages],
                "challenger": asdict(pair.challenger),
                "champion": asdict(pair.champion),
            }
        )
        for pair in pairs
    ]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ measuring
@dataclass(frozen=True)
class _Bootstrap:
    resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class _General:
    """Loss per token on the base's own replies to held-out general prompts."""

    base: float
    challenger: float


async def _general_losses(
    client: ModelClient, codec: Codec, replies: Sequence[BaseReply], contest: Contest, max_length: int
) -> _General:
    examples = [
        encode(codec, reply.messages, reply.text, finished=reply.finished, max_length=max_length)
        for reply in replies
    ]
    tokens = sum(example.completion_length for example in examples)
    if not tokens:
        raise EvaluationError("The base has no replies to general prompts to measure forgetting on.")
    base = await completion_scores(client, contest.base, examples)
    challenger = await completion_scores(client, contest.challenger, examples)
    return _General(-sum(map(sum, base)) / tokens, -sum(map(sum, challenger)) / tokens)


async def _margin(
    client: ModelClient,
    codec: Codec,
    snapshot: Snapshot,
    contest: Contest,
    max_length: int,
    judge: _Bootstrap,
) -> Estimate | None:
    """Return how much more the challenger gains on liked than on disliked replies; None without both."""
    rows = _scored_rows(snapshot)
    liked = [row.verdict == "liked" for row in rows]
    if not any(liked) or all(liked):
        return None
    examples = [
        encode(codec, messages_of(row), row.text, finished=row.finished, max_length=max_length)
        for row in rows
    ]
    new = await completion_scores(client, contest.challenger, examples)
    old = await completion_scores(client, contest.champion, examples)
    gains = [
        (sum(a) - sum(b)) / example.completion_length
        for a, b, example in zip(new, old, examples, strict=True)
    ]
    return statistics.clustered_difference(
        gains,
        liked,
        [row.group_key for row in rows],
        resamples=judge.resamples,
        confidence=judge.confidence,
        seed=judge.seed,
    )


def _scored_rows(snapshot: Snapshot) -> list[Row]:
    """Return at most MAX_SCORED held-out rows, as many liked as disliked where there are enough."""
    rows = sorted(snapshot.of("gate", "development"), key=lambda row: _stable(row.reply_id))
    liked = [row for row in rows if row.verdict == "liked"][: MAX_SCORED // 2]
    return liked + [row for row in rows if row.verdict == "disliked"][: MAX_SCORED - len(liked)]


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

        for i, values in zip(group, await patiently(ask), strict=True):
            scores[i] = values[examples[i].start :]
    return scores


async def _answer_all(
    client: ModelClient,
    prompts: Sequence[Prompt],
    contest: Contest,
    gate: GateConfig,
    chat: ChatConfig,
    budget_s: float,
    seed: int,
    on_progress: Progress,
) -> list[Pair]:
    """Let both models answer, a round of prompts at a time, until all are done or the budget is spent."""
    started = time.monotonic()
    asked = [(prompt, turn) for turn in range(gate.replies_per_prompt) for prompt in prompts]
    pairs: list[Pair] = []
    for at in range(0, len(asked), ROUND):
        spent = time.monotonic() - started
        # The first round always runs: a verdict needs something to look at.
        if pairs and spent + spent * ROUND / len(pairs) > budget_s:
            break
        answers = await _answer_round(client, asked[at : at + ROUND], contest, gate, chat, seed)
        pairs += answers
        on_progress(max(len(pairs) / len(asked), min(1.0, (time.monotonic() - started) / budget_s)))
    return pairs


async def _answer_round(
    client: ModelClient,
    asked: Sequence[tuple[Prompt, int]],
    contest: Contest,
    gate: GateConfig,
    chat: ChatConfig,
    seed: int,
) -> list[Pair]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def answer(model: str, prompt: Prompt, turn: int) -> Answer:
        async def ask() -> Answer:
            completion = await client.chat(
                model=model,
                messages=prompt.messages,
                sampling=Sampling(
                    max_tokens=gate.max_new_tokens,
                    temperature=chat.temperature,
                    top_p=chat.top_p,
                    top_k=chat.top_k,
                    seed=_seed_of(prompt, turn, seed),
                ),
                priority=1,
                deadline_s=600.0,
            )
            return Answer(completion.text, completion.finish_reason == "stop")

        async with slots:
            return await patiently(ask)

    async with asyncio.TaskGroup() as group:
        new = [group.create_task(answer(contest.challenger, *item)) for item in asked]
        old = [group.create_task(answer(contest.champion, *item)) for item in asked]
    return [Pair(prompt, a.result(), b.result()) for (prompt, _), a, b in zip(asked, new, old, strict=True)]


def _preference(model: reward.RewardModel, pairs: Sequence[Pair], judge: _Bootstrap) -> Estimate:
    new = model.probability([pair.challenger.text for pair in pairs])
    old = model.probability([pair.champion.text for pair in pairs])
    clusters = [pair.prompt.group or f"general {_prompt_key(pair.prompt)}" for pair in pairs]
    return statistics.clustered_mean(
        (new - old).tolist(),
        clusters,
        resamples=judge.resamples,
        confidence=judge.confidence,
        seed=judge.seed,
    )


def _figures(evidence: Evidence, general: _General, model: reward.RewardModel | None) -> dict[str, object]:
    """Return what is reported with every run, also what does not decide."""
    proof = evidence.proof
    return {
        "general_nll": {"base": general.base, "challenger": general.challenger},
        "general_nll_increase": evidence.general_nll_increase,
        "margin": evidence.margin.as_json() if evidence.margin else None,
        "reward_auc": {
            "cross_validated": proof.cross_validated.as_json() if proof.cross_validated else None,
            "held_out": proof.held_out.as_json() if proof.held_out else None,
        },
        "reward_features": dict(model.strongest()) if model else {},
        "replies": {"challenger": asdict(evidence.challenger), "champion": asdict(evidence.champion)},
        "same_replies": evidence.same_replies,
        "prompts": evidence.prompts,
        "extra_prompts": evidence.extra_prompts,
    }


def _community_prompts(system_prompt: str) -> list[Prompt]:
    system = (ChatMessage("system", system_prompt),) if system_prompt else ()
    return [Prompt((*system, ChatMessage("user", text)), None) for text in COMMUNITY_PROMPTS]


def _runs(text: str) -> set[tuple[str, ...]]:
    """Return every run of RECITED_WORDS words."""
    words = text.lower().split()
    return {tuple(words[i : i + RECITED_WORDS]) for i in range(len(words) - RECITED_WORDS + 1)}


def _stable(key: str) -> int:
    return zlib.crc32(key.encode())


def _prompt_key(prompt: Prompt) -> int:
    return _stable(prompt.messages[-1].content)


def _seed_of(prompt: Prompt, turn: int, seed: int) -> int:
    return (_stable(prompt.reply_id or "") ^ _prompt_key(prompt)) + 7919 * turn + seed
