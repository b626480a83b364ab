"""What a run keeps of what it measured: the figures of its training, and every score with its interval."""

from __future__ import annotations

from typing import Any

import sqlite_utils

from storage.learning import evaluations
from storage.learning.adapters import Adapter
from storage.learning.runs import Run
from trainer.evaluation.evaluate import Evaluation
from trainer.evaluation.statistics import Estimate
from trainer.training.challenger import Challenger
from trainer.training.loop import TrainingReport


def describe_training(trained: Challenger) -> dict[str, Any]:
    """Return what was trained and why not more, and what each phase did."""
    return {
        "objective": trained.plan.objective,
        "reason": trained.plan.reason,
        "reason_sentence": trained.plan.reason.as_json(),
        **{phase: _of_phase(report) for phase, report in trained.reports.items()},
    }


def _of_phase(report: TrainingReport) -> dict[str, Any]:
    return {
        "steps": report.steps,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 1),
        "tokens_per_second": round(report.tokens_per_second, 1),
        "shortened": report.shortened,
        "planned": report.scheduled,
        "losses": [round(loss, 4) for loss in report.losses],
    }


def record(
    db: sqlite_utils.Database, run: Run, adapter: Adapter, champion_id: str | None, judged: Evaluation
) -> None:
    """Store every metric with its interval, in place of those of a comparison with an earlier champion."""
    evaluations.forget(db, run.id)
    evidence = judged.evidence
    estimates: dict[str, Estimate | None] = {
        "preference": evidence.preference,
        "margin": evidence.margin,
        "reward_auc": evidence.proof.unseen,
        "reward_auc_cross_validated": evidence.proof.cross_validated,
    }
    who = {"run_id": run.id, "adapter_id": adapter.id, "champion_id": champion_id}
    for metric, estimate in estimates.items():
        if estimate is not None:
            evaluations.add(
                db,
                metric=metric,
                value=estimate.value,
                low=estimate.low,
                high=estimate.high,
                n=estimate.clusters,
                **who,  # type: ignore[arg-type]
            )
    plain = {
        "general_nll_increase": (evidence.general_nll_increase, {"divergence": evidence.general_divergence}),
        "flattery": (evidence.flattery, {"base": evidence.base_flattery}),
    }
    if held_out := judged.figures["held_out_replies"]:
        plain |= {
            metric: (held_out["challenger"][metric], {"champion": held_out["champion"][metric]})
            for metric in ("perplexity_of_liked", "accuracy")
        }
    for metric, (value, detail) in plain.items():
        evaluations.add(db, metric=metric, value=value, detail=detail, **who)  # type: ignore[arg-type]
