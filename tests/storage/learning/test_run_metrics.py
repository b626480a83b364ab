"""What a run measured comes back typed: of this version, of older ones, and after an erasure."""

from __future__ import annotations

import json

from storage.learning.evaluations import Headline, Limit, Metrics, SplitCounts
from storage.privacy import erasure
from storage.sentences import Sentence

REASON = Sentence("DPO needs {count} preference pairs to train on; there are {pairs}", count=50, pairs=3)
STORED = {
    "data": {
        "train": {"liked": 30, "disliked": 12, "unclear": 1, "corrections": 2, "pairs": 3},
        "gate": {"liked": 9, "disliked": 4, "unclear": 0, "corrections": 0, "pairs": 0},
        "raters": 4,
        "sources": {"discord": 50},
        "influence": [{"name": "m1", "share": 0.3}],
        "later_version": 7,
    },
    "excluded": {"opted_out": 3},
    "training": {
        "objective": "sft",
        "reason": str(REASON),
        "reason_sentence": REASON.as_json(),
        "sft": {
            "steps": 28,
            "planned_steps": 40,
            "seconds": 71.5,
            "tokens_per_second": 9.0,
            "losses": [2.0, 1.5],
        },
    },
    "evaluation": {"same_replies": 0.25},
    "headline": {"value": 0.12, "low": 0.03, "high": 0.2, "n": 40},
    "guardrails": [{"name": "flattery", "value": 0.1, "limit": 0.2, "kept": True}],
    "from a later version": {"x": 1},
}


def test_what_a_run_stored_reads_back_with_types_and_is_written_again_as_it_was() -> None:
    metrics = Metrics.from_json(json.loads(json.dumps(STORED)))
    assert metrics.data.train == SplitCounts(30, 12, 1, 2, 3) and list(metrics.data.splits) == [
        "train",
        "gate",
    ]
    assert (metrics.data.raters, metrics.excluded) == (4, {"opted_out": 3})
    assert metrics.training.reason == REASON and metrics.training.phases["sft"].losses == [2.0, 1.5]
    assert metrics.headline == Headline(0.12, 40, 0.03, 0.2)
    assert metrics.guardrails == (Limit(0.1, 0.2, True, "flattery"),)
    assert metrics.as_json() == STORED, "also what only a later version knows"


def test_runs_of_older_versions_lack_what_was_not_measured_then() -> None:
    assert Metrics.from_json({}) == Metrics() and Metrics().as_json() == {}
    old = Metrics.from_json(
        {
            "data": {"train": {"liked": 3}, "raters": None},
            "training": {"objective": None, "sft": {"steps": 2, "shortened": None}},
            "headline": {"value": None, "n": 3},
            "guardrails": None,
            "votes": {"wins": 2},
        }
    )
    assert old.data.train == SplitCounts(liked=3) and old.data.raters is None
    assert not old.training.objective and not old.training.phases["sft"].shortened
    assert old.headline is None and old.votes is None and old.guardrails == ()


def test_an_erasure_leaves_figures_that_still_read() -> None:
    metrics = Metrics.from_json(erasure._figures(STORED))
    assert metrics.guardrails == (Limit(0.1, 0.2, True),), "the limit lost its name only"
    assert metrics.training.objective == "" and metrics.training.phases["sft"].steps == 28
    assert metrics.headline == Headline(0.12, 40, 0.03, 0.2)
