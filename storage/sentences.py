"""Sentences for people: English text that remembers its template and values.

Storage, the trainer and the model server speak English: to a terminal, into the database and over sockets. On
Discord people read the same sentences in their own language. So a sentence keeps what it was made of, and is
translated where it is shown, by its template: nobody ever has to recognise a text to translate it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and how it is written: `spec` is that of Python's `format`. Not every language writes 0.5."""

    value: float
    spec: str = "g"

    def __str__(self) -> str:
        return format_number(self.value, self.spec)


def format_number(value: float, spec: str) -> str:
    """Return a number as Python writes it, but nothing as -0.00: a loss too small to be seen is none."""
    said = format(value, spec)
    return said if any(digit in said for digit in "123456789") else format(0.0, spec)


def percent(share: float) -> Figure:
    """Return a share from 0 to 1 as it is read: 0.25 is 25%."""
    return Figure(share, ".0%")


class Sentence(str):
    """The English text of a template that is filled with values; a value may be a sentence itself.

    It is a `str` so that terminals, logs and the database take it as it is. Putting it into an f-string or
    adding to it gives plain English: to build on a sentence, make it a value of another one.
    """

    template: str
    values: Mapping[str, Value]
    forms: tuple[str, str] | None

    def __new__(cls, template: str, /, **values: Value) -> Sentence:
        """Fill the template; without values the text is taken as it is."""
        sentence = super().__new__(cls, template.format(**values) if values else template)
        sentence.template = template
        sentence.values = values
        sentence.forms = None
        return sentence

    @classmethod
    def counted(cls, one: str, many: str, count: int, /, **values: Value) -> Sentence:
        """Fill the template for one or for many; the number stands at `{count}`."""
        sentence = cls(one if count == 1 else many, count=count, **values)
        sentence.forms = (one, many)
        return sentence

    @classmethod
    def of(cls, error: BaseException) -> Sentence:
        """Return what an error says; one that knows its template and values keeps them."""
        if error.args and isinstance(error.args[0], Sentence):
            return error.args[0]
        return _translatable(getattr(error, "message", str(error)))

    def as_json(self) -> dict[str, Any]:
        """Return template and values as plain JSON values."""
        forms = {} if self.forms is None else {"forms": list(self.forms)}
        return {
            "template": self.template,
            "values": {name: _as_json(value) for name, value in self.values.items()},
            **forms,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | str) -> Sentence:
        """Return the sentence that `as_json` took apart; older versions kept a mere text."""
        if isinstance(value, str):
            return cls(value)
        if "template" not in value:  # an erasure took the texts out
            return cls("")
        values = {name: _from_json(each) for name, each in value["values"].items()}
        if "forms" not in value:
            return cls(value["template"], **values)
        one, many = value["forms"]
        del values["count"]
        return cls.counted(one, many, int(value["values"]["count"]), **values)


Value: TypeAlias = "str | int | Figure | Sentence"


NOTHING = Sentence("")


def list_names(names: list[str] | tuple[str, ...], most: int = 5) -> Sentence:
    """Name a few things, and say how many more there are."""
    few = ", ".join(names[:most])
    more = len(names) - most
    return Sentence("{names} and {count} more", names=few, count=more) if more > 0 else Sentence(few)


def dump(text: str) -> str:
    """Return what the database keeps beside a text: its template and values, nothing if there are none."""
    if not isinstance(text, Sentence) or not text.values:
        return ""
    return json.dumps(text.as_json(), ensure_ascii=False)


def load(text: str, kept: str) -> Sentence:
    """Return a stored sentence; a text that has nothing beside it, or something else, is only itself."""
    if kept:
        try:
            sentence = Sentence.from_json(json.loads(kept))
        except (ValueError, LookupError, TypeError, AttributeError):
            return Sentence(text)
        if sentence == text:
            return sentence
    return Sentence(text)


def _translatable(said: Any) -> Sentence:
    """Return a text, or what the model server says with its own template and values, as a sentence."""
    template, values = getattr(said, "template", said), getattr(said, "values", {})
    return Sentence(
        template,
        **{name: _translatable(each) if hasattr(each, "template") else each for name, each in values.items()},
    )


def _as_json(value: Value) -> Any:
    if isinstance(value, Sentence):
        return value.as_json()
    return {"figure": value.value, "format": value.spec} if isinstance(value, Figure) else value


def _from_json(value: Any) -> Value:
    if not isinstance(value, dict):
        plain: str | int = value
        return plain
    if "figure" in value:
        return Figure(value["figure"], value["format"])
    return Sentence.from_json(value)
