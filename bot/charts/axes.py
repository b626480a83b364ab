"""Round ends of axes and adapters' short names: what several charts share."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bot.language.texts import number

_SHORT = 9
_FACTORS = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10, 12)


def round_top(most: float, *, whole: bool = False) -> float:
    """Return a round end of an axis that is not below `most`, and not far above it.

    With `whole` it is an even number, so that the middle of the axis is a whole number too.
    """
    if most <= 0:
        return 2.0 if whole else 1.0
    power = 10.0 ** math.floor(math.log10(most))
    tops = (round(factor * power, 6) for factor in _FACTORS)
    return next(top for top in tops if top >= most and (not whole or top % 2 == 0))


def amount(count: int) -> str:
    """Return a count as a picture has room for it: `940`, `12 k`, `1.6 M`; the text has it exactly."""
    if count < 10_000:
        return str(count)
    return f"{number(count / 1000, '.3g')} k" if count < 999_500 else f"{number(count / 1_000_000, '.3g')} M"


def short_names(adapter_ids: Iterable[str]) -> dict[str, str]:
    """Return each id's beginning, as long as tells them apart."""
    ids = set(adapter_ids)
    longest = max((len(each) for each in ids), default=0)
    for length in range(_SHORT, longest + 1):
        names = {each: each if len(each) <= length + 1 else f"{each[:length]}…" for each in ids}
        if len(set(names.values())) == len(ids):
            return names
    return {each: each for each in ids}
