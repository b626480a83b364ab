"""What each setting can be: its values as people write them, and as the bot uses them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from storage.errors import SettingError
from storage.sentences import Figure

LANGUAGES = {
    "auto": "Discord's own",
    "en": "English",
    "de": "Deutsch",
    "es": "Español",
    "fr": "Français",
    "ja": "日本語",
}
TRIGGERS = {
    "mention": "a message that mentions me",
    "reply": "a reply to one of my messages",
    "thread": "every message in a thread that I am talking in",
    "every": "every message in the channel",
}
#: What only the message-content intent lets a bot see.
NEED_CONTENT = frozenset({"thread", "every"})
#: Longer personas would leave a small model's context no room for the conversation.
LONGEST_PERSONA = 2000
MOST_EMOJI = 10
MOST_WAKE_WORDS = 5
LONGEST_WAKE_WORD = 40
# Letters of any script with their marks; a phrase has spaces between its words.
WAKE_WORD = regex.compile(r"[\w\p{M}'’-]+(?: [\w\p{M}'’-]+)*")
MOST_A_MINUTE = 60
MOST_ROLES = 10
_CUSTOM_EMOJI = re.compile(r"<a?:\w{2,32}:\d{15,21}>")
_ROLE_LIMIT = re.compile(r"(?:<@&)?(\d{15,21})>?=(\d{1,3})")
_WORDS = re.compile(r"[\s,]+")
_BETWEEN_PHRASES = re.compile(r"[,،、，;\n]+")


@dataclass(frozen=True, slots=True)
class Kind:
    """One setting: `check` returns the usable value or raises SettingError; `choices` are offered in a menu.

    `help` says in a few words what the setting does; `example` is a value as it is typed.
    """

    help: str
    check: Callable[[object], Any]
    choices: Mapping[str, str] | None = None
    several: bool = False
    example: str = ""
    separator: str = " "

    def parse(self, value: object) -> Any:
        """Return the value as the bot uses it; accepts what people type as well. Raises SettingError."""
        return self.check(value)

    def format(self, value: object) -> str:
        """Return a value as people type it."""
        return format_value(value, self.separator)


def format_value(value: object, separator: str = " ") -> str:
    """Return a value as people type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return separator.join(str(each) for each in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(low: float, high: float, *, whole: bool, template: str) -> Callable[[object], Any]:
    """Check a number; `template` is that of the refusal."""

    def check(value: object) -> float | int:
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError
            number = float(value.replace(",", ".") if isinstance(value, str) else value)
            if not low <= number <= high or (whole and not number.is_integer()):
                raise ValueError
        except ValueError as error:
            raise SettingError(template, low=Figure(low), high=Figure(high), value=_quoted(value)) from error
        return int(number) if whole else number

    return check


def _persona(value: object) -> str:
    if not isinstance(value, str) or len(value.strip()) > LONGEST_PERSONA:
        raise SettingError("It must be a text of at most {count} characters.", count=LONGEST_PERSONA)
    return value.strip()


def _switch(value: object) -> bool:
    words = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    raise SettingError("It must be on or off; got {value}.", value=_quoted(value))


def _one_of(choices: Mapping[str, str]) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or value.strip() not in choices:
            raise SettingError(
                "It must be one of {choices}; got {value}.", choices=", ".join(choices), value=_quoted(value)
            )
        return value.strip()

    return check


def _some_of(choices: Mapping[str, str]) -> Callable[[object], tuple[str, ...]]:
    def check(value: object) -> tuple[str, ...]:
        wanted = [word for word in _words(value) if word != "none"]
        if unknown := [word for word in wanted if word not in choices]:
            raise SettingError(
                "It takes {choices}, or none; got {value}.",
                choices=", ".join(choices),
                value=_quoted(unknown[0]),
            )
        return tuple(choice for choice in choices if choice in wanted)

    return check


def _emoji(value: object) -> tuple[str, ...]:
    """Emoji as Discord writes them; a custom one is `<:name:id>`."""
    found = tuple(dict.fromkeys(_words(value)))
    if not 1 <= len(found) <= MOST_EMOJI:
        raise SettingError("It must be one to {count} emoji with spaces between them.", count=MOST_EMOJI)
    for each in found:
        plain_text = each.isascii() and not _CUSTOM_EMOJI.fullmatch(each)
        if plain_text or len(each) > 64 or any(character.isalpha() for character in each[:1]):
            raise SettingError(
                "{value} is not an emoji. One of your server's own is written <:name:id>; type \\:name: "
                "in Discord to see it.",
                value=_quoted(each),
            )
    return found


def _role_limits(value: object) -> tuple[str, ...]:
    """Pairs of a role's id (or mention) and a number, kept as `id=number`."""
    limits: dict[str, int] = {}
    for word in _words(value):
        if word == "none":
            continue
        found = _ROLE_LIMIT.fullmatch(word)
        if found is None or int(found[2]) > MOST_A_MINUTE:
            raise SettingError(
                "It must be roles with their limits, for example {example}; got {value}.",
                example="123456789012345678=20",
                value=_quoted(word),
            )
        limits[found[1]] = int(found[2])
    if len(limits) > MOST_ROLES:
        raise SettingError("It takes at most {count} roles.", count=MOST_ROLES)
    return tuple(f"{role}={limit}" for role, limit in limits.items())


def _wake_words(value: object) -> tuple[str, ...]:
    """Words or phrases with commas between them: "hey strop" calls only as a whole."""
    given = _BETWEEN_PHRASES.split(value) if isinstance(value, str) else _words(value)
    phrases = (" ".join(each.strip(' "“”').split()).casefold() for each in given)
    found = tuple(dict.fromkeys(phrase for phrase in phrases if phrase not in ("", "none")))
    if len(found) > MOST_WAKE_WORDS:
        raise SettingError("It takes at most {count} words.", count=MOST_WAKE_WORDS)
    for word in found:
        if not 2 <= len(word) <= LONGEST_WAKE_WORD or not WAKE_WORD.fullmatch(word):
            raise SettingError(
                "{value} can't be a wake word: use two to {count} letters, digits, - or _ (separate "
                "several by commas).",
                value=_quoted(word),
                count=LONGEST_WAKE_WORD,
            )
    return found


def _words(value: object) -> list[str]:
    if isinstance(value, str):
        return [word for word in _WORDS.split(value) if word]
    if isinstance(value, Sequence) and all(isinstance(each, str) for each in value):
        return list(value)
    raise SettingError("It must be words with spaces between them; got {value}.", value=_quoted(value))


def _quoted(value: object) -> str:
    text = " ".join(str(value).split())
    return f"{text[:40] + '…' if len(text) > 40 else text!r}"


_ON_OFF = {"on": "on", "off": "off"}

KINDS: dict[str, Kind] = {
    "system_prompt": Kind("who I am and how I talk", _persona, example="You are a patient chemistry tutor."),
    "temperature": Kind(
        "how freely I choose my words (0: always the likeliest)",
        _number(0, 2, whole=False, template="It must be a number from {low} to {high}; got {value}."),
        example="0.7",
    ),
    "max_new_tokens": Kind(
        "how long an answer may become",
        _number(
            16,
            1024,
            whole=True,
            template="It must be a whole number from {low} to {high} (tokens; four are about three words); "
            "got {value}.",
        ),
        example="200",
    ),
    "triggers": Kind("what I answer", _some_of(TRIGGERS), TRIGGERS, several=True, example="mention reply"),
    "auto_thread": Kind("open a thread for every new conversation", _switch, _ON_OFF, example="on"),
    "follow_up_s": Kind(
        "for how long after an answer the same member needs no mention",
        _number(
            0,
            600,
            whole=True,
            template="It must be a whole number from {low} to {high} (seconds; 0 is never); got {value}.",
        ),
        example="60",
    ),
    "rating_up": Kind("which emoji mean a good answer", _emoji, example="👍 ❤️"),
    "rating_down": Kind("which emoji mean a bad answer", _emoji, example="👎"),
    "training": Kind("whether conversations here may train me", _switch, _ON_OFF, example="off"),
    "language": Kind("the language of my own texts", _one_of(LANGUAGES), LANGUAGES, example="de"),
    "wake_words": Kind(
        "words or phrases that call me without a mention, separated by commas",
        _wake_words,
        example="strop, hey strop",
        separator=", ",
    ),
    "two_answers": Kind(
        "now and then show two answers for a vote, if whoever runs me allows it",
        _switch,
        _ON_OFF,
        example="off",
    ),
    "messages_per_minute": Kind(
        "how many questions a member may ask in a minute",
        _number(
            0,
            MOST_A_MINUTE,
            whole=True,
            template="It must be a whole number from {low} to {high} (0 is no limit); got {value}.",
        ),
        example="6",
    ),
    "role_limits": Kind(
        "other limits for single roles: the highest counts, 0 means no limit",
        _role_limits,
        example="123456789012345678=20",
    ),
}
"""Every setting by its key, in the order in which people see them."""
