"""The step of a run that trains: here in the run's process, or in another place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
from transformers import AutoTokenizer

from bot.serving.client import ModelClient
from bot.serving.errors import BaseRefusedError
from bot.serving.first_word import GiveWay
from bot.serving.model.loading import (
    LoadedBase,
    choose_execution,
    load_base,
    read_info,
    resolve_device,
)
from storage.config import Config
from storage.db.database import Database
from storage.errors import DatabaseError
from storage.learning import runs
from storage.learning.runs import Run
from storage.sentences import Sentence
from trainer import model_server
from trainer.data.encoding import Codec
from trainer.data.examples import BaseCodec
from trainer.data.general_replies import Replay
from trainer.data.snapshot import Snapshot
from trainer.errors import MemoryShortError
from trainer.evaluation.hidden_states.reader import HiddenStates
from trainer.on_policy.adapter_scale import ScaleChoice, ScaleSearch
from trainer.on_policy.sampling import OwnReplies, PolicySampler
from trainer.placement import carry_out, elsewhere, request
from trainer.placement.base import local_folder
from trainer.placement.elsewhere import Place
from trainer.placement.ray_cluster import RayCluster
from trainer.placement.request import TrainingInput, TrainingRequest
from trainer.run import metrics
from trainer.run.context import RunContext
from trainer.run.heartbeat import Heartbeat
from trainer.run.memory_claims import MemoryClaims
from trainer.training import gpu, objectives
from trainer.training.challenger import Challenger, OwnPairs

T = TypeVar("T")

log = structlog.get_logger()

# What evaluation takes beside generation, as a guess for the estimate of time left.
SCORING_GUESS_S = 60.0


class TrainingStep:
    """What a run has at hand, and its training."""

    def __init__(self, database: Database, config: Config, run: Run, heartbeat: Heartbeat) -> None:
        self._database = database
        self._config = config
        self._run = run
        self._heartbeat = heartbeat
        self.folder = config.runs / run.id
        self._metrics: dict[str, Any] = {}
        self._memory = MemoryClaims(config.run, run.id, self._wait_for_memory)

    def train(self, rows: Snapshot, context: RunContext, replay: Replay) -> tuple[Challenger, Codec]:
        """Train and save the challenger."""
        later_s = self._config.gate.generation_minutes * 60 / 2 + SCORING_GUESS_S
        self._heartbeat.enter("train", Sentence("loading the base"), later_s=later_s)
        request.forget_other(self.folder, context.base.hash, self._config.trainer, rows, replay.train)
        place = self.place()
        trained, codec = (
            self._train_here(rows, context, replay)
            if place is None
            else self._train_elsewhere(place, rows, context, replay)
        )
        trained, scale = self._scaled(trained, rows, context, replay, codec)
        self._metrics |= {"training": metrics.describe_training(trained), "scale": scale and scale.as_json()}
        return trained, codec

    def _scaled(
        self, trained: Challenger, rows: Snapshot, context: RunContext, replay: Replay, codec: Codec
    ) -> tuple[Challenger, ScaleChoice | None]:
        """Return the challenger at the scale at which it is expected to keep to the gate's limits."""
        sampler = PolicySampler(self._config, self.folder, self._heartbeat.say, self._on_server)
        return ScaleSearch(sampler, codec, context.base.id, rows, replay.validation).scaled(trained)

    def place(self) -> Place | None:
        """Return where to train; None is this process."""
        settings = self._config.trainer
        return RayCluster.of(settings) if settings.where == "ray" else None

    def _train_here(self, rows: Snapshot, context: RunContext, replay: Replay) -> tuple[Challenger, Codec]:
        with gpu.own_card(self._config, self._heartbeat.check) as alone:
            trained = self._train_on_card(rows, context, replay, ranks=not alone)
            gpu.give_back_memory()
        return trained

    def _train_on_card(
        self, rows: Snapshot, context: RunContext, replay: Replay, *, ranks: bool
    ) -> tuple[Challenger, Codec]:
        base = self.load_base(context)
        own_pairs = self.own_pairs(base, rows) if ranks else None
        training = self._asked_for(rows, context, replay, judged=own_pairs is not None)
        return self.carry_out(training, base, own_pairs), BaseCodec(base.tokenizer)

    def _train_elsewhere(
        self, place: Place, rows: Snapshot, context: RunContext, replay: Replay
    ) -> tuple[Challenger, Codec]:
        """Train in another place; only ranked replies are asked for here, of whatever serves."""
        codec = BaseCodec(AutoTokenizer.from_pretrained(self.base_folder(context)))
        own = self._own_replies(codec, context.base.id, rows)
        self._heartbeat.say(Sentence("waiting for the training host"))
        trained = elsewhere.train(
            self._asked_for(rows, context, replay, judged=own is not None),
            place,
            work=self.folder,
            adapters_dir=self._config.adapters,
            ask=own.pairs_by_adapter if own else None,
            on_checkpoint=self._got_further,
            on_progress=self._heartbeat.show,
            check=self._heartbeat.check,
        )
        return trained, codec

    def _asked_for(
        self, rows: Snapshot, context: RunContext, replay: Replay, *, judged: bool
    ) -> TrainingInput:
        settings = self._config.trainer
        plan = objectives.choose(rows, settings, judged=judged)
        return TrainingInput(TrainingRequest.of(context.base, plan, settings, rows), rows, replay.train)

    def carry_out(
        self,
        training: TrainingInput,
        base: LoadedBase,
        own_pairs: OwnPairs | None,
        adapters_dir: Path | None = None,
    ) -> Challenger:
        """Train in this process, the run's folder being the training's."""
        request.write(training, self.folder)
        try:
            return carry_out.train(
                training,
                base,
                work=self.folder,
                adapters_dir=adapters_dir or self._config.adapters,
                own_pairs=own_pairs,
                on_checkpoint=self._got_further,
                on_progress=self._heartbeat.show,
                give_way=None if self._config.server.base_url else GiveWay(self._config.run),
                claim=partial(self._memory.claim, base.device),
            )
        finally:
            self._memory.release()

    def load_base(self, context: RunContext) -> LoadedBase:
        """Load the served base on the device that trains, where it fits beside other runs."""
        settings = self._config.trainer
        device = self._device()
        if device.startswith("cuda"):
            gpu.compute_in_fixed_order()
            gpu.claim(device, settings.gpu_memory_share)
        folder = self.base_folder(context)
        form = self._memory.claim(device, partial(choose_execution, read_info(folder), device))
        self._heartbeat.say(Sentence("loading the base"))
        return load_base(folder, device, "train", execution=form)

    def _wait_for_memory(self) -> None:
        self._heartbeat.say(Sentence("waiting for memory that another run needs"))

    def base_folder(self, context: RunContext) -> Path:
        """Return where the served base lies on this machine."""
        return local_folder(context.base, self._config, self._device())

    def _device(self) -> str:
        return resolve_device(gpu.device_for(self._config.trainer, self._config.model))

    def own_pairs(self, base: LoadedBase, rows: Snapshot) -> OwnPairs | None:
        """Return what ranks the model's own replies; None where no reward model of the ratings is proven."""
        states = self.hidden_states
        with states.reading_by(base) if states else nullcontext():
            own = self._own_replies(BaseCodec(base.tokenizer), base.info.id, rows, states)
        return None if own is None else lambda model, number: own.pairs_by_model(model, base, number)

    def _own_replies(
        self, codec: Codec, base_id: str, rows: Snapshot, states: HiddenStates | None = None
    ) -> OwnReplies | None:
        sampler = PolicySampler(self._config, self.folder, self._heartbeat.say, self._on_server)
        judge = sampler.judge(base_id, rows, states)
        if judge is None:
            return None
        return OwnReplies(sampler, codec, base_id, rows, judge, states)

    @cached_property
    def hidden_states(self) -> HiddenStates | None:
        """What the run's reward models read hidden states with; None unless the operator asks for it."""
        if not self._config.trainer.judge_hidden_states:
            return None
        return HiddenStates(self._config.chat.system_prompt, self._config.trainer.max_length)

    @contextmanager
    def reading(self, context: RunContext) -> Iterator[HiddenStates | None]:
        """Load a copy of the base to read hidden states with; None unless it is asked for and fits."""
        states = self.hidden_states
        if states is None:
            yield None
            return
        try:
            base = self.load_base(context)
        except (BaseRefusedError, MemoryShortError) as error:
            log.warning("hidden_states.no_memory", run_id=self._run.id, error=str(error))
            yield None
            return
        try:
            with states.reading_by(base):
                yield states
        finally:
            del base
            self._memory.release()
            gpu.give_back_memory()

    def _got_further(self) -> None:
        try:
            self._database.write(lambda db: runs.got_further(db, self._run.id))
        except DatabaseError as error:
            log.warning("the checkpoint was not counted", run_id=self._run.id, error=str(error))

    def _on_server(self, work: Callable[[ModelClient], Awaitable[T]]) -> T:
        """Run one piece of work with a client of its own."""
        return model_server.run_with_client(self._config, work)
