"""The model's own replies, ranked: preference pairs where the members have left few ratings.

Ratings are few, and a model's replies cost nothing but time. The model that is being trained answers
training prompts several times; a reward model that was fitted on training ratings, and predicts those that
were left out of its fitting, ranks the answers; the best and the worst to each prompt make a pair for DPO. As
the model changes it is asked again. The members' ratings stay the only source: without a proven reward model
there are no pairs, and the gate judges by another reward model, fitted on held-out ratings (see weighing).

Where members only ever like, a PU reward model (positive and unlabelled) contrasts the liked replies with
reference completions: the base's own answers to the same prompts.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from bot.serving.client import ModelClient
from bot.serving.protocol import ChatMessage
from storage.config_sections import ChatConfig
from trainer import model_server
from trainer.data import preference_pairs, text_features
from trainer.data.question_features import Exchange
from trainer.data.rows import PreferencePair, Row, messages_of
from trainer.data.snapshot import Snapshot
from trainer.evaluation import reward_model
from trainer.evaluation.evaluate import rated_texts
from trainer.evaluation.feature_blocks import StatesOf
from trainer.evaluation.reward_model import RatedText, RewardModel
from trainer.evaluation.scores import Answer, stable_hash
from trainer.on_policy import phrases, prompts, signals
from trainer.on_policy.prompts import REPLIES

# Closer ones are left out, in standard deviations of P(liked) over all answers: a reward model that was
# shrunk says less of everything, and ranks as well.
LEAST_DIFFERENCE = 1.0
# What the guardrails would object to is never chosen and readily rejected, whatever the reward model thinks
# of it: on the scale of P(liked), for repeating itself or another reply, and for not ending.
REPEATS = 1.0
RUNS_ON = 0.5
# What an answer loses, on the same scale, by the share of prompts that hear its commonest sentence: "What
# about you?" may please many, and answers none of them. The commoner it gets the less it is worth, and a
# question about the matter is worth more.
SAID_TO_ALL = 1.0
# And by the share of its phrases that another prompt hears too: "What brings you to our garden?" differs from
# "What brings you to our village today?" and says as little (EXPERIMENTS, 25 and 26).
SAID_TO_OTHERS = 0.25
# What it loses, on the same scale, for fitting another question as well as its own; beyond MOST_BESIDE it is
# not chosen at all. Those that would be chosen are looked at, CHECKS times: where one falls the next may. One
# other question doesn't see a tenth of those that fit two (EXPERIMENTS, 33).
BESIDE_THE_POINT = 1.0
MOST_BESIDE = 0.25
CHECKS = 3
OTHER_QUESTIONS = 2
RESAMPLES = 500
# How sure it has to be that the reward model predicts at all (two-sided): it only proposes what to learn.
# Whether that was good is judged by another one, which has to be surer (gate.confidence).
CONFIDENCE = 0.8
# The base's answers to the training prompts, in the run's folder. The name on disk is older than the term.
REFERENCE_COMPLETIONS = "usual.jsonl"

Place = tuple[int, int]
"""A row's number, and that of an answer among those to its prompt."""


def fit_reward_model(
    snapshot: Snapshot, *, seed: int, states_of: StatesOf | None = None
) -> RewardModel | None:
    """Return a reward model of the training ratings; None where they don't show that it predicts others."""
    rated = rated_texts(snapshot.of("train"))
    model, validated = reward_model.cross_validated(
        rated, resamples=RESAMPLES, confidence=CONFIDENCE, seed=seed, states_of=states_of
    )
    return model if validated is not None and validated.bound_low > 0.5 else None


def fit_ranking_model(
    snapshot: Snapshot, *, seed: int, states_of: StatesOf | None = None
) -> RewardModel | None:
    """Return the reward model of the training ratings, fitted on the snapshot's weak labels as well."""
    model = fit_reward_model(snapshot, seed=seed, states_of=states_of)
    return model and signals.fit_beside(model, rated_texts(snapshot.of("train")), snapshot.weak)


def only_liked(snapshot: Snapshot) -> bool:
    """Whether there are liked training replies to rank by, and next to no disliked ones to tell them from."""
    rated = rated_texts(snapshot.of("train"))
    liked = sum(item.liked for item in rated)
    return len(rated) - liked < reward_model.MIN_EACH <= liked


def fit_pu_reward_model(
    snapshot: Snapshot,
    asked: Sequence[Row],
    references: Sequence[Sequence[Answer]],
    *,
    seed: int,
    states_of: StatesOf | None = None,
) -> RewardModel | None:
    """Return a PU reward model of liked replies against reference completions; None where it proves nothing.

    Some reference completions would be liked too. If the liked replies are a fair sample of those, the chance
    of being liked grows with the chance of being a liked reply rather than a reference: both rank replies
    alike (Elkan and Noto, "Learning classifiers from only positive and
    unlabeled data", KDD 2008). For the same reason the AUC understates it, and being over one half is proof
    enough: without dislikes a challenger is promoted by members' votes only.
    """
    rated = rated_texts(snapshot.of("train"))
    weight = sum(item.weight for item in rated) / max(1, len(rated))
    beside = [
        RatedText(answer.text, False, weight, row.group_key, question=row.question)
        for row, given in zip(asked, references, strict=False)
        for answer in given
    ]
    model, validated = reward_model.cross_validated(
        [*rated, *beside],
        resamples=RESAMPLES,
        confidence=CONFIDENCE,
        seed=seed,
        stratified=True,
        states_of=states_of,
    )
    return model if validated is not None and validated.value > 0.5 else None


async def ask(
    client: ModelClient,
    model: str,
    rows: Sequence[Row],
    replies: int,
    *,
    chat: ChatConfig,
    max_new_tokens: int,
    seed: int,
    budget_s: float,
    on_reply: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Answer]]:
    """Sample so many replies to each row's prompt at background priority.

    Every prompt gets REPLIES before any gets more, and what is left when the time is up is left out. As many
    replies as LEAST_PROMPTS would get are asked for in any case.
    """
    started, planned = time.monotonic(), prompts.rounds(len(rows), replies)
    least = min(prompts.LEAST_PROMPTS, len(rows)) * replies
    coming = iter([len(places) * len(numbers) for places, numbers in planned[1:]])

    async def answer(messages: tuple[ChatMessage, ...], number: int) -> Answer:
        completion = await model_server.reply(
            client,
            model,
            messages,
            chat=chat,
            max_new_tokens=max_new_tokens,
            seed=(stable_hash(messages[-1].content) + 7919 * number + 104_729 * seed) % 2**31,
        )
        return Answer(completion.text.strip(), completion.finish_reason == "stop")

    def goes_on(answered: int, on_their_way: int) -> bool:
        on_reply(answered, len(rows) * replies)
        spent_s, more = time.monotonic() - started, on_their_way + next(coming)
        asked = answered + on_their_way
        return asked < least or spent_s + spent_s * more / max(answered, 1) <= budget_s

    asked = [
        [partial(answer, messages_of(rows[at]), number) for at in places for number in numbers]
        for places, numbers in planned
    ]
    answers = await model_server.ask_in_rounds(asked, goes_on)
    on_reply(sum(len(given) for given in answers), len(rows) * replies)
    found: list[list[Answer]] = [[] for _ in rows]
    for (places, numbers), given in zip(planned, answers, strict=False):
        for turn, at in enumerate(places):
            found[at] += given[turn * len(numbers) : (turn + 1) * len(numbers)]
    return [given for given in found if given]


def rank_answers(
    model: RewardModel,
    rows: Sequence[Row],
    answers: Sequence[Sequence[Answer]],
    name: str,
    beside: Mapping[Place, float] = MappingProxyType({}),
) -> list[PreferencePair]:
    """Return the best and the worst of each REPLIES answers to a row's prompt, where they differ enough.

    `name` tells one round's pairs from another's. `beside` says of some answers how far they fit other
    questions as well: one that does is not chosen.
    """
    found = []
    for number, best, worst in _ends(model, rows, answers, beside):
        if beside.get((number, best), 0.0) < MOST_BESIDE:
            row, given = rows[number], answers[number]
            turned = f"{name}/{best // REPLIES + 1}" if best >= REPLIES else name
            found.append(_pair(row, given[best], given[worst], turned))
    return found


def answers_to_check(
    model: RewardModel,
    rows: Sequence[Row],
    answers: Sequence[Sequence[Answer]],
    beside: Mapping[Place, float],
) -> list[Place]:
    """Return the answers that would be chosen, and of which nobody knows yet whether they answer."""
    chosen = ((number, best) for number, best, _ in _ends(model, rows, answers, beside))
    return [place for place in chosen if place not in beside]


def _ends(
    model: RewardModel,
    rows: Sequence[Row],
    answers: Sequence[Sequence[Answer]],
    beside: Mapping[Place, float],
) -> Iterator[tuple[int, int, int]]:
    """Yield a row's number with the places of the best and the worst of each REPLIES answers to it."""
    common, heard = _common(answers), _heard(answers)
    heard_by = phrases.prompts_that_hear([answer.text for answer in given] for given in answers)
    chances = [
        model.probability([Exchange(row.question, answer.text) for answer in given]).tolist()
        for row, given in zip(rows, answers, strict=False)
    ]
    spread = float(np.std([chance for each in chances for chance in each])) if chances else 0.0
    for number, (given, liked) in enumerate(zip(answers, chances, strict=False)):
        flaws = [_flaw(answer, common) for answer in given]
        scores = [
            liked[at]
            - flaws[at]
            - SAID_TO_ALL * _commonness(answer, heard, len(answers))
            - SAID_TO_OTHERS * phrases.share_of_others(answer.text, heard_by)
            - BESIDE_THE_POINT * beside.get((number, at), 0.0)
            for at, answer in enumerate(given)
        ]
        for start in range(0, len(given), REPLIES):
            turn = range(start, min(start + REPLIES, len(given)))
            sound = [at for at in turn if not flaws[at]]
            if not sound:
                continue
            best = max(sound, key=scores.__getitem__)
            worst = min(turn, key=scores.__getitem__)
            least = LEAST_DIFFERENCE * spread
            if best != worst and (flaws[worst] or scores[best] - scores[worst] >= least):
                yield number, best, worst


def _pair(row: Row, chosen: Answer, rejected: Answer, name: str) -> PreferencePair:
    return PreferencePair(
        pair_id=f"{name}/{row.reply_id}",
        reply_id=row.reply_id,
        group_key=row.group_key,
        split=row.split,
        prompt=row.prompt,
        chosen=chosen.text,
        rejected=rejected.text,
        finished=(chosen.finished, rejected.finished),
        weight=1.0,
        source=row.source,
    )


def _common(answers: Sequence[Sequence[Answer]]) -> frozenset[frozenset[str]]:
    """Return what is said to more than one prompt: a reply that fits all of them answers none."""
    prompts = Counter(
        said for given in answers for said in {text_features.gist(answer.text) for answer in given}
    )
    return frozenset(said for said, count in prompts.items() if count > 1)


def _heard(answers: Sequence[Sequence[Answer]]) -> Counter[str]:
    """Return to how many prompts each sentence is said, in any of the answers to it."""
    return Counter(
        said
        for given in answers
        for said in set().union(*(text_features.gist(answer.text) for answer in given))
    )


def _commonness(answer: Answer, heard: Mapping[str, int], prompts: int) -> float:
    """Return the share of the other prompts that hear the commonest sentence of an answer, 0 to 1."""
    others = max((heard[said] for said in text_features.gist(answer.text)), default=1) - 1
    return others / max(1, prompts - 1)


def _flaw(answer: Answer, common: Collection[frozenset[str]]) -> float:
    """Return what an answer loses for what the guardrails would object to; 0 for a sound one."""
    said = text_features.gist(answer.text)
    repeats = not said or said in common or text_features.repeats_itself(answer.text)
    return REPEATS * repeats + RUNS_ON * (not answer.finished)


def file_of(number: int | str) -> str:
    """Return the name, in a run's folder, of the pairs of one round ("*": of any)."""
    return f"ranked-{number}.jsonl"


def forget(folder: Path) -> None:
    """Remove the samples of an earlier attempt whose rows may no longer train."""
    for path in (*folder.glob(file_of("*")), folder / REFERENCE_COMPLETIONS):
        path.unlink(missing_ok=True)


def write(pairs: Sequence[PreferencePair], path: Path) -> None:
    """Keep the pairs in the run's folder: a run that was interrupted goes on with the same ones."""
    _write([asdict(pair) for pair in pairs], path)


def read(path: Path) -> list[PreferencePair] | None:
    """Return the pairs that an earlier attempt has kept, None where there are none."""
    kept = _read(path)
    return None if kept is None else [preference_pairs.from_json(value) for value in kept]


def write_reference_completions(answers: Sequence[Sequence[Answer]], folder: Path) -> None:
    """Keep the reference completions, a line for each prompt, for the same reason."""
    _write([[asdict(answer) for answer in given] for given in answers], folder / REFERENCE_COMPLETIONS)


def read_reference_completions(folder: Path) -> list[list[Answer]] | None:
    """Return the reference completions that an earlier attempt kept, None where there are none."""
    kept = _read(folder / REFERENCE_COMPLETIONS)
    return None if kept is None else [[Answer(**value) for value in given] for given in kept]


def _write(values: Sequence[Any], path: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{json.dumps(value)}\n" for value in values), encoding="utf-8")
    partial.replace(path)


def _read(path: Path) -> list[Any] | None:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    return [json.loads(line) for line in lines]
