"""/export and /audit: the data set as a file, and who changed what. Both for operators' eyes."""

from __future__ import annotations

import asyncio
import gzip
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self, TypeGuard

import discord
from discord import app_commands

from bot.language.sentences import translate
from bot.language.texts import tr
from bot.operators import NOT_OPERATOR
from bot.services import Services
from bot.ui.interactions import Interaction, operators_only, say, with_error_reply
from storage.admin import audit
from storage.admin.audit import Entry
from storage.chat.conversations import scope_of
from storage.learning import eligibility
from storage.learning.export import Shape, as_jsonl
from storage.learning.export import lines as lines_of
from storage.sentences import Sentence

PAGE = 10
# Discord takes 10 MB from a bot; beyond this the file is compressed.
_PLAIN_BYTES = 8_000_000
_MOST_BYTES = 9_500_000
_LIMIT = 1900
_DETAIL = 90
_HASH = 12


# --------------------------------------------------------------------------------------------- the data set
@app_commands.command(description="The rated replies that may be trained on, as a JSONL file.")
@app_commands.describe(
    shape="chat: messages and counts; kto: labels; dpo: pairs (as TRL's trainers take them)"
)
@app_commands.rename(shape="format")
@app_commands.choices(shape=[app_commands.Choice(name=each.value, value=each.value) for each in Shape])
@operators_only
async def export(interaction: Interaction, shape: str = Shape.CHAT.value) -> None:
    """Send what consent and provenance allow, without anybody's id, for the operator's eyes only."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    services = interaction.client.services
    scope, actor = services.scope(interaction.guild_id), str(interaction.user.id)
    found = await _eligible(services, scope)
    name, content, lines = await asyncio.to_thread(_file, found, Shape(shape))
    words = tr("{lines} lines from {rows} rated replies.", lines=lines, rows=len(found.rows))
    left_out = "\n".join(
        translate(
            Sentence("Left out: {count} because {reason}", count=count, reason=eligibility.reason(reason))
        )
        for reason, count in found.excluded.items()
    )
    if len(content) > _MOST_BYTES:
        return await say(
            interaction, tr("{lines} That is too large for Discord: use `strop export`.", lines=words)
        )
    detail = {"scope": scope, "format": shape, "lines": lines}
    await services.database.awrite(lambda db: audit.record(db, actor, "dataset.export", detail))
    if not lines:
        return await say(interaction, f"{tr('There is nothing to export.')}\n{left_out}"[:_LIMIT])
    file = discord.File(io.BytesIO(content), filename=name)
    return await say(interaction, f"{words}\n{left_out}"[:_LIMIT], file=file)


async def _eligible(services: Services, scope: str) -> eligibility.Eligibility:
    reference = services.permission_reference
    return await services.database.aread(
        lambda db: eligibility.eligible_rows(db, scope, permission_reference=reference)
    )


def _file(found: eligibility.Eligibility, shape: Shape) -> tuple[str, bytes, int]:
    lines = lines_of(found.rows, shape)
    content = as_jsonl(lines).encode()
    if len(content) <= _PLAIN_BYTES:
        return "strop-dataset.jsonl", content, len(lines)
    return "strop-dataset.jsonl.gz", gzip.compress(content), len(lines)


# --------------------------------------------------------------------------------------------- who did what
@app_commands.command(name="audit", description="Who changed what: promotions, runs, exports, erasures.")
@operators_only
async def audit_command(interaction: Interaction) -> None:
    """Show the newest entries of the audit log."""
    await interaction.response.defer(ephemeral=True, thinking=True)
    entries, older = await _entries(interaction.client.services, None)
    view = _pager(entries, older=older, paged=False)
    await say(
        interaction, audit_text(entries, _servers(interaction)), **({"view": view} if view.children else {})
    )


class AuditButton(
    discord.ui.DynamicItem[discord.ui.Button[discord.ui.View]],
    template=r"strop:audit:(?P<before>\d{1,18})",
):
    """Turns the page: shows the entries older than the one in its custom id; 0 is the newest page."""

    def __init__(self, before_id: int) -> None:
        self.before_id = before_id
        label = tr("Older") if before_id else tr("Newest")
        super().__init__(discord.ui.Button(label=label, custom_id=f"strop:audit:{before_id}"))

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: discord.ui.Item[Any], match: re.Match[str], /
    ) -> Self:
        """Make the button again from its custom id."""
        return cls(int(match["before"]))

    @with_error_reply
    async def callback(self, interaction: Interaction) -> None:
        """Show another page in place, if whoever pressed still is an operator."""
        if not interaction.client.is_operator(interaction.user.id):
            return await say(interaction, tr(NOT_OPERATOR))
        await interaction.response.defer()
        entries, older = await _entries(interaction.client.services, self.before_id or None)
        view = _pager(entries, older=older, paged=bool(self.before_id))
        await interaction.edit_original_response(
            content=audit_text(entries, _servers(interaction)), view=view
        )
        return None


def audit_text(entries: Sequence[Entry], servers: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return one line an entry: when, who, what, and what it names; `servers` are names by scope."""
    if not entries:
        return tr("The audit log has no (older) entries.")
    lines = []
    for entry in entries:
        detail = " ".join(_named(entry.detail, servers))
        shown = detail if len(detail) <= _DETAIL else f"{detail[: _DETAIL - 1]}…"
        named = f" `{shown.replace('`', '')}`" if shown else ""
        lines.append(f"<t:{entry.created_ms // 1000}:R> {_who(entry.actor)} **{entry.action}**{named}")
    return "\n".join(lines)[:2000]


def _servers(interaction: Interaction) -> dict[str, str]:
    """Return the names of the bot's servers by their scopes."""
    return {scope_of("guild", guild.id): guild.name for guild in interaction.client.guilds}


def _named(detail: Mapping[str, Any], servers: Mapping[str, str]) -> Iterator[str]:
    """Name what an entry is about, adapters first; of a hash as much as tells it from others."""
    for key in sorted(detail, key=lambda key: "adapter" not in key):
        value = servers.get(detail[key], detail[key]) if key == "scope" else detail[key]
        if value not in (None, ""):
            yield f"{key}={value[:_HASH]}…" if _is_hash(value) else f"{key}={value}"


def _is_hash(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _who(actor: str) -> str:
    return f"<@{actor}>" if actor.isdecimal() else actor


async def _entries(services: Services, before_id: int | None) -> tuple[list[Entry], bool]:
    """Return one page, and whether there are older entries."""
    found = await services.database.aread(lambda db: audit.latest(db, PAGE + 1, before_id=before_id))
    return found[:PAGE], len(found) > PAGE


def _pager(entries: Sequence[Entry], *, older: bool, paged: bool) -> discord.ui.View:
    view = discord.ui.View(timeout=None)
    if paged:
        view.add_item(AuditButton(0))
    if older:
        view.add_item(AuditButton(entries[-1].id))
    return view
