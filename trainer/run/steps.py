"""The steps of a run, in order: snapshot, train, evaluate, decide, swap."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import sqlite_utils
import structlog

from bot.serving.client import ModelClient
from bot.serving.errors import UnknownModelError
from storage.errors import RunNotActiveError
from storage.learning import adapters, checkpoints, eligibility, preference_votes, runs
from storage.learning.adapters import Adapter
from storage.learning.preference_votes import VotedPair
from storage.learning.runs import Run
from storage.learning.signals import of_replies
from storage.sentences import Sentence
from trainer import model_server
from trainer.data import snapshot
from trainer.data.encoding import Codec
from trainer.data.general_replies import Replay
from trainer.data.snapshot import Snapshot
from trainer.errors import RunCancelledError, SnapshotError
from trainer.evaluation import evaluate as evaluation
from trainer.evaluation import safety_probe, scores
from trainer.evaluation.evaluate import Evaluation
from trainer.evaluation.hidden_states.reader import HiddenStates
from trainer.evaluation.safety_probe import Contest
from trainer.gate import blind_votes, decision, guardrails, promotion
from trainer.gate.blind_votes import DuelPairs
from trainer.model_server import retry_while_unavailable
from trainer.on_policy import ranking, signals
from trainer.run import context as run_context
from trainer.run import metrics
from trainer.run.context import RunContext
from trainer.run.training_step import TrainingStep
from trainer.training import objectives
from trainer.training.challenger import Challenger

T = TypeVar("T")

log = structlog.get_logger()

# How often a challenger is compared, where the champion changes meanwhile.
MOST_COMPARISONS = 3


class RunSteps(TrainingStep):
    """The phases of one run, in order; each leaves what the next one needs."""

    def all(self) -> Run:
        """Run every phase."""
        rows = self.snapshot()
        context = self._on_server(self._context)
        replay = self._on_server(lambda client: self._replay(client, context))
        rows = self._still_allowed(rows)
        trained, codec = self.train(rows, context, replay)
        adapter = self._register(trained, rows, context)
        judged = self.evaluate(rows, context, replay, trained, adapter, codec)
        for _ in range(MOST_COMPARISONS - 1):
            now = self._champion(context)
            if now in (context.champion_id, adapter.id):
                break
            # Somebody put another one in service: the training stands, only the comparison doesn't.
            context = replace(context, champion_id=now)
            judged = self.evaluate(rows, context, replay, trained, adapter, codec)
        return self.decide(judged, context, adapter)

    def _champion(self, context: RunContext) -> str | None:
        return self._database.read(lambda db: adapters.champion(db, self._run.scope, context.base.hash))

    # -------------------------------------------------------------------------------------------- snapshot
    def snapshot(self) -> Snapshot:
        """Freeze the rows; raises NotYetError where there are too few."""
        self._heartbeat.enter("snapshot", Sentence("collecting ratings"))
        reference = self._config.discord.training_permission_reference
        eligible, reasons, looks, voted = self._database.read(
            lambda db: _read_rows(db, self._run.scope, reference)
        )
        rows = self._begun_with(eligible, voted)
        begun = rows is not None
        if rows is None:
            ranking.forget(self.folder)
            rows = snapshot.build(eligible.rows, reasons, looks, voted)
        excluded = eligible.excluded | ({"retired": rows.retired} if rows.retired else {})
        self._metrics |= {"data": snapshot.summary(rows), "excluded": excluded}
        objectives.require_enough(rows, self._config.trainer, excluded)
        rows = rows if begun else self._with_signals(rows)
        if rows.signals:
            self._metrics["signals"] = dict(rows.signals)
        self.freeze(rows)
        self._heartbeat.show(0.5, Sentence("sampling replies from the base"))
        return rows

    def _with_signals(self, rows: Snapshot) -> Snapshot:
        """Return the snapshot with unrated replies whose free signals proved to tell what members like."""
        settings, reference = self._config.trainer, self._config.discord.training_permission_reference
        if not settings.signals or not objectives.may_rank(settings):
            return rows
        ids = [row.reply_id for row in rows.of("train")]
        of_rated, of_unrated = self._database.read(
            lambda db: (
                of_replies.of_replies(db, ids, permission_reference=reference),
                of_replies.of_unrated(db, self._run.scope, permission_reference=reference),
            )
        )
        weak, found = signals.weak_labels(rows, of_rated, of_unrated, seed=settings.seed)
        return replace(rows.with_weak(weak) if weak else rows, signals=found.as_json())

    def freeze(self, rows: Snapshot) -> None:
        """Write the snapshot and record which rows it holds. Raises RunCancelledError."""
        snapshot.write(rows, self.folder)
        try:
            self._database.write(
                lambda db: runs.record_snapshot(
                    db, self._run.id, snapshot_hash=rows.content_hash, rows=snapshot.run_rows(rows)
                )
            )
        except RunNotActiveError as error:
            raise RunCancelledError(Sentence.of(error)) from error

    def _begun_with(self, eligible: eligibility.Eligibility, voted: list[VotedPair]) -> Snapshot | None:
        """Return the snapshot of an attempt that was interrupted in training if all of it may still train."""
        if self._run.snapshot_hash is None or not (self.folder / checkpoints.FILE).exists():
            return None
        try:
            begun = snapshot.read(self.folder, self._run.snapshot_hash)
        except SnapshotError:
            return None
        return begun if self._may_train(begun, eligible, voted) else None

    def _may_train(self, rows: Snapshot, eligible: eligibility.Eligibility, voted: list[VotedPair]) -> bool:
        """Whether everything in a snapshot may still train, unrated replies too if signals may be read."""
        if rows.weak and not self._config.trainer.signals:
            return False
        reference = self._config.discord.training_permission_reference
        ids = [weak.reply_id for weak in rows.weak]
        unrated = self._database.read(
            lambda db: of_replies.of_replies(db, ids, permission_reference=reference)
        )
        return snapshot.still_allowed(rows, eligible.rows, voted, unrated)

    def _still_allowed(self, rows: Snapshot) -> Snapshot:
        """Return the snapshot, or a new one if something in it may not train any more since it was made."""
        reference = self._config.discord.training_permission_reference
        eligible, _, _, voted = self._database.read(lambda db: _read_rows(db, self._run.scope, reference))
        return rows if self._may_train(rows, eligible, voted) else self.snapshot()

    async def _context(self, client: ModelClient) -> RunContext:
        context = await run_context.find(client, self._database, self._config, self._run.scope)
        # Models are asked here as they are in the chat.
        chat = self._config.chat.for_base(context.base.parameters)
        self._config = self._config.model_copy(update={"chat": chat})
        return context

    async def _replay(self, client: ModelClient, context: RunContext) -> Replay:
        return await run_context.replay(client, self._config, context, self._heartbeat)

    def _register(self, trained: Challenger, rows: Snapshot, context: RunContext) -> Adapter:
        return self._database.write(
            lambda db: adapters.insert_candidate(
                db,
                adapter_id=trained.adapter_id,
                scope=self._run.scope,
                base_hash=context.base.hash,
                path=f"adapters/{trained.adapter_id}",
                run_id=self._run.id,
                parent_id=None,
                rehearsal=rows.rehearsal,
                manifest=json.loads((trained.folder / "manifest.json").read_text(encoding="utf-8")),
            )
        )

    # -------------------------------------------------------------------------------------------- evaluate
    def evaluate(
        self,
        rows: Snapshot,
        context: RunContext,
        replay: Replay,
        trained: Challenger,
        adapter: Adapter,
        codec: Codec,
    ) -> Evaluation:
        """Compare challenger and champion through the server, and record what was measured."""
        self._heartbeat.enter("evaluate", Sentence("comparing replies on held-out conversations"))
        budget_s = self._budget_s(trained)
        contest = Contest(adapter.id, context.champion_id or context.base.id, context.base.id)
        challenger_number = self._database.read(
            lambda db: promotion.challenger_number_of(db, self._run, context.champion_id)
        )

        async def compare(client: ModelClient, states: HiddenStates | None) -> Evaluation:
            for name in filter(None, (adapter.id, context.champion_id)):
                await retry_while_unavailable(
                    lambda name=name: model_server.ensure_listed(client, self._config, name)  # type: ignore[misc]
                )
            return await evaluation.evaluate(
                client,
                codec,
                rows,
                replay.held_out,
                contest,
                gate=self._config.gate,
                chat=self._config.chat,
                max_length=self._config.trainer.max_length,
                budget_s=budget_s,
                seed=self._config.trainer.seed,
                challenger_number=challenger_number,
                probes_cache=safety_probe.cache_path(
                    self._config.models, context.base.hash, self._config.chat
                ),
                states_of=states,
                on_progress=self._heartbeat.show,
            )

        with self.reading(context) as states:
            work = partial(compare, states=states)
            try:
                judged = self._on_server(work)
            except UnknownModelError:
                # The server restarted and forgot what was loaded: load it again, compare once more.
                log.warning("the comparison starts again", run_id=self._run.id)
                judged = self._on_server(work)
        scores.write(judged.scores, self.folder)
        self._metrics["evaluation"] = judged.figures | self._reading_cost(states)
        if judged.evidence.preference is not None:
            estimate = judged.evidence.preference
            self._metrics["headline"] = {**estimate.as_json(), "n": estimate.clusters}
        self._database.write(lambda db: metrics.record(db, self._run, adapter, context.champion_id, judged))
        return judged

    def _reading_cost(self, judged_with: HiddenStates | None) -> dict[str, Any]:
        """Return what hidden states have cost so far, where they are asked for."""
        read = self.hidden_states
        if read is None:
            return {}
        cost = {"replies": read.replies, "seconds": round(read.seconds, 1), "fits": judged_with is not None}
        return {"hidden_states": cost}

    def _budget_s(self, trained: Challenger) -> float:
        """Return how long to generate: as the training took, at most the limit and at least half a minute."""
        return min(self._config.gate.generation_minutes * 60, max(trained.seconds, 30.0))

    # ---------------------------------------------------------------------------------------------- decide
    def decide(self, judged: Evaluation, context: RunContext, adapter: Adapter) -> Run:
        """Ask the gate and act on its verdict."""
        self._heartbeat.enter("decide")
        verdict = decision.decide(judged.evidence, self._config.gate)
        self._metrics["decision"] = verdict.decision
        self._metrics["reason"] = verdict.reason
        limits = guardrails.of(judged.evidence, self._config.gate)
        self._metrics["guardrails"] = [limit.as_json() for limit in limits]
        pairs = self._allowed(blind_votes.pairs_of(judged.pairs))
        if verdict.decision == "votes" and not pairs:
            verdict = decision.Verdict("refuse", Sentence("it answers as before"))
        log.info("gate.decided", run_id=self._run.id, adapter_id=adapter.id, decision=verdict.decision)
        self._write_report(verdict, adapter)
        if verdict.decision == "votes":
            self._heartbeat.check()
            why = Sentence(
                "there is not enough offline evidence for {adapter}, because {reason}",
                adapter=adapter.id,
                reason=verdict.reason,
            )
            return asyncio.run(self._vote(context, adapter, pairs, why, judged.evidence.challenger_number))
        if verdict.decision == "promote" and self._config.gate.policy == "canary-first":
            self._heartbeat.check()
            why = Sentence(
                "{adapter} won offline with {measured}, and its canary has to confirm it",
                adapter=adapter.id,
                measured=verdict.reason,
            )
            return asyncio.run(self._vote(context, adapter, (), why, judged.evidence.challenger_number))
        self._heartbeat.enter("swap")
        return self._on_server(lambda client: self._act(client, verdict, context, adapter))

    def _allowed(self, pairs: DuelPairs) -> DuelPairs:
        """Return the pairs whose prompts may still be shown: somebody may have withdrawn theirs since."""
        reference = self._config.discord.training_permission_reference
        asked = [reply_id for *_, reply_id in pairs if reply_id is not None]
        allowed = self._database.read(lambda db: eligibility.list_allowed_prompts(db, asked, reference))
        return [pair for pair in pairs if pair[3] is None or pair[3] in allowed]

    async def _vote(
        self,
        context: RunContext,
        adapter: Adapter,
        pairs: DuelPairs,
        why: Sentence,
        challenger_number: int,
    ) -> Run:
        return await blind_votes.open_vote(
            self._database,
            self._config.gate,
            run=self._run,
            adapter=adapter,
            champion_id=context.champion_id,
            pairs=pairs,
            why=why,
            challenger_number=challenger_number,
            metrics=self._metrics,
        )

    async def _act(
        self, client: ModelClient, verdict: decision.Verdict, context: RunContext, adapter: Adapter
    ) -> Run:
        common: dict[str, Any] = {"run": self._run, "adapter": adapter, "metrics": self._metrics}
        if verdict.decision == "refuse":
            return await promotion.refuse(self._database, client, reason=verdict.reason, **common)
        if self._config.gate.policy == "ask":
            reason = promotion.ask(verdict.reason)
            return await promotion.refuse(self._database, client, reason=reason, keep=True, **common)
        return await promotion.swap(
            self._database,
            client,
            self._config,
            champion_id=context.champion_id,
            measured=verdict.reason,
            **common,
        )

    def _write_report(self, verdict: decision.Verdict, adapter: Adapter) -> None:
        """Keep the whole outcome beside the snapshot."""
        report = {"adapter": adapter.id, "decision": verdict.decision, "reason": verdict.reason}
        text = json.dumps(report | self._metrics, indent=2, sort_keys=True)
        (self.folder / "report.json").write_text(text, encoding="utf-8")


def _read_rows(
    db: sqlite_utils.Database, scope: str, reference: str
) -> tuple[eligibility.Eligibility, dict[str, str | None], dict[str, int], list[VotedPair]]:
    eligible = eligibility.eligible_rows(db, scope, permission_reference=reference)
    reasons = snapshot.finish_reasons(db, [row.reply_id for row in eligible.rows])
    voted = preference_votes.eligible_pairs(db, scope, eligible.rows, permission_reference=reference)
    return eligible, reasons, snapshot.looks(db, scope), voted
