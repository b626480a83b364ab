"""Training in another place: what is sent, what comes back, and what happens when the place is lost.

The run's folder stays the one that counts. A place gets a copy of what it needs; whatever it sends back
(checkpoints, an outcome, an adapter) is written there, and the adapter is checked before it is taken.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import structlog

from bot.serving.errors import AdapterRefusedError
from bot.serving.model import adapter_files
from storage.learning import checkpoints, unregistered_adapters
from storage.sentences import Sentence
from trainer.errors import PlaceLostError, PlaceUnreachableError, RunCancelledError, TrainingError
from trainer.on_policy import ranking
from trainer.placement import outcome, request
from trainer.placement.outcome import ADAPTERS, Outcome
from trainer.placement.request import TrainingInput
from trainer.training import saving
from trainer.training.challenger import Challenger, Progress

log = structlog.get_logger()

# A place may be lost so often in a row before anything new is learned: the same as a killed process.
MOST_LOST = 2
# A head that restarts, or has just lost a worker, isn't there for a moment: so often it is called in a row.
MOST_CALLS = 3
CALL_AGAIN_S = 10.0

Files = Mapping[str, bytes]
"""A folder's files by their names in it, as "adapters/<id>/manifest.json"."""


class Watcher(Protocol):
    """Hears of a training while it is on. Each call may raise to end it."""

    def progress(self, share: float, note: Sentence) -> None:
        """Say how far it is."""

    def checkpoint(self, content: bytes) -> None:
        """Keep the newest checkpoint."""

    def check(self) -> None:
        """Raise where the training is no longer wanted; called at least every few seconds."""


class Place(Protocol):
    """Somewhere to train."""

    def carry_out(self, sent: Files, watcher: Watcher) -> Files:
        """Carry out the training of a folder and return what has to come back: outcome and adapter.

        Whatever the watcher raises ends the training there, and is raised.

        Raises:
            PlaceLostError: the place, or a worker of it, is gone.
        """


def train(
    training: TrainingInput,
    place: Place,
    *,
    work: Path,
    adapters_dir: Path,
    ask: Callable[[str, int], object] | None,
    on_checkpoint: Callable[[], None],
    on_progress: Progress,
    check: Callable[[], None],
) -> Challenger:
    """Have a training carried out, answering its questions; `work` is the run's folder.

    `ask` writes the ranked replies of a round, by an adapter in the adapters' folder, into the run's folder;
    None where the training's plan has no such rounds.

    Raises:
        TrainingError: it failed there, or the place was lost for good.
        RunCancelledError: the run is no longer wanted, or its folder was removed.
    """
    request.write(training, work)
    (work / outcome.FILE).unlink(missing_ok=True)
    watcher = _RunWatcher(work, on_checkpoint, on_progress, check)
    while True:
        ended = _carried_out(place, work, watcher)
        if ended.state == "failed":
            raise TrainingError(ended.error or outcome.NO_ADAPTER)
        folder = _take(ended, training, work, adapters_dir)
        if ended.state == "trained":
            return ended.challenger(folder.parent)
        if ask is None or (work / ranking.file_of(ended.asks_round)).exists():
            raise TrainingError("The training host asked for the same replies again.")
        ask(ended.adapter_id, ended.asks_round)


class _RunWatcher:
    """Keeps checkpoints in the run's folder, and counts how often the place was lost without a new one."""

    def __init__(
        self,
        work: Path,
        on_checkpoint: Callable[[], None],
        on_progress: Progress,
        check: Callable[[], None],
    ) -> None:
        self._work = work
        self._on_checkpoint = on_checkpoint
        self.progress = on_progress
        self.check = check
        self.lost = self.unreached = 0

    def checkpoint(self, content: bytes) -> None:
        _expect(self._work)
        partial = self._work / checkpoints.PARTIAL
        try:
            partial.write_bytes(content)
            partial.replace(self._work / checkpoints.FILE)
        except OSError as error:
            # As in a training here: on a full disk the checkpoint is lost, not the training.
            log.warning("the checkpoint could not be written", error=str(error))
            return
        self.lost = self.unreached = 0
        self._on_checkpoint()

    def count(self, error: PlaceLostError) -> None:
        """Count a loss; a place that doesn't answer has lost nothing, and may be back in a moment."""
        if isinstance(error, PlaceUnreachableError):
            self.unreached += 1
        else:
            self.lost, self.unreached = self.lost + 1, 0

    @property
    def gives_up(self) -> bool:
        """Whether another attempt promises nothing."""
        return self.lost >= MOST_LOST or self.unreached >= MOST_CALLS


def _carried_out(place: Place, work: Path, watcher: _RunWatcher) -> Outcome:
    """Carry out what is left to do, again where the place is lost after a new checkpoint."""
    while True:
        watcher.check()
        try:
            received = place.carry_out(collect_files(work), watcher)
        except PlaceLostError as error:
            watcher.count(error)
            if watcher.gives_up:
                raise TrainingError(
                    "The training host was lost: {reason}", reason=Sentence.of(error)
                ) from error
            log.warning("the training host was lost; the training goes on", error=str(error))
            if watcher.unreached:
                time.sleep(CALL_AGAIN_S)
            continue
        _write(received, work)
        ended = outcome.read(work)
        if ended is None:
            raise TrainingError(outcome.NO_ADAPTER)
        return ended


def collect_files(work: Path) -> dict[str, bytes]:
    """Return what a place needs of a run's folder, the checkpoint and the figures so far among it."""
    names = [request.FILE, *request.read(work).request.data, checkpoints.FILE, outcome.FILE]
    names += [path.name for path in work.glob(ranking.file_of("*"))]
    return {name: (work / name).read_bytes() for name in names if (work / name).exists()}


def _expect(work: Path) -> None:
    """Raise RunCancelledError where an erasure removed the run's folder: nothing may bring it back."""
    if not work.is_dir():
        raise RunCancelledError("The run's folder was removed, as by an erasure.")


def _write(received: Files, work: Path) -> None:
    """Write what came back. Nothing leaves the run's folder, whatever the place names its files."""
    _expect(work)
    for name, content in received.items():
        parts = name.split("/")
        mine = name == outcome.FILE or (len(parts) == 3 and parts[0] == ADAPTERS)
        if not mine or any(part in ("", ".", "..") for part in parts):
            raise TrainingError("The training's {file} is missing or was changed.", file=name)
        path = work.joinpath(*parts)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(content)


def _take(ended: Outcome, training: TrainingInput, work: Path, adapters_dir: Path) -> Path:
    """Check the adapter that came back and move it to its place; return its folder.

    Raises:
        TrainingError: it is not complete, not what its name says, or of another base.
    """
    arrived = work / ADAPTERS
    folder = arrived / ended.adapter_id
    try:
        adapter_files.verify(folder, adapters_dir=arrived, base_hash=training.request.base.hash)
    except AdapterRefusedError as error:
        raise TrainingError(Sentence.of(error)) from error
    unregistered_adapters.note(work, ended.adapter_id)
    final = saving.move(folder, adapters_dir / ended.adapter_id)
    shutil.rmtree(arrived, ignore_errors=True)
    return final
