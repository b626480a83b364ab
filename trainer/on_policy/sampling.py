"""On-policy sampling: serve the model being trained, sample its replies, rank them, unload it.

A reward model fitted on the training ratings ranks them, where one proves itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
from peft import PeftModel

from bot.serving.client import ModelClient
from bot.serving.errors import UnknownModelError
from bot.serving.model.loading import LoadedBase
from storage.config import Config
from storage.sentences import Sentence
from trainer import model_server
from trainer.data.encoding import Codec
from trainer.data.rows import PreferencePair, Row, messages_of
from trainer.data.snapshot import Snapshot
from trainer.evaluation import log_probabilities
from trainer.evaluation.feature_blocks import StatesOf
from trainer.evaluation.hidden_states.reader import HiddenStates
from trainer.evaluation.reward_model import RewardModel
from trainer.evaluation.scores import Answer
from trainer.evaluation.to_the_point import Tie
from trainer.model_server import retry_while_unavailable
from trainer.on_policy import contrasts, prompts, ranking
from trainer.on_policy.contrasts import Checked
from trainer.on_policy.ranking import Place
from trainer.training import saving

T = TypeVar("T")

log = structlog.get_logger()

# The time each sampling round may take, as a share of the training time and on top of it.
ASK_SHARE = 0.1


class WithModelServer(Protocol):
    """Runs a piece of work with a client of the model server."""

    def __call__(self, work: Callable[[ModelClient], Awaitable[T]]) -> T:
        """Return what the work returns."""


@dataclass(frozen=True)
class PolicySampler:
    """Samples served models on a run's training prompts and keeps the replies in the run's folder.

    `on_note` receives a progress note for people.
    """

    config: Config
    folder: Path
    on_note: Callable[[Sentence], None]
    on_server: WithModelServer

    async def sample(
        self,
        client: ModelClient,
        model: str,
        asked: Sequence[Row],
        replies: int,
        seed: int,
        on_reply: Callable[[int, int], None],
    ) -> list[list[Answer]]:
        """Return a served model's answers, so many to each prompt, generated at background priority."""
        return await ranking.ask(
            client,
            model,
            asked,
            replies,
            chat=self.config.chat,
            max_new_tokens=self.config.gate.max_new_tokens,
            seed=seed,
            budget_s=self.config.trainer.max_train_minutes * 60 * ASK_SHARE,
            on_reply=on_reply,
        )

    def ask(
        self,
        model: str,
        asked: Sequence[Row],
        replies: int,
        seed: int,
        on_reply: Callable[[int, int], None],
        *,
        interim: bool = False,
    ) -> list[list[Answer]]:
        """Sample an adapter, which is served for as long as that takes, or another model that is served."""
        return self.while_served(
            model,
            lambda client: self.sample(client, model, asked, replies, seed, on_reply),
            interim=interim,
        )

    def while_served(
        self, model: str, work: Callable[[ModelClient], Awaitable[T]], *, interim: bool = False
    ) -> T:
        """Do a piece of work with an adapter served for as long as it takes, or with a model that is served.

        One that is served already stays so, for it may be the champion; an `interim` one never does.
        """
        adapter = (self.config.adapters / model).is_dir()

        async def served(client: ModelClient) -> T:
            stays = not adapter or (
                not interim and await retry_while_unavailable(lambda: client.has_adapter(model))
            )
            if not stays:
                await retry_while_unavailable(lambda: model_server.ensure_listed(client, self.config, model))
            try:
                return await work(client)
            finally:
                if not stays:
                    await model_server.unload(client, model)

        try:
            return self.on_server(served)
        except UnknownModelError:
            log.warning("the server forgot the model that is being trained; it is asked again")
            return self.on_server(served)

    def ties(
        self,
        codec: Codec,
        base_id: str,
        asked: Sequence[Row],
        given: Sequence[tuple[int, Answer]],
        others: int,
    ) -> list[Tie]:
        """Return how answers are tied to their prompts (by number) under the base, whoever wrote them."""
        return self.on_server(
            lambda client: log_probabilities.ties(
                client,
                codec,
                base_id,
                [messages_of(row) for row in asked],
                given,
                others=others,
                max_length=self.config.trainer.max_length,
            )
        )

    def to_ask(self, rows: Snapshot) -> tuple[list[Row], int]:
        """Return the rows whose prompts are asked, and how many replies each of them gets."""
        return prompts.to_ask(rows, self.config.trainer.ranked_replies)

    def judge(self, base_id: str, rows: Snapshot, states_of: StatesOf | None = None) -> RewardModel | None:
        """Return a reward model that ranks replies, None where none proves itself.

        With `states_of` it may use hidden states. Where members only like, the base is sampled for reference
        completions to contrast with them.
        """
        seed = self.config.trainer.seed
        if not ranking.only_liked(rows):
            return ranking.fit_ranking_model(rows, seed=seed, states_of=states_of)
        asked, replies = prompts.for_references(rows, self.config.trainer.ranked_replies)
        references = ranking.read_reference_completions(self.folder)
        if references is None:
            references = self.on_server(
                lambda client: self.sample(
                    client,
                    base_id,
                    asked,
                    replies,
                    seed,
                    lambda done, total: self.on_note(
                        Sentence("reference completion {done} of {total}", done=done, total=total)
                    ),
                )
            )
            ranking.write_reference_completions(references, self.folder)
        return ranking.fit_pu_reward_model(rows, asked, references, seed=seed, states_of=states_of)


@dataclass(frozen=True)
class OwnReplies:
    """Makes the preference pairs of each round, and keeps them in the run's folder.

    `states` is what the judge reads hidden states with, if it may.
    """

    sampler: PolicySampler
    codec: Codec
    base_id: str
    rows: Snapshot
    judge: RewardModel
    states: HiddenStates | None = None

    def read_kept(self, number: int) -> list[PreferencePair] | None:
        """Return the pairs of one round that an earlier attempt made, None where there are none."""
        return ranking.read(self.sampler.folder / ranking.file_of(number))

    def pairs_by_model(self, model: PeftModel, base: LoadedBase, number: int) -> list[PreferencePair]:
        """Return the pairs of one round by the model that is being trained in this process."""
        if (kept := self.read_kept(number)) is not None:
            return kept
        adapter_id, _ = saving.save(
            model,
            base,
            None,
            snapshot=self.rows,
            work=self.sampler.folder,
            adapters_dir=self.sampler.config.adapters,
        )
        return self.pairs_by_adapter(adapter_id, number, partial(self._reading, model, base))

    @contextmanager
    def _reading(self, model: PeftModel, base: LoadedBase) -> Iterator[None]:
        """Read hidden states with the base that is being trained on, its adapter switched off."""
        if self.states is None:
            yield
            return
        with model.disable_adapter(), self.states.reading_by(base):
            yield

    def pairs_by_adapter(
        self, adapter_id: str, number: int, reading: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> list[PreferencePair]:
        """Return the pairs of one round by an adapter in the adapters' folder, which is then removed.

        `reading` puts a base at the judge's disposal.
        """
        path = self.sampler.folder / ranking.file_of(number)
        asked, replies = self.sampler.to_ask(self.rows)
        answers = self._ask(adapter_id, asked, replies, number)
        with reading():
            beside = self._beside(asked, answers)
            ranked = ranking.rank_answers(self.judge, asked, answers, f"ranked-{number}", beside)
        checked = [
            Checked(asked[row].group_key, answers[row][at], share) for (row, at), share in beside.items()
        ]
        pairs = [*ranked, *contrasts.to_other_questions(ranked, checked)]
        log.info("ranking.done", round=number, prompts=len(answers), pairs=len(pairs))
        ranking.write(pairs, path)
        return pairs

    def _beside(self, asked: Sequence[Row], answers: Sequence[Sequence[Answer]]) -> dict[Place, float]:
        """Return how well each answer that would be chosen also fits other questions."""
        found: dict[Place, float] = {}
        for _ in range(ranking.CHECKS):
            unknown = ranking.answers_to_check(self.judge, asked, answers, found)
            if not unknown:
                break
            self.sampler.on_note(
                Sentence(
                    "own replies: checking whether {count} of them answer their question", count=len(unknown)
                )
            )
            given = [(row, answers[row][at]) for row, at in unknown]
            ties = self.sampler.ties(
                self.codec, self.base_id, asked[: len(answers)], given, ranking.OTHER_QUESTIONS
            )
            found |= {place: tie.beside for place, tie in zip(unknown, ties, strict=True)}
        return found

    def _ask(self, adapter_id: str, asked: list[Row], replies: int, number: int) -> list[list[Answer]]:
        """Sample the model as it is now, with the serving kernels, and take it away."""
        try:
            return self.sampler.ask(
                adapter_id,
                asked,
                replies,
                self.sampler.config.trainer.seed + number,
                lambda done, total: self.sampler.on_note(
                    Sentence("own reply {done} of {total}", done=done, total=total)
                ),
                interim=True,
            )
        finally:
            shutil.rmtree(self.sampler.config.adapters / adapter_id, ignore_errors=True)
