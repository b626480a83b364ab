"""Which objective data and machine allow: wait, learn from liked replies, or from the rest and pairs too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bot.serving.model.catalogue import USUAL_EPOCHS
from storage.config_sections import TrainerConfig
from storage.feedback import tastings
from storage.learning import eligibility
from storage.sentences import NOTHING, Figure, Sentence
from trainer.data.snapshot import Snapshot
from trainer.errors import NotYetError

Objective = Literal["sft", "sft_kto", "sft_dpo", "sft_kto_dpo", "sft_ranked"]

# From LEARNING: below these KTO has too few of one kind to learn the difference.
KTO_MIN_RATED = 100
KTO_MIN_EACH = 25
DPO_MIN_PAIRS = 50
# One KTO example costs about this many plain training passes: with its mismatched twin and two references.
KTO_COST = 2.4
# And one token of a pair: its own pass and that of the reference, which has no backward pass.
DPO_COST = 1.4
RANKING_NEEDS = Sentence(
    "no reward model of the training ratings has proven itself yet, so no replies are ranked"
)
# Larger models need gentler steps. The small rates were found with 135M parameters (EXPERIMENTS); the large
# ones are what others use and were not measured here.
LARGE_PARAMETERS = 1_000_000_000
SMALL_RATES = {"sft_learning_rate": 5e-4, "kto_learning_rate": 1e-4, "dpo_learning_rate": 1e-4}
# The model's own replies teach at a higher rate than members' pairs: at 1e-4 nothing of them is learned. With
# a contrast for every pair a style doesn't collapse into few replies by it (EXPERIMENTS, 9, 28 and 31).
RANKED_RATE = 2.5e-4
# Supervised tuning is only a start where ranking follows; the rest comes from there.
EPOCHS_BEFORE_RANKING = 2
LARGE_RATES = {"sft_learning_rate": 2e-4, "kto_learning_rate": 4e-5, "dpo_learning_rate": 4e-5}


@dataclass(frozen=True)
class Plan:
    """What to train on, and why not on more (`reason`, empty when nothing was held back)."""

    objective: Objective
    reason: Sentence = NOTHING

    @property
    def phases(self) -> tuple[str, ...]:
        """Return what is trained one after the other: "sft", "kto", "dpo"."""
        return tuple(self.objective.split("_"))


def require_enough(snapshot: Snapshot, settings: TrainerConfig, excluded: Mapping[str, int]) -> None:
    """Check the data minimum.

    Raises:
        NotYetError: with what is missing, or why nothing is eligible and what to do about it.
    """
    if not snapshot.rows:
        raise NotYetError(_nothing_eligible(excluded))
    liked = sum(row.liked for row in snapshot.rows)
    if liked < settings.min_liked or snapshot.raters < settings.min_raters:
        text = Sentence(
            "not yet: {liked} of {min_liked} liked replies, {raters} of {min_raters} raters",
            liked=liked,
            min_liked=settings.min_liked,
            raters=snapshot.raters,
            min_raters=settings.min_raters,
        )
        raise NotYetError(_with_excluded(text, excluded))
    if not any(row.liked for row in snapshot.of("train")):
        raise NotYetError(
            "not yet: all liked replies lie in held-out conversations, which are never trained on; "
            "rate replies in a few more conversations"
        )


def fill_in(settings: TrainerConfig, parameters: int, *, ranks: bool) -> TrainerConfig:
    """Return settings with rates and epochs for what the operator left at 0.

    They suit a base of so many `parameters`, and whether the model's own replies are ranked.
    """
    small = parameters < LARGE_PARAMETERS
    values = SMALL_RATES if small else LARGE_RATES
    if ranks and small:
        values = values | {"dpo_learning_rate": RANKED_RATE}
    values = values | {"epochs": EPOCHS_BEFORE_RANKING if ranks else USUAL_EPOCHS}
    return settings.model_copy(
        update={key: value for key, value in values.items() if not getattr(settings, key)}
    )


def may_rank(settings: TrainerConfig) -> bool:
    """Whether a run may come to rank the model's own replies."""
    return bool(settings.ranked_rounds) and settings.objective in ("auto", "sft_ranked")


def choose(snapshot: Snapshot, settings: TrainerConfig, *, judged: bool = False) -> Plan:
    """Choose the objective that the training rows allow; the clock has its say later, in `within_budget`.

    `judged` says that a reward model of the training ratings has proven itself: then the model's own replies
    are ranked by it, which teaches more than the rated replies themselves (EXPERIMENTS, 9).
    """
    if settings.objective == "sft_ranked" and not judged:
        return Plan("sft", RANKING_NEEDS)
    if settings.objective != "auto":
        return Plan(settings.objective)
    if judged and settings.ranked_rounds:
        return Plan("sft_ranked")
    phases, reason = ["sft"], NOTHING
    liked, disliked = kto_counts(snapshot)
    if liked + disliked < KTO_MIN_RATED or min(liked, disliked) < KTO_MIN_EACH:
        reason = Sentence(
            "KTO needs {rated} rated replies with {each} of each kind to train on; "
            "there are {liked} liked and {disliked} disliked",
            rated=KTO_MIN_RATED,
            each=KTO_MIN_EACH,
            liked=liked,
            disliked=disliked,
        )
    else:
        phases.append("kto")
    pairs = len(snapshot.preferences("train"))
    if pairs < DPO_MIN_PAIRS:
        few = Sentence(
            "DPO needs {count} preference pairs to train on; there are {pairs}",
            count=DPO_MIN_PAIRS,
            pairs=pairs,
        )
        reason = _and_then(reason, few)
    else:
        phases.append("dpo")
    return Plan("_".join(phases), reason)  # type: ignore[arg-type]


def kto_counts(snapshot: Snapshot) -> tuple[int, int]:
    """Return how many training rows are liked (corrections included) and disliked, with a weight."""
    rows = snapshot.of("train")
    liked = sum(row.verdict == "liked" for row in rows) + sum(len(row.corrections) for row in rows)
    return liked, sum(row.verdict == "disliked" for row in rows)


def within_budget(
    plan: Plan,
    *,
    tokens: Mapping[str, int],
    tokens_per_second: float,
    spent_s: float,
    settings: TrainerConfig,
) -> Plan:
    """Drop what, by the measured speed, would not end within `max_train_minutes`: DPO first, then KTO.

    `tokens` says how many "kto" and "dpo" would see. An objective from the configuration is kept.
    """
    if settings.objective != "auto":
        return plan
    phases, reason = list(plan.phases), plan.reason
    cost = {"kto": KTO_COST * tokens.get("kto", 0), "dpo": DPO_COST * tokens.get("dpo", 0)}
    for phase in ("dpo", "kto"):
        expected_s = spent_s + sum(cost.get(each, 0.0) for each in phases) / max(tokens_per_second, 1e-6)
        if phase in phases and expected_s > settings.max_train_minutes * 60:
            phases.remove(phase)
            long = Sentence(
                "{objective} would take training to about {minutes} minutes at {speed} tokens/s and "
                "trainer.max_train_minutes is {most}",
                objective=phase.upper(),
                minutes=Figure(expected_s / 60, ".0f"),
                speed=Figure(tokens_per_second, ".0f"),
                most=Figure(settings.max_train_minutes),
            )
            reason = _and_then(reason, long)
    return Plan("_".join(phases), reason)  # type: ignore[arg-type]


def _and_then(before: Sentence, more: Sentence) -> Sentence:
    """Return two sentences one after the other; the first may be empty."""
    return Sentence("{before}. {advice}", before=before, advice=more) if before else more


def _nothing_eligible(excluded: Mapping[str, int]) -> Sentence:
    if not excluded:
        unrated = Sentence("not yet: no reply has been rated; react to the bot's replies with 👍 or 👎")
        return _and_then(unrated, tastings.OFFER)
    said = _with_excluded(Sentence("not yet: none of the rated replies may be trained on"), excluded)
    if _TASTING_HELPS & excluded.keys():
        return Sentence("{before} {offer}", before=said, offer=tastings.OFFER)
    return said


def _with_excluded(said: Sentence, excluded: Mapping[str, int]) -> Sentence:
    """Add what was left out and why, the commonest first, with what to do where something can be done."""
    ordered = sorted(excluded.items(), key=lambda item: (-item[1], item[0]))
    for code, count in ordered:
        said = Sentence(
            "{before}; {count} left out because {reason}",
            before=said,
            count=count,
            reason=eligibility.reason(code),
        )
    advice = [_ADVICE[code] for code, _ in ordered if code in _ADVICE]
    return _and_then(said, advice[0]) if advice else said


# What keeps members' conversations out, and does not concern answers to the operator's own prompts.
_TASTING_HELPS = frozenset({"no_permission", "no_consent", "not_public"})

_ADVICE = {
    "no_permission": Sentence(
        "An operator records Discord's permission in [discord] training_permission_reference."
    ),
    "no_consent": Sentence("Ask members to opt in with /privacy."),
    "no_eligible_rating": Sentence("Ask raters to opt in with /privacy."),
    "not_public": Sentence("Talk to the bot in a channel that everybody can see."),
    "opted_out": Sentence("Those who opted out can opt in again with /privacy."),
}
