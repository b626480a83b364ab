"""`strop settings`, `strop block`, `strop unblock`, `strop blocks`: what /settings and /block do, by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from bot.cli.errors import UsageError
from bot.cli.runs import actor
from bot.cli.session import ConfigOption, JsonOption, Session, session
from storage.admin import blocks as blocking
from storage.admin import settings as stored
from storage.admin.setting_values import KINDS
from storage.admin.settings import Place
from storage.errors import SettingError

GuildOption = Annotated[
    int | None,
    typer.Option("--guild", help="The server's id (default: the only one there is).", show_default=False),
]
ChannelOption = Annotated[
    int | None,
    typer.Option("--channel", help="A channel's id; without it the whole server.", show_default=False),
]
KeyArgument = Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")]
UserArgument = Annotated[int, typer.Argument(help="The member's id.")]
WhereOption = Annotated[
    int | None,
    typer.Option("--guild", help="Only in this server (default: everywhere).", show_default=False),
]

settings = typer.Typer(help="See and change what is set for a server or a channel.", no_args_is_help=True)


@settings.command("show")
def show(
    config: ConfigOption = None,
    guild: GuildOption = None,
    channel: ChannelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is in force, and whether it comes from the file, the server or the channel.

    Examples:

        strop settings show

        strop settings show --guild 123456789012345678 --channel 223456789012345678 --json
    """
    with session(config) as opened:
        guild_id = server_id(opened, guild)
        found = opened.database.read(lambda db: stored.resolve(db, opened.config, guild_id, channel))
    rows = {key: (getattr(found.settings, key), found.origins[key]) for key in KINDS}
    if as_json:
        listed = {key: {"value": value, "from": origin} for key, (value, origin) in rows.items()}
        typer.echo(json.dumps(listed, ensure_ascii=False))
        return
    width = max(map(len, rows))
    for key, (value, origin) in rows.items():
        typer.echo(f"{key:<{width}}  {origin:<7}  {KINDS[key].format(value)}")


@settings.command("set")
def put(
    key: KeyArgument,
    value: Annotated[str, typer.Argument(help="As it is typed in /settings: 0.7, on, mention reply, 👍 ❤️.")],
    config: ConfigOption = None,
    guild: GuildOption = None,
    channel: ChannelOption = None,
) -> None:
    """Set one value for a server or a channel; it holds from the next message on, without a restart.

    Examples:

        strop settings set temperature 0.4

        strop settings set triggers "mention reply every" --channel 223456789012345678
    """
    with session(config) as opened:
        place = Place(server_id(opened, guild), channel)
        try:
            changed = opened.database.write(
                lambda db: stored.put(db, opened.config, place, key, value, actor())
            )
        except SettingError as error:
            raise UsageError(f"{key}: {error}" if key in KINDS else str(error)) from error
    typer.echo(f"{key} is set for {_named(place)}." if changed else f"{key} was set so already.")


@settings.command("reset")
def reset(
    key: Annotated[str | None, typer.Argument(help="The setting; without it all of the place.")] = None,
    config: ConfigOption = None,
    guild: GuildOption = None,
    channel: ChannelOption = None,
) -> None:
    """Take back what is set for a server or a channel; what stands below it holds again.

    Examples:

        strop settings reset temperature

        strop settings reset --channel 223456789012345678
    """
    with session(config) as opened:
        place = Place(server_id(opened, guild), channel)
        gone = opened.database.write(lambda db: stored.reset(db, place, actor(), key))
    typer.echo(f"Reset for {_named(place)}: {', '.join(gone)}." if gone else "Nothing was set there.")


@settings.command("places")
def places(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List every server and channel that has settings of its own.

    Examples:

        strop settings places --json
    """
    with session(config) as opened:
        found = opened.database.read(lambda db: {place: stored.own(db, place) for place in stored.places(db)})
    if as_json:
        rows = [
            {"guild_id": place.guild_id, "channel_id": place.channel_id, "settings": own}
            for place, own in found.items()
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for place, own in found.items():
        typer.echo(f"{_named(place)}: {', '.join(own)}")
    if not found:
        typer.echo("No server has settings of its own: strop.toml holds everywhere.")


def block(
    user: UserArgument,
    config: ConfigOption = None,
    guild: WhereOption = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the moderators.")] = "",
) -> None:
    """No longer answer a member, and no longer count what they rate.

    Examples:

        strop block 323456789012345678 --reason spam

        strop block 323456789012345678 --guild 123456789012345678
    """
    guild_id = blocking.EVERYWHERE if guild is None else guild
    with session(config) as opened:
        new = opened.database.write(
            lambda db: blocking.block(db, guild_id=guild_id, user_id=user, actor=actor(), reason=reason)
        )
    typer.echo(f"{user} is blocked {_scope(guild_id)}." if new else f"{user} was blocked there already.")


def unblock(user: UserArgument, config: ConfigOption = None, guild: WhereOption = None) -> None:
    """Answer a blocked member again, and count their ratings again.

    Examples:

        strop unblock 323456789012345678
    """
    guild_id = blocking.EVERYWHERE if guild is None else guild
    with session(config) as opened:
        opened.database.write(lambda db: blocking.unblock(db, guild_id=guild_id, user_id=user, actor=actor()))
    typer.echo(f"{user} is answered again {_scope(guild_id)}.")


def blocks(config: ConfigOption = None, guild: WhereOption = None, as_json: JsonOption = False) -> None:
    """List who is blocked, where, since when and by whom.

    Examples:

        strop blocks --json
    """
    with session(config) as opened:
        found = opened.database.read(lambda db: blocking.listing(db, guild))
    if as_json:
        typer.echo(json.dumps([_record(each) for each in found], ensure_ascii=False))
        return
    for each in found:
        since = datetime.fromtimestamp(each.created_ms / 1000, UTC).strftime("%Y-%m-%d")
        typer.echo(f"{each.user_id}  {_scope(each.guild_id)}  since {since}, by {each.actor}  {each.reason}")
    if not found:
        typer.echo("Nobody is blocked.")


def _record(each: blocking.Block) -> dict[str, Any]:
    fields = ("guild_id", "user_id", "actor", "reason", "created_ms")
    return {field: getattr(each, field) for field in fields}


def server_id(opened: Session, option: int | None) -> int:
    """Return the server that was named, or the only one that the bot has talked in.

    Raises UsageError where there are several.
    """
    if option is not None:
        return option
    question = (
        "select guild_id from conversations where guild_id is not null union select guild_id from settings"
    )
    found = opened.database.read(lambda db: [int(row["guild_id"]) for row in db.query(question)])
    if len(found) != 1:
        listed = f" There are {', '.join(map(str, sorted(found)))}." if found else ""
        raise UsageError(f"Say which server with --guild.{listed}")
    return found[0]


def _named(place: Place) -> str:
    server = f"server {place.guild_id}"
    return server if place.channel_id is None else f"channel {place.channel_id} of {server}"


def _scope(guild_id: int) -> str:
    return "everywhere" if guild_id == blocking.EVERYWHERE else f"in server {guild_id}"


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    app.add_typer(settings, name="settings", rich_help_panel="Community")
    for command in (block, unblock, blocks):
        app.command(rich_help_panel="Community")(command)
