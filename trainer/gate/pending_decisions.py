"""Runs whose decision lies with the members: blind votes, the ratings of a canary, and what comes of them.

After a promotion by the trainer, the ratings of the old champion's holdback are watched in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlite_utils
import structlog

from bot.serving.client import ModelClient
from bot.serving.errors import ServingError
from storage.config import Config
from storage.db import sql
from storage.db.database import Database
from storage.learning import adapters, evaluations, runs, trials
from storage.learning.adapters import Adapter
from storage.learning.runs import Run
from storage.learning.trials import Trial
from storage.sentences import NOTHING, Sentence
from trainer import model_server
from trainer.errors import EvaluationError
from trainer.evaluation.evidence import MIN_PROMPTS
from trainer.gate import blind_votes, canary, promotion
from trainer.gate.blind_votes import VoteCount, count_votes
from trainer.gate.decision import Decision
from trainer.gate.promotion import refuse, swap
from trainer.report import adapter_card

log = structlog.get_logger()


def settle_votes(database: Database, config: Config) -> list[Run]:
    """Decide the runs whose votes or ratings suffice, and return those that ended. Call it every few seconds.

    A server that is away postpones the swap to the next call.
    """
    ended = []
    for run in database.read(_awaiting):
        try:
            finished = asyncio.run(_settle(database, config, run))
        except (ServingError, EvaluationError) as error:
            log.warning("the swap has to wait", run_id=run.id, error=str(error))
            continue
        if finished is not None:
            log.info("run.decided", run_id=run.id, outcome=finished.outcome, message=finished.message)
            adapter_card.write(database, config, run.id)
            ended.append(finished)
    return ended


def _awaiting(db: sqlite_utils.Database) -> list[Run]:
    rows = sql.many(db, "SELECT id FROM runs WHERE state = 'finished' AND outcome = 'votes' ORDER BY rowid")
    return [runs.expect(db, row["id"]) for row in rows]


async def _settle(database: Database, config: Config, run: Run) -> Run | None:
    """End one vote if it can be ended; None while votes are missing."""
    adapter = await database.aread(lambda db: adapters.get(db, run.adapter_id or ""))
    if adapter is None:
        return None
    if await database.aread(lambda db: adapters.champion(db, run.scope, adapter.base_hash)) == adapter.id:
        return await database.awrite(lambda db: _promoted_by_hand(db, run))
    async with model_server.client_for(config) as client:
        pending = _PendingDecision(database, client, config, run, adapter)
        objection = await database.aread(lambda db: _overtaken(db, run, adapter))
        if objection:
            return await refuse(database, client, run=run, adapter=adapter, reason=objection, metrics={})
        count = await database.aread(lambda db: count_votes(db, run.id))
        challenger_number = await database.aread(
            lambda db: promotion.challenger_number_of(db, run, run.champion_id)
        )
        tried = await database.aread(lambda db: trials.find_for_run(db, run.id, "canary"))
        if tried is not None and tried.ended_ms is None:
            return await pending.decide_by_canary(tried, count, challenger_number)
        if tried is not None and not count.offered:
            return await pending.end(
                "refuse", Sentence("its canary ended: {reason}", reason=tried.reason), {}
            )
        return await pending.decide_by_votes(count, challenger_number)


@dataclass(frozen=True)
class _PendingDecision:
    """One run whose decision lies with the members, and all that is needed to act on it."""

    database: Database
    client: ModelClient
    config: Config
    run: Run
    adapter: Adapter

    async def decide_by_votes(self, count: VoteCount, challenger_number: int) -> Run | None:
        """Decide by blind votes alone."""
        found = blind_votes.verdict_of(
            count.evidence_for, count.evidence_against, count.votes, self.config.gate, challenger_number
        )
        if found == "promote" and not count.on_enough_duels:
            found = None
        if found is None and not count.full:
            return None
        if found == "promote":
            sentence = count.sentence(count.evidence_for)
        elif found == "refuse":
            sentence = count.sentence(count.evidence_against, lost=True)
        else:
            sentence = count.undecided_reason()
        ended = await self.end(found or "refuse", sentence, {"votes": count.as_json()})
        await self.database.awrite(lambda db: _record_votes(db, self.run, self.adapter, count))
        return ended

    async def decide_by_canary(self, trial: Trial, count: VoteCount, challenger_number: int) -> Run | None:
        """Decide by the ratings of both sides' replies together with the blind votes."""
        seen = await self.database.aread(lambda db: canary.mark(db, trial, count.outcomes))
        if not canary.due(trial, seen):
            return None
        settings = self.config.gate
        material = await self.database.aread(lambda db: canary.read_evidence(db, trial, count.outcomes))
        found = canary.count_evidence(material)
        alone = self.config.trainer.min_raters == 1
        judged = canary.judge_canary(
            material, found, settings, challenger_number=challenger_number, alone_suffices=alone
        )
        if judged == "better" and not _on_enough_grounds(count, found):
            judged = None
        stop_reason = NOTHING if judged else canary.reason_to_end(trial, found, settings)
        if judged is None and not stop_reason:
            needed = canary.still_needed(found, settings, challenger_number)
            shown = {**found.as_json(needed), "votes": count.votes}
            await self.database.awrite(lambda db: trials.record_judgement(db, trial.id, shown, seen))
            return None
        metrics = {"canary": found.figures()} | ({"votes": count.as_json()} if count.votes else {})
        said = _measured(count, found)
        if judged is None:
            said = Sentence(
                "its canary is undecided, and {reason}: {measured}", reason=stop_reason, measured=said
            )
        decision: Decision = "promote" if judged == "better" else "refuse"
        ended = await self.end(decision, said, metrics, judged or "undecided")
        # Only now: a swap that has to wait is tried again from the start.
        await self.database.awrite(lambda db: _record_canary(db, self.run, self.adapter, count, found))
        return ended

    async def end(
        self,
        decision: Decision,
        measured: Sentence,
        metrics: Mapping[str, Any],
        canary_ends: trials.Outcome = "superseded",
    ) -> Run:
        """Promote or refuse; where the policy is to ask, leave the word to an operator."""
        common: dict[str, Any] = {"run": self.run, "adapter": self.adapter, "metrics": metrics}
        if decision == "promote" and self.config.gate.policy != "ask":
            return await swap(
                self.database,
                self.client,
                self.config,
                champion_id=self.run.champion_id,
                measured=measured,
                **common,
            )
        keep = decision == "promote"
        return await refuse(
            self.database,
            self.client,
            reason=promotion.ask(measured) if keep else measured,
            keep=keep,
            canary_ends=canary_ends,
            **common,
        )


def _on_enough_grounds(count: VoteCount, found: canary.TrialResult) -> bool:
    """Whether votes and ratings are on so many different prompts that they say something of others."""
    grounds = count.duels + len(found.newcomer)
    return grounds >= MIN_PROMPTS or bool(count.offered and count.on_enough_duels)


def _measured(count: VoteCount, found: canary.TrialResult) -> Sentence:
    """Say what votes and ratings came to, as far as there were any."""
    lost = found.evidence_against > found.evidence_for
    voted = count.sentence(max(found.evidence_for, found.evidence_against), lost=lost)
    if found.newcomer and count.votes:
        return Sentence("as a canary it was {measured} and {voted}", measured=found.sentence(), voted=voted)
    if found.newcomer:
        return Sentence("as a canary it was {measured}", measured=found.sentence())
    return voted if count.votes else Sentence("nobody rated it")


def _promoted_by_hand(db: sqlite_utils.Database, run: Run) -> Run:
    return runs.finish(
        db,
        run.id,
        outcome="promoted",
        message=Sentence(
            "{adapter} was promoted by an operator while it was judged", adapter=run.adapter_id or ""
        ),
    )


def _overtaken(db: sqlite_utils.Database, run: Run, adapter: Adapter) -> Sentence:
    """Return why a vote no longer makes sense, or an empty sentence."""
    if adapter.state == "tainted":
        return Sentence("a member erased words that it was trained on")
    if adapter.state == "rejected":
        return Sentence("it was set aside while it was judged")
    if adapters.champion(db, run.scope, adapter.base_hash) != run.champion_id:
        return promotion.STALE
    newer = sql.value(
        db,
        """SELECT count(*) FROM runs WHERE scope = ? AND outcome IN ('votes', 'promoted')
           AND rowid > (SELECT rowid FROM runs WHERE id = ?)""",
        (run.scope, run.id),
    )
    return Sentence("a newer challenger took its place") if newer else NOTHING


def _record_votes(db: sqlite_utils.Database, run: Run, adapter: Adapter, count: VoteCount) -> None:
    evaluations.add(
        db,
        run_id=run.id,
        adapter_id=adapter.id,
        champion_id=run.champion_id,
        metric="blind_votes",
        value=count.wins / max(1, count.wins + count.losses),
        n=count.votes,
        detail={"evidence_for": count.evidence_for, "evidence_against": count.evidence_against},
    )


def _record_canary(
    db: sqlite_utils.Database, run: Run, adapter: Adapter, count: VoteCount, found: canary.TrialResult
) -> None:
    if count.votes:
        _record_votes(db, run, adapter, count)
    if found.newcomer:
        evaluations.add(
            db,
            run_id=run.id,
            adapter_id=adapter.id,
            champion_id=run.champion_id,
            metric="canary",
            value=found.like_rate("newcomer") - found.like_rate("incumbent"),
            n=len(found.newcomer),
            detail=found.figures(),
        )


def settle_holdbacks(database: Database, config: Config) -> list[Trial]:
    """Judge every new champion by fresh ratings; go back to the old one where it is liked less.

    Returns the trials that ended. Call it every few seconds.
    """
    ended = []
    for trial in database.read(trials.open_trials):
        if trial.kind == "holdback" and _settle_holdback(database, config, trial):
            over = database.read(lambda db, trial_id=trial.id: trials.expect(db, trial_id))  # type: ignore[misc]
            log.info("holdback.ended", run_id=over.run_id, outcome=over.outcome, reason=over.reason)
            adapter_card.write(database, config, over.run_id)
            ended.append(over)
    return ended


def _settle_holdback(database: Database, config: Config, trial: Trial) -> bool:
    """End a holdback if it can be ended; False while it goes on."""
    if trial.id not in {each.id for each in database.read(lambda db: _active(db, trial))}:
        reason = Sentence("one of its adapters no longer answers")
        return database.write(lambda db: trials.end(db, trial.id, "superseded", reason))
    seen = database.read(lambda db: canary.mark(db, trial))
    if not canary.due(trial, seen):
        return False
    material = database.read(lambda db: canary.read_evidence(db, trial))
    found = canary.count_evidence(material)
    alone = config.trainer.min_raters == 1
    judged = canary.judge_holdback(material, found, config.gate, alone_suffices=alone)
    if judged == "worse":
        return database.write(lambda db: _go_back(db, trial, found))
    stop_reason = canary.reason_to_end(trial, found, config.gate)
    if judged == "better":
        return database.write(lambda db: trials.end(db, trial.id, "better", found.sentence()))
    if stop_reason:
        return database.write(
            lambda db: trials.end(
                db,
                trial.id,
                "undecided",
                Sentence("{reason}: {measured}", reason=stop_reason, measured=found.sentence()),
            )
        )
    shown = found.as_json(None)
    database.write(lambda db: trials.record_judgement(db, trial.id, shown, seen))
    return False


def _active(db: sqlite_utils.Database, trial: Trial) -> list[Trial]:
    return trials.active(db, trial.scope, trial.base_hash)


def _go_back(db: sqlite_utils.Database, trial: Trial, found: canary.TrialResult) -> bool:
    """Put the old champion back in one transaction, unless the trial is over or void by now."""
    if trial.id not in {each.id for each in _active(db, trial)}:
        return False
    reason = Sentence("members like it less: {measured}", measured=found.sentence())
    trials.end(db, trial.id, "worse", reason)
    adapters.rollback(db, scope=trial.scope, base_hash=trial.base_hash, actor=promotion.ACTOR, reason=reason)
    # Later rollbacks must not come back to it.
    adapters.set_state(db, trial.newcomer_id, "rejected")
    return True
