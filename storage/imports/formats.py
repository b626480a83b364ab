"""The formats of training files that people have, each as a reader from one record to examples.

Sources: OpenAI's fine-tuning guide and TRL's "Dataset formats" page (messages, prompt-completion,
preference, unpaired preference), FastChat's ShareGPT files, Stanford Alpaca's data file, OpenAssistant's
message trees, and Strop's own exports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.errors import ImportFileError
from storage.imports.examples import Example, Prompt, Role, Turn, Unusable
from storage.imports.reading import Record

Found = Iterator[Example | Prompt | Unusable]
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_PROMPT_COLUMNS = ("prompt", "question", "instruction", "input", "user")
_ANSWER_COLUMNS = ("completion", "answer", "response", "output", "assistant", "reply")
_RATING_COLUMNS = ("label", "rating", "score", "thumb", "feedback")


@dataclass(frozen=True, slots=True)
class Format:
    """One format: its name for people, how its first record is recognised, and its reader."""

    name: str
    title: str
    matches: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Record], Found]


def recognise(first: object) -> Format:
    """Return the format of a file by its first record. Raises ImportFileError, naming what was found."""
    if isinstance(first, str):
        return PROMPTS
    if isinstance(first, Mapping):
        if (known := known_format(first)) is not None:
            return known
        keys = ", ".join(sorted(map(str, first))[:8])
        raise ImportFileError(f"No known format has records with these keys: {keys}.")
    raise ImportFileError(f"A record is an object with keys; this file's first is {type(first).__name__}.")


def known_format(record: Mapping[str, Any]) -> Format | None:
    """Return the format of a record with keys, or None."""
    found = next((each for each in FORMATS if each.matches(record)), None)
    # Messages that nobody answers are something to ask.
    if found is not None and (found.name != "messages" or _answers(record.get("messages"))):
        return found
    return PROMPTS if _asked(record) else found


def prompt_of(record: Record, found: Sequence[Example | Prompt | Unusable]) -> Prompt | Unusable:
    """Return what a record asks first, by what its format's reader found in it."""
    for each in found:
        if isinstance(each, Prompt):
            return each
        if isinstance(each, Example):
            return each.opening
    asked = _asked(record.value) if isinstance(record.value, Mapping) else ""
    return (
        Prompt(asked, record.place) if asked else next(_unusable(found), Unusable(record.place, "no_prompt"))
    )


def _unusable(found: Sequence[Example | Prompt | Unusable]) -> Iterator[Unusable]:
    return (each for each in found if isinstance(each, Unusable))


def _asked(value: Mapping[str, Any]) -> str:
    try:
        turns = turns_of(value.get("messages", value.get("prompt")))
    except ValueError:
        return ""
    return next((turn.content.strip() for turn in turns if turn.role == "user"), "")


def _answers(messages: object) -> bool:
    try:
        return any(turn.role == "assistant" for turn in turns_of(messages))
    except ValueError:
        return True


def _prompts(record: Record) -> Found:
    """Read a text, or the prompt of a record in any format."""
    if isinstance(record.value, str):
        yield Prompt(record.value.strip(), record.place)
        return
    known = known_format(record.value) if isinstance(record.value, Mapping) else None
    found = [] if known in (None, PROMPTS) else list(known.read(record))
    yield prompt_of(record, found)


def turns_of(messages: object) -> tuple[Turn, ...]:
    """Return a list of role and content (or from and value) as turns; else ValueError."""
    if isinstance(messages, str):
        return (Turn("user", messages),)
    if not isinstance(messages, Sequence):
        raise ValueError("not_messages")
    return tuple(_turn(message) for message in messages)


def _turn(message: object) -> Turn:
    if not isinstance(message, Mapping):
        raise ValueError("not_messages")
    role = _ROLES.get(str(message.get("role", message.get("from"))).lower())
    content = message.get("content", message.get("value"))
    if isinstance(content, Sequence) and not isinstance(content, str):
        # OpenAI's content parts; pictures and sound have no text.
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    if role is None or not isinstance(content, str):
        raise ValueError("not_messages")
    return Turn(role, content)


def _guarded(read: Callable[[Mapping[str, Any], str], Iterator[Example]]) -> Callable[[Record], Found]:
    """Let one bad record be counted instead of ending the file."""

    def reader(record: Record) -> Found:
        if not isinstance(record.value, Mapping):
            yield Unusable(record.place, "not_messages")
            return
        try:
            yield from list(read(record.value, record.place))
        except (ValueError, LookupError, TypeError, AttributeError):
            yield Unusable(record.place, "not_messages")

    return reader


def _split_last(turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], Turn]:
    *prompt, answer = turns
    if answer.role != "assistant" or not prompt or prompt[-1].role != "user":
        raise ValueError("not_messages")
    return tuple(prompt), answer


def _each_answer(turns: tuple[Turn, ...], place: str) -> Iterator[Example]:
    """Make an example of each answer in a conversation, with all that was said before it as the prompt."""
    made = 0
    for index, turn in enumerate(turns):
        if turn.role == "assistant" and index and turns[index - 1].role == "user":
            made += 1
            yield Example(turns[:index], turn, place)
    if not made:
        raise ValueError("not_messages")


def _strop(value: Mapping[str, Any], place: str) -> Iterator[Example]:
    prompt, answer = _split_last(turns_of(value["messages"]))
    liked, disliked = int(value.get("liked", 0)), int(value.get("disliked", 0))
    corrections: list[str | None] = [str(text) for text in value.get("corrections", ())]
    for number, better in enumerate(corrections or [None]):
        counts = (liked, disliked) if number == 0 else (0, 0)
        yield Example(prompt, answer, place, *counts, better=better)


def _messages(value: Mapping[str, Any], place: str) -> Iterator[Example]:
    yield from _each_answer(turns_of(value.get("messages", value.get("conversations"))), place)


def _preference(value: Mapping[str, Any], place: str) -> Iterator[Example]:
    chosen, rejected = turns_of(value["chosen"]), turns_of(value["rejected"])
    if isinstance(value["chosen"], str):
        chosen, rejected = (Turn("assistant", value["chosen"]),), (Turn("assistant", value["rejected"]),)
    # An implicit prompt: both sides hold the whole conversation.
    prompt = turns_of(value["prompt"]) if "prompt" in value else chosen[:-1]
    if "prompt" not in value:
        chosen, rejected = chosen[-1:], rejected[-1:]
    if not prompt or prompt[-1].role != "user" or chosen[-1].role != "assistant":
        raise ValueError("not_messages")
    yield Example(prompt, rejected[-1], place, better=chosen[-1].content)


def _completion(value: Mapping[str, Any], place: str) -> Iterator[Example]:
    completion = value["completion"]
    answer = (
        Turn("assistant", completion.strip()) if isinstance(completion, str) else turns_of(completion)[-1]
    )
    label = value.get("label")
    liked, disliked = (0, 0) if label is None else (int(bool(label)), int(not label))
    yield Example(turns_of(value["prompt"]), answer, place, liked, disliked)


def _alpaca(value: Mapping[str, Any], place: str) -> Iterator[Example]:
    question = "\n\n".join(filter(None, (str(value["instruction"]), str(value.get("input") or ""))))
    system = (Turn("system", str(value["system"])),) if value.get("system") else ()
    yield Example((*system, Turn("user", question)), Turn("assistant", str(value["output"])), place)


def _tree(value: Mapping[str, Any], place: str) -> Iterator[Example]:
    """Walk an OpenAssistant tree; the best ranked answer to a prompt is better than the last."""
    walk: list[tuple[tuple[Turn, ...], Mapping[str, Any]]] = [((), value["prompt"])]
    made = 0
    while walk:
        before, node = walk.pop()
        here = (*before, Turn(_ROLES[str(node["role"]).lower()], str(node["text"])))
        answers = [each for each in node.get("replies", ()) if not each.get("deleted")]
        walk += [(here, each) for each in answers]
        if here[-1].role == "user" and answers:
            made += 1
            yield from _ranked(here, answers, place)
    if not made:
        raise ValueError("not_messages")


def _ranked(prompt: tuple[Turn, ...], answers: list[Mapping[str, Any]], place: str) -> Iterator[Example]:
    ordered = sorted(answers, key=lambda each: (each.get("rank") is None, each.get("rank") or 0))
    best, last = str(ordered[0]["text"]), ordered[-1]
    if len(ordered) > 1 and last.get("rank") is not None:
        yield Example(prompt, Turn("assistant", str(last["text"])), place, better=best)
    else:
        yield Example(prompt, Turn("assistant", best), place)


def columns_reader(prompt: str, answer: str, rating: str = "") -> Callable[[Record], Found]:
    """Return a reader of CSV rows (or flat objects) by the names of their columns."""

    def read(value: Mapping[str, Any], place: str) -> Iterator[Example]:
        counts = _counts(str(value.get(rating) or "")) if rating else (0, 0)
        turn = Turn("assistant", str(value[answer] or ""))
        yield Example((Turn("user", str(value[prompt] or "")),), turn, place, *counts)

    return _guarded(read)


def _counts(text: str) -> tuple[int, int]:
    """Read a like or a dislike as people write them in a table; anything else is no rating."""
    word = text.strip().casefold()
    if word in ("1", "true", "yes", "up", "like", "liked", "good", "👍", "+1", "5", "4"):
        return 1, 0
    if word in ("0", "-1", "false", "no", "down", "dislike", "disliked", "bad", "👎", "2"):
        return 0, 1
    return 0, 0


def _flat(value: Mapping[str, Any]) -> bool:
    return _named(value, _PROMPT_COLUMNS) is not None and _named(value, _ANSWER_COLUMNS) is not None


def _named(value: Mapping[str, Any], names: Sequence[str]) -> str | None:
    by_name = {str(key).strip().casefold(): str(key) for key in value}
    return next((by_name[name] for name in names if name in by_name), None)


def _columns(record: Record) -> Found:
    value = record.value
    names = [_named(value, each) or "" for each in (_PROMPT_COLUMNS, _ANSWER_COLUMNS, _RATING_COLUMNS)]
    yield from columns_reader(*names)(record)


def _has(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda value: all(key in value for key in keys)


# The more particular first: every export of Strop's also has messages.
FORMATS = (
    Format("strop", "Strop's own export", _has("messages", "reply_id", "rating"), _guarded(_strop)),
    Format("tree", "OpenAssistant trees", lambda v: isinstance(v.get("prompt"), Mapping), _guarded(_tree)),
    Format("preference", "preference pairs (TRL)", _has("chosen", "rejected"), _guarded(_preference)),
    Format(
        "completion", "prompt and completion (TRL, KTO)", _has("prompt", "completion"), _guarded(_completion)
    ),
    Format("alpaca", "Alpaca", _has("instruction", "output"), _guarded(_alpaca)),
    Format("messages", "messages (OpenAI, TRL)", _has("messages"), _guarded(_messages)),
    Format("sharegpt", "ShareGPT", _has("conversations"), _guarded(_messages)),
    Format("columns", "a table with columns", _flat, _columns),
)
PROMPTS = Format("prompts", "a list of prompts", lambda value: bool(_asked(value)), _prompts)
