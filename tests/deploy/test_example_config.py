"""The example configuration is complete, valid, and says the defaults that really hold."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from storage.config import Config, load_config

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "deploy/strop.toml"
SECRETS = {"discord.token", "server.api_key"}


def documented_keys() -> set[str]:
    """Every key that strop.toml may hold, as `section.key`."""
    return {
        f"{field.alias or section}.{key}"
        for section, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for key in field.annotation.model_fields
    } - SECRETS


def test_the_example_names_every_key_and_no_other() -> None:
    example = tomllib.loads(EXAMPLE.read_text())
    assert {f"{section}.{key}" for section, table in example.items() for key in table} == documented_keys()


def test_the_example_is_what_holds_without_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(EXAMPLE, {}) == load_config(None, {})


def test_the_example_explains_each_section() -> None:
    """No section goes without a word."""
    for section in re.split(r"^\[\w+\]$", EXAMPLE.read_text(), flags=re.MULTILINE)[1:]:
        lines = [line for line in section.splitlines() if line]
        assert any(line.startswith("#") for line in lines)


def test_a_page_documents_every_key_with_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = re.findall(
        r"^\| `(\w+\.\w+)` \| `(.+?)` \|", (ROOT / "deploy/CONFIGURATION.md").read_text(), flags=re.MULTILINE
    )
    example = tomllib.loads(EXAMPLE.read_text())
    for name, default in rows:
        section, key = name.split(".")
        assert tomllib.loads(f"value = {default}")["value"] == example[section][key], name
    assert {name for name, _ in rows} == documented_keys()
