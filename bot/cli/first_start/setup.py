"""`strop init`, `strop doctor` and `strop version`."""

from __future__ import annotations

import asyncio
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import typer

from bot.cli.errors import UsageError
from bot.cli.first_start.init_config import (
    Answers,
    InitialiseError,
    check_token,
    parse_ids,
    parse_schedule,
    write_configuration,
    write_token,
)
from bot.cli.session import DEFAULT_CONFIG, ConfigOption, JsonOption, load
from bot.delivery.webhook import Webhook, WebhookError
from bot.diagnostics.checks import Check, note, ok, problem
from bot.diagnostics.doctor import examine
from bot.diagnostics.machine import this_machine
from bot.serving.model.sources import automatic
from storage.config import Config, load_config
from storage.cron import time_zone
from storage.errors import ConfigError, CronError
from storage.process.terminal import can_show

# The second is for terminals whose encoding lacks the first.
MARKS = {
    "ok": ("✓", "+", typer.colors.GREEN),
    "problem": ("✗", "x", typer.colors.RED),
    "note": ("·", "-", typer.colors.BLUE),
}
NEW_FILE = Annotated[Path, typer.Option("--config", "-c", envvar="STROP_CONFIG", help="The file to write.")]


def init(
    config: NEW_FILE = DEFAULT_CONFIG,
    token: Annotated[
        bool | None,
        typer.Option("--token/--no-token", help="Ask for the bot's token, or don't.", show_default=False),
    ] = None,
    token_file: Annotated[
        Path, typer.Option("--token-file", help="Where the token is kept, readable only by you.")
    ] = Path("discord-token"),
    operators: Annotated[
        str | None, typer.Option("--operators", help="Discord ids of the operators.")
    ] = None,
    channels: Annotated[str | None, typer.Option("--channels", help="Ids of channels to answer in.")] = None,
    scope: Annotated[str | None, typer.Option("--scope", help="guild or deployment.")] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help='Hours between retrains, a cron line, or "off".')
    ] = None,
    zone: Annotated[
        str, typer.Option("--time-zone", help="The time zone of a cron line, for example Europe/Berlin.")
    ] = "UTC",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Take the default for whatever isn't given.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write strop.toml by asking a few questions. The token never goes into it.

    Examples:

        strop init

        strop init --yes --operators 123456789012345678 --schedule "0 4 * * *"
    """
    if config.exists() and not force:
        raise InitialiseError(f"{config} exists already: pass --force to replace it.")
    secret = _ask_token(token, yes=yes)
    answers = Answers(
        operators=parse_ids(
            _ask("Operators (Discord ids; empty: the application's owner)", operators, "", yes)
        ),
        channels=parse_ids(
            _ask("Channels to answer in without a mention (ids; empty: none)", channels, "", yes)
        ),
        scope=_scope(_ask("One adapter per guild, or one for the whole deployment?", scope, "guild", yes)),
        schedule=_ask('Retrain every how many hours? (or a cron line, or "off")', schedule, "24", yes),
        time_zone=_zone(zone),
    )
    parse_schedule(answers.schedule)
    if secret:
        write_token(token_file, secret, force=force)
    write_configuration(config, answers, force=force)
    load_config(config, {})
    typer.echo(f"Wrote {config}.")
    if secret:
        typer.echo(f"The token is in {token_file} (only you can read it). Start with:")
        typer.echo(f"  DISCORD_TOKEN_FILE={token_file} strop up")
    else:
        typer.echo("No token yet: `strop up` starts the playground. For Discord, set DISCORD_TOKEN.")
    settings = load_config(config, os.environ)
    choice = automatic(this_machine(settings.model.device), settings.models)
    typer.echo(f'The base model ("auto") is {choice.entry.id}: {choice.why}. `strop models` lists others.')
    typer.echo("`strop doctor` checks everything.")


def _ask(question: str, given: str | None, default: str, yes: bool) -> str:
    if given is not None:
        return given
    return default if yes else str(typer.prompt(question, default=default, show_default=bool(default)))


def _ask_token(wanted: bool | None, *, yes: bool) -> str:
    if wanted is False or (wanted is None and yes):
        return ""
    entered: str = typer.prompt(
        "The bot's token (hidden; empty: none yet)", default="", hide_input=True, show_default=False
    ).strip()
    return check_token(entered) if entered else ""


def _scope(text: str) -> Literal["guild", "deployment"]:
    if text == "guild":
        return "guild"
    if text == "deployment":
        return "deployment"
    raise UsageError(f"The scope is guild or deployment, not {text!r}.")


def _zone(name: str) -> str:
    try:
        return time_zone(name).key
    except CronError as error:
        raise UsageError(f"{name!r} is no time zone; {error}.") from None


def doctor(
    config: ConfigOption = None,
    webhook: Annotated[
        bool, typer.Option("--webhook", help="Send a test alert to the address of alerts.webhook.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check everything Strop needs and print one line each, with the fix where something is wrong.

    Exit code 1 if anything is wrong. Discord is called only if a token is set.

    Examples:

        strop doctor

        strop doctor --webhook

        strop doctor --json | jq '.[] | select(.state == "problem")'
    """
    found: list[Check] = []
    try:
        settings, path = load(config)
    except ConfigError as error:
        fix = "correct it in strop.toml or in the environment"
        found = [Check("config", "problem", problem, fix) for problem in error.problems]
        if not as_json:
            for check in found:
                _print(check)
    else:
        there = path.is_file()
        found.append(
            Check("config", "ok", str(path) if there else f"no {path.name}: every key has its default")
        )
        if not as_json:
            _print(found[0])
        for check in chain(examine(settings), _alerts(settings, send=webhook)):
            found.append(check)
            if not as_json:
                _print(check)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in found], ensure_ascii=False))
    if any(check.state == "problem" for check in found):
        raise typer.Exit(1)


def _alerts(settings: Config, *, send: bool) -> Iterator[Check]:
    address = Webhook.from_config(settings)
    if address is None:
        if send:
            yield problem("alerts", "alerts.webhook names no address", "set it, or STROP_ALERTS_WEBHOOK")
        return
    if not send:
        yield note("alerts", f"go to {address.host}; `strop doctor --webhook` sends a test")
        return
    try:
        asyncio.run(address.send(["This is a test: alerts of Strop arrive here."]))
    except WebhookError as error:
        yield problem("alerts", str(error), "check alerts.webhook, and network.proxy if there is one")
    else:
        yield ok("alerts", f"{address.host} took a test")


def _print(check: Check) -> None:
    mark, plain, colour = MARKS[check.state]
    fix = f" {'→' if can_show('→') else '->'} {check.fix}" if check.fix else ""
    shown = typer.style(mark if can_show(mark) else plain, fg=colour)
    typer.echo(f"{shown} {check.name}: {check.detail}{fix}")


def version(as_json: JsonOption = False) -> None:
    """Print the versions of Strop and of what it stands on.

    Examples:

        strop version --json
    """
    packages = ("strop", "torch", "transformers", "peft", "bitsandbytes", "discord.py")
    found = {name: _version(name) for name in packages}
    found["python"] = platform.python_version()
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"strop {found.pop('strop')}")
    typer.echo(", ".join(f"{name} {number}" for name, number in found.items()))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    for command in (init, doctor, version):
        app.command(rich_help_panel="Set up")(command)
