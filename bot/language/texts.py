"""The bot's own texts in the language of those who read them.

The English text is the key (as in gettext); `catalogues/<code>.po` holds the others, in the format that
translators' tools know. They are read as they are: nothing has to be compiled. A text without a translation
is said in English. Which language is spoken is settled once an event and travels with its task.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import structlog

LANGUAGES = ("en", "de", "es", "fr", "ja")
FOLDER = Path(__file__).parent / "catalogues"
# What writes 0,5 for 0.5, and 50 % with a space that doesn't break.
_DECIMAL_COMMA = frozenset({"de", "es", "fr"})

_spoken: ContextVar[str] = ContextVar("language", default="en")
_log = structlog.get_logger(__name__)


def mark(text: str) -> str:
    """Return the text as it is; marks it as one that `tr` will be given where it is said."""
    return text


def tr(text: str, /, **values: object) -> str:
    """Return the text in the language that is spoken, with `{names}` filled in."""
    said = catalogue(_spoken.get()).get(text, text)
    return said.format(**values) if values else said


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
    return figure(format(value, spec))


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
        catalogue(language)


@cache
def catalogue(language: str) -> Mapping[str, str]:
    """Return a language's texts by the English ones; empty for English, and where the file can't be read."""
    if language == "en":
        return {}
    try:
        return parse((FOLDER / f"{language}.po").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _log.error("language.not_read", language=language, error=str(error))
        return {}


def parse(po: str) -> dict[str, str]:
    """Read the entries of a .po file: `msgid` and `msgstr`, each in one or more quoted lines.

    An entry without a translation and the header are left out. Raises ValueError for what is no such file.
    """
    entries: dict[str, str] = {}
    key, value, target = "", "", ""
    for line in [*po.splitlines(), 'msgid ""']:
        word, _, rest = line.strip().partition(" ")
        if word == "msgid":
            if key and value:
                entries[key] = value
            key, value, target = _quoted(rest), "", "msgid"
        elif word == "msgstr":
            value, target = _quoted(rest), "msgstr"
        elif word.startswith('"'):
            more = _quoted(line.strip())
            key, value = (key + more, value) if target == "msgid" else (key, value + more)
        elif word and not word.startswith("#"):
            raise ValueError(f"not a line of a .po file: {line!r}")
    return entries


def _quoted(text: str) -> str:
    try:
        value = ast.literal_eval(text)
    except SyntaxError as error:
        raise ValueError(f"not a quoted text: {text!r}") from error
    if not isinstance(value, str):
        raise ValueError(f"not a quoted text: {text!r}")
    return value
