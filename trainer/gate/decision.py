"""The gate: from evidence to a verdict. Pure: no model, no clock, no database.

First the vetoes: offline evidence can always say no. Superiority has to be shown by generated replies, judged
by a reward model that has proven itself; where that is not possible the members decide by blind votes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from storage.config_sections import GateConfig
from storage.sentences import NOTHING, Figure, Sentence, percent
from trainer.evaluation.evidence import MIN_PROMPTS, Evidence
from trainer.evaluation.statistics import Estimate
from trainer.evaluation.to_the_point import ToThePoint
from trainer.gate import guardrails

Decision = Literal["promote", "refuse", "votes"]

SAME_REPLIES = 0.9


@dataclass(frozen=True)
class Verdict:
    """What to do and why; `reason` continues "X was not promoted, because …" unless it is promoted."""

    decision: Decision
    reason: Sentence


def decide(evidence: Evidence, settings: GateConfig) -> Verdict:
    """Judge a challenger: does it answer otherwise, then the vetoes, then superiority, else a vote."""
    if evidence.same_replies >= SAME_REPLIES:
        return Verdict(
            "refuse",
            Sentence(
                "it answers as before: {share} of its replies are identical",
                share=percent(evidence.same_replies),
            ),
        )
    veto = objection(evidence, settings)
    if veto:
        return Verdict("refuse", veto)
    gain = evidence.proven_preference
    if gain is None:
        return Verdict("votes", evidence.proof.why_not())
    if gain.clusters < MIN_PROMPTS:
        return Verdict(
            "votes", Sentence("only {count} held-out conversations could be compared", count=gain.clusters)
        )
    measured = describe(gain, evidence.extra_prompts)
    if gain.bound_low > 0 and gain.value >= settings.min_effect:
        drifted = _risen(evidence.to_the_point)
        return Verdict("votes", drifted) if drifted else Verdict("promote", measured)
    if gain.bound_high < 0:
        return Verdict("refuse", Sentence("its replies are liked less: {measured}", measured=measured))
    if gain.bound_high < settings.min_effect:
        return Verdict(
            "refuse",
            Sentence(
                "the difference is too small to matter (less than {effect}): {measured}",
                effect=Figure(settings.min_effect, "g"),
                measured=measured,
            ),
        )
    if gain.low > 0:
        return Verdict(
            "votes",
            Sentence(
                "the difference is not certain enough for challenger number {look} of this champion: "
                "{measured}",
                look=evidence.challenger_number,
                measured=measured,
            ),
        )
    return Verdict("votes", Sentence("the difference is not certain: {measured}", measured=measured))


def objection(evidence: Evidence, settings: GateConfig) -> Sentence:
    """Return why the challenger can't be promoted whatever else speaks for it, or an empty sentence."""
    broken = (guardrail.objection for guardrail in guardrails.of(evidence, settings) if not guardrail.kept)
    return next(broken, NOTHING)


def _risen(found: ToThePoint | None) -> Sentence:
    """Say that more replies are beside the point than chance explains; nothing where they are not.

    A reward model that proves itself by form may find them better all the same.
    """
    if found is None:
        return NOTHING
    if found.over_champion.beyond_chance:
        return Sentence(
            "its replies are predicted to be liked better, but more of them would fit another question as "
            "well: {share}, before {earlier}",
            share=percent(found.challenger),
            earlier=percent(found.champion),
        )
    if found.over_base is not None and found.base is not None and found.over_base.beyond_chance:
        return Sentence(
            "its replies are predicted to be liked better, but more of them would fit another question as "
            "well: {share}, of the base's replies {earlier}",
            share=percent(found.challenger),
            earlier=percent(found.base),
        )
    return NOTHING


def held_out_sentence(count: int) -> Sentence:
    """Say how many held-out conversations were compared."""
    return Sentence.counted("{count} held-out conversation", "{count} held-out conversations", count)


def general(count: int) -> Sentence:
    """Say how many general prompts were compared."""
    return Sentence.counted("{count} general prompt", "{count} general prompts", count)


def describe(gain: Estimate, extra_prompts: int = 0) -> Sentence:
    """Say a gain as people read it: "chance of a like +0.12 (95 % CI 0.05 to 0.19) on 64 conversations"."""
    own = gain.clusters - extra_prompts
    if own and extra_prompts:
        prompts = Sentence("{own} and {extra}", own=held_out_sentence(own), extra=general(extra_prompts))
    elif extra_prompts:
        prompts = general(extra_prompts)
    else:
        prompts = held_out_sentence(own)
    return Sentence(
        "chance of a like {gain} (95 % CI {low} to {high}) on {prompts}",
        gain=Figure(gain.value, "+.2f"),
        low=Figure(gain.low, ".2f"),
        high=Figure(gain.high, ".2f"),
        prompts=prompts,
    )
