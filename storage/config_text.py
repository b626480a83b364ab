"""What people write into files and paste into variables: byte-order marks, quotes, labels."""

from __future__ import annotations

import codecs
import re

# UTF-32's mark begins like UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_QUOTES = "\"'`“”„‘’«»"
# What is invisible and comes along when something is copied.
_INVISIBLE = re.compile(r"[\s\u200b-\u200f\u2060\ufeff\u00ad]+")
_LABEL = re.compile(r"^(?:export\s+)?(?:DISCORD_)?(?:BOT_)?TOKEN\s*[=:]\s*", re.IGNORECASE)
_SCHEME = re.compile(r"^(?:Authorization\s*:\s*)?Bot\s+", re.IGNORECASE)


def decode(data: bytes) -> str:
    """Return a file's text: UTF-8, or what its byte-order mark says. Raises UnicodeDecodeError."""
    charset = next((charset for mark, charset in _MARKS if data.startswith(mark)), "utf-8")
    return data.decode(charset)


def bare_secret(text: str) -> str:
    """Return a secret without the quotes and blanks around it."""
    return _INVISIBLE.sub(" ", text).strip().strip(_QUOTES).strip()


def bare_token(text: str) -> str:
    """Return a bot token out of what was pasted: without quotes, a label, or "Bot " in front."""
    token = bare_secret(text)
    for clinging in (_LABEL, _SCHEME):
        token = bare_secret(clinging.sub("", token))
    return token.replace(" ", "")
