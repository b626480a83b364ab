"""The trainer's scoring: log-probabilities of held-out replies under two adapters, and how exact they are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from bot.serving.engine.engine import EngineOptions
from tests.bench.serving.peft_side import PeftSide
from tests.bench.serving.profile import Setting
from tests.bench.serving.results import Row
from tests.bench.serving.strop_side import EngineSide
from tests.bench.serving.workload import random_prompts

# The system prompt that all share, each one's own words, and the reply.
SHARED_TOKENS, OWN_TOKENS, REPLY_TOKENS = 24, 24, 100
# What a run compares: several answers to one question, with the conversation before it.
QUESTIONS, QUESTION_TOKENS, ANSWERS, ANSWER_TOKENS = 4, 200, 4, 50
SHARED_GOAL = (2.0, 3.0)
SLOTS = 8
CHECKED = 8
# The slow layers are timed on so many replies.
AS_LOADED_REPLIES = 2
SCORING_GOAL = (3.0, None)
EXACT = 1e-3

Scores = Sequence[Sequence[float]]


def measure_scoring(setting: Setting) -> list[Row]:
    """Score the same replies with both adapters on both sides, in halves that take turns."""
    side = _engine(setting, EngineOptions(slots=SLOTS, threads=setting.threads))
    peft = PeftSide(setting.folder, setting.adapters[0], device=setting.device)
    texts = held_out_texts(setting.profile.replies, setting.vocabulary)
    try:
        warm_up = held_out_texts(2, setting.vocabulary)
        side.score(warm_up, setting.adapters[0].name)
        peft.score(warm_up[:1])
        to_one_question = _answers_to_one_question(setting, side, peft)
        if not texts:
            return [to_one_question]
        ours, theirs, other_scores = [], [], []
        batched: list[Scores] = []
        for adapter in setting.adapters:
            started = time.process_time()
            batched.append(side.score(texts, adapter.name))
            ours.append(time.process_time() - started)
            peft.swap(adapter)
            started = time.process_time()
            other_scores.append(peft.score(texts))
            theirs.append(time.process_time() - started)
    finally:
        side.close()
        peft.close()
    against_plain = _difference_to_plain(setting, texts[:CHECKED], [scores[:CHECKED] for scores in batched])
    against_peft = max(
        largest_difference(mine, other) for mine, other in zip(batched, other_scores, strict=True)
    )
    rows = scoring_rows(len(texts), ours, theirs, against_plain, against_peft)
    return [
        to_one_question,
        *rows,
        _beside_loaded_weights(setting, texts, sum(ours) / (len(ours) * len(texts))),
    ]


def _answers_to_one_question(setting: Setting, side: EngineSide, peft: PeftSide) -> Row:
    """Score several answers to each question with both adapters, beside one pass each."""
    questions = random_prompts(QUESTIONS, QUESTION_TOKENS, setting.vocabulary, seed=9)
    answers = random_prompts(QUESTIONS * ANSWERS, ANSWER_TOKENS, setting.vocabulary, seed=10)
    texts = [questions[at // ANSWERS] + answer for at, answer in enumerate(answers)]
    ours, theirs, furthest = [], [], 0.0
    for adapter in setting.adapters:
        started = time.process_time()
        mine = side.score(texts, adapter.name)
        ours.append(time.process_time() - started)
        peft.swap(adapter)
        started = time.process_time()
        other = peft.score(texts)
        theirs.append(time.process_time() - started)
        furthest = max(furthest, largest_difference(mine, other))
    return _beside_naive(
        f"{ANSWERS} answers to one question, two adapters",
        ours,
        theirs,
        SHARED_GOAL,
        f"{QUESTIONS} questions of {QUESTION_TOKENS} tokens, answers of {ANSWER_TOKENS}; beside one "
        f"pass an answer, PEFT; largest difference {furthest:.1e} nats",
    )


def _beside_naive(
    case: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    goal: tuple[float, float | None],
    note: str,
) -> Row:
    """Compare processor seconds of the same turns; `goal` is the least ratio and the aim (None: none)."""
    ratios = [other / mine for mine, other in zip(ours, theirs, strict=True)]
    return Row(
        section="scoring",
        case=case,
        unit="CPU-s",
        ours=sum(ours),
        theirs=sum(theirs),
        ratio=sum(theirs) / sum(ours),
        low=min(ratios),
        high=max(ratios),
        at_least=goal[0],
        aim=goal[1],
        note=note,
        raw={"strop": list(ours), "naive": list(theirs)},
    )


def held_out_texts(count: int, vocabulary: int) -> list[list[int]]:
    """Return prompts with replies: a shared beginning, then words of their own."""
    [shared] = random_prompts(1, SHARED_TOKENS, vocabulary, seed=7)
    own = random_prompts(count, OWN_TOKENS + REPLY_TOKENS, vocabulary, seed=8)
    return [shared + rest for rest in own]


def largest_difference(first: Scores, second: Scores) -> float:
    """Return the largest difference of a reply token's log-probability, in nats.

    Raises:
        ValueError: the two do not score the same tokens.
    """
    return max(
        abs(mine - other)
        for ours, theirs in zip(first, second, strict=True)
        for mine, other in zip(ours[-REPLY_TOKENS:], theirs[-REPLY_TOKENS:], strict=True)
    )


def scoring_rows(
    replies: int, ours: Sequence[float], theirs: Sequence[float], against_plain: float, against_peft: float
) -> list[Row]:
    """Compare processor seconds for both adapters together, and state the largest differences."""
    return [
        _beside_naive(
            f"{replies} replies, two adapters",
            ours,
            theirs,
            SCORING_GOAL,
            f"{REPLY_TOKENS} tokens each; naive: one forward pass a reply, PEFT; median "
            f"{1000 * median(ours) / replies:.0f} ms a reply",
        ),
        Row(
            section="scoring",
            case="largest difference of a token",
            unit="nats",
            ours=against_plain,
            at_least=EXACT,
            at_most=True,
            note=f"batched beside a plain pass of the same kernels; beside PEFT's kernels {against_peft:.1e}",
        ),
    ]


def _beside_loaded_weights(setting: Setting, texts: list[list[int]], ours_s: float) -> Row:
    """Compare with the same loop over the 4-bit layers as transformers loads them, on a few replies."""
    peft = PeftSide(setting.folder, setting.adapters[0], device=setting.device, weights="as loaded")
    try:
        peft.score(texts[:1])
        started = time.process_time()
        peft.score(texts[:AS_LOADED_REPLIES])
        theirs_s = (time.process_time() - started) / AS_LOADED_REPLIES
    finally:
        peft.close()
    return Row(
        section="scoring",
        case="a reply, NF4 as transformers loads it",
        unit="CPU-s",
        ours=ours_s,
        theirs=theirs_s,
        ratio=theirs_s / ours_s,
        at_least=SCORING_GOAL[0],
        aim=SCORING_GOAL[1],
        note=f"the same loop over bitsandbytes' layers, on {AS_LOADED_REPLIES} replies",
    )


def _engine(setting: Setting, options: EngineOptions) -> EngineSide:
    side = EngineSide(setting.folder, setting.adapters_dir, device=setting.device, options=options)
    for adapter in setting.adapters:
        side.use(adapter)
    return side


def _difference_to_plain(setting: Setting, texts: list[list[int]], batched: Sequence[Scores]) -> float:
    """Score again one reply at a time, each in one undivided pass: what batching and chunks have to equal."""
    length = max(len(text) for text in texts)
    plain = _engine(setting, EngineOptions(slots=1, chunk_tokens=length, threads=setting.threads))
    try:
        alone = [[plain.score([text], adapter.name)[0] for text in texts] for adapter in setting.adapters]
    finally:
        plain.close()
    return max(largest_difference(mine, other) for mine, other in zip(batched, alone, strict=True))
