"""A run once more, from its manifest: the same snapshot, settings and steps must give the same adapter.

On a CPU, with the same versions and threads, to the bit. On a GPU sums may still end in another order where
an operation has no fixed one: the distance between both adapters is told instead.

Nothing is judged or promoted, and nothing comes into the adapters' folder: the repeat shows whether an
adapter is what its card says that it is.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlite_utils
from safetensors.torch import load_file

from bot.serving.model import adapter_files
from storage.config_sections import TrainerConfig
from storage.learning import preference_votes, runs
from storage.learning.adapters import Adapter
from storage.learning.adapters import get as find_adapter
from storage.learning.eligibility import Eligibility, eligible_rows
from storage.learning.preference_votes import VotedPair
from storage.learning.runs import Run
from storage.sentences import NOTHING, Figure, Sentence
from trainer.data import snapshot
from trainer.data.general_replies import Replay
from trainer.data.rows import PreferencePair
from trainer.data.snapshot import Snapshot
from trainer.errors import SnapshotError, TrainingError
from trainer.on_policy import ranking
from trainer.placement.request import TrainingInput, TrainingRequest
from trainer.run.context import RunContext
from trainer.run.steps import RunSteps
from trainer.training import gpu, saving
from trainer.training.challenger import Challenger
from trainer.training.forward import torch_threads
from trainer.training.objectives import Plan

OTHER_ARITHMETIC = Sentence("this machine computes differently from the one that trained it")


class Repeat(RunSteps):
    """The steps of a run that repeats another one (`settings["repeat"]`, a run's id)."""

    def all(self) -> Run:
        """Train again and compare. Raises TrainingError where the base is another one by now."""
        self._heartbeat.enter("snapshot", Sentence("reading the snapshot of the run to repeat"))
        original, adapter = self._original()
        card = _card(self._config.adapters / adapter.id)
        rows = self._snapshot_of(original)
        context = self._on_server(self._context)
        if context.base.hash != adapter.base_hash:
            raise TrainingError(
                "{adapter} was trained on another base model than the one that is served.", adapter=adapter.id
            )
        replay = self._on_server(lambda client: self._replay(client, context))
        again = self._train_again(card, self._config.runs / original.id, rows, context, replay)
        different = NOTHING if again.adapter_id == adapter.id else _difference(card, _card(again.folder))
        away = distance(self._config.adapters / adapter.id, again.folder)
        shutil.rmtree(again.folder.parent, ignore_errors=True)
        if different == OTHER_ARITHMETIC and "gpu" in card["versions"]:
            return self._finish(
                Sentence(
                    "Run {run} was repeated from its snapshot on a GPU, which adds in no fixed order: "
                    "{other} came out, whose weights differ from those of {adapter} by {share}. Nothing "
                    "was promoted.",
                    run=original.id,
                    other=again.adapter_id,
                    adapter=adapter.id,
                    share=Figure(away, ".1%"),
                )
            )
        if different:
            raise TrainingError(
                "Run {run} gave {adapter}, but its repeat {other}: {reason}.",
                run=original.id,
                adapter=adapter.id,
                other=again.adapter_id,
                reason=different,
            )
        message = Sentence(
            "Run {run} was repeated from its snapshot, and the same adapter {adapter} came out, bit for bit. "
            "Nothing was promoted.",
            run=original.id,
            adapter=adapter.id,
        )
        return self._finish(message)

    def _finish(self, message: Sentence) -> Run:
        return self._database.write(
            lambda db: runs.finish(
                db, self._run.id, outcome="refused", message=message, metrics=self._metrics
            )
        )

    def _original(self) -> tuple[Run, Adapter]:
        original = self._database.read(lambda db: runs.expect(db, str(self._run.settings["repeat"])))
        if not original.repeatable:
            raise _not_repeatable(original, Sentence("a member erased their data"))
        adapter = self._database.read(
            lambda db: find_adapter(db, original.adapter_id) if original.adapter_id else None
        )
        if adapter is None or original.snapshot_hash is None or "judge" in original.settings:
            raise _not_repeatable(original, Sentence("it trained no adapter"))
        return original, adapter

    def _snapshot_of(self, original: Run) -> Snapshot:
        """Read the original's snapshot and record it as this run's too, so that an erasure finds both."""
        rows = snapshot.read(self._config.runs / original.id, original.snapshot_hash or "")
        reference = self._config.discord.training_permission_reference

        def read_today(db: sqlite_utils.Database) -> tuple[Eligibility, list[VotedPair]]:
            today = eligible_rows(db, original.scope, permission_reference=reference)
            return today, preference_votes.eligible_pairs(
                db, original.scope, today.rows, permission_reference=reference
            )

        if not self._may_train(rows, *self._database.read(read_today)):
            raise _not_repeatable(
                original, Sentence("something in its snapshot was deleted, or may not train any more")
            )
        self.freeze(rows)
        return rows

    def _train_again(
        self, card: dict[str, Any], original: Path, rows: Snapshot, context: RunContext, replay: Replay
    ) -> Challenger:
        self._heartbeat.enter("train", Sentence("loading the base"))
        settings = TrainerConfig.model_validate(
            self._config.trainer.model_dump() | card["settings"] | {"objective": card["objective"]}
        )
        steps = {phase: int(count) for phase, count in card["steps"].items() if count}
        asked = TrainingRequest.of(context.base, Plan(card["objective"]), settings, rows, steps)
        # The order of sums, and with it the last bits, hangs on how many threads share them.
        with (
            torch_threads(int(card["versions"]["threads"])),
            gpu.own_card(self._config, self._heartbeat.check),
        ):
            again = self.carry_out(
                TrainingInput(asked, rows, replay.train),
                self.load_base(context),
                lambda model, number: _own_pairs(original, number),
                adapters_dir=self.folder / "repeated",
            )
            gpu.give_back_memory()
        if "scale" not in card:
            return again
        adapter_id, folder = saving.rescale(
            again.folder, card["scale"], work=self.folder, adapters_dir=again.folder.parent
        )
        return replace(again, adapter_id=adapter_id, folder=folder)


def _not_repeatable(run: Run, reason: Sentence) -> SnapshotError:
    return SnapshotError("Run {run} can't be repeated: {reason}.", run=run.id, reason=reason)


def _own_pairs(original: Path, number: int) -> list[PreferencePair]:
    """Return the ranked replies that the original run has kept: asked again, the model might say others."""
    found = ranking.read(original / ranking.file_of(number))
    if found is None:
        raise TrainingError(
            "The ranked replies of round {round} are gone: this run can't be repeated.", round=number
        )
    return found


def _card(folder: Path) -> dict[str, Any]:
    """Return the card that lies with an adapter since it was trained."""
    try:
        card = dict(json.loads((folder / saving.CARD).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise TrainingError(
            "The adapter {adapter} has no readable card to repeat it from.", adapter=folder.name
        ) from error
    if "material" not in card:
        raise TrainingError(
            "The adapter {adapter} is of an older version, which did not note its material.",
            adapter=folder.name,
        )
    return card


def _difference(card: dict[str, Any], new: dict[str, Any]) -> Sentence:
    """Say what two cards disagree on; no setting can be it, for they were taken over."""
    if new["material"] != card["material"]:
        return Sentence("the base's own replies or its tokenizer have changed")
    if new["versions"] != card["versions"]:
        return Sentence(
            "it was trained with {versions} and now with {present}",
            versions=str(card["versions"]),
            present=str(new["versions"]),
        )
    return OTHER_ARITHMETIC


def distance(one: Path, other: Path) -> float:
    """Return how far two adapters' weights lie apart, as a share of the first one's length."""
    first, second = (load_file(folder / adapter_files.WEIGHTS) for folder in (one, other))
    apart = sum(float((first[name] - second[name]).square().sum()) for name in first)
    return math.sqrt(apart / max(sum(float(each.square().sum()) for each in first.values()), 1e-30))
