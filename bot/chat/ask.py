"""/ask: a question to the model without writing a message."""

from __future__ import annotations

from discord import app_commands

from bot.chat.answerer import Answerer
from bot.chat.content.references import ReferenceReader, References
from bot.chat.listener import MessageListener
from bot.chat.question import Question, quote_line
from bot.delivery.targets import InteractionSurface
from bot.language.texts import speaking, tr
from bot.ui.channel_language import language_of
from bot.ui.channels import is_public, parent_of
from bot.ui.interactions import Interaction, say

MAX_PROMPT = 4000


@app_commands.command(
    description="Ask me something; everyone in the channel sees the answer and can rate it."
)
@app_commands.describe(prompt="What you want to know")
async def ask(interaction: Interaction, prompt: app_commands.Range[str, 1, MAX_PROMPT]) -> None:
    """Answer a prompt in place."""
    client = interaction.client
    if interaction.channel_id is None or not prompt.strip():
        return await say(interaction, tr("Please write what you want to ask."))
    listener = client.feature(MessageListener)
    found = await listener.read_settings_at(interaction)
    if refusal := await listener.refuse_asking(interaction, found):
        return await say(interaction, refusal)
    await interaction.response.defer(thinking=True)
    links = await _linked(interaction, prompt)
    question = Question(
        discord_id=interaction.id,
        channel_id=interaction.channel_id,
        guild_id=interaction.guild_id,
        public=is_public(interaction.channel),
        author=client.services.person(interaction.user),
        text=prompt.strip(),
        in_force=found,
        parent_discord_id=None if links.cited else links.goes_on_from,
        quote=quote_line(prompt.strip()),
        note="\n".join(links.notes),
        visible=False,
        parent_channel_id=parent_of(interaction.channel),
        cited=links.cited,
    )
    with speaking(language_of(found, interaction.guild)):
        task = client.feature(Answerer).start(question, InteractionSurface(interaction))
    if task is None:
        return await say(interaction, tr("I am being restarted. Please ask again in a moment."))
    return None


async def _linked(interaction: Interaction, prompt: str) -> References:
    """Return the messages that a prompt links to."""
    me, reader = interaction.client.user, interaction.client.feature(ReferenceReader)
    if me is None or interaction.channel is None:
        return References()
    return await reader.resolve_links(prompt, interaction.user, interaction.channel, me)
