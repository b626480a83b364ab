"""Challenger and champion side by side, through the path that serves: the model server's own kernels.

Rated replies, held out and taught, and the base's general ones are scored, and both models answer held-out
prompts with the same seeds. Everything goes out with background priority: people who chat come first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bot.serving.client import ModelClient
from bot.serving.protocol import ChatMessage, Completion
from storage.config_sections import ChatConfig, GateConfig
from trainer import model_server
from trainer.data import examples, general_replies
from trainer.data.encoding import Codec, Example, encode
from trainer.data.general_replies import COMMUNITY_PROMPTS, BaseReply
from trainer.data.rows import Row, messages_of
from trainer.data.snapshot import Snapshot
from trainer.errors import EvaluationError
from trainer.evaluation import evidence, regressions, safety_probe, sensitivity, training_fit
from trainer.evaluation.evidence import MIN_PROMPTS, Evidence, Ratings
from trainer.evaluation.feature_blocks import StatesOf
from trainer.evaluation.log_probabilities import completion_scores, tied_answers
from trainer.evaluation.regressions import ScoredCase
from trainer.evaluation.reward_model import RatedText
from trainer.evaluation.safety_probe import Contest
from trainer.evaluation.scores import Answer, GeneralLoss, Pair, Prompt, ScoredReply, Scores, stable_hash
from trainer.evaluation.training_fit import ScoredTrainingReply

# Prompts a round: both models answer them before the clock is looked at, so that pairs stay complete.
ROUND = 8
# Rated replies that are scored for the margin; more narrows an interval that only ever vetoes.
MAX_SCORED = 40
# Where the champion is an adapter the base answers the first prompts too: small steps must not add up.
BASE_PROMPTS = 16
# With fewer held-out conversations than this, general prompts in the community's voice are added.
ENOUGH_PROMPTS = 24

Progress = Callable[[float], None]
"""Called with the share of the evaluation that is done, 0 to 1; may raise to stop it."""


@dataclass(frozen=True)
class Evaluation:
    """What was heard, the evidence that it makes, and the figures to report."""

    scores: Scores
    evidence: Evidence
    figures: dict[str, Any]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Return the pairs of replies that a vote can be held on."""
        return self.scores.pairs


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
    challenger_number: int = 1,
    probes_cache: Path,
    states_of: StatesOf | None = None,
    on_progress: Progress = lambda share: None,
) -> Evaluation:
    """Measure everything that the gate looks at; `challenger_number` counts this champion's challengers.

    `probes_cache` is where the base's answers to the safety prompts are kept; asking them takes
    up to half of the budget. With `states_of` the judge may use hidden states.

    Raises:
        EvaluationError: the server stayed away for minutes, or there is nothing to compare on.
    """
    general = await _general_losses(client, codec, held_out_replay, contest, max_length)
    on_progress(0.1)
    rated = await _rated_scores(client, codec, snapshot, contest, max_length)
    on_progress(0.25)
    corrections = await _correction_scores(client, codec, snapshot, contest, max_length)
    lessons = await _training_reply_scores(client, codec, snapshot, contest, max_length)
    on_progress(0.3)
    started = time.monotonic()
    probed = await safety_probe.probe(client, contest, chat, probes_cache)
    # On a busy machine they would leave no time to prove a gain: half of the budget always stays for that.
    budget_s = max(budget_s / 2, budget_s - (time.monotonic() - started))
    on_progress(0.35)
    prompts = held_out_prompts(snapshot, chat.system_prompt, gate.max_prompts)
    if not prompts:
        raise EvaluationError("There is no held-out conversation to compare the replies on.")
    pairs = await _answer_all(
        client, prompts, contest, gate, chat, budget_s, seed, lambda share: on_progress(0.35 + 0.55 * share)
    )
    tied = await tied_answers(client, codec, contest.base, pairs, max_length)
    on_progress(1.0)
    scores = Scores(tuple(pairs), general, rated, corrections, probed, lessons, tied)
    ratings = ratings_of(snapshot)
    measured = evidence.build_evidence(scores, ratings, gate, seed, challenger_number, states_of)
    hangs_on = _robustness(scores, snapshot, ratings, measured.evidence, gate, seed, states_of)
    return Evaluation(scores, measured.evidence, measured.figures | {"robustness": hangs_on})


def _robustness(
    scores: Scores,
    snapshot: Snapshot,
    ratings: Ratings,
    evidence: Evidence,
    gate: GateConfig,
    seed: int,
    states_of: StatesOf | None,
) -> dict[str, Any]:
    penalties = evidence.proof.penalties
    forward = sensitivity.time_forward(ratings, penalties, gate, seed, states_of)
    others = {name: ratings_of(replace(snapshot, rows=rows)) for name, rows in snapshot.without.items()}
    return {
        "without_members": sensitivity.without_members(
            scores.pairs, others, penalties, gate, seed, evidence.challenger_number, states_of
        ),
        "time_forward_auc": forward.as_json() if forward else None,
    }


def ratings_of(snapshot: Snapshot) -> Ratings:
    """Return a snapshot's labels as the reward model needs them."""
    return Ratings(
        train=tuple(rated_texts(snapshot.of("train"), corrections=False)),
        held_out=tuple(rated_texts(snapshot.of("development", "gate"))),
        corrections=tuple(c.text for row in snapshot.rows for c in row.corrections),
    )


def rated_texts(rows: Sequence[Row], *, corrections: bool = True) -> list[RatedText]:
    """Return labelled replies for the reward model; corrections are texts that a member likes."""
    found = [
        RatedText(row.text, row.verdict == "liked", row.weight, row.group_key, row.created_ms, row.question)
        for row in rows
        if row.verdict != "unclear" and row.weight > 0
    ]
    if corrections:
        found += [
            RatedText(c.text, True, c.weight, row.group_key, row.created_ms, row.question)
            for row in rows
            for c in row.corrections
        ]
    return found


def held_out_prompts(
    snapshot: Snapshot, system_prompt: str, limit: int, splits: Sequence[str] = ("gate", "development")
) -> list[Prompt]:
    """Return the prompts to compare on, one for each held-out reply, spread over conversations.

    Every conversation's first prompt comes before any second one, in an order that only depends on the ids: a
    budget that runs out cuts the tail, not a kind.
    """
    rows = sorted(snapshot.of(*splits), key=lambda row: stable_hash(row.reply_id))
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


# ------------------------------------------------------------------------------------------------ measuring
async def _general_losses(
    client: ModelClient, codec: Codec, replies: Sequence[BaseReply], contest: Contest, max_length: int
) -> tuple[GeneralLoss, ...]:
    examples = general_replies.encoded(codec, replies, max_length)
    if not sum(example.completion_length for example in examples):
        raise EvaluationError("The base has no replies to general prompts to measure forgetting on.")
    base = await completion_scores(client, contest.base, examples)
    challenger = await completion_scores(client, contest.challenger, examples)
    return tuple(
        GeneralLoss(example.completion_length, -sum(old), -sum(new))
        for example, old, new in zip(examples, base, challenger, strict=True)
    )


async def _rated_scores(
    client: ModelClient, codec: Codec, snapshot: Snapshot, contest: Contest, max_length: int
) -> tuple[ScoredReply, ...]:
    """Score held-out rated replies under both models; nothing without both liked and disliked ones."""
    rows = _scored_rows(snapshot)
    liked = [row.verdict == "liked" for row in rows]
    if not any(liked) or all(liked):
        return ()
    scored = await _under_both(client, codec, rows, (contest.challenger, contest.champion), max_length)
    return tuple(
        ScoredReply(row.reply_id, row.group_key, row.verdict == "liked", new, old) for row, new, old in scored
    )


async def _correction_scores(
    client: ModelClient, codec: Codec, snapshot: Snapshot, contest: Contest, max_length: int
) -> tuple[ScoredCase, ...]:
    """Score past corrections and the replies that they correct, under both models and the base."""
    found = regressions.cases(snapshot)
    if not found:
        return ()
    examples = []
    for case in found:
        row, wished = case.row, case.row.corrections[case.number]
        examples += [
            encode(codec, messages_of(row), wished.text, finished=True, max_length=max_length),
            _example(codec, row, max_length),
        ]
    models = dict.fromkeys((contest.challenger, contest.champion, contest.base))
    margins = {model: _margins(await completion_scores(client, model, examples)) for model in models}
    each = zip(*(margins[m] for m in (contest.challenger, contest.champion, contest.base)), strict=True)
    return tuple(
        ScoredCase(case.row.reply_id, case.number, case.row.group_key, case.trained, *three)
        for case, three in zip(found, each, strict=True)
    )


async def _training_reply_scores(
    client: ModelClient, codec: Codec, snapshot: Snapshot, contest: Contest, max_length: int
) -> tuple[ScoredTrainingReply, ...]:
    """Score training replies, of the imitated and of the disliked those with the surest labels."""
    train = snapshot.of("train")
    liked = examples.surest(examples.rows_to_imitate(train), training_fit.MOST_EACH)
    disliked = examples.surest(examples.disliked_rows(train), training_fit.MOST_EACH)
    rows = [*liked, *disliked] if liked and disliked else []
    scored = await _under_both(client, codec, rows, (contest.challenger, contest.base), max_length)
    return tuple(
        ScoredTrainingReply(row.reply_id, row.verdict == "liked", new, old) for row, new, old in scored
    )


async def _under_both(
    client: ModelClient, codec: Codec, rows: Sequence[Row], models: tuple[str, str], max_length: int
) -> list[tuple[Row, float, float]]:
    """Return each row with the log-probability per token of its reply under either model."""
    examples = [_example(codec, row, max_length) for row in rows]
    first, second = [await completion_scores(client, model, examples) for model in models]
    return [(row, _per_token(a), _per_token(b)) for row, a, b in zip(rows, first, second, strict=True)]


def _margins(scores: Sequence[Sequence[float]]) -> list[float]:
    """Return for each wished and original text, side by side, how much likelier per token the first is."""
    means = [_per_token(values) for values in scores]
    return [wished - original for wished, original in zip(means[::2], means[1::2], strict=True)]


def _per_token(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _example(codec: Codec, row: Row, max_length: int) -> Example:
    return encode(codec, messages_of(row), row.text, finished=row.finished, max_length=max_length)


def _scored_rows(snapshot: Snapshot) -> list[Row]:
    """Return at most MAX_SCORED held-out rows, as many liked as disliked where there are enough."""
    rows = sorted(snapshot.of("gate", "development"), key=lambda row: stable_hash(row.reply_id))
    liked = [row for row in rows if row.verdict == "liked"][: MAX_SCORED // 2]
    return liked + [row for row in rows if row.verdict == "disliked"][: MAX_SCORED - len(liked)]


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
    parts = [asked[at : at + ROUND] for at in range(0, len(asked), ROUND)]
    both = (contest.challenger, contest.champion)
    with_base = BASE_PROMPTS // ROUND if contest.champion != contest.base else 0
    models = [(*both, contest.base) if number < with_base else both for number in range(len(parts))]
    begun = 1

    async def answer(model: str, prompt: Prompt, turn: int) -> Answer:
        completion = await complete(client, model, prompt, turn, chat=chat, gate=gate, seed=seed)
        return Answer(completion.text, completion.finish_reason == "stop")

    def goes_on(answered: int, on_their_way: int) -> bool:
        nonlocal begun
        spent_s, more = time.monotonic() - started, on_their_way + len(parts[begun]) * len(models[begun])
        on_progress(max(begun / len(parts), min(1.0, spent_s / max(budget_s, 1.0))))
        # So many always run, whatever the budget: fewer decide nothing, neither offline nor by votes.
        enough = begun * ROUND >= MIN_PROMPTS
        begun += 1
        return not enough or spent_s + spent_s * more / max(answered, 1) <= budget_s

    requests = [
        [partial(answer, model, *item) for model in who for item in part]
        for who, part in zip(models, parts, strict=True)
    ]
    found = await model_server.ask_in_rounds(requests, goes_on)
    on_progress(1.0)
    return [pair for part, answers in zip(parts, found, strict=False) for pair in _pairs(part, answers)]


def _pairs(asked: Sequence[tuple[Prompt, int]], answers: Sequence[Answer]) -> list[Pair]:
    """Return the answers to a round's prompts, all of the challenger's first, then each other model's."""
    count = len(asked)
    by_model = [answers[at : at + count] for at in range(0, len(answers), count)]
    return [Pair(prompt, *each) for (prompt, _), each in zip(asked, zip(*by_model, strict=True), strict=True)]


def _community_prompts(system_prompt: str) -> list[Prompt]:
    system = (ChatMessage("system", system_prompt),) if system_prompt else ()
    return [Prompt((*system, ChatMessage("user", text)), None) for text in COMMUNITY_PROMPTS]


async def complete(
    client: ModelClient,
    model: str,
    prompt: Prompt,
    turn: int,
    *,
    chat: ChatConfig,
    gate: GateConfig,
    seed: int,
) -> Completion:
    """Let a model answer a prompt, with the seed of this turn.

    Raises:
        EvaluationError: the server stayed away for minutes.
    """
    return await model_server.reply(
        client,
        model,
        prompt.messages,
        chat=chat,
        max_new_tokens=gate.max_new_tokens,
        seed=seed_of(prompt, turn, seed),
    )


def seed_of(prompt: Prompt, turn: int, seed: int) -> int:
    """Return the seed of an answer: whoever answers this prompt in this turn draws alike."""
    return (
        (stable_hash(prompt.reply_id or "") ^ stable_hash(prompt.messages[-1].content)) + 7919 * turn + seed
    )
