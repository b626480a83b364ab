"""The card of a run stays within what Discord takes, however much there is to say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlite_utils

from bot.language import texts
from bot.learning import run_card
from bot.learning.run_card import Card
from bot.learning.run_progress import run_text
from storage.db.database import Database
from storage.learning import adapters, runs
from storage.learning.eligibility import REASONS
from storage.learning.evaluations import Metrics
from storage.learning.run_summary import Sample
from storage.privacy import erasure
from storage.sentences import Sentence

SCOPE, BASE = "guild:1", "b" * 64
LIMITS = [
    {
        "name": "preference for disliked held-out replies, nat per token",
        "value": 1.0,
        "limit": 0.0,
        "kept": False,
    }
] * 12


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_a_card_with_everything_on_it_is_no_more_than_discord_takes(
    database: Database, language: str
) -> None:
    def work(db: object) -> Card:
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1")
        adapter = adapters.insert_candidate(
            db, adapter_id="a1", scope=SCOPE, base_hash=BASE, path="adapters/a1", run_id=run.id
        )
        return Card(run, adapter, None, None, ())

    card = database.write(work)
    found = Metrics.from_json(
        {"guardrails": LIMITS, "excluded": dict.fromkeys(REASONS, 12345), "data": {"train": {}}}
    )
    card = replace(card, run=replace(card.run, metrics=found))
    samples = [Sample("*" * 500, "_" * 900, "`" * 900, held_out=False)] * run_card.SAMPLES
    with texts.speaking(language):
        drawn = run_card.embed(card, samples)
    assert 3000 < len(drawn) <= 6000 and all(len(str(field.value)) <= 1024 for field in drawn.fields)


def test_a_training_that_its_time_limit_ended_says_so_in_card_and_message(database: Database) -> None:
    metrics = Metrics.from_json(
        {"data": {"train": {}}, "training": {"sft": {"steps": 12, "shortened": True, "planned": 28}}}
    )
    run = database.write(lambda db: runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1"))
    over = replace(run, state="finished", outcome="refused", message=Sentence("It lost."), metrics=metrics)
    assert "after 12 of 28 steps" in run_text(over)
    assert "after 12 of 28 steps" in run_card.cut_short(metrics)
    whole = Metrics.from_json({"training": {"sft": {"steps": 28, "planned": 28}}})
    assert run_card.cut_short(whole) == ""


def test_the_card_of_a_run_whose_texts_were_erased_still_shows_its_figures(database: Database) -> None:
    reason = Sentence("DPO needs {count} preference pairs to train on; there are {pairs}", count=50, pairs=3)
    metrics = {
        "guardrails": LIMITS,
        "training": {"objective": "sft", "reason": reason, "reason_sentence": reason.as_json()},
    }

    def work(db: sqlite_utils.Database) -> Card:
        runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1")
        run = runs.lease_next(db, "trainer", 60_000)
        assert run is not None
        runs.finish(db, run.id, outcome="refused", message=Sentence("It lost."), metrics=metrics)
        erasure._erase_evidence(db, [run.id])
        adapter = adapters.insert_candidate(
            db, adapter_id="a1", scope=SCOPE, base_hash=BASE, path="adapters/a1", run_id=run.id
        )
        return Card(runs.expect(db, run.id), adapter, None, None, ())

    said = str(run_card.embed(database.write(work), ()).to_dict())
    assert "1.00, at most 0.00 allowed" in said and "preference for" not in said
    kept = {"values": {"count": 50}}
    assert Sentence.from_json(kept) == ""


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (
            {"answer": 0.6, "question": 0.3, "kind": 0.1},
            "how replies relate to them makes up 40% of its score",
        ),
        ({"answer": 0.9, "wording": 0.1}, "used the replies alone"),
        ({"answer": 0.7, "hidden": 0.3}, "The base's hidden states of question and reply make up 30% of"),
    ],
)
def test_a_line_says_what_the_reward_model_saw_of_the_questions(parts: dict[str, float], line: str) -> None:
    assert line in run_card.judge_saw(Metrics.from_json({"evaluation": {"judge_sees": parts}}))
    for language in texts.LANGUAGES:
        with texts.speaking(language):
            assert run_card.judge_saw(Metrics.from_json({"evaluation": {"judge_sees": parts}}))


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"auc": 0.52, "bound": 0.45, "weight": 0.0}, "don't predict ratings here (AUC 0.52, at least 0.45)"),
        ({"auc": 0.72, "bound": 0.6, "weight": 0.0}, "don't help to rank replies"),
        ({"auc": 0.72, "bound": 0.6, "weight": 0.3}, "used for unrated replies (140), each 0.3 of a rating"),
    ],
)
def test_a_line_says_whether_free_signals_were_used(found: dict[str, float], line: str) -> None:
    metrics = Metrics.from_json({"signals": {"rated": 90, "replies": 140, **found}})
    assert line in run_card.signals_told(metrics)
    for language in texts.LANGUAGES:
        with texts.speaking(language):
            assert run_card.signals_told(metrics)


@pytest.mark.parametrize(("objective", "used"), [("sft_ranked", True), ("sft", False)])
def test_signals_were_not_used_where_no_reply_was_ranked(objective: str, used: bool) -> None:
    found = {"rated": 90, "replies": 140, "auc": 0.72, "bound": 0.6, "weight": 0.3}
    metrics = Metrics.from_json({"signals": found, "training": {"objective": objective}})
    assert bool(run_card.signals_told(metrics)) is used


def test_too_few_signals_are_not_worth_a_line() -> None:
    assert run_card.signals_told(Metrics.from_json({})) == ""
    found = {"rated": 3, "replies": 9, "weight": 0.0}
    assert run_card.signals_told(Metrics.from_json({"signals": found})) == ""
    # They predict ratings, but there is no unrated reply to use them for.
    found = {"rated": 90, "replies": 0, "weight": 0.0, "auc": 0.8, "bound": 0.7}
    assert run_card.signals_told(Metrics.from_json({"signals": found})) == ""


def test_the_card_and_the_message_of_a_vote_say_what_the_reward_model_saw(database: Database) -> None:
    metrics = Metrics.from_json({"evaluation": {"judge_sees": {"answer": 0.6, "question": 0.4}}})

    def work(db: sqlite_utils.Database) -> Card:
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="1")
        adapter = adapters.insert_candidate(
            db, adapter_id="a1", scope=SCOPE, base_hash=BASE, path="adapters/a1", run_id=run.id
        )
        return Card(run, adapter, None, None, ())

    card = database.write(work)
    line = "The reward model read the questions: how replies relate to them makes up 40% of its score."
    shown = run_card.embed(replace(card, run=replace(card.run, metrics=metrics)), ())
    assert any(line in str(field.value).splitlines() for field in shown.fields)
    vote = replace(
        card.run, state="finished", outcome="votes", message=Sentence("It is thin."), metrics=metrics
    )
    assert line in run_text(vote).splitlines()


def test_a_run_without_a_reward_model_says_nothing_of_it() -> None:
    assert run_card.judge_saw(Metrics.from_json({})) == ""
    assert run_card.judge_saw(Metrics.from_json({"evaluation": {"judge_sees": {}}})) == ""
