"""The bot's own texts: each in every language with the same placeholders, and none that goes around them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot import answering, texts
from storage.setting_values import KINDS, LANGUAGES, TRIGGERS
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer
from tests.bot.test_commands import text
from tests.bot.test_settings import put

BOT = Path(texts.__file__).parent
OTHERS = [language for language in texts.LANGUAGES if language != "en"]
# English only so far: what operators read about the loop, blind votes, and the cards of a run.
ENGLISH_ONLY = {
    "commands/records.py",
    "commands/retraining.py",
    "commands/run_buttons.py",
    "commands/setup.py",
    "commands/votes.py",
    "glance.py",
    "operations.py",
    "progress.py",
    "promotion_card.py",
}
# What these say goes to a terminal.
TO_TERMINAL = {"supervisor.py", "doctor.py", "initialise.py", "__main__.py"}
# What sends a text to people, and which of its arguments is that text.
SAYS = {
    "say": 1,
    "send": 0,
    "send_message": 0,
    "edit_message": None,
    "edit_original_response": None,
    "_answer_plainly": 1,
    "tell": 1,
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the bot that speaks to people on Discord."""
    folders = (BOT, BOT / "commands", BOT / "charts")
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        yield str(path.relative_to(BOT)), ast.parse(path.read_text(encoding="utf-8"))


def named(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def marked() -> set[str]:
    """Every text that is marked for translation."""
    found = {kind.help for kind in KINDS.values()} | {*TRIGGERS.values(), LANGUAGES["auto"]}
    for _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and named(node) in ("tr", "mark") and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found.add(str(first.value))
    return found


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"\{(\w*)\}", text))


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_is_there_with_the_same_placeholders_and_none_too_many(language: str) -> None:
    catalogue = texts.catalogue(language)
    assert set(catalogue) == marked()
    wrong = {text for text, said in catalogue.items() if placeholders(text) != placeholders(said)}
    assert wrong == set()


@pytest.mark.parametrize("language", OTHERS)
def test_small_print_stays_small_and_code_and_bold_words_stay(language: str) -> None:
    for text_, said in texts.catalogue(language).items():
        assert text_.startswith("-# ") == said.startswith("-# "), said
        # A permission's name is Discord's own in each language.
        if "permission **" not in text_:
            assert sorted(re.findall(r"`[^`]+`|\*\*\w+\*\*|<#\{\w+\}>|/\w+", text_)) == sorted(
                re.findall(r"`[^`]+`|\*\*\w+\*\*|<#\{\w+\}>|/\w+", said)
            ), said
        assert text_.count("**") == said.count("**"), said


def test_no_sentence_is_said_around_the_catalogues() -> None:
    found = [
        f"{module}:{node.lineno}"
        for module, tree in modules()
        if module not in ENGLISH_ONLY | TO_TERMINAL
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and named(node) in SAYS and plain(node)
    ]
    assert found == []


def plain(call: ast.Call) -> bool:
    """Whether a call says a literal with words in it that `tr` has not seen."""
    position = SAYS[named(call)]
    said = [keyword.value for keyword in call.keywords if keyword.arg == "content"]
    if position is not None and len(call.args) > position:
        said.append(call.args[position])
    return any(
        isinstance(value, ast.Constant | ast.JoinedStr)
        and re.search(
            r"[A-Za-z]{3}",
            "".join(
                str(part.value)
                for part in ast.walk(value)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ),
        )
        for value in said
    )


@pytest.mark.parametrize(
    ("setting", "locale", "spoken"),
    [
        ("auto", "de", "de"),
        ("auto", "es-ES", "es"),
        ("auto", "pt-BR", "en"),
        ("auto", "en-US", "en"),
        ("ja", "de", "ja"),
    ],
)
def test_what_is_set_is_spoken_else_discord_s_locale(setting: str, locale: str, spoken: str) -> None:
    assert texts.choose(setting, locale) == spoken


def test_a_catalogue_is_read_as_translators_tools_write_it() -> None:
    po = (
        '# note\nmsgid ""\nmsgstr ""\n"Language: de\\n"\n\n'
        '#: a.py:1\nmsgid "one "\n"two"\nmsgstr ""\n"eins "\n"zwei"\n\n'
        'msgid "open"\nmsgstr ""\n'
    )
    assert texts.parse(po) == {"one two": "eins zwei"}
    with pytest.raises(ValueError, match="not a line"):
        texts.parse("hello")


async def test_a_server_s_language_is_spoken_and_others_are_not_touched(
    community: Community, model_server: FakeModelServer
) -> None:
    put(community, "language", "de", channel=community.channel)
    other = community.guild.create_text_channel("other")
    await model_server.stop()
    for channel in (community.channel, other):
        await community.ann.send(channel, f"{community.mention} hello")
    assert community.said() == [texts.catalogue("de")[answering.UNREACHABLE]]
    assert community.said(other) == [answering.UNREACHABLE]


async def test_a_private_answer_is_in_the_language_that_is_set(community: Community) -> None:
    put(community, "language", "fr")
    said = text(await community.bob.slash(community.channel, "privacy opt-out"))
    assert said.startswith("C'est noté")
    asked = await community.bob.slash(community.channel, "privacy delete")
    await community.bob.click(asked.response, label="Les garder")
    assert asked.response.content == "Rien n'a été supprimé."
