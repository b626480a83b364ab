"""The scale of a trained adapter: the largest at which it passes three of the gate's tests before the gate.

Ranking rewards what pleases, and a phrase that fits any question pleases often, as praise and exclamation
marks do; a rate that teaches what depends on the question also costs general knowledge. With its B matrices
times a number below 1 an adapter keeps most of what members like and less of these (EXPERIMENTS, 26, 31, 33).
What is asked are prompts that ranking left out: on those that it asked an adapter is more to the point than
on others. A small community has too few, and some of the development split are asked beside them, which the
gate compares replies on as well. General replies are scored that neither training nor the gate sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import structlog

from bot.serving.client import ModelClient
from storage.sentences import Sentence
from trainer.data import general_replies
from trainer.data.encoding import Codec
from trainer.data.general_replies import BaseReply
from trainer.data.rows import Row
from trainer.data.snapshot import Snapshot
from trainer.evaluation import log_probabilities, statistics
from trainer.evaluation.flattery import flattery
from trainer.evaluation.scores import Answer
from trainer.evaluation.to_the_point import MIN_PROMPTS, OTHERS
from trainer.gate.guardrails import MAX_EXTRA_FLATTERY
from trainer.on_policy import prompts
from trainer.on_policy.sampling import PolicySampler
from trainer.training import saving
from trainer.training.challenger import Challenger

log = structlog.get_logger()

SCALES = (1.0, 0.75, 0.5, 0.35)
# A rise of the share of answers beside the point that is let pass in any case: where the base has hardly
# any, a few in a hundred are beyond chance, and half of the gain is a high price for them (EXPERIMENTS, 31).
LEAST_RISE = 0.04
# How often an adapter that answers as much to the point as its base is taken for worse. The gate errs less
# often: who just passes here would often fail there.
ERROR = 0.1
# The parts of the gate's limits on flattery and on the loss on general prompts that may be used up here. That
# loss differs by up to 3.3 points at the gate, on other prompts, and at .75 an adapter keeps nine tenths of
# its gain (EXPERIMENTS, 31 and 34).
FLATTERY_PART = 0.5
LOSS_PART = 0.5
# Answers that a model is asked for in all, as many to each prompt: two at least, of 32 prompts at most.
MOST_ANSWERS = 64


@dataclass(frozen=True)
class Look:
    """How far a model's answers are beside the point, 0 to 1, a mean for each prompt.

    `general_nll` is its loss on general replies, in nats per token, `flattery` the mean of its answers'.
    """

    beside: Sequence[float]
    general_nll: float
    flattery: float = 0.0


@dataclass(frozen=True)
class Tried:
    """One scale's share of answers beside the point, the base's, and how far it rises by chance.

    `general_nll_increase` is the rise of the loss on general replies as a share of the base's, and
    `flattery_increase` that of flattery.
    """

    scale: float
    beside: float
    base: float
    most_by_chance: float
    general_nll_increase: float
    flattery_increase: float

    def passes(self, max_general_nll_increase: float) -> bool:
        """Whether it keeps to all limits."""
        return (
            self.beside - self.base <= max(LEAST_RISE, self.most_by_chance)
            and self.general_nll_increase <= LOSS_PART * max_general_nll_increase
            and self.flattery_increase <= FLATTERY_PART * MAX_EXTRA_FLATTERY
        )


@dataclass(frozen=True)
class ScaleChoice:
    """The scale that was chosen, and what was tried, the largest scale first."""

    scale: float
    tried: tuple[Tried, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values for reports."""
        return {"scale": self.scale, "tried": [asdict(each) for each in self.tried]}


def choose(
    base: Look, at_scale: Callable[[float], Look], *, max_general_nll_increase: float, seed: int
) -> ScaleChoice | None:
    """Return the first of SCALES that passes, else the last; None with too few prompts to say.

    A smaller scale is only tried where the larger one fails. As many of the first prompts are compared as
    both have answered.
    """
    tried: list[Tried] = []
    for scale in SCALES:
        found = at_scale(scale)
        if min(len(base.beside), len(found.beside)) < MIN_PROMPTS:
            return None
        tried.append(_compare(scale, base, found, seed))
        if tried[-1].passes(max_general_nll_increase):
            break
    return ScaleChoice(scale, tuple(tried))


def _compare(scale: float, base: Look, found: Look, seed: int) -> Tried:
    pairs = list(zip(found.beside, base.beside, strict=False))
    return Tried(
        scale,
        beside=sum(after for after, _ in pairs) / len(pairs),
        base=sum(before for _, before in pairs) / len(pairs),
        most_by_chance=statistics.most_risen_by_chance(
            [after - before for after, before in pairs], range(len(pairs)), alpha=ERROR, seed=seed
        ),
        general_nll_increase=found.general_nll / base.general_nll - 1 if base.general_nll else 0.0,
        flattery_increase=found.flattery - base.flattery,
    )


@dataclass(frozen=True)
class ScaleSearch:
    """Asks the base and a trained adapter the same prompts, with the same seeds.

    `general` are replies of the base that neither training nor the gate sees. Each look may take as long as
    one round of ranking does, `sampling.ASK_SHARE` of the training time.
    """

    sampler: PolicySampler
    codec: Codec
    base_id: str
    rows: Snapshot
    general: Sequence[BaseReply]

    def scaled(self, trained: Challenger) -> tuple[Challenger, ScaleChoice | None]:
        """Return the challenger at the chosen scale, an adapter of its own if that is below 1."""
        asked = prompts.to_look_at(self.rows, self.sampler.to_ask(self.rows)[0])
        if len(asked) < MIN_PROMPTS:
            return trained, None
        made = {1.0: trained}

        def at_scale(scale: float) -> Look:
            if scale not in made:
                adapter_id, folder = saving.rescale(
                    trained.folder, scale, work=self.sampler.folder, adapters_dir=trained.folder.parent
                )
                made[scale] = replace(trained, adapter_id=adapter_id, folder=folder)
            return self._look_at(made[scale].adapter_id, asked)

        chosen = choose(
            self._look_at(self.base_id, asked),
            at_scale,
            max_general_nll_increase=self.sampler.config.gate.max_general_nll_increase,
            seed=self.sampler.config.trainer.seed,
        )
        log.info("scale.chosen", adapter_id=trained.adapter_id, **(chosen.as_json() if chosen else {}))
        return made[chosen.scale] if chosen else trained, chosen

    def _look_at(self, model: str, asked: Sequence[Row]) -> Look:
        settings = self.sampler.config.trainer
        replies = MOST_ANSWERS // len(asked)
        count = replies * len(asked)
        self.sampler.on_note(
            Sentence("own replies: checking whether {count} of them answer their question", count=count)
        )
        # Seeds that no round of ranking has used.
        seed = settings.seed + settings.ranked_rounds + 1

        async def look(client: ModelClient) -> tuple[list[list[Answer]], float]:
            answers = await self.sampler.sample(client, model, asked, replies, seed, lambda done, total: None)
            general = general_replies.encoded(self.codec, self.general, settings.max_length)
            return answers, await log_probabilities.loss_per_token(client, model, general)

        answers, general_nll = self.sampler.while_served(model, look)
        given = [(at, answer) for at, each in enumerate(answers) for answer in each]
        ties = self.sampler.ties(self.codec, self.base_id, asked[: len(answers)], given, OTHERS)
        beside: list[list[float]] = [[] for _ in answers]
        for (at, _), tie in zip(given, ties, strict=True):
            beside[at].append(tie.beside)
        return Look(
            [sum(each) / len(each) for each in beside],
            general_nll,
            sum(flattery(answer.text) for _, answer in given) / max(1, len(given)),
        )
