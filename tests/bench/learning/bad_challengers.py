"""`python -m tests.bench.learning.bad_challengers`: a real run whose challenger is made to be refused.

Everything is the product's own but what the challenger is trained on: the labels of its training rows are
tampered with after the snapshot is frozen, so that the gate judges it by what the members really said.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from bot.serving.model.loading import LoadedBase, load_base
from storage.config import load_config
from storage.db.database import Database
from storage.process import logs
from storage.sentences import Sentence
from tests.bench.learning.profile import BAD_KINDS, FLATTERING
from tests.bench.learning.tampering import dealt, tampered, turned
from trainer.data.encoding import Codec
from trainer.data.examples import BaseCodec, Material
from trainer.data.general_replies import Replay
from trainer.data.snapshot import Snapshot
from trainer.run.context import RunContext
from trainer.run.execution import execute
from trainer.run.steps import RunSteps
from trainer.training import challenger, saving
from trainer.training.adapter import add_adapter
from trainer.training.challenger import Challenger, OwnPairs
from trainer.training.objectives import Plan

log = structlog.get_logger()


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute one leased run with a tampered challenger; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.learning.bad_challengers", description=__doc__
    )
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--kind", choices=(*BAD_KINDS, FLATTERING), required=True)
    parsed = parser.parse_args(arguments)
    logs.configure("tests.bench.learning.bad_challengers")
    config = load_config(parsed.config, os.environ)
    with Database.open(config.database) as database:
        execute(database, config, parsed.run, steps=lambda *parts: Sabotaged(parsed.kind, *parts))
    return 0


class Sabotaged(RunSteps):
    """The product's run, but for what the challenger learns from."""

    def __init__(self, kind: str, *parts: object) -> None:
        super().__init__(*parts)  # type: ignore[arg-type]
        self._kind = kind

    def train(self, rows: Snapshot, context: RunContext, replay: Replay) -> tuple[Challenger, Codec]:
        """Train on tampered rows; evaluation sees the honest ones."""
        self._honest = rows
        if self._kind == "nothing":
            return self._untrained(rows, context)
        return super().train(tampered(rows, self._kind), context, replay)

    def own_pairs(self, base: LoadedBase, rows: Snapshot) -> OwnPairs | None:
        """Return what teaches the kind: the worst of the own replies, or nothing that labels don't say.

        Ranking teaches to end and not to repeat oneself whatever the labels say, which members like: a
        challenger with shuffled labels that learned that would be better, and rightly promoted.
        """
        if self._kind in ("shuffled", "neutral", FLATTERING):
            return None
        if self._kind not in ("worse", "beside"):
            return super().own_pairs(base, rows)
        honest = super().own_pairs(base, self._honest)
        if honest is None:
            return None
        if self._kind == "beside":
            return lambda model, number: dealt(honest(model, number))
        return lambda model, number: [turned(p) for p in honest(model, number)]

    def _untrained(self, rows: Snapshot, context: RunContext) -> tuple[Challenger, Codec]:
        """Save an adapter as it is before the first step: it changes nothing at all."""
        self._heartbeat.enter("train", Sentence("saving an adapter that does nothing"))
        base = load_base(Path(context.base.folder), self._config.model.device, "train")
        model = add_adapter(base.model, self._config.trainer)
        untaught = Material([], [], [], [])
        card = challenger.describe(base, rows, Plan("sft"), self._config.trainer, untaught, {})
        adapter_id, folder = saving.save(
            model, base, card, snapshot=rows, work=self.folder, adapters_dir=self._config.adapters
        )
        self._metrics["training"] = {"objective": "none", "reason": "", "sft": {"steps": 0, "seconds": 0.0}}
        return Challenger(adapter_id, folder, Plan("sft"), {}), BaseCodec(base.tokenizer)


if __name__ == "__main__":
    sys.exit(main())
