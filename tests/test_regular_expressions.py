"""No regular expression takes more than linear time, whatever text it is given.

Read from the sources, not from what some texts happen to take: nested repetition, neighbouring repetition
that shares characters, and repetition that begins anew inside its own run are refused wherever they stand.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from re import _constants as c  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bot", "storage", "trainer")
FUNCTIONS = frozenset(
    {"compile", "sub", "subn", "search", "match", "fullmatch", "findall", "finditer", "split"}
)
# A repetition up to so often costs a constant.
BOUNDED = 160
SAMPLE = [chr(code) for code in (*range(0, 0x180), 0x2026, 0x3002, 0xFF01, 0x4E2D, 0x1F600)]
# Patterns that are made at run time, each from escaped literals and groups of its own.
MADE = {
    "bot/serving/model/thoughts.py": "escaped tags",
    "bot/language/sentences.py": "from our own sentences, with one group a value; texts from outside are cut",
    "bot/playground/simulation/custom_tastes.py": "escaped phrases of the operator's file",
    "storage/privacy/name_redaction.py": "an escaped name",
    "bot/chat/triggers.py": "an id",
    "bot/playground/discord/ratelimit.py": "the rules of the stand-in, each tested below it",
}


def sources() -> list[Path]:
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def constants(tree: ast.Module) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def text_of(node: ast.expr, known: dict[str, ast.expr]) -> str | None:
    """Return the string that an expression of literals is, or None."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return text_of(known[node.id], known) if node.id in known else None
    if isinstance(node, ast.FormattedValue):
        return text_of(node.value, known)
    if isinstance(node, ast.JoinedStr):
        parts = [text_of(part, known) for part in node.values]
        return None if None in parts else "".join(part or "" for part in parts)
    return None


def patterns() -> Iterator[tuple[str, str | None, bool, bool]]:
    """Yield where, the pattern (None: made at run time), whether MULTILINE, and whether it is anchored."""
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known = constants(tree)
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            called = node.func
            if not (
                isinstance(called.value, ast.Name) and called.value.id == "re" and called.attr in FUNCTIONS
            ):
                continue
            anchored = called.attr in ("fullmatch", "match") or _only_matched(tree, node, text)
            yield (
                f"{name}:{node.lineno}",
                text_of(node.args[0], known),
                "MULTILINE" in ast.dump(node),
                anchored,
            )


def _only_matched(tree: ast.Module, call: ast.Call, text: str) -> bool:
    """Whether a compiled pattern is used from the beginning of a text only."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.value is call and isinstance(node.targets[0], ast.Name):
            used = set(re.findall(rf"\b{node.targets[0].id}\.(\w+)\(", text))
            return bool(used) and used <= {"fullmatch", "match"}
    return False


def accepts(item: tuple[Any, Any]) -> set[str]:
    """Return the characters of SAMPLE with which an item can begin."""
    compiled = {
        c.LITERAL: lambda value: {chr(value)},
        c.NOT_LITERAL: lambda value: set(SAMPLE) - {chr(value)},
        c.ANY: lambda value: set(SAMPLE) - {"\n"},
        c.IN: _class,
        c.SUBPATTERN: lambda value: first(value[-1]),
        c.ATOMIC_GROUP: first,
        c.BRANCH: lambda value: set().union(*(first(branch) for branch in value[1])),
        c.MAX_REPEAT: lambda value: first(value[2]),
        c.MIN_REPEAT: lambda value: first(value[2]),
        c.POSSESSIVE_REPEAT: lambda value: first(value[2]),
    }
    kind, value = item
    return compiled[kind](value) if kind in compiled else set()


def _class(value: list[tuple[Any, Any]]) -> set[str]:
    found: set[str] = set()
    for kind, what in value:
        if kind is c.LITERAL:
            found.add(chr(what))
        elif kind is c.RANGE:
            found |= {each for each in SAMPLE if what[0] <= ord(each) <= what[1]}
            found.add(chr(what[0]))
        elif kind is c.CATEGORY:
            shown = {
                c.CATEGORY_DIGIT: r"\d",
                c.CATEGORY_NOT_DIGIT: r"\D",
                c.CATEGORY_SPACE: r"\s",
                c.CATEGORY_NOT_SPACE: r"\S",
                c.CATEGORY_WORD: r"\w",
                c.CATEGORY_NOT_WORD: r"\W",
            }[what]
            found |= {each for each in SAMPLE if re.match(shown, each)}
    return set(SAMPLE) - found if (c.NEGATE, None) in value else found


def first(items: Any) -> set[str]:
    """Return the characters with which a sequence can begin."""
    found: set[str] = set()
    for item in items:
        found |= accepts(item)
        if not _may_be_empty(item):
            break
    return found


def _may_be_empty(item: tuple[Any, Any]) -> bool:
    return _parser.SubPattern(_parser.State(), [item]).getwidth()[0] == 0


def _endless(item: tuple[Any, Any]) -> bool:
    repeats = (c.MAX_REPEAT, c.MIN_REPEAT, c.POSSESSIVE_REPEAT)
    return item[0] in repeats and item[1][1] > BOUNDED


def _inside(item: tuple[Any, Any]) -> Iterator[Any]:
    """Yield the sequences directly inside an item."""
    kind, value = item
    if kind is c.SUBPATTERN:
        yield value[-1]
    elif kind is c.BRANCH:
        yield from value[1]
    elif kind is c.ATOMIC_GROUP:
        yield value
    elif kind in (c.ASSERT, c.ASSERT_NOT):
        yield value[1]
    elif kind in (c.MAX_REPEAT, c.MIN_REPEAT, c.POSSESSIVE_REPEAT):
        yield value[2]


def _flat(items: Any) -> Iterator[tuple[Any, Any]]:
    for item in items:
        yield item
        for inner in _inside(item):
            yield from _flat(inner)


def faults(pattern: str, *, lines: bool, anchored: bool) -> list[str]:
    """Return what may take more than linear time."""
    items = list(_parser.parse(pattern))
    found = [
        "a repetition inside a repetition"
        for item in _flat(items)
        if _endless(item) and any(_endless(inner) for inner in _flat(item[1][2]))
    ]
    found += _neighbours(items)
    if not anchored:
        alternatives = items[0][1][1] if len(items) == 1 and items[0][0] is c.BRANCH else [items]
        found += [fault for each in alternatives for fault in _restarts(list(each), lines)]
    return found


def _neighbours(items: Any) -> list[str]:
    """Find repetitions next to each other, or with only optional things between, that share characters."""
    found: list[str] = []
    open_: set[str] = set()
    for item in items:
        for inner in _inside(item):
            found += _neighbours(inner)
        if _endless(item):
            mine = first(item[1][2])
            if open_ & mine:
                found.append("neighbouring repetitions that share characters")
            open_ = mine if not _may_be_empty(item) else open_ | mine
            if item[0] is c.POSSESSIVE_REPEAT:
                open_ = set()
        elif not _may_be_empty(item):
            open_ &= accepts(item)
    return found


def _restarts(items: list[tuple[Any, Any]], lines: bool) -> list[str]:
    """Find a repetition that can fail after a long run in which the whole pattern can begin again."""
    begins = first(items)
    for item in items:
        if item[0] is c.ASSERT_NOT and item[1][0] < 0:
            # Not behind one of its own characters: then it begins once a run.
            begins -= first(item[1][1])
        if item[0] is c.AT and item[1] is c.AT_BEGINNING:
            begins = {"\n"} if lines else set()
        if item[0] is c.AT and item[1] is c.AT_BOUNDARY:
            begins = {each for each in begins if not re.match(r"\w", each)} if _wordy(items) else begins
        if not _may_be_empty(item):
            break
    for index, item in enumerate(items):
        runs = [each for each in _flat([item]) if _endless(each)]
        needed = any(_may_fail(later) for later in items[index + 1 :])
        inner_needed = item[0] in (c.SUBPATTERN, c.BRANCH) and any(
            _fails_after(inner) for inner in _inside(item)
        )
        if runs and (needed or inner_needed) and any(begins & first(run[1][2]) for run in runs):
            return ["a repetition that begins again inside its own run"]
    return []


def _may_fail(item: tuple[Any, Any]) -> bool:
    """Whether an item may not match: it needs a character, or says something of its place."""
    says = (c.ASSERT, c.ASSERT_NOT, c.AT)
    return not _may_be_empty(item) or any(each[0] in says for each in _flat([item]))


def _wordy(items: list[tuple[Any, Any]]) -> bool:
    """Whether a pattern begins with a word boundary before words, so that it begins once a word."""
    return items[0][0] is c.AT


def _fails_after(items: Any) -> bool:
    """Whether something is needed behind a repetition in a sequence, at any depth."""
    listed = list(items)
    for index, item in enumerate(listed):
        if any(_endless(each) for each in _flat([item])) and any(
            _may_fail(later) for later in listed[index + 1 :]
        ):
            return True
    return any(_fails_after(inner) for item in listed for inner in _inside(item))


@pytest.mark.parametrize(
    ("pattern", "lines"),
    [
        (r"(a+)+$", False),
        (r"<[@#:a][^>]*>", False),
        (r"[.!?]+(?=\s|$)", False),
        (r"^\s*(?:[-*])\s", True),
        (r"\s*\s+x", False),
        (r"x\w*\d+y", False),
        (r"a|[.!?]+(?:\s|$)", False),
    ],
)
def test_what_is_known_to_be_slow_is_found(pattern: str, lines: bool) -> None:
    assert faults(pattern, lines=lines, anchored=False)


def test_every_regular_expression_takes_linear_time() -> None:
    slow, made, seen = {}, set(), 0
    for where, pattern, lines, anchored in patterns():
        seen += 1
        if pattern is None:
            made.add(where.partition(":")[0])
        elif found := faults(pattern, lines=lines, anchored=anchored):
            slow[where] = (pattern[:80], found)
    assert seen > 40
    assert slow == {}
    assert made <= set(MADE)
