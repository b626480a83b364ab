"""The bot's own texts in the language of those who read them.

The English text is the key (as in gettext); `catalogues/<code>.po` holds the others, in the format that
translators' tools know. They are read as they are: nothing has to be compiled. A text without a translation
is said in English. What is counted has a form for one and for many, or as many as the catalogue's own rule
knows. Which language is spoken is settled once an event and travels with its task.
"""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import structlog

from storage.sentences import format_number

LANGUAGES = ("en", "de", "es", "fr", "ja")
FOLDER = Path(__file__).parent / "catalogues"
# What writes 0,5 for 0.5, and 50 % with a space that doesn't break.
_DECIMAL_COMMA = frozenset({"de", "es", "fr"})

_PLURAL_FORMS = re.compile(r"^Plural-Forms:\s{0,2}nplurals=(\d);\s{0,2}plural=([^;\n]{1,300});", re.MULTILINE)

_spoken: ContextVar[str] = ContextVar("language", default="en")
_log = structlog.get_logger(__name__)


def mark(text: str) -> str:
    """Return the text as it is; marks it as one that `tr` will be given where it is said."""
    return text


def tr(text: str, /, **values: object) -> str:
    """Return the text in the language that is spoken, with `{names}` filled in."""
    said = catalogue(_spoken.get()).get(text, text)
    return said.format(**values) if values else said


def plural(one: str, many: str, count: int, /, **values: object) -> str:
    """Return the text for a number of things, which stands at `{count}`; the key is `one`, as in gettext."""
    found = _read(_spoken.get())
    forms = found.plurals.get(one)
    said = forms[found.form(count)] if forms else one if count == 1 else many
    return said.format(count=count, **values)


def speak(language: str) -> None:
    """Speak a language for the rest of this task, and in the tasks that it starts."""
    _spoken.set(language if language in LANGUAGES else "en")


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """Speak a language within a block: for what others read than whoever is spoken to."""
    token = _spoken.set(language if language in LANGUAGES else "en")
    try:
        yield
    finally:
        _spoken.reset(token)


def spoken() -> str:
    """Return the language that is spoken."""
    return _spoken.get()


def number(value: float, spec: str = "g") -> str:
    """Return a number as the spoken language writes it; `spec` is that of Python's `format`."""
    return figure(format_number(value, spec))


def figure(text: str) -> str:
    """Return a number that Python wrote as the spoken language writes it."""
    if _spoken.get() not in _DECIMAL_COMMA:
        return text
    return text.replace(".", ",").replace("%", "\N{NO-BREAK SPACE}%")


def choose(setting: str, locale: object) -> str:
    """Return the language to speak: what is set, or with "auto" that of Discord's locale ("pt-BR")."""
    if setting != "auto":
        return setting
    code = str(locale).partition("-")[0].lower()
    return code if code in LANGUAGES else "en"


def load() -> None:
    """Read every catalogue; call before the event loop runs."""
    for language in LANGUAGES:
        _read(language)


@dataclass(frozen=True)
class Catalogue:
    """A language's texts by the English ones, and its forms of what is counted by the English one for one.

    `form` says which of a text's forms a count takes, by the rule in the catalogue's header.
    """

    texts: Mapping[str, str]
    plurals: Mapping[str, tuple[str, ...]]
    form: Callable[[int], int]


def catalogue(language: str) -> Mapping[str, str]:
    """Return a language's texts by the English ones; empty for English, and where the file can't be read."""
    return _read(language).texts


def plurals(language: str) -> Mapping[str, tuple[str, ...]]:
    """Return a language's forms of what is counted, by the English text for one."""
    return _read(language).plurals


@cache
def _read(language: str) -> Catalogue:
    if language == "en":
        return Catalogue({}, {}, _english_form)
    try:
        return parse((FOLDER / f"{language}.po").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _log.error("language.not_read", language=language, error=str(error))
        return Catalogue({}, {}, _english_form)


def _english_form(count: int) -> int:
    return int(count != 1)


def parse(po: str) -> Catalogue:
    """Read the entries of a .po file: `msgid`, `msgid_plural` and `msgstr`, each in one or more quoted lines.

    An entry without a translation is left out. Raises ValueError for what is no such file, and where an entry
    has not as many forms as the header's `Plural-Forms` asks for.
    """
    texts: dict[str, str] = {}
    counted: dict[str, tuple[str, ...]] = {}
    header = ""
    for entry in _entries(po):
        key = entry["msgid"]
        forms = tuple(entry[word] for word in entry if word.startswith("msgstr["))
        if "msgid_plural" in entry and all(forms):
            counted[key] = forms
        elif not key:
            header = header or entry["msgstr"]
        elif entry.get("msgstr"):
            texts[key] = entry["msgstr"]
    count, form = _plural_rule(header)
    if wrong := [key for key, forms in counted.items() if len(forms) != count]:
        raise ValueError(f"not {count} forms: {wrong[0]!r}")
    return Catalogue(texts, counted, form)


def _entries(po: str) -> Iterator[dict[str, str]]:
    """Yield the words of each entry with their texts, in order: `msgid`, `msgstr[0]` and so on."""
    entry: dict[str, str] = {}
    target = ""
    for line in po.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "msgid" and entry:
            yield entry
            entry = {}
        if re.fullmatch(r"msgid|msgid_plural|msgstr(\[\d\])?", word):
            target, entry[word] = word, _quoted(rest)
        elif word.startswith('"') and target:
            entry[target] += _quoted(line.strip())
        elif word and not word.startswith("#"):
            raise ValueError(f"not a line of a .po file: {line!r}")
    if entry:
        yield entry


def _plural_rule(header: str) -> tuple[int, Callable[[int], int]]:
    """Return how many forms a language has and which one a count takes; without a rule those of English."""
    found = _PLURAL_FORMS.search(header)
    if found is None:
        return 2, _english_form
    # gettext's own reader of the C expression: it takes nothing but numbers, `n` and operators.
    rule: Callable[[int], int] = gettext.c2py(found[2])
    return int(found[1]), rule


def _quoted(text: str) -> str:
    try:
        value = ast.literal_eval(text)
    except SyntaxError as error:
        raise ValueError(f"not a quoted text: {text!r}") from error
    if not isinstance(value, str):
        raise ValueError(f"not a quoted text: {text!r}")
    return value
