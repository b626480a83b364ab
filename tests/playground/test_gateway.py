import asyncio

from bot.playground import community
from bot.playground.server import Playground
from tests.playground.conftest import Recorder


async def test_a_plain_client_connects_hears_a_message_replies_and_edits(
    playground: Playground, client: Recorder
) -> None:
    assert client.user is not None and client.user.id == community.BOT_ID
    sent = playground.backend.send_message(
        community.GENERAL_ID, community.OWNER.user_id, "hello <@%d>" % client.user.id
    )
    message = await asyncio.wait_for(client.messages.get(), 5)
    assert (str(message.id), message.content) == (sent["id"], sent["content"])
    assert client.user in message.mentions
    answer = await message.reply("one")
    await answer.edit(content="one two")
    seen = playground.backend.message(community.GENERAL_ID, answer.id)
    assert seen is not None and seen["content"] == "one two"
    assert seen["message_reference"]["message_id"] == sent["id"]
