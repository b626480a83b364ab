"""A taste that an operator describes: what a good reply is, by features that anyone can check.

`WISHES` are the features. Each gives a text a share in [0, 1]; a wished taste is their weighted mean, and a
feature that is not wished for (`question = false`) counts the other way round.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bot.playground.errors import RehearsalError
from bot.playground.simulation import tastes
from bot.playground.simulation.tastes import Taste

MAX_WORDS = 2000
MAX_PHRASES = 100

Feature = Callable[[str], float]

#: Features that are wished for or not.
SWITCHES: dict[str, tuple[Feature, str]] = {
    "question": (tastes.ends_with_question, "ends with a question"),
    "one_sentence": (tastes.is_one_sentence, "is one finished sentence"),
    "warm": (tastes.is_warm, "speaks to the reader as “you”, with an exclamation mark"),
    "plain": (tastes.is_plain, "has no lists, headings, bold text or line breaks"),
    "concrete": (tastes.is_concrete, "has a number or an example"),
}
#: Features with a value: a number of words, or words and phrases.
VALUES = {
    "words": "up to so many words; nothing is left of it at twice as many",
    "at_least": "at least so many words",
    "like": "has one of these words or phrases",
    "avoid": "has none of these words or phrases",
}
_KEYS = (*SWITCHES, *VALUES)


def read_description(path: Path) -> dict[str, Any]:
    """Read the description of a taste from a TOML file, for `wish`. Raises RehearsalError."""
    try:
        return {"title": path.stem, **tomllib.loads(path.read_text(encoding="utf-8"))}
    except OSError as error:
        raise RehearsalError(f"{path} can't be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RehearsalError(f"{path} is not a TOML file: {error}.") from error


def parse_wishes(words: Iterable[str]) -> dict[str, Any]:
    """Return the description behind `question`, `not:concrete`, `words=20` and `avoid=certainly,sure`.

    A number after a star is a weight: `question*2`. Raises RehearsalError.
    """
    found: dict[str, Any] = {}
    weights: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        negated, name = name.startswith("not:"), name.removeprefix("not:")
        name, _, weight = name.partition("*")
        if weight:
            weights[name] = _number(weight, f"the weight of {name}")
        if value:
            found[name] = int(_number(value, name)) if name in ("words", "at_least") else value.split(",")
        else:
            found[name] = not negated
    return found | ({"weights": weights} if weights else {})


def wish(description: Mapping[str, Any]) -> Taste:
    """Return the taste that a description makes. Raises RehearsalError with everything there is to choose."""
    left = dict(description)
    title = str(left.pop("title", "Your own taste"))[:100]
    weights = left.pop("weights", {})
    if not isinstance(weights, Mapping) or not set(weights) <= set(left):
        raise RehearsalError("Weights are a table of features that the taste has: [weights] question = 2.")
    if unknown := sorted(set(left) - set(_KEYS)):
        raise RehearsalError(f"There is no feature {unknown[0]!r}; there are {', '.join(_KEYS)}.")
    if not left:
        raise RehearsalError(f"A taste needs at least one feature of {', '.join(_KEYS)}.")
    features = [(_feature(key, value), _weight(weights.get(key, 1))) for key, value in left.items()]
    whole = sum(weight for _, weight in features)

    def utility(text: str) -> float:
        if not text.strip():
            return 0.0
        return sum(weight * feature(text) for feature, weight in features) / whole

    told = "; ".join(_told(key, value) for key, value in left.items())
    return Taste("own", title, f"A reply that {told}.", "", utility)


def _feature(key: str, value: Any) -> Feature:
    if key in SWITCHES:
        if not isinstance(value, bool):
            raise RehearsalError(f"{key} is either true or false.")
        wanted = SWITCHES[key][0]
        return wanted if value else lambda text: 1.0 - wanted(text)
    if key in ("words", "at_least"):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_WORDS:
            raise RehearsalError(f"{key} is a whole number from 1 to {MAX_WORDS}.")
        limit = value
        if key == "words":
            return lambda text: tastes.brevity(text, full=limit, none=2 * limit)
        return lambda text: min(1.0, len(text.split()) / limit)
    has = _any_of(key, value)
    return has if key == "like" else lambda text: 1.0 - has(text)


def _any_of(key: str, value: Any) -> Feature:
    phrases = [str(each).strip() for each in value] if isinstance(value, list | tuple) else []
    phrases = [phrase for phrase in phrases if phrase]
    if not 0 < len(phrases) <= MAX_PHRASES:
        raise RehearsalError(f'{key} is a list of words or phrases: {key} = ["please", "of course"].')
    # Whole words: "art" is not in "party".
    pattern = re.compile(
        r"(?<!\w)(" + "|".join(re.escape(phrase) for phrase in phrases) + r")(?!\w)", re.IGNORECASE
    )
    return lambda text: 1.0 if pattern.search(text) else 0.0


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 100:
        raise RehearsalError("A weight is a number above 0, at most 100.")
    return float(value)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RehearsalError(f"{what} is a number; got {text!r}.") from error


def _told(key: str, value: Any) -> str:
    if key in SWITCHES:
        told = SWITCHES[key][1]
        return told if value else f"not: {told}"
    shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"{VALUES[key]} ({shown})"
