"""`strop privacy`: what is stored on a member, for whoever asks the operators instead of the bot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from bot.cli.errors import CommandError
from bot.cli.runs import actor
from bot.cli.session import (
    HEALTH_TIMEOUT_S,
    ConfigOption,
    JsonOption,
    Session,
    model_client,
    session,
)
from bot.serving.errors import ServingError
from storage.admin import audit
from storage.chat import members
from storage.feedback import my_ratings
from storage.privacy import erasure as personal
from storage.privacy import file_scrubbing

UserArgument = Annotated[int, typer.Argument(help="The member's Discord id.", metavar="USER_ID")]

app = typer.Typer(
    name="privacy",
    help="What is stored on a member, for those who ask you instead of the bot.",
    no_args_is_help=True,
)


@app.command()
def show(user: UserArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say how much is stored on a member, and whether it may train.

    Examples:

        strop privacy show 323456789012345678
    """
    with session(config) as opened:
        member = opened.database.read(lambda db: members.get(db, user))
        counts = opened.database.read(lambda db: my_ratings.counts(db, user))
    consent = member.consent if member else "unset"
    record = {
        "user_id": str(user),
        "consent": consent,
        "messages": counts.messages,
        "replies": counts.replies,
        "ratings": counts.ratings,
        "runs": counts.runs,
        "erased_ms": member.erased_ms if member else None,
    }
    if as_json:
        typer.echo(json.dumps(record))
        return
    typer.echo(
        f"Messages {counts.messages}, answers to them {counts.replies}, ratings {counts.ratings} "
        f"(better answers {counts.corrections}, votes {counts.votes}); training runs that used some: "
        f"{counts.runs}; consent: {consent}."
    )


@app.command()
def export(
    user: UserArgument,
    output: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    config: ConfigOption = None,
) -> None:
    """Write everything that is stored on a member to a file, as /privacy export does.

    Examples:

        strop privacy export 323456789012345678 their-data.json
    """
    with session(config) as opened:
        found = opened.database.read(lambda db: personal.export_member(db, user))
        _write(output, found)
        opened.database.write(lambda db: audit.record(db, actor(), "member.export", {"user_id": user}))
    typer.echo(f"Written to {output}. It is theirs: give it to nobody else.")


@app.command()
def erase(
    user: UserArgument,
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Erase a member everywhere, as /privacy delete does: words, ratings, and what was trained on them.

    Adapters that learned from them stop answering at once. It can't be undone.

    Examples:

        strop privacy erase 323456789012345678
    """
    with session(config) as opened:
        if not yes:
            typer.confirm(f"Erase everything of member {user}? It can't be undone.", abort=True, err=True)
        erasure = opened.database.write(lambda db: personal.erase_member(db, user, actor()))
        unload(opened, erasure.affected_adapters)
        complete = file_scrubbing.complete(opened.database, opened.config.data, erasure)
    if as_json:
        record = {"erasure_id": erasure.id, "adapters": erasure.affected_adapters, "complete": complete}
        typer.echo(json.dumps(record | {"runs": erasure.runs, "retrains": erasure.retrains}))
        return
    typer.echo(f"Erased. Adapters that were trained on them and are gone: {len(erasure.affected_adapters)}.")
    if not complete:
        typer.echo("The write-ahead log is still read: the trainer finishes within a minute.", err=True)


def unload(opened: Session, adapter_ids: Iterable[str]) -> None:
    """Take adapters that may no longer answer out of the model server's memory, if it is there."""

    async def each() -> None:
        for adapter_id in adapter_ids:
            with contextlib.suppress(ServingError, TimeoutError):
                async with model_client(opened.config) as client, asyncio.timeout(HEALTH_TIMEOUT_S):
                    await client.unload_adapter(adapter_id)

    asyncio.run(each())


def _write(path: Path, record: dict[str, Any]) -> None:
    """Readable only by this user: these are somebody's words."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise CommandError(f"{path} exists already: choose another name.") from error
    except OSError as error:
        raise CommandError(f"{path} can't be written: {error.strerror}.") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(record, file, ensure_ascii=False, indent=1)


def register(parent: typer.Typer) -> None:
    """Add this topic's commands."""
    parent.add_typer(app, rich_help_panel="Community")
