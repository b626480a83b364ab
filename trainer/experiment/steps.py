"""The steps of an experiment: one snapshot, every setting trained and judged in turn; nothing is promoted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog
from transformers import AutoTokenizer

from bot.serving.client import ModelClient
from bot.serving.errors import BaseRefusedError
from bot.serving.model.identity import HUB
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
from trainer.errors import BaseNotTriedError, MemoryShortError, RunSettingsError, SnapshotError
from trainer.evaluation import evaluate
from trainer.experiment import base_server, comparison, judging, measured, page
from trainer.experiment.judging import Judged
from trainer.experiment.measured import Curve, Measured
from trainer.experiment.peak_memory import PeakMemory
from trainer.model_server import retry_while_unavailable
from trainer.on_policy import ranking
from trainer.run.context import RunContext
from trainer.run.steps import RunSteps
from trainer.training.challenger import Challenger

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True)
class Beginning:
    """What settings begin from; `base` and `revision` are as in `Measured`."""

    context: RunContext
    replay: Replay
    base: str = ""
    revision: str = ""


class Experiment(RunSteps):
    """Trains the configured settings and every one that is tried (`settings["experiment"]`) on one snapshot.

    What a setting has brought is kept in the run's folder: an attempt that is taken up again, or another
    run that resumes this one, goes on with the next. Another base has a model server of its own for as long
    as it is tried.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._configured = self._config.trainer
        self._chat = self._config.chat
        self._asked = Asked.of(self._run.settings)
        self._began = time.monotonic()
        # The hash of the base that answers people.
        self._served = ""
        # Where the server of another base says how it is reached; None: the one that answers people.
        self._server_dir: Path | None = None

    def all(self) -> Run:
        """Train, judge and compare."""
        rows = self.snapshot()
        context = self._on_server(self._context)
        served = Beginning(context, self._on_server(lambda client: self._replay(client, context)))
        rows, self._served = self._still_allowed(rows), context.base.hash
        found = measured.read(self.folder, rows.content_hash, self._served)
        self._heartbeat.enter("train", Sentence("loading the base"))
        found = found or [self._base(rows, served)]
        left_out, not_tried = self._try_all(rows, served, found)
        return self._compare(found, rows, left_out, not_tried)

    def _try_all(
        self, rows: Snapshot, served: Beginning, found: list[Measured]
    ) -> tuple[list[str], dict[str, str]]:
        """Add every setting to what is found; return what there was no time for, and what can't be tried."""
        tried: list[Changes] = [{}, *(each for each in self._asked.changes if each)]
        left_out: list[str] = []
        not_tried: dict[str, str] = {}
        for number, changes in enumerate(tried):
            name = experiments.name_of(changes)
            if any(each.name == name for each in found):
                continue
            if not self._time_for_another(found, experiments.base_of(changes), served.context):
                left_out.append(name)
                self._forget_training()
                continue
            self._heartbeat.set_part((number, len(tried), name))
            try:
                with self._beginning(changes, served) as beginning:
                    self._try_from(beginning, changes, rows, found)
            except (BaseNotTriedError, BaseRefusedError, MemoryShortError) as error:
                if not experiments.base_of(changes):
                    raise
                log.warning("experiment.base_not_tried", run_id=self._run.id, error=str(error))
                not_tried[name] = str(error)
                self._forget_training()
        self._heartbeat.set_part(None)
        return left_out, not_tried

    def _try_from(
        self, beginning: Beginning, changes: Changes, rows: Snapshot, found: list[Measured]
    ) -> None:
        if not any(each.is_base and each.base == beginning.base for each in found):
            found.append(self._base(rows, beginning))
            self._keep(found, rows)
        found.append(self._try(changes, rows, beginning))
        self._keep(found, rows)

    @contextmanager
    def _beginning(self, changes: Changes, served: Beginning) -> Iterator[Beginning]:
        """Have what a setting begins from: a model server for its base, where it names another one.

        Raises:
            BaseNotTriedError, BaseRefusedError, MemoryShortError: the base can't be had here.
        """
        base = experiments.base_of(changes)
        if not base:
            yield served
            return
        source, folder = base_server.find(base, self._config), self.folder / base_server.FOLDER
        self._heartbeat.say(Sentence("starting a model server for {base}", base=source.id))
        try:
            asked = self._config.model_copy(update={"trainer": self._settings(changes)})
            base_server.claim_room(asked, source, self._memory)
            with (
                base_server.serving(asked, source, folder, self._heartbeat.check) as described,
                self._asking(folder, described.parameters),
            ):
                if described.hash == served.context.base.hash:
                    raise BaseNotTriedError(
                        "{base} is the base that answers: the configured settings are trained on it.",
                        base=base,
                    )
                context = RunContext(described, None)
                replay = self._on_server(lambda client: self._replay(client, context))
                identity = described.identity
                revision = identity.revision if identity and identity.source.startswith(HUB) else ""
                yield Beginning(context, replay, base, revision)
        finally:
            self._memory.release()

    @contextmanager
    def _asking(self, server_dir: Path, parameters: int) -> Iterator[None]:
        """Ask the server that says there how it is reached, as the chat would ask a base of this size."""
        answers = self._config.chat
        self._server_dir = server_dir
        self._config = self._config.model_copy(update={"chat": self._chat.for_base(parameters)})
        self._forget_hidden_states()
        try:
            yield
        finally:
            self._server_dir = None
            self._config = self._config.model_copy(update={"chat": answers})
            self._forget_hidden_states()

    def _forget_hidden_states(self) -> None:
        """Forget what was read with one base, before another one reads."""
        self.__dict__.pop("hidden_states", None)

    def _on_server(self, work: Callable[[ModelClient], Awaitable[T]]) -> T:
        return model_server.run_with_client(self._config, work, self._server_dir)

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

    def _time_for_another(self, found: list[Measured], base: str, context: RunContext) -> bool:
        """Whether one that takes as long as those before would end within the time that was given."""
        larger = base_server.parameters_of(base) / max(1, context.base.parameters)
        expected = measured.expected_minutes(found, base, larger)
        return expected is None or (time.monotonic() - self._began) / 60 + expected <= self._asked.minutes

    def _base(self, rows: Snapshot, beginning: Beginning) -> Measured:
        """Judge a base as it is: what settings began from."""
        context = beginning.context
        codec = BaseCodec(AutoTokenizer.from_pretrained(self.base_folder(context)))
        judged = self._on_server(lambda client: self._judge(client, context.base.id, rows, beginning, codec))
        return _measured(measured.name_of_base(beginning.base), judged, beginning)

    def _try(self, changes: Changes, rows: Snapshot, beginning: Beginning) -> Measured:
        """Train one setting, serve its adapter for as long as it is judged, and take it away."""
        settings = self._settings(changes)
        self._config = self._config.model_copy(update={"trainer": settings})
        began, peak = time.monotonic(), PeakMemory.begin()
        trained, codec = self.train(rows, beginning.context, beginning.replay)
        peak_mib = peak.mib()
        self._heartbeat.say(Sentence("its replies to development prompts"))
        try:
            judged = self._on_server(
                lambda client: self._judge(client, trained.adapter_id, rows, beginning, codec)
            )
        finally:
            self._take_away(trained)
        self._forget_training()
        return replace(
            _measured(experiments.name_of(changes), judged, beginning),
            changes=dict(changes),
            objective=trained.plan.objective,
            minutes=(time.monotonic() - began) / 60,
            peak_mib=peak_mib,
            curves=_curves(trained),
        )

    def _forget_training(self) -> None:
        """Let the next one neither go on from this one's checkpoint nor find its ranked replies."""
        ranking.forget(self.folder)
        checkpoints.remove(self.folder)

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
        beginning: Beginning,
        codec: Codec,
    ) -> Judged:
        gate, chat, context = self._config.gate, self._config.chat, beginning.context
        if model != context.base.id:
            await retry_while_unavailable(lambda: model_server.ensure_listed(client, self._config, model))
        on = await judging.ground_of(
            client,
            codec,
            context.base.id,
            rows,
            beginning.replay.held_out,
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
        measured.write(found, rows.content_hash, self._served, self.folder)
        self._got_further()

    def _compare(
        self, found: list[Measured], rows: Snapshot, left_out: list[str], not_tried: dict[str, str]
    ) -> Run:
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
        self._metrics["experiment"] = compared.as_json() | {"left_out": left_out, "not_tried": not_tried}
        for of_the_last in ("training", "scale"):
            self._metrics.pop(of_the_last, None)
        path = self.folder / page.FILE
        path.write_text(page.render(self._run, compared, left_out, not_tried), encoding="utf-8")
        return self._database.write(
            lambda db: runs.finish(
                db, self._run.id, outcome="refused", message=compared.sentence, metrics=self._metrics
            )
        )


def _measured(name: str, judged: Judged, beginning: Beginning) -> Measured:
    return Measured(
        name,
        judged.answers,
        judged.perplexity,
        judged.accuracy,
        judged.general_rise,
        base=beginning.base,
        revision=beginning.revision,
    )


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
