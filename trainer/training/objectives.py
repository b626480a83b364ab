"""Which objective data and machine allow: wait, learn from liked replies, or from the rest and pairs too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from storage.config_sections import TrainerConfig
from storage.feedback import tastings
from storage.learning.eligibility import REASONS
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
RANKING_NEEDS = "no reward model of the training ratings has proven itself yet, so that no replies are ranked"
# Larger models need gentler steps. The small rates were found with 135M parameters (EXPERIMENTS); the large
# ones are what others use and were not measured here.
LARGE_PARAMETERS = 1_000_000_000
SMALL_RATES = {"sft_learning_rate": 5e-4, "kto_learning_rate": 1e-4, "dpo_learning_rate": 1e-4}
LARGE_RATES = {"sft_learning_rate": 2e-4, "kto_learning_rate": 4e-5, "dpo_learning_rate": 4e-5}


@dataclass(frozen=True)
class Plan:
    """What to train on, and why not on more (`reason`, empty when nothing was held back)."""

    objective: Objective
    reason: str = ""

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
        text = (
            f"not yet: {liked} of {settings.min_liked} liked replies, "
            f"{snapshot.raters} of {settings.min_raters} raters"
        )
        raise NotYetError(text + _excluded_note(excluded))
    if not any(row.liked for row in snapshot.of("train")):
        raise NotYetError(
            "not yet: all liked replies lie in held-out conversations, which are never trained on; "
            "rate replies in a few more conversations"
        )


def for_size(settings: TrainerConfig, parameters: int) -> TrainerConfig:
    """Return settings with learning rates that suit the base, but for rates that the operator set."""
    rates = LARGE_RATES if parameters >= LARGE_PARAMETERS else SMALL_RATES
    chosen = {key: rate for key, rate in rates.items() if not getattr(settings, key)}
    return settings.model_copy(update=chosen)


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
    phases, reasons = ["sft"], []
    liked, disliked = kto_counts(snapshot)
    if liked + disliked < KTO_MIN_RATED or min(liked, disliked) < KTO_MIN_EACH:
        reasons.append(
            f"KTO needs {KTO_MIN_RATED} rated replies with {KTO_MIN_EACH} of each kind to train on; "
            f"there are {liked} liked and {disliked} disliked"
        )
    else:
        phases.append("kto")
    pairs = len(snapshot.preferences("train"))
    if pairs < DPO_MIN_PAIRS:
        reasons.append(f"DPO needs {DPO_MIN_PAIRS} preference pairs to train on; there are {pairs}")
    else:
        phases.append("dpo")
    return Plan("_".join(phases), ". ".join(reasons))  # type: ignore[arg-type]


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
    phases, reasons = list(plan.phases), [plan.reason] if plan.reason else []
    cost = {"kto": KTO_COST * tokens.get("kto", 0), "dpo": DPO_COST * tokens.get("dpo", 0)}
    for phase in ("dpo", "kto"):
        expected_s = spent_s + sum(cost.get(each, 0.0) for each in phases) / max(tokens_per_second, 1e-6)
        if phase in phases and expected_s > settings.max_train_minutes * 60:
            phases.remove(phase)
            reasons.append(
                f"{phase.upper()} would take training to about {expected_s / 60:.0f} minutes at "
                f"{tokens_per_second:.0f} tokens/s and trainer.max_train_minutes is "
                f"{settings.max_train_minutes:g}"
            )
    return Plan("_".join(phases), ". ".join(reasons))  # type: ignore[arg-type]


def _nothing_eligible(excluded: Mapping[str, int]) -> str:
    if not excluded:
        return f"not yet: no reply has been rated; react to the bot's replies with 👍 or 👎. {tastings.OFFER}"
    note = _excluded_note(excluded)
    offer = f" {tastings.OFFER}" if _TASTING_HELPS & excluded.keys() else ""
    return f"not yet: none of the rated replies may be trained on{note}{offer}"


def _excluded_note(excluded: Mapping[str, int]) -> str:
    """Name what was left out and why, the commonest first, with what to do where something can be done."""
    if not excluded:
        return ""
    ordered = sorted(excluded.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} left out because {REASONS.get(reason, reason)}" for reason, count in ordered]
    advice = [_ADVICE[reason] for reason, _ in ordered if reason in _ADVICE]
    return "; " + "; ".join(parts) + (f". {advice[0]}" if advice else "")


# What keeps members' conversations out, and does not concern answers to the operator's own prompts.
_TASTING_HELPS = frozenset({"no_permission", "no_consent", "not_public"})

_ADVICE = {
    "no_permission": "An operator records Discord's permission in [discord] training_permission_reference.",
    "no_consent": "Ask members to opt in with /privacy.",
    "no_eligible_rating": "Ask raters to opt in with /privacy.",
    "not_public": "Talk to the bot in a channel that everybody can see.",
    "opted_out": "Those who opted out can opt in again with /privacy.",
}
