"""The steps of an experiment: one snapshot, every setting trained and judged in turn; nothing is promoted."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bot.serving.client import ModelClient
from storage import experiments
from storage.config_sections import TrainerConfig
from storage.errors import ExperimentError
from storage.experiments import Asked, Changes
from storage.learning import adapters, checkpoints, eligibility, runs
from storage.learning.preference_votes import VotedPair
from storage.learning.runs import Run
from storage.sentences import Sentence
from trainer import model_server
from trainer.data import snapshot
from trainer.data.encoding import Codec
from trainer.data.examples import BaseCodec
from trainer.data.general_replies import Replay
from trainer.data.snapshot import Snapshot
from trainer.errors import RunSettingsError, SnapshotError
from trainer.evaluation import evaluate
from trainer.experiment import comparison, judging, measured, page
from trainer.experiment.comparison import BASE, Comparison
from trainer.experiment.judging import Judged
from trainer.experiment.measured import Curve, Measured
from trainer.experiment.peak_memory import PeakMemory
from trainer.model_server import retry_while_unavailable
from trainer.on_policy import ranking
from trainer.run.context import RunContext
from trainer.run.steps import RunSteps
from trainer.training.challenger import Challenger


class Experiment(RunSteps):
    """Trains the configured settings and every one that is tried (`settings["experiment"]`) on one snapshot.

    What a setting has brought is kept in the run's folder: an attempt that is taken up again, or another
    run that resumes this one, goes on with the next.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._configured = self._config.trainer
        self._asked = Asked.of(self._run.settings)
        self._began = time.monotonic()

    def all(self) -> Run:
        """Train, judge and compare."""
        rows = self.snapshot()
        context = self._on_server(self._context)
        replay = self._on_server(lambda client: self._replay(client, context))
        rows = self._still_allowed(rows)
        found = measured.read(self.folder, rows.content_hash)
        self._heartbeat.enter("train", Sentence("loading the base"))
        found = found or [self._base(rows, context, replay)]
        tried: list[Changes] = [{}, *(each for each in self._asked.changes if each)]
        left_out = []
        for number, changes in enumerate(tried):
            name = experiments.name_of(changes)
            if any(each.name == name for each in found):
                continue
            if not self._time_for_another(found):
                left_out.append(name)
                continue
            self._heartbeat.set_part((number, len(tried), name))
            found.append(self._try(changes, rows, context, replay))
            self._keep(found, rows)
        self._heartbeat.set_part(None)
        return self._compare(found, rows, left_out)

    def _begun_with(self, eligible: eligibility.Eligibility, voted: list[VotedPair]) -> Snapshot | None:
        """Return the snapshot of an earlier attempt, or of what this one resumes, if all of it may train."""
        if self._asked.resumes and not (self.folder / measured.FIGURES).exists():
            return self._resumed(eligible, voted)
        if self._run.snapshot_hash is None:
            return None
        try:
            begun = snapshot.read(self.folder, self._run.snapshot_hash)
        except SnapshotError:
            return None
        return begun if self._may_train(begun, eligible, voted) else None

    def _resumed(self, eligible: eligibility.Eligibility, voted: list[VotedPair]) -> Snapshot:
        earlier = self._database.read(lambda db: runs.expect(db, self._asked.resumes))
        gone = SnapshotError(
            "Experiment {run} can't be resumed: something in its snapshot was deleted, or may not train any "
            "more.",
            run=earlier.id,
        )
        if not earlier.repeatable:
            raise gone
        folder = self._config.runs / earlier.id
        rows = snapshot.read(folder, earlier.snapshot_hash or "")
        if not self._may_train(rows, eligible, voted):
            raise gone
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in (measured.ANSWERS, measured.FIGURES):
            if (folder / name).exists():
                shutil.copyfile(folder / name, self.folder / name)
        return rows

    def _time_for_another(self, found: list[Measured]) -> bool:
        """Whether one that takes as long as those before would end within the time that was given."""
        minutes = [each.minutes for each in found if each.name != BASE]
        if not minutes:
            return True
        usual = sum(minutes) / len(minutes)
        return (time.monotonic() - self._began) / 60 + usual <= self._asked.minutes

    def _base(self, rows: Snapshot, context: RunContext, replay: Replay) -> Measured:
        """Judge the base as it is: what all of them began from."""
        codec = BaseCodec(AutoTokenizer.from_pretrained(self.base_folder(context)))
        judged = self._on_server(
            lambda client: self._judge(client, context.base.id, rows, context, replay, codec)
        )
        return _measured(BASE, judged)

    def _try(self, changes: Changes, rows: Snapshot, context: RunContext, replay: Replay) -> Measured:
        """Train one setting, serve its adapter for as long as it is judged, and take it away."""
        settings = self._settings(changes)
        self._config = self._config.model_copy(update={"trainer": settings})
        began, peak = time.monotonic(), PeakMemory.begin()
        trained, codec = self.train(rows, context, replay)
        peak_mib = peak.mib()
        self._heartbeat.say(Sentence("its replies to development prompts"))
        try:
            judged = self._on_server(
                lambda client: self._judge(client, trained.adapter_id, rows, context, replay, codec)
            )
        finally:
            self._take_away(trained)
        # The next one must neither go on from this checkpoint nor find these ranked replies.
        ranking.forget(self.folder)
        checkpoints.remove(self.folder)
        return replace(
            _measured(experiments.name_of(changes), judged),
            changes=dict(changes),
            objective=trained.plan.objective,
            minutes=(time.monotonic() - began) / 60,
            peak_mib=peak_mib,
            curves=_curves(trained),
        )

    def _settings(self, changes: Changes) -> TrainerConfig:
        try:
            return experiments.settings(self._configured, changes)
        except ExperimentError as error:
            # Checked when it was asked for: the configuration or the version has changed since.
            raise RunSettingsError("This run's settings are not valid: {value}", value=str(error)) from error

    async def _judge(
        self,
        client: ModelClient,
        model: str,
        rows: Snapshot,
        context: RunContext,
        replay: Replay,
        codec: Codec,
    ) -> Judged:
        gate, chat = self._config.gate, self._config.chat
        if model != context.base.id:
            await retry_while_unavailable(lambda: model_server.ensure_listed(client, self._config, model))
        on = await judging.ground_of(
            client,
            codec,
            context.base.id,
            rows,
            replay.held_out,
            gate=gate,
            chat=chat,
            max_length=self._config.trainer.max_length,
        )
        return await judging.judge(client, model, on, gate=gate, chat=chat, seed=self._configured.seed)

    def _take_away(self, trained: Challenger) -> None:
        """Unload and remove an adapter, unless a run of before has made the very same and registered it."""
        if self._database.read(lambda db: adapters.get(db, trained.adapter_id)) is not None:
            return
        self._on_server(lambda client: model_server.unload(client, trained.adapter_id))
        shutil.rmtree(trained.folder, ignore_errors=True)

    def _keep(self, found: list[Measured], rows: Snapshot) -> None:
        measured.write(found, rows.content_hash, self.folder)
        self._got_further()

    def _compare(self, found: list[Measured], rows: Snapshot, left_out: list[str]) -> Run:
        self._heartbeat.enter("decide")
        chat, gate = self._config.chat, self._config.gate
        prompts = evaluate.held_out_prompts(
            rows, chat.system_prompt, gate.max_prompts, (judging.DEVELOPMENT,)
        )
        seed = self._configured.seed
        compared = comparison.compare(
            found,
            prompts,
            ranking.fit_reward_model(rows, seed=seed),
            evaluate.rated_texts(rows.of("train")),
            evaluate.rated_texts(rows.of(judging.DEVELOPMENT), corrections=False),
            gate,
            seed,
        )
        self._metrics["experiment"] = compared.as_json() | {"left_out": left_out}
        for of_the_last in ("training", "scale"):
            self._metrics.pop(of_the_last, None)
        self._write_page(compared, left_out)
        return self._database.write(
            lambda db: runs.finish(
                db, self._run.id, outcome="refused", message=compared.sentence, metrics=self._metrics
            )
        )

    def _write_page(self, compared: Comparison, left_out: list[str]) -> Path:
        path = self.folder / page.FILE
        path.write_text(page.render(self._run, compared, left_out), encoding="utf-8")
        return path


def _measured(name: str, judged: Judged) -> Measured:
    return Measured(name, judged.answers, judged.perplexity, judged.accuracy, judged.general_rise)


def _curves(trained: Challenger) -> tuple[Curve, ...]:
    return tuple(
        Curve(
            phase,
            report.steps,
            round(report.seconds, 1),
            round(report.tokens_per_second, 1),
            tuple(round(loss, 4) for loss in report.losses),
        )
        for phase, report in trained.reports.items()
        if report.steps
    )
