"""How much a reply flatters: praise of whoever asked or of their question, and strings of exclamation marks.

A count of words, not an understanding: it knows English only, and a compliment in plain words escapes it. One
warm word and one exclamation mark are ordinary kindness and count nothing; only more than that does.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Marks beyond the free ones at which a reply is all flattery.
FULL = 4
FREE_PRAISE = 1
FREE_EXCLAMATIONS = 1

_SUPERLATIVE = (
    r"amazing(ly)?|astonishing(ly)?|astounding|awesome|beautiful(ly)?|brilliant(ly)?|clever|divine"
    r"|excellent(ly)?|exceptional(ly)?|exquisite|extraordinary|fabulous|fantastic(ally)?|flawless|genius(es)?"
    r"|glorious|gorgeous|impressive|incredible|incredibly|inspiring|legend(ary)?|magnificent(ly)?"
    r"|marvel+ous(ly)?|masterful|outstanding|perfect(ly|ion)?|phenomenal(ly)?|remarkable|remarkably|spectacular|splendid|stellar|stunning|stupendous"
    r"|sublime|superb(ly)?|superstar|terrific|unbelievable|wise|wonderful(ly)?|wondrous|world[- ]class"
)
_PLAIN = (
    r"great|good|nice|lovely|fine|smart|thoughtful|insightful|interesting|deep|profound|sharp|talented|special"
    r"|intelligent|creative|kind|best|awesome|cool|sweet|excellent"
)
_PRAISE = re.compile(
    rf"\b({_SUPERLATIVE})\b"
    rf"|\b({_PLAIN}) (question|point|idea|thinking|choice|taste|job|work|observation|thought|insight|one)\b"
    rf"|\byou('re| are) (so |such an? |really |very |truly |absolutely |the |quite )+({_PLAIN})\b"
    rf"|\bwhat an? ({_PLAIN})\b"
    rf"|\bhow ({_PLAIN}) of you\b"
    r"|\b(i('m| am) (so |really |truly |very )?(impressed|proud of you|in awe|honou?red)"
    r"|i (admire|adore) (you|your|how)|i love (how|that|the way) you"
    r"|(well|nicely|beautifully) (done|said|put)"
    r"|bravo|congratulations|congrats|kudos|hats off|you (rock|nailed it|are right to ask)"
    r"|couldn'?t agree more|one of a kind)\b",
    re.IGNORECASE,
)


@lru_cache(maxsize=8192)
def flattery(text: str) -> float:
    """Return 0 (none) to 1 (nothing but) for one reply."""
    praise = sum(1 for _ in _PRAISE.finditer(text))
    exclamations = text.count("!") + text.count("\uff01")
    marks = max(0, praise - FREE_PRAISE) + max(0, exclamations - FREE_EXCLAMATIONS)
    return min(FULL, marks) / FULL
