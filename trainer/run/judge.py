"""A run that judges an adapter from elsewhere: every step of a run but the training."""

from __future__ import annotations

from transformers import AutoTokenizer

from bot.serving.model import adapter_files
from storage.learning import adapters
from storage.learning.adapters import Adapter
from trainer.data.encoding import Codec
from trainer.data.examples import BaseCodec
from trainer.data.general_replies import Replay
from trainer.data.snapshot import Snapshot
from trainer.run.context import RunContext
from trainer.run.steps import RunSteps
from trainer.training.challenger import Challenger
from trainer.training.objectives import Plan

OBJECTIVE = "imported"


class Judge(RunSteps):
    """The steps of a run whose challenger is there already (`settings["judge"]`, its id)."""

    def train(self, rows: Snapshot, context: RunContext, replay: Replay) -> tuple[Challenger, Codec]:
        """Train nothing: check the files of the adapter, which stands in the registry since its import."""
        folder = self._config.adapters / self._adapter().id
        manifest = adapter_files.verify(
            folder,
            adapters_dir=self._config.adapters,
            base_hash=context.base.hash,
            chat_template_hash=context.base.chat_template_hash,
        )
        self._metrics["training"] = {"objective": OBJECTIVE}
        codec = BaseCodec(AutoTokenizer.from_pretrained(context.base.folder))
        return Challenger(manifest.adapter_id, folder, Plan("sft"), {}), codec

    def _with_signals(self, rows: Snapshot) -> Snapshot:
        """Leave unrated replies out: nothing is trained."""
        return rows

    def _register(self, trained: Challenger, rows: Snapshot, context: RunContext) -> Adapter:
        return self._adapter()

    def _budget_s(self, trained: Challenger) -> float:
        """Return the whole limit: no training took less."""
        return self._config.gate.generation_minutes * 60

    def _adapter(self) -> Adapter:
        return self._database.read(lambda db: adapters.expect(db, str(self._run.settings["judge"])))
