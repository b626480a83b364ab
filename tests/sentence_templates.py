"""Every sentence that storage, the trainer and the model server say to people, read from their sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import bot.serving.errors
import storage.errors
import trainer.errors

ROOT = Path(__file__).parent.parent
# What makes a sentence out of a template.
MAKERS = {"Sentence", "Message"}
# The errors whose sentences people read on Discord. Those about a base model that is refused, a
# request or the start of the model server go to a terminal or to a program.
ERRORS = {
    name
    for module, root in (
        (storage.errors, storage.errors.RuleError),
        (trainer.errors, trainer.errors.TrainerError),
        (bot.serving.errors, bot.serving.errors.AdapterRefusedError),
        (bot.serving.errors, bot.serving.errors.ServerUnavailableError),
        (bot.serving.errors, bot.serving.errors.BaseUnreachableError),
    )
    for name, each in vars(module).items()
    if isinstance(each, type) and issubclass(each, root)
    # A run that is cancelled has a sentence of its own; this one goes to the log.
    if each is not trainer.errors.RunCancelledError
}


@dataclass(frozen=True)
class Template:
    """A template, where it is, and the names that it is filled with there (None where they are computed).

    One for a number of things has the form for many beside that for one (`counted`).
    """

    text: str
    where: str
    names: frozenset[str] | None
    counted: str = ""

    @property
    def places(self) -> frozenset[str]:
        """The names of its places for values."""
        return frozenset(re.findall(r"\{(\w*)\}", self.text))


@cache
def templates() -> tuple[Template, ...]:
    """Every template, in the order of the sources."""
    return tuple(each for folder in ("storage", "trainer", "bot/serving") for each in _below(ROOT / folder))


def _below(folder: Path) -> Iterator[Template]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            if ast.unparse(node.func) == "Sentence.counted":
                one, many = (ast.literal_eval(each) for each in node.args[:2])
                yield Template(one, where, _names(node, {"count"}), many)
            elif (text := _template(node)) is not None:
                yield Template(text, where, _names(node))


def _template(call: ast.Call) -> str | None:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if name in MAKERS | ERRORS and call.args:
        found: ast.expr = call.args[0]
    else:
        found = next((each.value for each in call.keywords if each.arg == "template"), ast.Constant(None))
    return found.value or None if isinstance(found, ast.Constant) and isinstance(found.value, str) else None


def _names(call: ast.Call, more: Iterable[str] = ()) -> frozenset[str] | None:
    if any(each.arg in (None, "template") for each in call.keywords):
        return None
    return frozenset([*(str(each.arg) for each in call.keywords), *more])
