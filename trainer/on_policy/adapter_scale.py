"""The scale of a trained adapter: the largest at which it answers as much to the point as the base.

Ranking rewards what pleases, and a phrase that fits any question pleases often. With its B matrices times a
number below 1 an adapter keeps most of what members like and less of that (EXPERIMENTS, 26). Training prompts
are asked, so that the gate's held-out conversations stay unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from storage.sentences import Sentence
from trainer.data.encoding import Codec
from trainer.data.rows import Row
from trainer.data.snapshot import Snapshot
from trainer.evaluation.to_the_point import MIN_PROMPTS, MOST_PROMPTS, OTHERS
from trainer.on_policy.sampling import PolicySampler
from trainer.training import saving
from trainer.training.challenger import Challenger

log = structlog.get_logger()

SCALES = (1.0, 0.75, 0.5)
# How far the share of answers beside the point may lie above the base's: about half of what the gate lets
# pass on as many prompts, since both shares are known roughly.
MOST_RISE = 0.05

Beside = Sequence[float]
"""How far each of a model's answers, one to each prompt, is beside the point, 0 to 1."""


@dataclass(frozen=True)
class ScaleChoice:
    """The scale that was chosen, and the shares of answers beside the point by which it was."""

    scale: float
    base: float
    by_scale: tuple[tuple[float, float], ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values for reports."""
        return {"scale": self.scale, "base": self.base, "by_scale": [list(each) for each in self.by_scale]}


def choose(base: Beside, at_scale: Callable[[float], Beside]) -> ScaleChoice | None:
    """Return the first of SCALES that keeps to MOST_RISE, else the last; None with too few prompts to say.

    A smaller scale is only tried where the larger one rose too far. As many of the first answers are compared
    as both have.
    """
    tried: list[tuple[float, float]] = []
    for scale in SCALES:
        found = at_scale(scale)
        count = min(len(base), len(found))
        if count < MIN_PROMPTS:
            return None
        share, before = sum(found[:count]) / count, sum(base[:count]) / count
        tried.append((scale, share))
        if share - before <= MOST_RISE:
            break
    return ScaleChoice(scale, before, tuple(tried))


@dataclass(frozen=True)
class ScaleSearch:
    """Asks the base and a trained adapter the same training prompts, with the same seeds."""

    sampler: PolicySampler
    codec: Codec
    base_id: str
    rows: Snapshot

    def scaled(self, trained: Challenger) -> tuple[Challenger, ScaleChoice | None]:
        """Return the challenger at the chosen scale, an adapter of its own if that is below 1."""
        if len(self._asked()) < MIN_PROMPTS:
            return trained, None
        made = {1.0: trained}

        def at_scale(scale: float) -> Beside:
            if scale not in made:
                adapter_id, folder = saving.rescale(
                    trained.folder, scale, work=self.sampler.folder, adapters_dir=trained.folder.parent
                )
                made[scale] = replace(trained, adapter_id=adapter_id, folder=folder)
            return self._beside(made[scale].adapter_id)

        chosen = choose(self._beside(self.base_id), at_scale)
        log.info("scale.chosen", adapter_id=trained.adapter_id, **(chosen.as_json() if chosen else {}))
        return made[chosen.scale] if chosen else trained, chosen

    def _asked(self) -> list[Row]:
        return self.sampler.to_ask(self.rows)[0][:MOST_PROMPTS]

    def _beside(self, model: str) -> list[float]:
        settings, asked = self.sampler.config.trainer, self._asked()
        self.sampler.on_note(
            Sentence("own replies: checking whether {count} of them answer their question", count=len(asked))
        )
        # Seeds that no round of ranking has used.
        seed = settings.seed + settings.ranked_rounds + 1
        answers = self.sampler.ask(model, asked, 1, seed, lambda done, total: None)
        given = [(at, answer) for at, (answer,) in enumerate(answers)]
        ties = self.sampler.ties(self.codec, self.base_id, asked[: len(answers)], given, OTHERS)
        return [tie.beside for tie in ties]
