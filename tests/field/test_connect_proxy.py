"""discord.py's `proxy=` behind a real CONNECT proxy: REST and the gateway's websocket, both over TLS.

The stand-in speaks plain HTTP, so a TLS end with a certificate of its own stands before it. Nothing listens
at the addresses that the bot is given (port 443 of this machine): only the proxy knows the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import aiohttp
import pytest

from bot.app import make_client
from bot.playground.discord import community
from bot.playground.server import Playground, PlaygroundSettings
from bot.services import Services
from bot.serving.client import ModelClient
from storage.db.database import Database
from tests.bot.conftest import make_config
from tests.bot.fake_server import FakeModelServer
from tests.bot.playground.conftest import connected, real_addresses_afterwards, until

__all__ = ["real_addresses_afterwards"]
API, GATEWAY = "localhost", "127.0.0.1"
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    sink.close()


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Pass everything on to a port of this machine, and what it answers back."""
    there, back = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.gather(_pump(reader, back), _pump(there, writer))


@asynccontextmanager
async def listening(handle: Handle, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    tasks: set[asyncio.Future[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(handle(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class ConnectProxy:
    """Opens tunnels to names that only it knows, and keeps what it was asked for."""

    def __init__(self, way: dict[str, int]) -> None:
        self._way = way
        self.asked: list[str] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = request.split("\r\n")[0].split(" ")
        self.asked.append(f"{method} {target}")
        port = self._way.get(target) if method == "CONNECT" else None
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" if port else b"HTTP/1.1 403 Forbidden\r\n\r\n")
        await writer.drain()
        if port:
            await _join(reader, writer, port)
        writer.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What the server shows, and what makes a client trust it."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    )
    names = f"subjectAltName=DNS:{API},IP:{GATEWAY}"
    subprocess.run(
        [*command.split(), "-addext", names, "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert, key)
    return server, ssl.create_default_context(cafile=str(cert))


async def test_the_bot_signs_in_hears_and_answers_through_a_connect_proxy(
    tmp_path: Path, certificate: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    shown, trusting = certificate
    model = FakeModelServer()
    await model.start()
    database = Database.open(tmp_path / "strop.db")
    async with (
        Playground(PlaygroundSettings()) as playground,
        ModelClient(model.base_url) as client,
        listening(lambda r, w: _join(r, w, int(playground.base_url.rpartition(":")[2])), shown) as tls,
    ):
        proxy = ConnectProxy({f"{API}:443": tls, f"{GATEWAY}:443": tls})
        async with listening(proxy.handle) as port:
            toml = f"[discord]\nmessage_content = true\n[network]\nproxy = 'http://127.0.0.1:{port}'"
            services = Services(make_config(tmp_path, toml), database, client)
            bot = make_client(services)
            bot.http.connector = aiohttp.TCPConnector(limit=0, ssl=trusting)
            afar = SimpleNamespace(
                api_url=playground.api_url.replace(playground.base_url, f"https://{API}"),
                gateway_url=f"wss://{GATEWAY}/{playground.gateway_url.partition('//')[2].partition('/')[2]}",
                token=playground.token,
            )
            async with connected(bot, cast("Playground", afar)):
                playground.backend._backend.create_message(
                    community.GENERAL_ID, community.OWNER.user_id, f"<@{community.BOT_ID}> hello"
                )
                await until(lambda: any("Hello there" in each for each in answers(playground)))
                await bot.shutdown()
        assert set(proxy.asked) == {f"CONNECT {API}:443", f"CONNECT {GATEWAY}:443"}
    database.close()
    await model.stop()


def answers(playground: Playground) -> list[str]:
    history = playground.backend.history(50)[str(community.GENERAL_ID)]
    return [each["content"] for each in history if each["author"]["id"] == str(community.BOT_ID)]
