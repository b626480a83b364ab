"""What a model server answered a run about its challenger; kept in the run's folder."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bot.serving.protocol import ChatMessage
from trainer.evaluation.regressions import ScoredCase
from trainer.evaluation.safety import Probed
from trainer.evaluation.to_the_point import Tie, TiedAnswers
from trainer.evaluation.training_fit import ScoredTrainingReply

REPLIES = "replies.jsonl"
SCORES = "scores.json"


@dataclass(frozen=True)
class Prompt:
    """What both models are asked. `group` is the held-out conversation, None for a general prompt."""

    messages: tuple[ChatMessage, ...]
    group: str | None
    reply_id: str | None = None

    @property
    def cluster(self) -> str:
        """Return what its answers are resampled with: the conversation, or the general prompt itself."""
        return self.group or f"general {stable_hash(self.messages[-1].content)}"

    @property
    def question(self) -> str:
        """Return what is to be answered."""
        return self.messages[-1].content if self.messages else ""


@dataclass(frozen=True)
class Answer:
    """One generated reply; `finished` says that it ended by itself."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Pair:
    """Both models' answers to one prompt, drawn with the same seed.

    `base` is the base's, to the first prompts where the champion is an adapter; None elsewhere.
    """

    prompt: Prompt
    challenger: Answer
    champion: Answer
    base: Answer | None = None


@dataclass(frozen=True)
class GeneralLoss:
    """Summed loss, in nats, of base and challenger on one of the base's own replies of `tokens` tokens."""

    tokens: int
    base: float
    challenger: float


@dataclass(frozen=True)
class ScoredReply:
    """Log-probability per token, in nats, of one rated held-out reply under both models."""

    reply_id: str
    group: str
    liked: bool
    challenger: float
    champion: float


@dataclass(frozen=True)
class Scores:
    """All that a run heard from the model server about its challenger."""

    pairs: tuple[Pair, ...]
    general: tuple[GeneralLoss, ...]
    rated: tuple[ScoredReply, ...]
    corrections: tuple[ScoredCase, ...] = ()
    safety: tuple[Probed, ...] = ()
    training_replies: tuple[ScoredTrainingReply, ...] = ()
    tied: tuple[TiedAnswers, ...] = ()


def write(scores: Scores, folder: Path) -> None:
    """Keep the scores in the run's folder, where an erasure scrubs them with the rest."""
    lines = [json.dumps(_pair_json(pair)) for pair in scores.pairs]
    (folder / REPLIES).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    figures = {
        "general": [asdict(loss) for loss in scores.general],
        "rated": [asdict(reply) for reply in scores.rated],
        "corrections": [asdict(case) for case in scores.corrections],
        "safety": [asdict(probe) for probe in scores.safety],
        "taught": [asdict(reply) for reply in scores.training_replies],
        "tied": [asdict(answers) for answers in scores.tied],
    }
    (folder / SCORES).write_text(json.dumps(figures, indent=1), encoding="utf-8")


def read(folder: Path) -> Scores:
    """Read a run's scores back; raises OSError where they are gone (an erasure scrubs them).

    Runs of before there were safety prompts, checks of corrections, of what was taught and of answers beside
    the point have none.
    """
    figures = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    return Scores(
        pairs=read_pairs(folder),
        general=tuple(GeneralLoss(**loss) for loss in figures["general"]),
        rated=tuple(ScoredReply(**reply) for reply in figures["rated"]),
        corrections=tuple(ScoredCase(**case) for case in figures.get("corrections", [])),
        safety=tuple(_probed(probe) for probe in figures.get("safety", [])),
        training_replies=tuple(ScoredTrainingReply(**reply) for reply in figures.get("taught", [])),
        tied=tuple(_tied(answers) for answers in figures.get("tied", [])),
    )


def _probed(value: dict[str, Any]) -> Probed:
    return Probed(value["name"], *(tuple(value[who]) for who in ("base", "challenger", "champion")))


def _tied(value: dict[str, Any]) -> TiedAnswers:
    ties = {
        who: Tie(value[who]["own"], tuple(value[who]["others"])) if value[who] else None
        for who in ("challenger", "champion", "base")
    }
    return TiedAnswers(value["cluster"], **ties)  # type: ignore[arg-type]


def read_pairs(folder: Path) -> tuple[Pair, ...]:
    """Read only the pairs of replies back; raises OSError where they are gone."""
    lines = (folder / REPLIES).read_text(encoding="utf-8").splitlines()
    return tuple(_pair(json.loads(line)) for line in lines)


def stable_hash(key: str) -> int:
    """Return a number that only depends on the text."""
    return zlib.crc32(key.encode())


def _pair_json(pair: Pair) -> dict[str, Any]:
    return {
        "group": pair.prompt.group,
        "reply_id": pair.prompt.reply_id,
        "messages": [message.as_json() for message in pair.prompt.messages],
        "challenger": asdict(pair.challenger),
        "champion": asdict(pair.champion),
        "base": asdict(pair.base) if pair.base else None,
    }


def _pair(value: dict[str, Any]) -> Pair:
    messages = tuple(ChatMessage(message["role"], message["content"]) for message in value["messages"])
    prompt = Prompt(messages, value["group"], value.get("reply_id"))
    base = Answer(**value["base"]) if value.get("base") else None
    return Pair(prompt, Answer(**value["challenger"]), Answer(**value["champion"]), base)
