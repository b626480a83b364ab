"""`make messages`: after an English sentence was reworded in the code, rename its key in every catalogue.

A key that no source holds any more takes the most similar sentence that no catalogue has, with the same
places for values (as gettext's `msgmerge` does). The translations stay: read whether they still say the same.
"""

from __future__ import annotations

import ast
import difflib
import functools
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from bot.language.texts import FOLDER

ROOT = Path(__file__).parent.parent
# How alike an old and a new sentence are (difflib's ratio): below, it is another sentence.
LEAST_ALIKE = 0.6
_KEY = re.compile(r'^(msgid(?:_plural)?) ((?:"(?:[^"\\\n]|\\.)*"\n)+)', re.MULTILINE)
_QUOTED = re.compile(r'^"(.*)"$', re.MULTILINE)


@functools.cache
def sentences() -> frozenset[str]:
    """Every text in the sources of the packages."""
    trees = (
        ast.parse(path.read_text(encoding="utf-8"))
        for package in ("bot", "storage", "trainer")
        for path in (ROOT / package).rglob("*.py")
    )
    return frozenset(
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def renamed(keys: Collection[str], known: Collection[str]) -> dict[str, str | None]:
    """Return for each key that is not in `known` what it was reworded to, None where nothing is like it."""
    free = {each for each in known if each not in keys}
    found: dict[str, str | None] = {}
    for key in keys:
        if key in known or not key:
            continue
        like = [each for each in free if _places(each) == _places(key)]
        match = difflib.get_close_matches(key, like, 1, LEAST_ALIKE)
        found[key] = match[0] if match else None
        free -= set(match)
    return found


def main(folder: Path = FOLDER) -> int:
    """Rename in every catalogue; return 1 where a key is left that nothing is like."""
    known, left = sentences(), False
    for path in sorted(folder.glob("*.po")):
        text = path.read_text(encoding="utf-8")
        changes = renamed([key for _, key in _keys(text)], known)
        path.write_text(_KEY.sub(functools.partial(_written, changes), text), encoding="utf-8")
        for old, new in changes.items():
            left |= new is None
            print(
                f"{path.name}: {old!r} "
                + (f"is now {new!r}" if new else "is in no source: remove or rename it")
            )
    return int(left)


def _keys(text: str) -> Iterator[tuple[str, str]]:
    return ((found[1], _unquoted(found[2])) for found in _KEY.finditer(text))


def _unquoted(lines: str) -> str:
    return "".join(str(ast.literal_eval(f'"{each}"')) for each in _QUOTED.findall(lines))


def _written(changes: dict[str, str | None], found: re.Match[str]) -> str:
    new = changes.get(_unquoted(found[2]))
    if new is None:
        return found[0]
    escaped = new.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{found[1]} "{escaped}"\n'


def _places(text: str) -> list[str]:
    return sorted(re.findall(r"\{(\w*)\}", text))


if __name__ == "__main__":
    sys.exit(main())
