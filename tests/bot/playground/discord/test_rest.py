import asyncio
import io
from typing import Any

import aiohttp
import discord
import pytest
from discord import app_commands
from PIL import Image

from bot.playground.discord import community
from bot.playground.discord.ratelimit import RateLimiter, Rule, default_rules
from bot.playground.errors import ActionRefusedError
from bot.playground.server import Playground, PlaygroundSettings
from tests.bot.playground.conftest import Recorder, connected, until

GENERAL, YOU = community.GENERAL_ID, community.OWNER.user_id


async def call(playground: Playground, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
    headers = {"Authorization": f"Bot {playground.token}", **options.pop("headers", {})}
    async with aiohttp.ClientSession() as http:
        response = await http.request(method, playground.api_url + path, headers=headers, **options)
        await response.read()
        return response


async def channel_of(client: Recorder, channel_id: int = GENERAL) -> discord.TextChannel:
    channel = client.get_channel(channel_id)
    assert isinstance(channel, discord.TextChannel)
    return channel


def page_events(playground: Playground, name: str) -> list[dict[str, Any]]:
    """The data of every event of that name from now on."""
    seen: list[dict[str, Any]] = []
    playground.backend.on_page_event(lambda event, data: seen.append(data) if event == name else None)
    return seen


# ---------------------------------------------------------------- the wire


async def test_answers_have_the_exact_content_type_and_a_via_header(playground: Playground) -> None:
    response = await call(playground, "GET", "/users/@me")
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Via"]
    assert int(response.headers["X-RateLimit-Limit"]) > int(response.headers["X-RateLimit-Remaining"])


@pytest.mark.parametrize("authorization", ["", "Bot wrong", "Bearer x", "Bot "])
async def test_a_wrong_token_is_unauthorised(playground: Playground, authorization: str) -> None:
    response = await call(playground, "GET", "/users/@me", headers={"Authorization": authorization})
    assert response.status == 401
    assert (await response.json())["message"] == "401: Unauthorized"


async def test_the_gateway_address_is_the_playgrounds_own(playground: Playground) -> None:
    body = await (await call(playground, "GET", "/gateway/bot")).json()
    assert body["url"] == playground.gateway_url
    assert body["session_start_limit"]["remaining"] == 1000


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", f"/channels/{GENERAL}/messages", b"{", 400),
        ("POST", f"/channels/{GENERAL}/messages", b'{"content": ""}', 400),
        ("POST", f"/channels/{GENERAL}/messages", b'{"content": "%s"}' % (b"x" * 2001), 400),
        ("POST", f"/channels/{GENERAL}/messages", b"[]", 400),
        ("POST", "/channels/42/messages", b'{"content": "x"}', 404),
        ("GET", f"/channels/{GENERAL}/messages/42", b"", 404),
        ("GET", "/channels/not-a-number/messages", b"", 400),
        ("GET", "/no/such/route", b"", 501),
    ],
)
async def test_bad_calls_get_an_error_body_and_never_a_500(
    playground: Playground, method: str, path: str, body: bytes, status: int
) -> None:
    response = await call(playground, method, path, data=body, headers={"Content-Type": "application/json"})
    assert response.status == status
    assert (await response.json())["message"]


async def test_other_host_names_and_other_sites_are_refused(playground: Playground) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert (await call(playground, "GET", "/users/@me", headers=headers)).status == 403
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await http.ws_connect(playground.gateway_url, headers={"Origin": "https://evil.example"})


# ---------------------------------------------------------------- rate limits


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_empties_refuses_and_refills() -> None:
    clock = Clock()
    limiter = RateLimiter((Rule("edit", "PATCH", r"/channels/(\d+)/messages/\d+", 2, 5.0),), clock=clock)
    path = "/channels/1/messages/9"
    remaining = [limiter.check("PATCH", path).headers["X-RateLimit-Remaining"] for _ in range(2)]
    assert remaining == ["1", "0"]
    clock.now = 2.0
    refused = limiter.check("PATCH", path)
    assert not refused.allowed and refused.retry_after_s == pytest.approx(3.0)
    assert refused.headers["X-RateLimit-Scope"] == "user"
    assert limiter.check("PATCH", "/channels/2/messages/9").allowed, "another channel has its own bucket"
    clock.now = 5.0
    assert limiter.check("PATCH", path).allowed


def test_the_global_limit_counts_every_route_but_interactions() -> None:
    limiter = RateLimiter(default_rules(), global_per_s=1, clock=Clock())
    assert limiter.check("GET", "/users/@me").allowed
    refused = limiter.check("GET", "/gateway/bot")
    assert refused.is_global and not refused.allowed
    assert limiter.check("POST", "/interactions/1/token/callback").allowed


async def test_too_many_edits_get_a_429_that_discord_py_survives() -> None:
    rules = (Rule("edit", "PATCH", r"/channels/(\d+)/messages/\d+", 3, 0.5), *default_rules())
    async with (
        Playground(PlaygroundSettings(rate_limits=rules)) as playground,
        connected(Recorder(), playground) as client,
    ):
        assert isinstance(client, Recorder)
        message = await (await channel_of(client)).send("0")
        for n in range(1, 8):
            await message.edit(content=str(n))
        path = f"/channels/{GENERAL}/messages/{message.id}"
        answers = [await call(playground, "PATCH", path, json={"content": "x"}) for _ in range(4)]
        body = await answers[-1].json()
    assert answers[-1].status == 429
    assert 0 < body["retry_after"] <= 0.5 and body["global"] is False
    assert answers[-1].headers["Retry-After"] == "1"


# ---------------------------------------------------------------- messages


async def test_a_file_travels_with_a_message_and_can_be_downloaded(
    playground: Playground, client: Recorder
) -> None:
    file = discord.File(io.BytesIO(b"\x00binary\xff"), "export.json", description="all I have")
    message = await (await channel_of(client)).send("here", file=file)
    attachment = message.attachments[0]
    assert (attachment.size, attachment.description) == (8, "all I have")
    assert await attachment.read() == b"\x00binary\xff"
    async with aiohttp.ClientSession() as http, http.get(attachment.url) as response:
        assert response.headers["Content-Disposition"] == "attachment"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
async def test_a_picture_is_told_by_its_bytes_with_its_size(
    playground: Playground, client: Recorder, kind: str
) -> None:
    drawn = io.BytesIO()
    Image.new("RGB", (30, 20), "#56b4e9").save(drawn, kind)
    file = discord.File(io.BytesIO(drawn.getvalue()), "chart", description="a blue field")
    (attachment,) = (await (await channel_of(client)).send("here", file=file)).attachments
    assert (attachment.content_type, attachment.width, attachment.height) == (f"image/{kind.lower()}", 30, 20)
    async with aiohttp.ClientSession() as http, http.get(attachment.url) as response:
        assert response.content_type == f"image/{kind.lower()}"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert await response.read() == drawn.getvalue()


@pytest.mark.parametrize("content", [b"<svg onload='alert(1)'/>", b"<html>", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
async def test_what_only_calls_itself_a_picture_is_a_file_to_save(
    playground: Playground, client: Recorder, content: bytes
) -> None:
    file = discord.File(io.BytesIO(content), "chart.svg")
    (attachment,) = (await (await channel_of(client)).send("here", file=file)).attachments
    assert attachment.width is None
    async with aiohttp.ClientSession() as http, http.get(attachment.url) as response:
        assert response.content_type == "application/octet-stream"


async def test_a_file_beyond_discords_limit_is_refused(playground: Playground, client: Recorder) -> None:
    file = discord.File(io.BytesIO(bytes(10 * 1024 * 1024 + 1)), "big.bin")
    with pytest.raises(discord.HTTPException) as refused:
        await (await channel_of(client)).send("here", file=file)
    assert (refused.value.status, refused.value.code) == (413, 40005)


async def test_the_page_sees_edits_reactions_typing_and_deletion(
    playground: Playground, client: Recorder
) -> None:
    names = ("MESSAGE_CREATE", "MESSAGE_UPDATE", "MESSAGE_REACTION_ADD", "TYPING_START", "MESSAGE_DELETE")
    seen = {name: page_events(playground, name) for name in names}
    channel = await channel_of(client)
    async with channel.typing():
        message = await channel.send("draft")
    await message.edit(content="final")
    await message.add_reaction("👍")
    shown = playground.backend.message(GENERAL, message.id)
    assert shown is not None and shown["reactions"][0]["users"] == [str(community.BOT_ID)]
    await message.delete()
    assert [seen[name][0] is not None for name in names] == [True] * 5
    assert seen["MESSAGE_UPDATE"][0]["content"] == "final"


async def test_a_member_cant_do_what_discord_would_not_allow(playground: Playground) -> None:
    backend = playground.backend
    ada = community.PEOPLE[1]
    mine = int(backend.send_message(GENERAL, YOU, "mine")["id"])
    for action, status in (
        (lambda: backend.send_message(GENERAL, YOU, "   "), 400),
        (lambda: backend.send_message(GENERAL, YOU, "x" * 100_000), 400),
        (lambda: backend.send_message(42, YOU, "x"), 404),
        (lambda: backend.send_message(ada.dm_channel_id, YOU, "x"), 403),
        (lambda: backend.send_message(GENERAL, YOU, "x", reply_to=42), 404),
        (lambda: backend.edit_message(GENERAL, mine, ada.user_id, "hers"), 403),
        (lambda: backend.delete_message(GENERAL, mine, ada.user_id), 403),
        (lambda: backend.set_reaction(GENERAL, 42, YOU, "👍", reacted=True), 404),
    ):
        with pytest.raises(ActionRefusedError) as refused:
            action()
        assert refused.value.status == status
        assert str(refused.value).endswith(".")


async def test_a_message_is_limited_by_a_sentence_that_names_its_length(playground: Playground) -> None:
    with pytest.raises(ActionRefusedError, match="2,000 characters; this one has 100,000"):
        playground.backend.send_message(GENERAL, YOU, "x" * 100_000)


# ---------------------------------------------------------------- interactions


class Rating(discord.ui.Modal, title="Correct it"):
    better = discord.ui.TextInput[Any](
        label="Better answer", style=discord.TextStyle.paragraph, max_length=50
    )

    async def on_submit(self, interaction: discord.Interaction[Any]) -> None:
        await interaction.response.send_message(f"Thanks: {self.better.value}", ephemeral=True)


class Choices(discord.ui.View):
    @discord.ui.button(label="Press", custom_id="press")
    async def press(self, interaction: discord.Interaction[Any], _: Any) -> None:
        await interaction.response.edit_message(content="pressed", view=None)

    @discord.ui.button(label="Form", custom_id="form")
    async def form(self, interaction: discord.Interaction[Any], _: Any) -> None:
        await interaction.response.send_modal(Rating())

    @discord.ui.select(
        custom_id="pick", options=[discord.SelectOption(label="A"), discord.SelectOption(label="B")]
    )
    async def pick(self, interaction: discord.Interaction[Any], select: discord.ui.Select[Any]) -> None:
        await interaction.response.send_message(f"picked {select.values[0]}")


def add_commands(client: Recorder) -> None:
    group = app_commands.Group(name="privacy", description="Your data")

    @group.command(name="export", description="All of it")
    async def export(interaction: discord.Interaction[Any]) -> None:
        await interaction.response.defer(ephemeral=True, thinking=True)
        await interaction.followup.send(
            "your data", file=discord.File(io.BytesIO(b"{}"), "data.json"), ephemeral=True
        )

    @client.tree.command(description="Ask")
    async def ask(
        interaction: discord.Interaction[Any],
        question: str,
        times: app_commands.Range[int, 1, 3] = 1,
        member: discord.Member | None = None,
    ) -> None:
        who = member.display_name if member else "nobody"
        await interaction.response.send_message(f"{question} x{times} for {who}", view=Choices(timeout=60))

    @ask.autocomplete("question")
    async def suggest(_: discord.Interaction[Any], current: str) -> list[app_commands.Choice[str]]:
        return [app_commands.Choice(name=current + "?", value=current + "?")]

    @client.tree.command(description="Never answers")
    async def silence(interaction: discord.Interaction[Any]) -> None:
        await asyncio.sleep(0)

    @client.tree.context_menu(name="Length")
    async def length(interaction: discord.Interaction[Any], message: discord.Message) -> None:
        await interaction.response.send_message(f"{len(message.content)} characters")

    client.tree.add_command(group)


@pytest.fixture
async def commanded(client: Recorder) -> Recorder:
    add_commands(client)
    await client.tree.sync()
    return client


async def test_a_slash_command_with_options_is_answered(playground: Playground, commanded: Recorder) -> None:
    created = page_events(playground, "MESSAGE_CREATE")
    ada = community.PEOPLE[1]
    options = {"question": "why?", "times": "2", "member": str(ada.user_id)}
    playground.backend.run_command(GENERAL, YOU, "ask", options=options)
    await until(lambda: created)
    assert created[0]["content"] == "why? x2 for Ada"
    assert created[0]["interaction_metadata"]["user"]["id"] == str(YOU)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({}, "required"), ({"question": "q", "times": 9}, "≤ 3"), ({"question": "q", "nope": 1}, "no option")],
)
async def test_options_that_dont_fit_are_refused_in_a_sentence(
    playground: Playground, commanded: Recorder, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ActionRefusedError, match=sentence):
        playground.backend.run_command(GENERAL, YOU, "ask", options=options)


async def test_a_deferred_ephemeral_answer_with_a_file_is_seen_by_its_member_only(
    playground: Playground, commanded: Recorder
) -> None:
    created, updated = (page_events(playground, f"MESSAGE_{kind}") for kind in ("CREATE", "UPDATE"))
    playground.backend.run_command(GENERAL, YOU, "privacy", subcommand="export")
    await until(lambda: updated)
    assert created[0]["flags"] & 128 and created[0]["visible_to"] == str(YOU)
    assert not updated[0]["flags"] & 128
    assert (updated[0]["content"], updated[0]["visible_to"]) == ("your data", str(YOU))
    assert updated[0]["attachments"][0]["filename"] == "data.json"
    assert commanded.messages.empty(), "the gateway doesn't announce ephemeral messages"


async def test_buttons_selects_and_modals_work(playground: Playground, commanded: Recorder) -> None:
    backend = playground.backend
    created, updated = (page_events(playground, f"MESSAGE_{kind}") for kind in ("CREATE", "UPDATE"))
    forms = page_events(playground, "MODAL_OPEN")
    backend.run_command(GENERAL, YOU, "ask", options={"question": "well?"})
    await until(lambda: created)
    message_id = int(created[0]["id"])
    backend.press_component(GENERAL, message_id, YOU, "pick", ["B"])
    await until(lambda: len(created) == 2)
    assert created[1]["content"] == "picked B"
    backend.press_component(GENERAL, message_id, YOU, "form")
    await until(lambda: forms)
    field = forms[0]["components"][0]
    field = field.get("component") or field["components"][0]
    with pytest.raises(ActionRefusedError, match="max_length"):
        backend.submit_modal(YOU, int(forms[0]["modal_id"]), {field["custom_id"]: "x" * 51})
    backend.submit_modal(YOU, int(forms[0]["modal_id"]), {field["custom_id"]: "be kind"})
    await until(lambda: len(created) == 3)
    assert (created[2]["content"], created[2]["visible_to"]) == ("Thanks: be kind", str(YOU))
    backend.press_component(GENERAL, message_id, YOU, "press")
    await until(lambda: updated)
    assert updated[0]["content"] == "pressed"
    with pytest.raises(ActionRefusedError, match="can't be used"):
        backend.press_component(GENERAL, message_id, YOU, "press")


async def test_autocomplete_offers_the_bots_choices(playground: Playground, commanded: Recorder) -> None:
    choices = await playground.backend.autocomplete(
        GENERAL, YOU, "ask", subcommand="", option="question", value="wh"
    )
    assert choices == [{"name": "wh?", "value": "wh?"}]


async def test_a_context_menu_gets_its_message(playground: Playground, commanded: Recorder) -> None:
    created = page_events(playground, "MESSAGE_CREATE")
    target = int(playground.backend.send_message(GENERAL, YOU, "12345")["id"])
    playground.backend.run_command(GENERAL, YOU, "Length", target_id=target)
    await until(lambda: len(created) == 2)
    assert created[1]["content"] == "5 characters"


async def test_an_unanswered_command_is_reported_after_three_seconds(
    playground: Playground, commanded: Recorder
) -> None:
    states = page_events(playground, "INTERACTION_RESPONSE")
    playground.backend.run_command(GENERAL, YOU, "silence")
    await until(lambda: len(states) == 2, timeout_s=20)
    assert [state["state"] for state in states] == ["pending", "failed"]
    assert states[1]["error"] == "The application did not respond"


async def test_synced_commands_are_told_to_the_page(playground: Playground, client: Recorder) -> None:
    changed = page_events(playground, "COMMANDS_CHANGED")
    add_commands(client)
    await client.tree.sync()
    assert {command["name"] for command in changed[0]["commands"]} == {"privacy", "ask", "silence", "Length"}
    assert {command["name"] for command in playground.backend.commands()} >= {"ask"}
    assert len(await client.tree.fetch_commands()) == 4
