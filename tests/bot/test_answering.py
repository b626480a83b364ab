"""What people see when they talk to the bot."""

from __future__ import annotations

from tests.bot.conftest import Community
from tests.bot.fake_server import BASE, BASE_HASH, FakeModelServer


async def test_a_mention_is_answered_with_a_stamped_reply(
    community: Community, model_server: FakeModelServer
) -> None:
    await community.ann.send(community.channel, f"{community.mention} hello, who are you?")

    assert community.said() == ["Hello there, friend."]
    (reply,) = community.replies()
    assert reply.status == "complete"
    assert (reply.text, reply.base_hash, reply.adapter_id) == ("Hello there, friend.", BASE_HASH, None)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.finish_reason) == (22, 3, "stop")
    assert reply.seed == model_server.requests[0]["seed"]
    assert reply.sampling["temperature"] == 0.7
    assert model_server.requests[0]["model"] == BASE
    assert model_server.prompt()[-1] == {"role": "user", "content": "hello, who are you?"}
