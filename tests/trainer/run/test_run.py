"""Whole runs on a tiny real base, a real model server and a real database."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from bot.serving.errors import UnknownModelError
from bot.serving.gpu_claim import is_claimed
from bot.serving.model.loading import LoadedBase
from bot.serving.protocol import ASLEEP, SERVER_FILE, VLLM, ChatMessage, Sampling
from storage.chat import conversations, members
from storage.config import Config
from storage.db.database import Database
from storage.feedback import duels, ratings
from storage.learning import adapters, checkpoints, evaluations, runs
from storage.learning.adapters import Adapter
from storage.learning.runs import Run
from tests.trainer import loop
from tests.trainer.loop import SCOPE, Deployment
from tests.trainer.rows import pair
from trainer import model_server
from trainer.data import snapshot
from trainer.errors import RunSettingsError
from trainer.evaluation import scores
from trainer.gate import blind_votes, pending_decisions, promotion
from trainer.on_policy import adapter_scale, ranking
from trainer.on_policy.sampling import PolicySampler
from trainer.placement import request
from trainer.placement.carry_out import carry_out
from trainer.run import context, steps
from trainer.run.context import RunContext
from trainer.run.execution import execute
from trainer.run.repeat import Repeat
from trainer.run.settings import with_overrides
from trainer.training.challenger import Challenger


@contextmanager
def opened(config: Config, left: Path | None = None) -> Iterator[Deployment]:
    """A deployment with an empty database and no adapter, or with what a run left of them."""
    for file in config.data.glob("strop.db*"):
        file.unlink()
    for folder in (config.runs, config.adapters):
        shutil.rmtree(folder, ignore_errors=True)
    if left is not None:
        shutil.copytree(left, config.data, dirs_exist_ok=True)
    with Database.open(config.database) as database:
        yield Deployment(config, database)


@pytest.fixture
def deployment(server: Path, tiny_source: Path) -> Iterator[Deployment]:
    with opened(loop.configured(server, tiny_source)) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def left(server: Path, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """What one run left on the disk, and the run; twenty tests go on from there.

    Its reward model can't be proven by so few ratings: it ends with a vote, or is refused.
    """
    config, folder = loop.configured(server, tiny_source), tmp_path_factory.mktemp("left")
    with opened(config) as deployment:
        deployment.database.write(lambda db: loop.community(db, 40))
        deployment.database.write(corrected)
        ended = execute(deployment.database, config, deployment.lease().id)
    for file in config.data.glob("strop.db*"):
        shutil.copy2(file, folder)
    for each in (config.runs, config.adapters):
        shutil.copytree(each, folder / each.name)
    return folder, ended


@pytest.fixture
def trained(left: tuple[Path, Run], server: Path, tiny_source: Path) -> Iterator[tuple[Deployment, Run]]:
    """The run that was made once, as it ended: the model server has no other adapter than its challenger."""
    folder, ended = left
    with opened(loop.configured(server, tiny_source), folder) as deployment:
        asyncio.run(serve_only(deployment, () if ended.outcome == "refused" else (ended.adapter_id or "",)))
        yield deployment, ended


async def serve_only(deployment: Deployment, adapter_ids: Sequence[str]) -> None:
    async with model_server.client_for(deployment.config) as client:
        _, *loaded = await client.models()
        for name in {*loaded} - {*adapter_ids}:
            await model_server.unload(client, name)
        for name in adapter_ids:
            await model_server.ensure_listed(client, deployment.config, name)


def corrected(db: sqlite_utils.Database) -> None:
    """Some disliked replies get a correction by their asker."""
    for number in range(1, 40, 3):
        rated = {"reply_id": f"reply-{number:03d}", "user_id": number % 5 + 1, "value": 0}
        text = f"Is number {number} not the best of all?"
        assert ratings.rate(db, **rated, kind="correction", means="modal", text=text)  # type: ignore[arg-type]


def champion(deployment: Deployment) -> str | None:
    """Who answers in the scope; None is the base, also where no run ever asked."""
    champions = deployment.database.read(
        lambda db: list(db.query("SELECT adapter_id FROM champions WHERE scope = ?", (SCOPE,)))
    )
    return champions[0]["adapter_id"] if champions else None


def adapter_of(deployment: Deployment, ended: Run) -> Adapter:
    found = deployment.database.read(lambda db: adapters.get(db, ended.adapter_id or ""))
    assert found is not None
    return found


def listed(deployment: Deployment) -> list[str]:
    async def ask() -> list[str]:
        async with model_server.client_for(deployment.config) as client:
            return await client.models()

    return asyncio.run(ask())


def test_a_run_goes_from_ratings_to_a_verdict_with_every_trace(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    assert ended.outcome in ("votes", "refused", "promoted"), ended.error
    assert ended.adapter_id is not None
    assert ended.adapter_id in ended.message
    adapter = adapter_of(deployment, ended)
    assert adapter.rehearsal
    assert (deployment.config.adapters / adapter.id / "adapter_model.safetensors").exists()
    folder = deployment.config.runs / ended.id
    assert {"snapshot.jsonl", "replies.jsonl", "report.json"} <= {path.name for path in folder.iterdir()}
    rows = deployment.database.read(lambda db: runs.rows_of(db, ended.id))
    assert len(rows) == 40
    assert "hidden_states" not in ended.metrics.evaluation, "nobody asked for them"
    metrics = {e.metric for e in deployment.database.read(lambda db: evaluations.list_for_run(db, ended.id))}
    assert "general_nll_increase" in metrics
    assert ended.metrics.data.train is not None and ended.metrics.data.train.liked > 0
    assert (ended.metrics.training.planned_steps or 0) > 0
    took = ended.metrics.process
    assert took is not None and took.seconds > 0 and took.cpu_s > 0
    assert 100e6 < took.peak_bytes < 20e9, "resident memory, in bytes"
    assert (champion(deployment) == adapter.id) == (ended.outcome == "promoted")


def test_a_run_leaves_a_card_of_its_adapter_without_a_word_of_a_member(
    trained: tuple[Deployment, Run],
) -> None:
    deployment, ended = trained
    folder = deployment.config.runs / ended.id
    found = json.loads((folder / "card.json").read_text())
    assert found["adapter"] == ended.adapter_id
    assert found["lineage"]["dataset_snapshot"] == ended.snapshot_hash
    assert found["curves"]["sft"] and found["settings"]["rank"] == 4
    assert sum(each["share"] for each in found["member_shares"]) == pytest.approx(1.0, abs=0.01)
    assert "adapter_model.safetensors" in found["files"]
    text = (folder / "card.md").read_text()
    assert f"# Adapter {ended.adapter_id}" in text and "## Guardrails" in text
    assert "Tell me about" not in text and "There is much to say" not in text


def test_corrections_and_safety_prompts_are_checked_in_every_run(trained: tuple[Deployment, Run]) -> None:
    from trainer.evaluation import regressions, safety

    deployment, ended = trained
    found = scores.read(deployment.config.runs / ended.id)
    assert [probe.name for probe in found.safety] == [probe.name for probe in safety.PROBES]
    assert all(1 <= len(probe.base) == len(probe.challenger) for probe in found.safety)
    assert list((deployment.config.models / "safety").iterdir())
    trained_on = [case for case in found.corrections if case.trained]
    assert 0 < len(trained_on) <= regressions.MAX_TRAINED
    assert len(found.corrections) > len(trained_on)
    names = {limit.name for limit in ended.metrics.guardrails}
    assert {"flattery", "new failures on safety prompts", "held-out corrections, lost"} <= names
    assert "training pairs ranked in the wrong order" in names
    assert "replies beside the point, rise over the champion's" in names
    beside = ended.metrics.evaluation["to_the_point"]
    assert len(found.tied) >= 12 and all(len(each.champion.others) == 2 for each in found.tied)
    assert 0 < beside["challenger"] <= 1 and 0 < beside["champion"] <= 1
    assert ended.metrics.evaluation["learned"]["share"] > 0.7
    metrics = {e.metric for e in deployment.database.read(lambda db: evaluations.list_for_run(db, ended.id))}
    assert {"perplexity_of_liked", "accuracy", "flattery"} <= metrics
    assert len(ended.metrics.evaluation["robustness"]["without_members"]) == 5
    card = json.loads((deployment.config.runs / ended.id / "card.json").read_text())
    assert card["corrections_kept"]["trained"]["cases"] == len(trained_on)
    assert [sample["prompt"] for sample in card["samples"]] == [
        probe.text for probe in safety.PROBES if probe.kind == "ordinary"
    ]
    text = (deployment.config.runs / ended.id / "card.md").read_text()
    assert "## Corrections as regression tests" in text and "not the best of all" not in text


def test_the_next_challenger_is_measured_against_the_base_too(trained: tuple[Deployment, Run]) -> None:
    from trainer.evaluation import evaluate

    deployment, first = trained
    asyncio.run(swap(deployment, reopened(deployment, first), expected=None))
    again = deployment.lease({"trainer": {"seed": 1}})
    ended = execute(deployment.database, deployment.config, again.id)
    assert ended.outcome in ("votes", "refused", "promoted"), ended.error
    found = scores.read(deployment.config.runs / ended.id)
    with_base = [pair.base is not None for pair in found.pairs]
    assert with_base == [number < evaluate.BASE_PROMPTS for number in range(len(with_base))]
    assert any(case.champion != case.base for case in found.corrections)
    assert ended.metrics.evaluation["flattery"]["base"] is not None
    assert ended.metrics.evaluation["to_the_point"]["over_base"] is not None


def test_the_snapshot_of_a_run_reads_back_by_its_recorded_hash(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    assert ended.snapshot_hash is not None
    again = snapshot.read(deployment.config.runs / ended.id, ended.snapshot_hash)
    train = {row.group_key for row in again.of("train")}
    assert train.isdisjoint({row.group_key for row in again.of("development", "gate")})


def test_a_held_out_conversation_that_was_judged_on_often_enough_is_retired(
    trained: tuple[Deployment, Run],
) -> None:
    deployment, ended = trained
    looks = deployment.database.read(lambda db: snapshot.looks(db, SCOPE))
    held_out = {
        row.reply_id
        for row in deployment.database.read(lambda db: runs.rows_of(db, ended.id))
        if row.split != "train"
    }
    assert looks == dict.fromkeys(held_out, 1)


def test_each_challenger_of_a_champion_is_counted(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    assert ended.metrics.evaluation["look"] == 1
    again = deployment.lease()
    challenger_number = deployment.database.read(
        lambda db: promotion.challenger_number_of(db, again, champion(deployment))
    )
    assert challenger_number == (1 if ended.outcome == "promoted" else 2)


def test_where_members_only_like_the_base_says_what_is_usual_and_replies_are_ranked(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever it says of general prompts has risen too far: the smallest scale is judged and repeated.
    monkeypatch.setattr(adapter_scale, "LOSS_PART", -1_000.0)
    monkeypatch.setattr(adapter_scale, "MIN_PROMPTS", 1)
    deployment.database.write(lambda db: loop.community(db, 60, dislikes=False))
    asked = deployment.lease({"trainer": {"judge_hidden_states": True}})
    ended = execute(deployment.database, deployment.config, asked.id)
    folder = deployment.config.runs / ended.id
    usual = ranking.read_reference_completions(folder)
    assert usual
    assert all(answer.text != answers[0].text for answers in usual for answer in answers[1:])
    assert ended.metrics.training.objective == "sft_ranked"
    # They were ranked; of a random model's own all may fit any question, which is nothing to learn from.
    assert ranking.read(folder / ranking.file_of(1)) is not None
    assert ended.outcome in ("votes", "refused"), "without dislikes nothing proves it better offline"
    cost = ended.metrics.evaluation["hidden_states"]
    assert cost["fits"] and cost["seconds"] > 0 and cost["replies"] >= 60, "the liked ones and the base's"
    scale = json.loads((folder / "report.json").read_text())["scale"]
    assert [each["scale"] for each in scale["tried"]] == list(adapter_scale.SCALES)
    assert f"- adapter scale: {adapter_scale.SCALES[-1]}\n" in (folder / "card.md").read_text()
    assert [path.name for path in deployment.config.adapters.iterdir()] == [ended.adapter_id]
    repeated = execute(deployment.database, deployment.config, deployment.lease({"repeat": ended.id}).id)
    assert "bit for bit" in repeated.message, repeated.error


@pytest.mark.parametrize("interim", [False, True])
def test_a_model_that_was_served_before_it_is_sampled_stays_unless_it_is_an_interim_one(
    trained: tuple[Deployment, Run], interim: bool
) -> None:
    deployment, ended = trained
    name, config = ended.adapter_id or "", deployment.config
    asyncio.run(serve_only(deployment, (name,)))
    sampler = PolicySampler(
        config, config.runs / ended.id, lambda note: None, partial(model_server.run_with_client, config)
    )
    rows = snapshot.read(config.runs / ended.id, ended.snapshot_hash or "")
    ((answer,),) = sampler.ask(name, rows.of("train")[:1], 1, 0, lambda done, total: None, interim=interim)
    assert answer.text
    assert sampler.on_server(lambda client: client.has_adapter(name)) is not interim


def test_too_little_data_is_a_polite_not_yet_and_leaves_nothing_behind(deployment: Deployment) -> None:
    deployment.database.write(lambda db: loop.community(db, 2))
    ended = execute(deployment.database, deployment.config, deployment.lease().id)
    assert (ended.state, ended.outcome) == ("finished", "not_yet")
    assert ended.message.startswith("not yet: 1 of 3 liked replies, ")
    assert not (deployment.config.runs / ended.id).exists()


def test_nothing_eligible_says_why(deployment: Deployment) -> None:
    deployment.database.write(lambda db: loop.community(db, 5, public=False))
    ended = execute(deployment.database, deployment.config, deployment.lease().id)
    assert ended.outcome == "not_yet"
    assert "5 left out because direct messages" in ended.message


def test_a_run_that_is_cancelled_stops_and_changes_nothing(deployment: Deployment) -> None:
    deployment.database.write(lambda db: loop.community(db, 40))
    leased = deployment.lease({"trainer": {"epochs": 500}})
    canceller = threading.Thread(target=_cancel_in_training, args=(deployment, leased.id))
    canceller.start()
    ended = execute(deployment.database, deployment.config, leased.id)
    canceller.join()
    assert (ended.state, ended.outcome) == ("cancelled", "cancelled")
    assert champion(deployment) is None


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("snapshot", marks=pytest.mark.torture),
        "train",
        pytest.param("evaluate", marks=pytest.mark.torture),
    ],
)
def test_a_run_killed_in_any_phase_leaves_the_champion_serving(
    deployment: Deployment, tmp_path: Path, phase: str
) -> None:
    deployment.database.write(lambda db: loop.community(db, 40))
    leased = deployment.lease({"trainer": {"epochs": 3}})
    child = _child(deployment, leased.id, tmp_path)
    try:
        _wait_for(deployment, leased.id, phase, child)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert deployment.database.read(lambda db: runs.expect(db, leased.id)).state == "running"
    assert champion(deployment) is None
    # The trainer puts it back into the queue, and the second attempt has a verdict.
    deployment.database.write(lambda db: runs.requeue(db, leased.id, "it was killed"))
    again = deployment.database.write(lambda db: runs.lease_next(db, "test", 600_000))
    assert again is not None
    ended = execute(deployment.database, deployment.config, again.id)
    assert ended.outcome in ("votes", "refused", "promoted"), ended.error


class RepeatOnOneCard(Repeat):
    """A repeat beside a server that announces itself as a vLLM which has given its card up."""

    had_the_card = False

    def _train_again(self, *arguments: Any) -> Challenger:
        file = self._config.run / SERVER_FILE
        announced = file.read_text()
        file.write_text(json.dumps(json.loads(announced) | {"engine": VLLM, ASLEEP: True}))
        try:
            return super()._train_again(*arguments)
        finally:
            file.write_text(announced)

    def load_base(self, context: RunContext) -> LoadedBase:
        RepeatOnOneCard.had_the_card = is_claimed(self._config.run)
        return super().load_base(context)


def test_a_run_killed_in_training_goes_on_with_its_snapshot_and_can_be_repeated_bit_for_bit(
    deployment: Deployment, tmp_path: Path
) -> None:
    deployment.database.write(lambda db: loop.community(db, 40))
    leased = deployment.lease({"trainer": {"epochs": 6, "checkpoint_seconds": 1e-9}})
    kept = deployment.config.runs / leased.id / checkpoints.FILE
    child = _child(deployment, leased.id, tmp_path)
    try:
        loop.until(kept.exists, child, deployment.config.run / "server.log")
        time.sleep(0.5)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    begun = deployment.database.read(lambda db: runs.expect(db, leased.id))
    # What another training has kept, as before an update, is not learned from.
    asked, another = kept.with_name(request.FILE), kept.with_name(ranking.file_of(1))
    asked.write_text(json.dumps(json.loads(asked.read_text()) | {"settings": {}}))
    ranking.write([pair("another model's", chosen="Not from here.")], another)
    # A rating that comes meanwhile belongs to the next run.
    deployment.database.write(lambda db: loop.rate(db, "reply-001", 5, 1))
    deployment.database.write(lambda db: runs.requeue(db, leased.id, "it was killed"))
    deployment.database.write(lambda db: runs.lease_next(db, "test", 600_000))
    ended = execute(deployment.database, deployment.config, leased.id)
    assert ended.outcome in ("votes", "refused", "promoted"), ended.error
    assert ended.snapshot_hash == begun.snapshot_hash
    assert not kept.exists()
    assert "Not from here." not in [each.chosen for each in ranking.read(another) or []]
    # What was killed and went on is what an undisturbed training from the same manifest gives.
    before = sorted(path.name for path in deployment.config.adapters.iterdir())
    trainer = deployment.config.trainer.model_copy(update={"server_sleeps": True})
    config = deployment.config.model_copy(update={"trainer": trainer})
    again = deployment.lease({"repeat": ended.id}).id
    repeated = execute(deployment.database, config, again, steps=RepeatOnOneCard)
    assert f"the same adapter {ended.adapter_id} came out, bit for bit" in repeated.message, repeated.error
    assert RepeatOnOneCard.had_the_card and not is_claimed(config.run)
    assert sorted(path.name for path in deployment.config.adapters.iterdir()) == before
    assert adapter_of(deployment, ended).state != "tainted"
    # And what any other place makes of the run's folder.
    shutil.copytree(deployment.config.runs / ended.id, tmp_path / "elsewhere")
    assert carry_out(tmp_path / "elsewhere", deployment.config.models).adapter_id == ended.adapter_id


def test_a_run_with_a_row_that_was_deleted_since_is_not_repeated(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    deployment.database.write(lambda db: conversations.delete_message(db, 1000))
    repeated = execute(deployment.database, deployment.config, deployment.lease({"repeat": ended.id}).id)
    assert repeated.outcome == "failed"
    assert f"Run {ended.id} can't be repeated: something in its snapshot was deleted" in repeated.message


def test_a_run_without_a_server_fails_with_a_sentence(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.database.write(lambda db: loop.community(db, 40))
    monkeypatch.setattr(context, "SERVER_PATIENCE_S", 0.1)
    server = deployment.config.server.model_copy(update={"base_url": "http://127.0.0.1:9"})
    away = deployment.config.model_copy(update={"server": server})
    ended = execute(deployment.database, away, deployment.lease().id)
    assert (ended.state, ended.outcome) == ("failed", "failed")
    assert ended.message.startswith("The model server did not answer for minutes")
    assert ended.message.endswith("The champion was not changed.")


@pytest.mark.parametrize(
    "settings", [{"model": {}}, {"trainer": {"epoch": 2}}, {"gate": {"confidence": 7}}, {"trainer": 3}]
)
def test_settings_that_do_not_exist_are_refused(deployment: Deployment, settings: dict[str, Any]) -> None:
    with pytest.raises(RunSettingsError):
        with_overrides(deployment.config, settings)


def test_a_refused_challenger_is_rejected_and_unloaded(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    if ended.outcome == "votes":
        adapter = adapter_of(deployment, ended)
        ended = asyncio.run(_refuse(deployment, ended, adapter))
    assert ended.message.startswith(f"{ended.adapter_id} was not promoted, because ")
    assert adapter_of(deployment, ended).state == "rejected"
    assert ended.adapter_id not in listed(deployment)


def test_a_swap_is_one_transaction_and_the_old_champion_stays_loaded(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    voting = reopened(deployment, ended)
    finished = asyncio.run(swap(deployment, voting, expected=None))
    assert finished.outcome == "promoted"
    assert finished.message == f"adapter {ended.adapter_id} replaced the base model: +0.12 (for the test)"
    assert champion(deployment) == ended.adapter_id
    assert ended.adapter_id in listed(deployment)
    assert adapter_of(deployment, ended).state == "promoted"


def test_a_champion_that_changed_meanwhile_is_not_replaced(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    voting = reopened(deployment, ended)
    finished = asyncio.run(swap(deployment, voting, expected="a000000000000000"))
    assert finished.outcome == "refused"
    assert "the champion changed" in finished.message
    assert champion(deployment) is None


class PromotesMeanwhile(steps.RunSteps):
    """Somebody puts another adapter in service while the challenger is compared."""

    other = ""
    rivals: tuple[str | None, ...] = ()

    def evaluate(self, rows: Any, context: Any, *given: Any) -> Any:
        judged = super().evaluate(rows, context, *given)
        PromotesMeanwhile.rivals += (context.champion_id,)
        if len(PromotesMeanwhile.rivals) == 1:
            self._database.write(
                lambda db: adapters.promote(
                    db,
                    scope=SCOPE,
                    base_hash=context.base.hash,
                    adapter_id=self.other,
                    actor="somebody",
                    reason="by hand",
                )
            )
        return judged


def test_a_challenger_is_compared_anew_where_somebody_promotes_meanwhile(
    trained: tuple[Deployment, Run],
) -> None:
    deployment, first = trained
    PromotesMeanwhile.other, PromotesMeanwhile.rivals = first.adapter_id or "", ()
    # Other rows make another adapter.
    deployment.database.write(lambda db: members.set_consent(db, 5, "out", "5"))
    ended = execute(deployment.database, deployment.config, deployment.lease().id, steps=PromotesMeanwhile)
    assert PromotesMeanwhile.rivals == (None, first.adapter_id)
    assert "the champion changed" not in ended.message, ended.message
    measured = deployment.database.read(lambda db: evaluations.list_for_run(db, ended.id))
    assert {each.champion_id for each in measured} == {first.adapter_id}


def test_votes_promote_the_winner_of_blind_duels(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    voting = reopened(deployment, ended)
    cast(deployment, voting, challenger_wins=True)
    (settled,) = pending_decisions.settle_votes(deployment.database, deployment.config)
    assert settled.outcome == "promoted"
    assert settled.message.startswith(f"adapter {ended.adapter_id} replaced the base model: it won 12 of 12 ")
    assert champion(deployment) == ended.adapter_id
    assert pending_decisions.settle_votes(deployment.database, deployment.config) == []


def test_votes_reject_the_loser_on_the_mirror(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    voting = reopened(deployment, ended)
    cast(deployment, voting, challenger_wins=False)
    (settled,) = pending_decisions.settle_votes(deployment.database, deployment.config)
    assert settled.outcome == "refused"
    assert "won only 0 of 12 blind votes" in settled.message
    assert champion(deployment) is None


def test_a_few_votes_decide_nothing_and_one_member_alone_neither(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    voting = reopened(deployment, ended)
    cast(deployment, voting, challenger_wins=True, voters=1)
    assert pending_decisions.settle_votes(deployment.database, deployment.config) == []
    count = deployment.database.read(lambda db: blind_votes.count_votes(db, voting.id))
    assert (count.votes, count.voters) == (6, 1)


def test_a_vote_that_was_overtaken_by_an_erasure_ends(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    reopened(deployment, ended)
    deployment.database.write(lambda db: adapters.set_state(db, ended.adapter_id or "", "tainted"))
    (settled,) = pending_decisions.settle_votes(deployment.database, deployment.config)
    assert settled.outcome == "refused"
    assert "erased" in settled.message


def test_an_operator_has_the_last_word_where_the_policy_says_ask(trained: tuple[Deployment, Run]) -> None:
    deployment, ended = trained
    voting = reopened(deployment, ended)
    cast(deployment, voting, challenger_wins=True)
    gate = deployment.config.gate.model_copy(update={"policy": "ask"})
    (settled,) = pending_decisions.settle_votes(
        deployment.database, deployment.config.model_copy(update={"gate": gate})
    )
    assert settled.outcome == "refused"
    assert "/promote" in settled.message
    assert adapter_of(deployment, ended).state == "candidate"
    assert champion(deployment) is None


# ------------------------------------------------------------------------------------------------- steps
def reopened(deployment: Deployment, ended: Run) -> Run:
    """The trained run as one that waits for votes on six duels, whatever its own verdict was."""

    def work(db: sqlite_utils.Database) -> Run:
        db.execute("DELETE FROM duels")
        db.execute(
            "UPDATE runs SET state = 'finished', outcome = 'votes', champion_id = NULL WHERE id = ?",
            (ended.id,),
        )
        db.execute("UPDATE adapters SET state = 'candidate' WHERE id = ?", (ended.adapter_id,))
        db.execute("UPDATE champions SET adapter_id = NULL")
        for number in range(6):
            duels.add(
                db,
                duel_id=f"{ended.id}-{number}",
                run_id=ended.id,
                scope=SCOPE,
                challenger_id=ended.adapter_id or "",
                champion_id=None,
                prompt=[{"role": "user", "content": "Hello?"}],
                first_text="One.",
                second_text="Two.",
                first_is_challenger=number % 2 == 0,
            )
        return runs.expect(db, ended.id)

    return deployment.database.write(work)


def cast(deployment: Deployment, voting: Run, *, challenger_wins: bool, voters: int = 2) -> None:
    def work(db: sqlite_utils.Database) -> None:
        for user in range(1, voters + 1):
            members.ensure(db, user, "", "rehearsal")
            for duel in duels.open_for(db, SCOPE):
                choice = 1 if duel.first_is_challenger == challenger_wins else -1
                assert duels.vote(db, duel_id=duel.id, user_id=user, choice=choice, source="rehearsal")

    assert voting.outcome == "votes"
    deployment.database.write(work)


async def swap(deployment: Deployment, voting: Run, *, expected: str | None) -> Run:
    async with model_server.client_for(deployment.config) as client:
        return await promotion.swap(
            deployment.database,
            client,
            deployment.config,
            run=voting,
            adapter=await deployment.database.aread(lambda db: _adapter(db, voting)),
            champion_id=expected,
            measured="+0.12 (for the test)",
            metrics={},
        )


async def _refuse(deployment: Deployment, voting: Run, adapter: Adapter) -> Run:
    async with model_server.client_for(deployment.config) as client:
        await model_server.ensure_listed(client, deployment.config, adapter.id)
        ended = await promotion.refuse(
            deployment.database, client, run=voting, adapter=adapter, reason="of the test", metrics={}
        )
        with pytest.raises(UnknownModelError):
            await client.chat(model=adapter.id, messages=[ChatMessage("user", "Hi")], sampling=Sampling(1))
        return ended


def _adapter(db: sqlite_utils.Database, voting: Run) -> Adapter:
    found = adapters.get(db, voting.adapter_id or "")
    assert found is not None
    return replace(found)


def _child(deployment: Deployment, run_id: str, folder: Path) -> subprocess.Popen[bytes]:
    """A leased run in a process of its own, with as many threads as the tests have."""
    config = folder / "strop.toml"
    config.write_text(_toml(deployment))
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.run", "--config", str(config), "--run", run_id],
        env={**os.environ, "STROP_HOME": str(deployment.config.home), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )


def _cancel_in_training(deployment: Deployment, run_id: str) -> None:
    _wait_for(deployment, run_id, "train", None)
    deployment.database.write(lambda db: runs.cancel(db, run_id, "test"))


def _wait_for(deployment: Deployment, run_id: str, phase: str, child: subprocess.Popen[bytes] | None) -> None:
    ends_at = time.monotonic() + 120
    while time.monotonic() < ends_at:
        current = deployment.database.read(lambda db: runs.expect(db, run_id))
        if current.phase == phase:
            return
        assert current.state == "running", current.message
        assert child is None or child.poll() is None, "the child ended early"
        time.sleep(0.02)
    raise AssertionError(f"the run never came to {phase}")


def _toml(deployment: Deployment) -> str:
    config = deployment.config
    sections = {"trainer": loop.TRIAL["trainer"], "gate": loop.TRIAL["gate"], "server": {"port": 0}}
    sections["model"] = {"base": config.model.base, "device": "cpu", "context_tokens": 512, "slots": 4}
    sections["chat"] = {"context_tokens": 256, "system_prompt": config.chat.system_prompt}
    lines = []
    for name, values in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines)
