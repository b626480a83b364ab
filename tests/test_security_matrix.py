"""`deploy/SECURITY.md` names every way in with who may use it, and whoever may not is refused at each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import discord
from discord import app_commands

from bot.admin.records import AuditButton
from bot.admin.server_check import NOT_ADMIN
from bot.admin.settings import EditButton, KeySelect, ResetButton, ValueSelect, WhereSelect
from bot.dashboard.server import Dashboard, DashboardSettings
from bot.learning.run_buttons import RunButton
from bot.learning.tasting_commands import OfferButton
from bot.operators import NOT_OPERATOR
from bot.playground.page.api import SECRET_HEADER
from bot.playground.server import Playground, PlaygroundSettings
from bot.privacy.commands import NOT_YOURS, ErasureButton
from bot.serving.api.routes import build_app
from bot.serving.settings import Settings as ServingSettings
from bot.ui.form_router import FormRouter
from storage.admin import audit
from storage.db.clock import now_ms
from storage.learning import runs
from tests.bot.conftest import Community, database, model_server, services, settings, simcord_bot
from tests.bot.conftest import community as community

__all__ = ["community", "database", "model_server", "services", "settings", "simcord_bot"]
PAGE = Path(__file__).parent.parent / "deploy" / "SECURITY.md"
EVERYBODY, OWN = "every member", "every member, their own"
MODERATOR, ADMIN, OPERATOR = "Timeout Members, or an operator", "Manage Server, or an operator", "operators"
REFUSALS = {
    NOT_OPERATOR,
    NOT_ADMIN,
    NOT_YOURS,
    "Only members with the permission **Timeout Members** can do that.",
    "Only members with the permission **Manage Server** can change my settings.",
}
BUTTONS = {
    "ReplyButton": EVERYBODY,
    "CompareButton": EVERYBODY,
    "VoteButton": EVERYBODY,
    "AdaptersButton": EVERYBODY,
    "RunsButton": EVERYBODY,
    "RatingsPageButton": OWN,
    "TakeBackSelect": OWN,
    "ErasureButton": OWN,
    "WhereSelect": ADMIN,
    "KeySelect": ADMIN,
    "ValueSelect": ADMIN,
    "EditButton": ADMIN,
    "ResetButton": ADMIN,
    "AuditButton": OPERATOR,
    "RunButton": OPERATOR,
    "OfferButton": OPERATOR,
}
FORMS = {"better": EVERYBODY, "report": EVERYBODY, "prompts": OPERATOR, "setting": ADMIN}


def table() -> dict[str, str]:
    """Return who may use what, as the page says."""
    found: dict[str, str] = {}
    for who, ways in re.findall(r"^\| ([^|]+) \| (`.+`[^|]*) \|$", PAGE.read_text(), re.MULTILINE):
        for way in re.findall(r"`([^`]+)`", ways):
            assert way not in found, f"{way} has two rows"
            found[way] = who
    return found


def leaves(bot: Any) -> Iterator[app_commands.Command[Any, ..., Any]]:
    for command in bot.tree.get_commands(type=discord.AppCommandType.chat_input):
        inner = command.walk_commands() if isinstance(command, app_commands.Group) else [command]
        yield from (each for each in inner if isinstance(each, app_commands.Command))


def needs(command: app_commands.Command[Any, ..., Any]) -> str:
    permissions = command.default_permissions
    if permissions is not None:
        return ADMIN if permissions.manage_guild else MODERATOR
    if command.checks:
        return OPERATOR
    return OWN if command.qualified_name.startswith("privacy ") else EVERYBODY


def doors(bot: Any) -> dict[str, str]:
    """Return every way in on Discord, from the code."""
    found = {f"/{each.qualified_name}": needs(each) for each in leaves(bot)}
    menus = bot.tree.get_commands(type=discord.AppCommandType.message)
    found |= {f"menu {each.name}": EVERYBODY for each in menus}
    found |= {item.__name__: BUTTONS[item.__name__] for item in bot.lasting_items}
    return found | {f"form {kind}": FORMS[kind] for kind in bot.feature(FormRouter)._handlers}


def routes(app: Any) -> set[str]:
    return {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }


async def test_every_command_button_form_and_endpoint_has_its_row(community: Community) -> None:
    expected = doors(community.bot)
    here = Path("here")
    settings = ServingSettings(models_dir=here, adapters_dir=here, run_dir=here)
    service = cast("Any", SimpleNamespace(settings=settings))
    anybody, secret = "anybody on this machine, or with the key", "the secret of run/server.json, or the key"
    for route in routes(build_app(service, secret="s")):
        changes = "lora_adapter" in route or "reset" in route
        expected[f"model server: {route}"] = secret if changes else anybody
    expected["metrics: GET /metrics"] = "anybody who reaches metrics.host (this machine)"
    page = Dashboard(DashboardSettings(), cast("Any", None), list, here, ())
    for route in routes(page._runner.app):
        expected[f"dashboard: {route}"] = "whoever opens the page on this machine, or has its token"
    async with Playground(PlaygroundSettings()) as playground:
        for route in routes(playground.app):
            expected[f"playground: {route}"] = "whoever opens the page on this machine"
    assert table() == expected


OPTIONS: dict[str, dict[str, Any]] = {
    "promote": {"adapter": "a" * 64},
    "reject": {"adapter": "a" * 64},
    "tasting remove": {"prompt": 1},
}


async def allow(community: Community, name: str) -> None:
    """Let bob see a command, as an admin may by mistake: Discord's filter is a hint, not the guard."""
    (command,) = [each for each in await community.bot.tree.fetch_commands() if each.name == name]
    community.guild.set_command_permissions(command, {community.bob: True})


def acts(community: Community) -> list[tuple[str, str]]:
    found = community.services.database.read(audit.latest)
    return [(entry.actor, entry.action) for entry in found]


def said(result: Any) -> str:
    message = result.response or (result.followups[0] if result.followups else None)
    return "" if message is None else str(message.content)


async def test_whoever_may_not_is_refused_at_every_command(community: Community) -> None:
    closed = [each for each in leaves(community.bot) if needs(each) not in (EVERYBODY, OWN)]
    assert len(closed) > 10
    for command in closed:
        name = command.qualified_name
        options = dict(OPTIONS.get(name, {}))
        if name in ("block", "unblock"):
            options["member"] = community.ann
        if command.default_permissions is not None:
            await allow(community, name)
        before = acts(community)
        result = await community.bob.slash(community.channel, name, **options)
        assert said(result) in REFUSALS, (name, said(result))
        assert acts(community) == before, name
    community.env.errors.clear()


async def test_whoever_may_not_is_refused_at_every_button_and_menu(community: Community) -> None:
    database = community.services.database
    scope = f"guild:{community.guild.id}"
    run_id = database.write(lambda db: runs.enqueue(db, scope=scope, trigger="manual", requested_by="1").id)
    tried: list[Any] = [
        AuditButton(0),
        OfferButton(),
        ErasureButton(community.ann.id, "yes", now_ms() // 1000),
        ResetButton("server", "all"),
        EditButton("server", "system_prompt"),
        *(RunButton(run_id, action) for action in ("cancel", "promote", "reject", "rollback", "compare")),
    ]
    menus: list[tuple[Any, str]] = [
        (WhereSelect("channel"), "server"),
        (KeySelect("server"), "language"),
        (ValueSelect("server", "language", "en"), "de"),
    ]
    closed = {name for name, who in BUTTONS.items() if who not in (EVERYBODY, OWN)} | {"ErasureButton"}
    assert {type(each).__name__ for each in [*tried, *(menu for menu, _ in menus)]} == closed
    channel = community.bot.get_partial_messageable(community.channel.id, guild_id=community.guild.id)
    before = acts(community)
    for item, value in [*((each, None) for each in tried), *menus]:
        view = discord.ui.View(timeout=None)
        item.row = None
        view.add_item(item)
        sent = await channel.send("?", view=view)
        message = next(each for each in community.channel.history() if each.id == sent.id)
        if value is None:
            result = await community.bob.click(message, custom_id=item.custom_id)
        else:
            result = await community.bob.select(message, [value], custom_id=item.custom_id)
        assert said(result) in REFUSALS, (type(item).__name__, said(result))
    assert acts(community) == before
    community.env.errors.clear()


DEEP = b"[" * 100_000


async def test_json_that_is_too_deep_is_a_400_at_every_endpoint_of_the_playground() -> None:
    tried = 0
    async with Playground(PlaygroundSettings()) as playground, aiohttp.ClientSession() as http:
        headers = {
            SECRET_HEADER: playground.secret,
            "Authorization": f"Bot {playground.token}",
            "Content-Type": "application/json",
        }
        for route in sorted(routes(playground.app)):
            method, path = route.replace("{path}", "channels/1/messages").split(" ")
            path = re.sub(r"\{\w+\}", "1", path)
            if method == "GET" or "rehearsal" in path or path.endswith("sample"):
                continue  # without a body
            url = playground.base_url + path
            async with http.request(method.replace("*", "POST"), url, data=DEEP, headers=headers) as answer:
                said = await answer.text()
            reads_a_body = not (method == "DELETE" and "messages" in path)
            assert answer.status == 400 or not reads_a_body, (route, answer.status, said)
            assert answer.status < 500, (route, said)
            tried += 1
    assert tried > 8
