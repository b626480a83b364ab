"""Changing a few values in a strop.toml that people wrote: everything else stays as it is, comments too."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.config_text import decode
from storage.errors import ConfigError

_TABLE = re.compile(r"^\s*\[\s*([\w.-]+)\s*\]\s*(#.*)?$")
# A key with a value that ends on its own line, and the comment behind it.
_VALUE = re.compile(r"""^(\s*)([\w-]+)(\s*=\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s#"'\[{]+)(\s*(?:\#.*)?)$""")


def write(path: Path, section: str, values: Mapping[str, Any]) -> None:
    """Set values of one section of a configuration file, which need not exist; raises as `write_sections`."""
    write_sections(path, {section: values})


def write_sections(path: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set values of several sections of a configuration file in one step; it need not exist.

    Raises:
        ConfigError: the file can't be read, or is written in a way that this can't change; it is left so.
    """
    new = _read(path)
    for section, values in changes.items():
        if values:
            new = change_values(new, section, values)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(new, encoding="utf-8")
    if path.exists():
        partial.chmod(path.stat().st_mode & 0o777)
    partial.replace(path)


def change_values(text: str, section: str, values: Mapping[str, Any]) -> str:
    """Return a configuration's text with these values; raises ConfigError where it can't be changed so."""
    before = _parsed(text)
    wanted = before | {section: {**before.get(section, {}), **values}}
    lines = text.splitlines(keepends=True)
    start, end = _table(lines, section)
    left = dict(values)
    for at in range(start, end):
        found = _VALUE.match(lines[at].rstrip("\r\n"))
        if found and found[2] in left:
            value = _toml(left.pop(found[2]))
            lines[at] = f"{found[1]}{found[2]}{found[3]}{value}{found[5]}\n"
    added = [f"{key} = {_toml(value)}\n" for key, value in left.items()]
    if added and start == end == len(lines) and not _has(lines, section):
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        added = ["\n"] * bool(lines) + [f"[{section}]\n", *added]
    new = "".join([*lines[:start], *added, *lines[start:]])
    try:
        same = tomllib.loads(new) == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        settings = ", ".join(f"{key} = {_toml(value)}" for key, value in values.items())
        raise ConfigError([f"{section}: can't be changed in this file by a program; write there: {settings}"])
    return new


def _read(path: Path) -> str:
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is no text"]) from error


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"The file is no TOML: {error}"]) from error


def _table(lines: list[str], section: str) -> tuple[int, int]:
    """Return the lines between a section's head and the next; the file's end where there is none."""
    heads = [(at, found[1]) for at, line in enumerate(lines) if (found := _TABLE.match(line.rstrip("\r\n")))]
    for number, (at, name) in enumerate(heads):
        if name == section:
            end = heads[number + 1][0] if number + 1 < len(heads) else len(lines)
            return at + 1, end
    return len(lines), len(lines)


def _has(lines: list[str], section: str) -> bool:
    return any((found := _TABLE.match(line.rstrip("\r\n"))) and found[1] == section for line in lines)


def _toml(value: Any) -> str:
    """Write a plain value; JSON's forms of them are TOML's."""
    return json.dumps(value)
