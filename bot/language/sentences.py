"""Sentences that storage, the trainer and the model server made, in the language that is spoken.

They come with their template and values; the template's translation is filled with the same values. A text
that comes without a template, as from an older database or another server, is looked up whole, and shown in
English where no catalogue has it.
"""

from __future__ import annotations

from bot.language import texts
from bot.language.texts import mark, tr
from storage.sentences import Figure, Sentence

# Words that stand in sentences as values, and are stored as they are: states, labels and phases.
WORDS = (
    mark("candidate"),
    mark("promoted"),
    mark("rejected"),
    mark("retired"),
    mark("tainted"),
    mark("queued"),
    mark("running"),
    mark("finished"),
    mark("failed"),
    mark("cancelled"),
    mark("liked"),
    mark("disliked"),
    mark("corrected"),
    mark("unclear"),
    mark("starting"),
    mark("snapshot"),
    mark("train"),
    mark("evaluate"),
    mark("decide"),
    mark("swap"),
    mark("votes"),
    mark("loading"),
)


def translate(said: str | BaseException) -> str:
    """Return a sentence, or what an error says, in the language that is spoken."""
    text = Sentence.of(said) if isinstance(said, BaseException) else said
    template, values = getattr(text, "template", text), getattr(text, "values", {})
    filled = {name: _value(value) for name, value in values.items()}
    if forms := getattr(text, "forms", None):
        one, many = forms
        del filled["count"]
        return texts.plural(one, many, values["count"], **filled)
    return tr(template, **filled)


def _value(value: object) -> object:
    """Return what stands in a sentence's place: a figure, a sentence in it, or an id as it is."""
    if isinstance(value, Figure):
        return texts.number(value.value, value.spec)
    return translate(value) if isinstance(value, str) and hasattr(value, "template") else value
