"""`strop tasting`: what /tasting does, by hand. It writes rows; the running bot asks."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bot.cli.errors import CommandError, UsageError
from bot.cli.launch.console import visible
from bot.cli.runs import actor
from bot.cli.session import ConfigOption, JsonOption, Session, base_hash, read_server_health, session
from bot.cli.settings import GuildOption, server_id
from bot.cli.transfer.prompt_files import prompts_in
from storage.chat.conversations import scope_of
from storage.db.database import Connection
from storage.feedback import prompt_bank, tastings
from storage.feedback.prompt_bank import NewPrompt
from storage.feedback.tastings import Progress, Tasting
from storage.imports.prompts import MAX_TEXT_BYTES, is_data, new_prompt
from storage.learning import adapters
from storage.process.locks import is_locked

ChannelOption = Annotated[
    int, typer.Option("--channel", help="The channel's id (in Discord: Copy Channel ID).", show_default=False)
]

tasting = typer.Typer(
    help="Let members rate the bot's answers to prompts of your own, in a channel of your server.",
    no_args_is_help=True,
)


@tasting.command("add")
def add(
    file: Annotated[
        Path,
        typer.Argument(help="Prompts, one per line, or what `strop import` reads; - is standard input."),
    ],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add prompts to the bank. Empty lines and lines that begin with # are skipped.

    Examples:

        strop tasting add prompts.txt

        echo "What is a good first houseplant?" | strop tasting add -
    """
    with session(config) as opened:
        new, unusable = _prompts(opened, file)
        added = opened.database.write(lambda db: prompt_bank.add(db, new, actor()))
    if as_json:
        typer.echo(json.dumps(asdict(added)))
        return
    left_out = {
        "were there already": added.known,
        f"are longer than {prompt_bank.MAX_PROMPT} characters": added.too_long,
        f"did not fit (the bank holds {prompt_bank.MAX_PROMPTS})": added.over,
    }
    rest = "".join(f" {count} {why}." for why, count in left_out.items() if count)
    typer.echo(f"{added.new} new prompts are in the bank.{rest}{unusable}")


@tasting.command("list")
def list_prompts(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the prompts with their numbers, and how often each was asked.

    Examples:

        strop tasting list

        strop tasting list --json
    """
    with session(config) as opened:
        bank = opened.database.read(prompt_bank.prompts)
    if as_json:
        rows = [{"id": each.id, "text": each.text, "asked": each.asked} for each in bank]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for each in bank:
        typer.echo(f"{each.id:>5}  asked {each.asked:>3} times  {visible(each.text)}")
    if not bank:
        typer.echo("There are no prompts yet: `strop tasting add FILE` adds some.")


@tasting.command("remove")
def remove(
    numbers: Annotated[
        list[int] | None, typer.Argument(help="Numbers from `strop tasting list`.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Empty the bank.")] = False,
) -> None:
    """Take prompts out of the bank; what was asked and rated stays.

    Examples:

        strop tasting remove 3 4

        strop tasting remove --all
    """
    if everything == bool(numbers):
        raise UsageError("Say which prompts by their numbers, or --all.")
    with session(config) as opened:
        if everything:
            count = opened.database.write(lambda db: prompt_bank.remove_all_prompts(db, actor()))
        else:
            count = opened.database.write(lambda db: _remove(db, numbers or []))
    typer.echo(f"{count} prompts removed.")


def _remove(db: Connection, numbers: list[int]) -> int:
    return len([prompt_bank.remove_prompt(db, number, actor()) for number in dict.fromkeys(numbers)])


@tasting.command("start")
def start(
    channel: ChannelOption,
    config: ConfigOption = None,
    guild: GuildOption = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            min=1,
            max=prompt_bank.MAX_PROMPTS,
            help="How many prompts.",
            show_default="all that the present adapter has not answered yet",
        ),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes",
            min=tastings.MIN_EVERY_S / 60,
            max=tastings.MAX_EVERY_S / 60,
            help="Minutes from one prompt to the next.",
        ),
    ] = tastings.DEFAULT_EVERY_S / 60,
    pairs: Annotated[bool, typer.Option("--pairs", help="Two answers to each, for a vote.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also ask what was answered already.")] = False,
) -> None:
    """Begin a tasting in a channel. The running bot asks, and waits while nobody rates.

    What keeps it from asking, such as a permission that lacks, is said by `strop tasting status`.

    Examples:

        strop tasting start --channel 223456789012345678

        strop tasting start --channel 223456789012345678 --count 20 --minutes 10 --pairs
    """
    with session(config) as opened:
        guild_id = server_id(opened, guild)
        scope = scope_of(opened.config.trainer.scope, guild_id)
        health = read_server_health(opened.config)

        def work(db: Connection) -> Tasting:
            base = base_hash(db, scope, health)
            return tastings.start(
                db,
                guild_id=guild_id,
                channel_id=channel,
                scope=scope,
                base_hash=base,
                champion_id=adapters.champion(db, scope, base),
                wanted=count,
                every_s=minutes * 60,
                pairs=pairs,
                again=again,
                requested_by=actor(),
            )

        begun = opened.database.write(work)
        bot_runs = is_locked(opened.config.run / "bot.lock")
    waits = "" if bot_runs else " No bot is running: it begins when one does (`strop up`)."
    pace = f"one every {begun.every_s / 60:g} min"
    typer.echo(f"The tasting in channel {channel} begins: {begun.wanted} prompts, {pace}.{waits}")


@tasting.command("stop")
def stop(
    channel: Annotated[
        int | None, typer.Option("--channel", help="Only in this channel.", show_default="everywhere")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Stop the tastings that are on; what was rated stays rated.

    Examples:

        strop tasting stop
    """

    def work(db: Connection) -> int:
        running = [each for each in tastings.latest(db, limit=1000) if each.state == "running"]
        wanted = [each for each in running if channel in (None, each.channel_id)]
        return sum(tastings.end(db, each.id, "stopped", actor=actor()) for each in wanted)

    with session(config) as opened:
        stopped = opened.database.write(work)
    if not stopped:
        raise CommandError("No tasting is on there.")
    typer.echo("The tasting is stopped." if stopped == 1 else f"{stopped} tastings are stopped.")


@tasting.command("status")
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show how far the latest tastings are: asked, rated, and what stands in the way.

    Examples:

        strop tasting status --json
    """
    with session(config) as opened:
        found = opened.database.read(_latest)
    if as_json:
        rows = [
            {**asdict(each), **asdict(progress), "waits_for_ratings": waits}
            for each, progress, waits in found
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for each, progress, waits in found:
        state = "waits for ratings" if each.state == "running" and waits else each.state
        typer.echo(
            f"channel {each.channel_id}: {progress.asked} of {each.wanted} asked, {progress.rated} rated "
            f"(ratings: {progress.ratings}, by members: {progress.raters}), {state}"
            + (f": {visible(each.why)}" if each.why else "")
        )
    if not found:
        typer.echo("There has been no tasting yet: `strop tasting start` begins one.")


def _latest(db: Connection) -> list[tuple[Tasting, Progress, bool]]:
    return [
        (each, tastings.progress(db, each.id), tastings.waits_for_ratings(db, each.id))
        for each in tastings.latest(db)
    ]


def _prompts(opened: Session, file: Path) -> tuple[list[NewPrompt], str]:
    """Return the prompts, and what was left out as a text."""
    if str(file) != "-":
        found = prompts_in(file, opened)
        return list(map(new_prompt, found.prompts)), found.left_out
    text = sys.stdin.read(MAX_TEXT_BYTES)
    if is_data(text):
        raise UsageError("That is data, not prompts with one per line: save it to a file and name the file.")
    if not (lines := prompt_bank.lines_of(text)):
        raise UsageError("There are no prompts in it: write one per line.")
    return list(map(NewPrompt, lines)), ""


def register(app: typer.Typer) -> None:
    """Add this topic's commands."""
    app.add_typer(tasting, name="tasting", rich_help_panel="Learn")
