"""The charset of a text that doesn't say it: what its letters most likely are.

charset-normalizer rules out what would be nonsense. Between what is left, the letters decide that a language
usually writes: short texts often fit a dozen charsets.
"""

from __future__ import annotations

from collections.abc import Callable

import regex
from charset_normalizer import from_bytes

SAMPLE_BYTES = 16 * 1024
_LATIN = "äöüßÄÖÜéèêëÉÈàâáÀçÇñÑíìîïóòôõøåÅæúùûãœ¿¡«»„“”‘’–—…€°§·©®"
_CENTRAL = "ąćęłńóśźżĄĆĘŁŃÓŚŹŻčďěňřšťůžýáéíČŘŠŽőűŐŰúôäľ„”–"
_TURKISH = "ğışİçöüĞŞÇÖÜâî’“”–"
_CYRILLIC = regex.compile(r"(?<![\p{Ll}])[А-ЯЁІЇЄ]|[а-яёіїєўґ]|[«»—–№…“”„]")
_KANA = regex.compile(r"[ぁ-んァ-ヶー。、「」！？・〜]")
_ARABIC = regex.compile(r"[\u0621-\u0652،؟]")
_GREEK = regex.compile(r"[α-ωΑ-Ωάέήίόύώϊϋς]")
_HEBREW = regex.compile(r"[א-ת]")
_THAI = regex.compile(r"[ก-๛]")
# No language writes a word in two of these, or one of four letters that all have accents.
_MIXED = regex.compile(r"[A-Za-z](?=[^\x00-\x7f\p{Latin}\P{L}])|[^\x00-\x7f\p{Latin}\P{L}](?=[A-Za-z])")
_ACCENTS_ONLY = regex.compile(r"(?<![A-Za-z])[^\x00-\x7f\P{Latin}]{4,}(?![A-Za-z])")
_HAN = regex.compile(r"\p{Han}")


def _among(letters: str) -> Callable[[str], float]:
    def count(text: str) -> float:
        text = _ACCENTS_ONLY.sub("", text)
        return sum(character in letters for character in text)

    return count


def _found(pattern: regex.Pattern[str]) -> Callable[[str], float]:
    return lambda text: len(pattern.findall(text)) - len(_MIXED.findall(text))


def _japanese(text: str) -> float:
    return len(_KANA.findall(text)) + 0.6 * len(_HAN.findall(text))


def _chinese(text: str, charset: str, common: range) -> float:
    """Count characters of the first, most used level of a Chinese charset, told by their first byte."""
    encoded = (character.encode(charset, "ignore") for character in text)
    return sum(0.9 for each in encoded if len(each) == 2 and each[0] in common) + 0.9 * len(
        regex.findall("[，。！？、：；“”（）]", text)
    )


def _korean(text: str) -> float:
    return sum(len(character.encode("euc_kr", "ignore")) == 2 for character in regex.findall("[가-힣]", text))


# In the order of how usual they are.
_CHARSETS: dict[str, Callable[[str], float]] = {
    "cp1252": _among(_LATIN),
    "cp1251": _found(_CYRILLIC),
    "cp932": _japanese,
    "gb18030": lambda text: _chinese(text, "gb2312", range(0xB0, 0xD8)),
    "cp949": _korean,
    "cp1250": _among(_CENTRAL),
    "big5": lambda text: _chinese(text, "big5", range(0xA4, 0xC7)),
    "euc_jp": _japanese,
    "iso2022_jp": _japanese,
    "koi8_r": _found(_CYRILLIC),
    "cp1254": _among(_TURKISH),
    "cp1253": _found(_GREEK),
    "cp1256": _found(_ARABIC),
    "cp1255": _found(_HEBREW),
    "cp874": lambda text: 0.8 * len(_THAI.findall(text)),
}
_NAMES = {
    "cp1252": "Windows-1252",
    "cp1251": "Windows-1251",
    "cp1250": "Windows-1250",
    "cp1253": "Windows-1253",
    "cp1254": "Windows-1254",
    "cp1255": "Windows-1255",
    "cp1256": "Windows-1256",
    "cp932": "Shift-JIS",
    "euc_jp": "EUC-JP",
    "iso2022_jp": "ISO-2022-JP",
    "gb18030": "GB-18030",
    "big5": "Big5",
    "cp949": "EUC-KR",
    "koi8_r": "KOI8-R",
    "cp874": "Windows-874",
}


def guess_charset(data: bytes) -> str:
    """Return the likeliest charset of bytes that are no UTF-8, as Python calls it."""
    sample = data[:SAMPLE_BYTES]
    scores = {charset: _score(sample, charset) for charset in _CHARSETS}
    best = max(scores.values())
    close = [charset for charset, score in scores.items() if score >= best - 0.05]
    if len(close) > 1:
        # charset-normalizer compares whole words with what languages look like.
        matches = from_bytes(sample, cp_isolation=close)
        clear = {match.encoding for match in matches if match.coherence > 0.3}
        close = [charset for charset in close if charset in clear] or close
    return close[0]


def charset_name(charset: str) -> str:
    """Return a charset's name as people know it."""
    return _NAMES.get(charset, charset)


def _score(sample: bytes, charset: str) -> float:
    """Return which share of what isn't ASCII is usual in the languages that are written in a charset."""
    # A sample may end in the middle of a character.
    for end in range(len(sample), max(0, len(sample) - 4), -1):
        try:
            text = sample[:end].decode(charset)
        except UnicodeDecodeError:
            continue
        other = [character for character in text if character > "\x7f"]
        return _CHARSETS[charset](text) / len(other) if other else 0.0
    return -1.0
