"""Which examples of a file can be used, and why the others can't."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from storage.chat.splits import assign_split, near_duplicate_key
from storage.feedback import prompt_bank
from storage.imports.examples import Example, Prompt, Unusable

MAX_CHARACTERS = 24_000
SAMPLES = 3
REASONS = {
    "not_messages": "hold no prompt with an answer",
    "other_format": "are in another format than the first: import them from a file of their own",
    "no_prompt": "hold no prompt",
    "empty": "have an empty prompt or answer",
    "too_long": f"are longer than {MAX_CHARACTERS:,} characters",
    "control_tokens": "hold control tokens of a chat template",
    "duplicate": "are in the file twice",
    "near_duplicate": "differ from another only in case, punctuation or word order",
    "held_out": "have prompts of the held-out set: answers to imitate never touch what judges them",
    "system_message": "are messages of Discord's own",
    "answers_nothing": "reply to no other message",
    "question_missing": "reply to a message that isn't in the file",
    "too_short": "are too short to ask",
    "private": "were written in direct messages or private threads, which never train",
    "not_public": "were written in channels that not everybody can read",
    "channel_opted_out": "were written where training is switched off (/settings)",
    "no_consent": "are of members who have not opted in with /privacy",
    "prompt_too_long": f"are longer than {prompt_bank.MAX_PROMPT:,} characters",
    "bank_full": f"did not fit: the bank holds {prompt_bank.MAX_PROMPTS:,} prompts",
}
# The marks of common chat templates. Each alternative is bounded, so that no text makes the search slow.
_CONTROL = re.compile(r"<\|[\w.-]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")


@dataclass
class Summary:
    """What a file holds: examples by kind, or prompts; what was left out by reason; a few to look at."""

    usable: int = 0
    imitated: int = 0
    liked: int = 0
    disliked: int = 0
    pairs: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    first_left_out: dict[str, str] = field(default_factory=dict)
    samples: list[Example | Prompt] = field(default_factory=list)

    def add(self, found: Example | Prompt | Unusable) -> None:
        """Count one."""
        if isinstance(found, Unusable):
            self.left_out[found.reason] += 1
            self.first_left_out.setdefault(found.reason, found.place)
            return
        self.usable += 1
        if len(self.samples) < SAMPLES:
            self.samples.append(found)
        if isinstance(found, Prompt):
            return
        self.imitated += not found.rated
        self.liked += found.liked
        self.disliked += found.disliked
        self.pairs += found.better is not None
        self.splits[split_for(found)] += 1


def split_for(example: Example) -> str:
    """Return the split that an example's conversation falls into, by its first question."""
    first = next(turn for turn in example.prompt if turn.role == "user")
    return assign_split(near_duplicate_key(first.content))


def checked(found: Iterable[Example | Unusable]) -> Iterator[Example | Unusable]:
    """Yield each example that can be used, or why it can't; hashes of 8 bytes an example are remembered."""
    exact: set[bytes] = set()
    near: set[bytes] = set()
    for each in found:
        if isinstance(each, Unusable):
            yield each
            continue
        reason = _objection(each) or _repeated(each, exact, near)
        yield each if reason is None else Unusable(each.place, reason)


def checked_prompts(found: Iterable[Prompt | Unusable]) -> Iterator[Prompt | Unusable]:
    """Yield each prompt that can be asked, once, or why it can't be."""
    seen: set[bytes] = set()
    for each in found:
        if isinstance(each, Unusable):
            yield each
        elif not each.text.strip():
            yield Unusable(each.place, "no_prompt")
        elif _CONTROL.search(each.text):
            yield Unusable(each.place, "control_tokens")
        elif (digest := _digest(each.text)) in seen:
            yield Unusable(each.place, "duplicate")
        else:
            seen.add(digest)
            yield each


def _objection(example: Example) -> str | None:
    texts = [turn.content for turn in (*example.prompt, example.answer)]
    texts += [] if example.better is None else [example.better]
    if not all(text.strip() for text in (example.question, *texts[len(example.prompt) :])):
        return "empty"
    if sum(map(len, texts)) > MAX_CHARACTERS:
        return "too_long"
    if any(_CONTROL.search(text) for text in texts):
        return "control_tokens"
    if not example.rated and split_for(example) != "train":
        return "held_out"
    return None


def _repeated(example: Example, exact: set[bytes], near: set[bytes]) -> str | None:
    whole = _digest(fingerprint(example))
    if whole in exact:
        return "duplicate"
    exact.add(whole)
    alike = _digest(
        "\n".join(map(near_duplicate_key, (example.question, example.answer.content, example.better or "")))
    )
    if alike in near:
        return "near_duplicate"
    near.add(alike)
    return None


def fingerprint(example: Example) -> str:
    """Return what makes an example the same one in another file: its prompt, answer and better answer."""
    turns = (*example.prompt, example.answer)
    text = "\x1e".join(f"{turn.role}\x1f{turn.content}" for turn in turns) + f"\x1e{example.better or ''}"
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", errors="replace")).digest()[:8]
