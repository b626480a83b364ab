"""What a challenger learns from, as token ids: liked and rated replies, preference pairs, the base's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from bot.serving.model.chat_template import ChatTemplate, plain_reply
from bot.serving.model.control_tokens import escape_control_tokens
from bot.serving.protocol import ChatMessage
from storage.config_sections import TrainerConfig
from trainer.data import general_replies, text_features
from trainer.data.encoding import Codec, Example, PreferenceExample, encode
from trainer.data.general_replies import BaseReply
from trainer.data.rows import PreferencePair, Row, messages_of
from trainer.data.snapshot import Snapshot


@dataclass(frozen=True)
class Material:
    """What a challenger learns from: the training rows and pairs as token ids, and the base's own replies."""

    liked: list[Example]
    rated: list[Example]
    pairs: list[PreferenceExample]
    replay: list[Example]

    @property
    def content_hash(self) -> str:
        """Return a hash of every token and weight."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def forwarded(self) -> list[Example]:
        """Return what goes through the model at once: rows, and both sides of each pair together."""
        return [*self.liked, *self.rated, *(pair.joined for pair in self.pairs)]

    def tokens(self, settings: TrainerConfig) -> dict[str, int]:
        """Return how many tokens each later phase would see."""
        return {
            "kto": sum(len(each.ids) for each in self.rated) * settings.kto_epochs,
            "dpo": sum(len(each.chosen.ids) + len(each.rejected.ids) for each in self.pairs)
            * settings.dpo_epochs,
        }


@dataclass(frozen=True)
class BaseCodec:
    """Encodes with the base's own tokenizer and template, by the functions that the server uses."""

    tokenizer: Any

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template, probed once."""
        return ChatTemplate(self.tokenizer)

    @cached_property
    def stop_id(self) -> int:
        """The token that ends a turn: the template's, else the tokenizer's."""
        end = self.template.end_token()
        return int(self.tokenizer.eos_token_id) if end is None else end

    def prompt_ids(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return a chat up to and including the header of the assistant's turn."""
        return self.template.render(messages)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a reply without thoughts; control-like strings are broken or cut out."""
        plain = plain_reply(self.tokenizer, text)
        return [int(token) for token in self.tokenizer(plain, add_special_tokens=False)["input_ids"]]


def gather(
    codec: Codec,
    snapshot: Snapshot,
    replay: Sequence[BaseReply],
    max_length: int,
    most_liked: int | None = None,
) -> Material:
    """Return what a snapshot teaches: its training rows and pairs, and nothing that is held out.

    With `most_liked` no more liked replies are imitated, beside the corrections: the surest, then the newest.
    """
    train = snapshot.of("train")
    return Material(
        supervised_examples(codec, train, max_length, most_liked),
        kto_examples(codec, train, max_length),
        dpo_examples(codec, snapshot.preferences("train"), max_length),
        general_replies.encoded(codec, replay, max_length),
    )


def supervised_examples(
    codec: Codec, rows: Sequence[Row], max_length: int, most_liked: int | None = None
) -> list[Example]:
    """Return liked replies and corrections with their weights; a correction is a whole reply by a person.

    Liked replies that repeat themselves are left out where there are others: a small model that learns from
    some twenty texts soon does nothing else (EXPERIMENTS, 13). `most_liked` limits them (see `gather`).
    """
    found = []
    taught = {row.reply_id for row in surest(rows_to_imitate(rows), most_liked)}
    for row in rows:
        messages = messages_of(row)
        if row.reply_id in taught:
            found.append(
                encode(
                    codec, messages, row.text, finished=row.finished, max_length=max_length, weight=row.weight
                )
            )
        found += [
            encode(codec, messages, c.text, finished=True, max_length=max_length, weight=c.weight)
            for c in row.corrections
        ]
    return found


def rows_to_imitate(rows: Sequence[Row]) -> list[Row]:
    """Return the liked rows whose replies don't repeat themselves; all liked ones where each of them does."""
    liked = [row for row in rows if row.verdict == "liked" and row.weight > 0]
    return [row for row in liked if not text_features.repeats_itself(row.text)] or liked


def surest(rows: Sequence[Row], most: int | None = None) -> list[Row]:
    """Return the rows whose labels are surest, then the newest; `most` of them, or all."""
    return sorted(rows, key=lambda row: (-row.weight, -row.created_ms, row.reply_id))[:most]


def disliked_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the disliked rows that count."""
    return [row for row in rows if row.verdict == "disliked" and row.weight > 0]


def kto_examples(codec: Codec, rows: Sequence[Row], max_length: int) -> list[Example]:
    """Return everything to push towards, and disliked replies to push away from."""
    away = [
        encode(
            codec,
            messages_of(row),
            row.text,
            finished=row.finished,
            max_length=max_length,
            weight=row.weight,
            liked=False,
        )
        for row in disliked_rows(rows)
    ]
    return supervised_examples(codec, rows, max_length) + away


def dpo_examples(codec: Codec, pairs: Sequence[PreferencePair], max_length: int) -> list[PreferenceExample]:
    """Return both answers of each pair behind the same prompt."""
    found = []
    for pair in pairs:
        messages = [ChatMessage(role, escape_control_tokens(content)) for role, content in pair.prompt]  # type: ignore[arg-type]
        chosen, rejected = (
            encode(codec, messages, text, finished=finished, max_length=max_length)
            for text, finished in zip((pair.chosen, pair.rejected), pair.finished, strict=True)
        )
        found.append(PreferenceExample(chosen, rejected, pair.weight))
    return found
