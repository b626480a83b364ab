"""The bot's own texts: each in every language with the same placeholders, and none that goes around them."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import discord
import pytest
from discord import app_commands

from bot.admin.error_digest import FaultLog
from bot.admin.records import AuditButton
from bot.chat import failures
from bot.client import StropClient
from bot.diagnostics.discord_access import PERMISSIONS
from bot.feedback.side_by_side import compare_view
from bot.language import texts
from bot.language.sentences import translate
from bot.learning.blind_votes import vote_view
from bot.learning.run_buttons import Action, RunButton
from bot.ui import modals
from bot.ui.command_tree import CommandWords
from storage.admin.setting_values import KINDS, LANGUAGES, TRIGGERS
from storage.sentences import Figure, Sentence, Value
from tests.bot.admin.test_settings import put
from tests.bot.conftest import Community
from tests.bot.fake_server import FakeModelServer
from tests.bot.learning.test_run_progress import Trainer, public, tick, voting
from tests.bot.test_commands import text
from tests.sentence_templates import templates

BOT = Path(texts.__file__).parents[1]
OTHERS = [language for language in texts.LANGUAGES if language != "en"]
# What these say goes to a terminal, or to the log.
TO_TERMINAL = {
    "cli/launch/supervisor.py",
    "cli/first_start/init_config.py",
    "__main__.py",
    "gateway/playground_link.py",
    "gateway/sign_in.py",
    "gateway/event_guard.py",
    "delivery/webhook.py",
}
SILENT_FOLDERS = {"cli", "dashboard", "diagnostics", "playground", "serving", "telemetry"}
# What is written for the model, the database, the log or the code, and no member reads.
NOT_SAID = {
    "chat/draft.py": {"reply  has no plan yet"},
    "features.py": {"Feature", "no  was added"},
    "chat/answerer.py": {
        "a member stopped it",
        "the other candidate failed",
        "the bot was stopped",
        "too many replies in flight",
    },
    "chat/content/attachments.py": {
        *("[]\n\n[end of ]", "[picture: ]", "not an address of Discord's file servers", "status ")
    },
    # What the model is given: it reads every language.
    "chat/content/message_text.py": {
        "%Y-%m-%d %H:%M UTC",
        "Poll: ",
        "1 vote",
        " votes",
        "an unknown time",
        "[sticker: ]",
        "Channels & Roles",
        "Browse Channels",
        "Server Guide",
        "Linked Roles",
    },
    "learning/status.py": {"promoted by hand", "rolled back by hand"},
    "admin/server_check.py": {"View Channels", "Send Messages", "Read Message History"},
    "learning/run_buttons.py": {
        "rejected by hand",
        "promoted by hand from its card",
        "rolled back by hand from its card",
    },
    "chat/prompt.py": {"Someone", "\n[… the middle of this message was too long and was left out …]\n"},
    "admin/alerts.py": {"model server"},
    "ui/form_router.py": {"form "},
    "feedback/reply_view.py": {"reply  has lost its conversation"},
    # Storage and the model server raise the same: the sentence of the class or of `sentences` is said.
    "services.py": {
        "The model server has no model yet.",
        "There is no adapter {adapter}.",
    },
    "delivery/splitting.py": {"limit must be at least 64"},
    "delivery/targets.py": {
        "Discord's filter refuses my message.",
        "I am not allowed to write in this channel.",
        "The message was deleted.",
        "This channel is gone.",
        "This thread is closed.",
        "Discord does not take my message right now.",
    },
    "language/texts.py": {"not  forms: ", "not a line of a .po file: ", "not a quoted text: "},
}
# Arguments that people read, also if they are a single word.
LABELS = {"label", "title", "placeholder", "hint"}
# What gives a text to `tr` later, or looks for it there.
TRANSLATES = {"tr", "mark", "Sentence", "plural"}
# The longest text that Discord takes: https://discord.com/developers/docs/components/reference
BUTTON, SHORT, DESCRIPTION, MENU_NAME = 80, 45, 100, 32


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the bot that speaks to people on Discord."""
    for path in sorted(BOT.rglob("*.py")):
        module = path.relative_to(BOT)
        if module.parts[0] not in SILENT_FOLDERS:
            yield str(module), ast.parse(path.read_text(encoding="utf-8"))


def named(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def marked(bot: StropClient) -> set[str]:
    """Every text that is marked for translation, or that a command says of itself."""
    found = {kind.help for kind in KINDS.values()} | {*TRIGGERS.values(), LANGUAGES["auto"]}
    found |= {words for words, _ in command_words(bot)} | PERMISSIONS.keys()
    found |= {template.text for template in templates() if not template.counted}
    for _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and named(node) in ("tr", "mark") and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found.add(str(first.value))
    return found


def literal_first(call: ast.Call) -> bool:
    """Whether a call names its text; `translate` says one that it was given."""
    return bool(call.args) and isinstance(call.args[0], ast.Constant)


def counted() -> dict[str, str]:
    """Every text for a number of things: the one for one, with the one for many."""
    found = {each.text: each.counted for each in templates() if each.counted}
    for _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and named(node) == "plural" and literal_first(node):
                one, many = (ast.literal_eval(each) for each in node.args[:2])
                found[one] = many
    return found


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"\{(\w*)\}", text))


@pytest.mark.parametrize("language", OTHERS)
async def test_every_text_is_there_with_the_same_placeholders_and_none_too_many(
    community: Community, language: str
) -> None:
    catalogue = texts.catalogue(language)
    assert marked(community.bot) - set(catalogue) == set()
    assert set(catalogue) - marked(community.bot) == set()
    wrong = {text for text, said in catalogue.items() if placeholders(text) != placeholders(said)}
    assert wrong == set()


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_for_a_number_of_things_has_the_forms_of_its_language(language: str) -> None:
    forms, wanted = texts.plurals(language), counted()
    assert len(wanted) > 10
    assert set(forms) == set(wanted)
    for one, many in wanted.items():
        assert {*map(tuple, map(placeholders, (one, many, *forms[one])))} == {(*placeholders(one),)}, one
        assert "count" in placeholders(one)


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en", ["0 raters", "1 rater", "2 raters"]),
        ("de", ["0 Bewertende", "1 Bewertender", "2 Bewertende"]),
        ("fr", ["0 personne", "1 personne", "2 personnes"]),
        ("ja", ["0 人", "1 人", "2 人"]),
    ],
)
def test_a_number_of_things_takes_the_form_of_its_language(language: str, said: list[str]) -> None:
    with texts.speaking(language):
        assert [texts.plural("{count} rater", "{count} raters", count) for count in range(3)] == said
        kept = Sentence.from_json(Sentence.counted("{count} rater", "{count} raters", 1).as_json())
        assert translate(kept) == said[1]


def test_a_rule_with_several_forms_is_followed_and_every_form_asked_for() -> None:
    header = (
        'msgid ""\nmsgstr "Plural-Forms: nplurals=3; plural=(n==1 ? 0 : n%10>=2 && n%10<=4 ? 1 : 2);\\n"\n\n'
    )
    entry = 'msgid "{count} vote"\nmsgid_plural "{count} votes"\n'
    forms = [
        f'msgstr[{place}] "{{count}} {form}"\n' for place, form in enumerate(("głos", "głosy", "głosów"))
    ]
    found = texts.parse(header + entry + "".join(forms))
    said = [found.plurals["{count} vote"][found.form(count)].format(count=count) for count in (1, 3, 5, 22)]
    assert said == ["1 głos", "3 głosy", "5 głosów", "22 głosy"]
    with pytest.raises(ValueError, match="not 3 forms"):
        texts.parse(header + entry + "".join(forms[:2]))


@pytest.mark.parametrize("language", OTHERS)
def test_small_print_stays_small_and_code_and_bold_words_stay(language: str) -> None:
    for text_, said in texts.catalogue(language).items():
        assert text_.startswith("-# ") == said.startswith("-# "), said
        # A permission's name is Discord's own in each language.
        if "permission **" not in text_:
            assert sorted(re.findall(r"`[^`]+`|\*\*[a-z]+\*\*|<#\{\w+\}>|/\w+", text_)) == sorted(
                re.findall(r"`[^`]+`|\*\*[a-z]+\*\*|<#\{\w+\}>|/\w+", said)
            ), said
        assert text_.count("**") == said.count("**"), said


def test_no_words_go_around_the_catalogues() -> None:
    found = {
        f"{module}:{line}: {words!r}"
        for module, tree in modules()
        if module not in TO_TERMINAL
        for line, words in unmarked(tree)
        if words not in NOT_SAID.get(module, ())
    }
    assert found == set()


def test_what_need_not_be_translated_is_still_there() -> None:
    for module, words in NOT_SAID.items():
        tree = ast.parse((BOT / module).read_text(encoding="utf-8"))
        assert words <= {each for _, each in unmarked(tree)}


def unmarked(node: ast.AST, *, label: bool = False) -> Iterator[tuple[int, str]]:
    """Every literal with words in it that isn't given to `tr` or `mark`, below a node; with its line."""
    if isinstance(node, ast.Constant | ast.JoinedStr):
        words = literal(node)
        several = bool(re.search(r"[A-Za-z]{2,}", words) and re.search(r"\s", words))
        alone = re.fullmatch(r"[A-Z][a-z]{2,}\W?" if not label else r".*[A-Za-z]{2,}.*", words)
        if (several or alone) and not is_code(words):
            yield node.lineno, words
    for child in read_by_people(node):
        yield from unmarked(child, label=isinstance(node, ast.keyword) and node.arg in LABELS)


def read_by_people(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node whose texts people may read: no docstring, no type, nothing for the log."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.JoinedStr):
        yield from (part.value for part in node.values if isinstance(part, ast.FormattedValue))
    elif isinstance(node, ast.Call) and named(node) in TRANSLATES:
        texts_of = 2 if named(node) == "plural" else 1
        yield from [*node.args[texts_of:], *node.keywords]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("_log."):
        return
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        # What its decorators say of a command is asked of the commands themselves, below.
        yield from [*node.body, *node.args.defaults, *filter(None, node.args.kw_defaults)]
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("app_commands.Group", "Generator"):
        return
    elif isinstance(node, ast.AnnAssign | ast.arg):
        yield from filter(None, [getattr(node, "value", None)])
    else:
        yield from ast.iter_child_nodes(node)


def literal(node: ast.Constant | ast.JoinedStr) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(
        part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )


def is_code(words: str) -> bool:
    """Whether a literal is SQL, a type, a list of endings or charsets, an address, a unit, or a pattern."""
    begins = r"SELECT |\s+txt md|\s+ascii utf-8|[A-Z]\w+\[|\s*https://| (GiB|min)$"
    return bool(re.match(begins, words)) or "(?P<" in words


def command_words(bot: StropClient) -> Iterator[tuple[str, int]]:
    """What the commands say of themselves, with the longest that Discord takes."""
    for command in bot.tree.walk_commands():
        yield command.description, DESCRIPTION
        if isinstance(command, app_commands.Command):
            yield from ((parameter.description, DESCRIPTION) for parameter in command.parameters)
    for kind in (discord.AppCommandType.message, discord.AppCommandType.user):
        yield from ((menu.name, MENU_NAME) for menu in bot.tree.get_commands(type=kind))


@pytest.mark.parametrize("language", OTHERS)
async def test_commands_are_described_in_every_language_within_discord_s_limits(
    community: Community, language: str
) -> None:
    said = texts.catalogue(language)
    words = dict(command_words(community.bot))
    assert len(words) > 30
    assert {each for each in words if each not in said} == set()
    assert {said[each] for each, most in words.items() if len(said[each]) > most} == set()


async def test_discord_is_sent_descriptions_in_every_language_and_names_in_english(
    community: Community,
) -> None:
    payload = [
        await command.get_translated_payload(community.bot.tree, CommandWords())
        for command in [
            *community.bot.tree.get_commands(),
            *community.bot.tree.get_commands(type=discord.AppCommandType.message),
        ]
    ]
    by_name = {each["name"]: each for each in payload}
    retrain = by_name["retrain"]
    assert set(retrain["description_localizations"]) == {"de", "es-ES", "es-419", "fr", "ja"}
    assert not any(each.get("name_localizations") for each in [retrain, *retrain["options"]])
    assert all("de" in option["description_localizations"] for option in retrain["options"])
    assert by_name["Better answer"]["name_localizations"]["fr"] == texts.catalogue("fr")["Better answer"]


class OtherWords(CommandWords):
    """Translations of which one changed."""

    async def translate(
        self, string: app_commands.locale_str, locale: discord.Locale, context: Any
    ) -> str | None:
        said = await super().translate(string, locale, context)
        return f"{said}!" if locale is discord.Locale.japanese and said is not None else said


async def test_commands_are_registered_anew_when_a_translation_changes(community: Community) -> None:
    tree = community.bot.tree
    await tree.sync_if_changed()
    assert not await tree.sync_if_changed()
    await tree.set_translator(OtherWords())
    assert await tree.sync_if_changed()


@pytest.mark.parametrize("language", ["en", *OTHERS])
async def test_labels_titles_and_hints_fit_in_every_language(language: str) -> None:
    with texts.speaking(language):
        buttons: list[Any] = [
            *vote_view("d1").children,
            *compare_view("r1").children,
            *(RunButton("r1", action) for action in get_args(Action)),
            AuditButton(0),
            AuditButton(1),
        ]
        assert all(0 < len(each.item.label) <= BUTTON for each in buttons)
        for form in (modals.better_answer("r1", ""), modals.report("r1")):
            assert len(form.title) <= SHORT
            fields: list[Any] = form.children
            assert all(len(each.text) <= SHORT and len(each.description) <= DESCRIPTION for each in fields)
        options = [kind.help for kind in KINDS.values()] + [*TRIGGERS.values(), LANGUAGES["auto"]]
        assert {said for said in map(texts.tr, options) if len(said) > DESCRIPTION} == set()


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
    assert texts.parse(po).texts == {"one two": "eins zwei"}
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
    assert community.said() == [texts.catalogue("de")[failures.UNREACHABLE]]
    assert community.said(other) == [failures.UNREACHABLE]


async def test_a_private_answer_is_in_the_language_that_is_set(community: Community) -> None:
    put(community, "language", "fr")
    said = text(await community.bob.slash(community.channel, "privacy opt-out"))
    assert said.startswith("C'est noté")
    asked = await community.bob.slash(community.channel, "privacy delete")
    await community.bob.click(asked.response, label="Les garder")
    assert asked.response.content == "Rien n'a été supprimé."


# In Japanese every English sentence shows: two words in Latin letters, but for code, names and products.
ENGLISH = re.compile(r"[A-Za-z]{2,} [A-Za-z]{2,}")
KEPT_IN_ENGLISH = re.compile(r"`[^`]*`|<[^>]*>|https?://\S+|/\w+( opt-in)?|Message Content Intent|Test Guild")


def english_in(text_: str) -> str:
    """The first English words in a text that should have none, or nothing."""
    found = ENGLISH.search(KEPT_IN_ENGLISH.sub("", text_))
    return found[0] if found else ""


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("status", {}),
        ("adapters", {}),
        ("promote", {"adapter": "base"}),
        ("promote", {"adapter": "a9"}),
        ("rollback", {}),
        ("retrain", {"dry_run": True}),
        ("retrain", {"epochs": 2}),
        ("export", {}),
        ("audit", {}),
        ("stats", {}),
        ("setup", {}),
        ("privacy ratings", {}),
        ("privacy show", {}),
        ("privacy delete", {}),
    ],
)
async def test_every_command_answers_in_the_language_that_is_set(
    community: Community, command: str, options: dict[str, Any]
) -> None:
    put(community, "language", "ja")
    role = community.guild.create_role("admin", permissions=discord.Permissions(manage_guild=True))
    community.env.backend.guilds[community.guild.id].members[community.ann.id].role_ids.append(role.id)
    await community.ann.send(community.channel, f"{community.mention} hello")
    await community.bob.react(community.messages()[-1], "👍")
    result = await community.ann.slash(community.channel, command, **options)
    assert text(result) and english_in(text(result)) == ""
    assert len(community.env.errors) <= 1


async def test_what_operators_alone_may_do_is_refused_in_the_language_that_is_set(
    community: Community,
) -> None:
    put(community, "language", "ja")
    for command in ("rollback", "audit"):
        refused = await community.bob.slash(community.channel, command)
        assert english_in(text(refused)) == "", text(refused)
    assert len(community.env.errors) == 2


def liked_less() -> Sentence:
    gain: dict[str, Value] = {
        "gain": Figure(-0.08, "+.2f"),
        "low": Figure(-0.13, ".2f"),
        "high": Figure(-0.03, ".2f"),
        "prompts": Sentence.counted("{count} held-out conversation", "{count} held-out conversations", 64),
    }
    measured = Sentence("chance of a like {gain} (95 % CI {low} to {high}) on {prompts}", **gain)
    return Sentence("its replies are liked less: {measured}", measured=measured)


def refused(reason: Sentence) -> Sentence:
    return Sentence("{adapter} was not promoted, because {reason}", adapter="a1", reason=reason)


async def test_a_run_its_buttons_and_its_card_are_in_the_channel_s_language(community: Community) -> None:
    put(community, "language", "ja", channel=community.channel)
    trainer = Trainer(community)
    await community.ann.slash(community.channel, "retrain")
    await tick(community)
    (waiting,) = public(community)
    assert english_in(waiting) == ""
    run_id = trainer.take()
    trainer.beat(run_id, "train", 0.43, 190.0)
    await tick(community, 3)
    shown = community.messages()[0]
    assert "43%" in shown.content and english_in(shown.content) == ""
    assert labels(shown) == [texts.catalogue("ja")["Cancel"]]

    trainer.candidate(run_id, "a1", message=refused(liked_less()))
    await tick(community, 6)
    before, final = community.messages()
    card = final.embeds[0]
    pieces = [before.content, final.content, card.title, card.description]
    pieces += [piece for field in card.fields for piece in (field.name, field.value)]
    assert "-0.13" in final.content and [english_in(str(piece)) for piece in pieces] == [""] * len(pieces)
    assert labels(final)[0] == texts.catalogue("ja")["Promote"]


async def test_who_presses_does_not_change_the_language_of_what_all_read(community: Community) -> None:
    put(community, "language", "ja")
    trainer = Trainer(community)
    await community.ann.slash(community.channel, "retrain")
    run_id = trainer.take()
    trainer.candidate(run_id, "a1", message=refused(Sentence("it answers as before")))
    await tick(community, 6)
    put(community, "language", "fr", channel=community.channel)
    await community.ann.click(community.messages()[0], label=texts.catalogue("ja")["Reject"])
    await tick(community, 6)
    (final,) = community.messages()
    assert final.embeds[0].description == texts.catalogue("fr")["It was not promoted."]
    assert "n'a pas été promu" in final.content


async def test_forms_and_private_answers_below_a_reply_are_in_the_language_that_is_set(
    community: Community,
) -> None:
    put(community, "language", "es")
    await community.ann.send(community.channel, f"{community.mention} hello")
    reply = community.replies()[0]
    message = community.messages()[0]
    why = await community.bob.click(message, custom_id=f"strop:reply:why:{reply.id}")
    assert "El modelo base" in text(why) and "0,7" in text(why)
    form = await community.bob.click(message, custom_id=f"strop:reply:better:{reply.id}")
    assert form.modal["title"] == "Una respuesta mejor"
    sent = await community.bob.submit_modal(form, {"text": "¡Hola!"})
    assert text(sent).startswith("Gracias: guardo esto")


async def test_votes_are_asked_for_in_the_channel_s_language(community: Community) -> None:
    put(community, "language", "de", channel=community.channel)
    await voting(community, Trainer(community), pairs=1)
    pair = next(each for each in community.messages() if "gefällt dir besser" in each.content)
    assert labels(pair) == ["A", "Unentschieden", "B"]
    voted = await community.bob.click(pair, label="Unentschieden")
    assert text(voted).startswith("Gezählt: Unentschieden. Du kannst")


def labels(message: Any) -> list[str]:
    rows = [row["components"] if isinstance(row, dict) else row.children for row in message.components]
    return [each["label"] if isinstance(each, dict) else each.label for row in rows for each in row]


def test_faults_are_counted_in_the_language_of_the_operators_channel() -> None:
    faults = FaultLog()
    for _ in range(2):
        faults.emit(
            logging.LogRecord("bot", logging.ERROR, __file__, 1, {"event": "reply.failed"}, None, None)
        )
    with texts.speaking("de"):
        assert faults.lines() == ["reply.failed (2-mal)"]
