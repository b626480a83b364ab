"""Carrying out a training, wherever this is called.

A place that has no way to the model server can't ask the model that it trains for replies to rank. There the
training stops before each round of ranked replies, with its checkpoint and the adapter as it is; whoever
sent it puts that round's pairs into the folder, and it is carried out once more, from the checkpoint on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog
from peft import PeftModel

from bot.serving.errors import ServingError
from bot.serving.first_word import GiveWay
from bot.serving.model.loading import LoadedBase, load_base, resolve_device
from storage.sentences import Sentence
from trainer.data.rows import PreferencePair
from trainer.errors import TrainerError
from trainer.placement import base as base_files
from trainer.placement import outcome, request
from trainer.placement.outcome import ADAPTERS, Outcome
from trainer.placement.process_figures import ProcessMeter
from trainer.placement.request import TrainingInput
from trainer.training import challenger, fitting, gpu, ranks, saving
from trainer.training.adapter import giving_way
from trainer.training.challenger import Challenger, OwnPairs, Progress
from trainer.training.fitting import Claim

log = structlog.get_logger()


class PairsWantedError(Exception):
    """A training needs the ranked replies of one round; its folder holds the adapter to ask for them."""

    def __init__(self, adapter_id: str, number: int) -> None:
        super().__init__(f"the ranked replies of round {number} are not there yet")
        self.adapter_id = adapter_id
        self.number = number


def train(
    training: TrainingInput,
    base: LoadedBase,
    *,
    work: Path,
    adapters_dir: Path,
    own_pairs: OwnPairs | None = None,
    on_checkpoint: Callable[[], None] = lambda: None,
    on_progress: Progress = lambda share, note: None,
    give_way: GiveWay | None = None,
    claim: Claim = fitting.alone,
) -> Challenger:
    """Train in this process, on a loaded base; raises what `challenger.train_challenger` raises.

    `give_way` lets it stand still while somebody waits for the model server of this machine, `claim` shares
    the memory with other trainings there.
    """
    asked = training.request
    with giving_way(base.model, give_way or (lambda: None)):
        return challenger.train_challenger(
            base,
            training.snapshot,
            training.replay,
            asked.plan,
            asked.settings,
            work=work,
            adapters_dir=adapters_dir,
            steps=asked.steps,
            own_pairs=own_pairs,
            on_checkpoint=on_checkpoint,
            on_progress=on_progress,
            claim=claim,
            clock=time.monotonic if give_way is None else give_way.working_clock,
        )


def carry_out(
    folder: Path,
    models: Path,
    *,
    device: str = "auto",
    forget: bool = False,
    on_checkpoint: Callable[[], None] = lambda: None,
    on_progress: Progress = lambda share, note: None,
) -> Outcome:
    """Carry out the training of a folder, or what is left of it, and write its outcome there.

    `models` holds this place's bases. With `forget` the folder is a copy: what may hold members' words is
    removed as soon as it is read, so that nothing of it is left where this process is killed. `on_checkpoint`
    is called when there is a new one, on the first of several ranks.

    A training that fails has an outcome too; only what isn't the training's own fault is raised.
    """
    with ProcessMeter() as meter:
        found = _attempt(folder, models, device, forget, on_checkpoint, on_progress)
        took = outcome.together(ranks.everyone(meter.figures()))
    found = replace(found, process=took)
    return outcome.write(found, folder) if ranks.is_first() else found


def _attempt(
    folder: Path,
    models: Path,
    device: str,
    forget: bool,
    on_checkpoint: Callable[[], None],
    on_progress: Progress,
) -> Outcome:
    try:
        training = request.read(folder)
        if forget:
            request.forget(folder)
        base = _load(training, models, resolve_device(device))
        trained = train(
            training,
            base,
            work=folder,
            adapters_dir=folder / ADAPTERS,
            own_pairs=_pairs_of(training, base, folder),
            on_checkpoint=on_checkpoint,
            on_progress=on_progress,
        )
    except PairsWantedError as wanted:
        return Outcome("asks", wanted.adapter_id, wanted.number)
    except (TrainerError, ServingError) as error:
        log.warning("training failed", error=str(error))
        return Outcome("failed", error=Sentence.of(error))
    return Outcome.of(trained)


def _load(training: TrainingInput, models: Path, device: str) -> LoadedBase:
    """Load the base on the device that trains, within its share of memory."""
    if device.startswith("cuda"):
        gpu.compute_in_fixed_order()
        gpu.claim(device, training.request.settings.gpu_memory_share)
    return load_base(base_files.folder_of(training.request.base, models, device), device, "train")


def _pairs_of(training: TrainingInput, base: LoadedBase, folder: Path) -> OwnPairs:
    """Return what finds a round's ranked replies in the request, or stops the training to ask for them."""

    def find(model: PeftModel, number: int) -> list[PreferencePair]:
        kept = ranks.broadcast_first(training.ranked.get(number))
        if kept is not None:
            return list(kept)
        adapter_id, _ = saving.save(
            model, base, None, snapshot=training.snapshot, work=folder, adapters_dir=folder / ADAPTERS
        )
        raise PairsWantedError(adapter_id, number)

    return find
