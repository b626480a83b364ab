"""Make text from people incapable of yielding a tokenizer's control tokens.

A tokenizer turns the *string* ``<|im_end|>`` into the control token that ends a turn, whoever wrote it. So
every text that a person wrote is broken at such strings before it enters a prompt or a training row: one
space goes in after the opening bracket. A space survives every normaliser (zero-width characters do not:
NFKC-style normalisers drop them and would glue the token together again).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

# Control words that look like ordinary markup; anything with a bar (<|...|>) or an underscore (<fim_prefix>)
# is caught by shape. From the tokenizers of Llama, Mistral, Gemma, Qwen, SmolLM, Phi, DeepSeek, T5 and BERT.
_ANGLE_WORDS = """
    s pad unk mask bos eos cls sep eod eot eom eop sop gmask think tool tools image images img video audio
    reponame filename file repo commit fim pre mid suf end box ref quad sys sysprompt system user assistant
    human bot inst
"""
_SQUARE_WORDS = """
    inst sys cls sep pad mask unk bos eos gmask smask sop eop toolcalls toolresults availabletools prefix
    suffix middle img systemprompt think args callid toolcontent audio transcribe modelsettings begin end
"""
_ANGLE_NAMES = frozenset(_ANGLE_WORDS.split())
_SQUARE_NAMES = frozenset(_SQUARE_WORDS.split())
DEFAULT: tuple[str, ...] = ("<|", "<\uff5c", "<<SYS>>", "<</SYS>>", "[gMASK]")
"""Strings that are broken wherever they stand, besides everything that has the shape of a control token."""

# Characters that some normaliser drops: controls, format characters, variation selectors.
_GAP = (
    "[\x00-\x08\x0e-\x1f\x7f\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff]*"
)
_LESS = "<\uff1c\ufe64\u2039\u3008\u276e"
_MORE = ">\uff1e\ufe65\u203a\u3009\u276f"
_BARS = "|\uff5c\u2502\uffe8\u01c0"
_BARRED = re.compile(f"([{_LESS}])(?={_GAP}[{_BARS}])")
_ANGLE = re.compile(f"([{_LESS}])(?=([^{_LESS}{_MORE}\\s]{{1,80}})[{_MORE}])")
_SQUARE = re.compile("([\\[\uff3b])(?=([^\\[\\]\uff3b\uff3d\\s]{1,80})[\\]\uff3d])")
_IGNORABLE = re.compile(_GAP)
_SHAPING = frozenset("_\u2581-")
# A text full of brackets repeats the words in them; forgotten words are only looked at once more.
_REMEMBERED_WORDS = 4096
_NAME = re.compile(r"/?[a-z0-9_.\-\u2581]+")


def escape_control_tokens(text: str, special_tokens: Sequence[str] = DEFAULT) -> str:
    """Return ``text`` with every control-token-like string broken by one space.

    Text without such a string comes back unchanged, and the result of a second call equals that of the first.

    Args:
        text: what a person wrote: a message, a name, a correction, an imported line.
        special_tokens: exact strings to break besides the general shapes, such as a tokenizer's own list.
    """
    text = _replace_lone_surrogates(text)
    text = _BARRED.sub(r"\1 ", text)
    text = _ANGLE.sub(_break_angle, text)
    text = _SQUARE.sub(_break_square, text)
    return _break_exact(text, special_tokens)


def _replace_lone_surrogates(text: str) -> str:
    """A lone surrogate cannot be encoded as UTF-8, which every tokenizer and every wire needs."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _plain_name(raw: str) -> str:
    return _IGNORABLE.sub("", unicodedata.normalize("NFKC", raw)).lower()


def _break_angle(match: re.Match[str]) -> str:
    return match[1] + " " if _is_angle_word(match[2]) else match[1]


def _break_square(match: re.Match[str]) -> str:
    return match[1] + " " if _is_square_word(match[2]) else match[1]


@lru_cache(maxsize=_REMEMBERED_WORDS)
def _is_angle_word(raw: str) -> bool:
    name = _plain_name(raw)
    if not _NAME.fullmatch(name):
        return False
    word = name.removeprefix("/")
    known = word.rstrip("0123456789") in _ANGLE_NAMES
    return known or word.startswith(("unused", "reserved", "extra", "0x")) or not _SHAPING.isdisjoint(word)


@lru_cache(maxsize=_REMEMBERED_WORDS)
def _is_square_word(raw: str) -> bool:
    word = _plain_name(raw).removeprefix("/").replace("_", "").rstrip("0123456789")
    return word in _SQUARE_NAMES or word.startswith(("unused", "control"))


def forget() -> None:
    """Drop the words that were judged so far: they come out of members' messages."""
    _is_angle_word.cache_clear()
    _is_square_word.cache_clear()


def _break_exact(text: str, special_tokens: Sequence[str]) -> str:
    """Break the given strings; one that a space cannot break (a single character) is removed."""
    for token in special_tokens:
        if not token.strip() or token not in text:
            continue
        broken = token[0] + " " + token[1:]
        text = text.replace(token, "" if len(token) == 1 or token in broken else broken)
    return text
