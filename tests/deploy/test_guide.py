"""The guide's invite link, files and commands are the ones that exist."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import discord
import pytest
import typer.main

from bot.cli.app import app
from bot.diagnostics.discord_access import PERMISSIONS

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "deploy/GUIDE.md").read_text()


def invite() -> dict[str, list[str]]:
    [link] = re.findall(r"https://discord\.com/oauth2/authorize\?\S+", GUIDE)
    return parse_qs(urlsplit(link).query)


def test_the_invite_link_asks_for_exactly_what_doctor_checks() -> None:
    assert int(invite()["permissions"][0]) == sum(PERMISSIONS.values())
    assert invite()["scope"] == ["bot applications.commands"]


def test_the_invite_link_asks_for_nothing_that_could_harm_a_server() -> None:
    wanted = discord.Permissions(
        view_channel=True,
        send_messages=True,
        read_message_history=True,
        add_reactions=True,
        embed_links=True,
        send_messages_in_threads=True,
    )
    assert int(invite()["permissions"][0]) == wanted.value


def test_the_guide_explains_each_permission_with_its_value() -> None:
    rows = dict(re.findall(r"^\| ([A-Z][\w ]+) \| [^|]+ \| (\d+) \|$", GUIDE, flags=re.MULTILINE))
    assert {name: int(value) for name, value in rows.items()} == PERMISSIONS


def test_every_file_that_the_guide_names_is_there() -> None:
    named = set(re.findall(r"(?<![\w/])(?:/opt/strop/)?(deploy/[\w.-]+\w)", GUIDE))
    assert {"deploy/strop.service", "deploy/gpu.conf", "deploy/compose.yaml"} <= named
    assert [name for name in named - {"deploy/discord-token"} if not (ROOT / name).exists()] == []


def test_the_guide_tells_the_training_policy_before_anything_else() -> None:
    assert GUIDE.index("must\nnot be used to train") < GUIDE.index("## 2.")
    assert "training_permission_reference" in GUIDE


def pages() -> list[str]:
    """Every page of the repository, by path."""
    folders = ("bot", "deploy", "storage", "trainer")
    below = [page for folder in folders for page in (ROOT / folder).rglob("*.md")]
    return sorted(str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *below])


def commands() -> set[str]:
    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", ["README.md", "deploy/GUIDE.md", "deploy/OPERATIONS.md"])
def test_every_command_that_a_document_shows_exists(document: str) -> None:
    shown = set(
        re.findall(r"(?:`|^|sudo )strop(?:-admin)? ([a-z]+)", (ROOT / document).read_text(), flags=re.M)
    )
    assert shown
    assert shown - commands() == set()


def test_a_page_names_every_command() -> None:
    text = "".join((ROOT / page).read_text() for page in pages())
    assert [name for name in commands() if f"strop {name}" not in text] == []


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_unit_starts_a_command_that_exists() -> None:
    for unit in (ROOT / "deploy").glob("*.service"):
        [command] = re.findall(
            r"^ExecStart=/opt/strop/\.venv/bin/strop (\w+) --config \S+$", unit.read_text(), re.M
        )
        assert command in commands()


@pytest.mark.parametrize("document", pages())
def test_every_local_link_leads_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text()):
        assert (path.parent / target).exists(), target
