"""The router with a real nginx (`make test-proxy`): what a replica didn't begin, another one does."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.serving.client import ModelClient
from bot.serving.errors import ServerUnavailableError, UnknownModelError
from bot.serving.protocol import ChatMessage, Sampling
from tests.deploy.nginx import KEY, NGINX, free_port, nginx
from tests.deploy.test_vllm_proxy import PASSED, REFUSED, ask

CONF = Path(__file__).parents[2] / "deploy" / "vllm-router.conf"
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]

HELLO = [ChatMessage("user", "Hello")]


def piece(text: str, reason: str | None = None) -> bytes:
    chunk = {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


class Replica(http.server.ThreadingHTTPServer):
    """Answers with its name, or as `dies` and `knows` say."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.dies, self.knows, self.asked = name, "", True, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Replica
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._say(200, b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        if not self.server.knows:
            self._say(404, b'{"error": {"message": "no such model", "code": 404}}')
        elif self.server.dies == "before its answer":
            self.close_connection = True
        else:
            self._stream()

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        if self.server.dies == "before its first word":
            return
        if self.server.dies == "in the middle":
            self._chunk(piece("half"))
            return
        self._chunk(piece(self.server.name, "stop") + b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def replicas() -> Iterator[tuple[Replica, Replica]]:
    pair = Replica("first"), Replica("second")
    yield pair
    for each in pair:
        each.shutdown()
        each.server_close()


@pytest.fixture
def router(tmp_path: Path, replicas: tuple[Replica, Replica]) -> Iterator[str]:
    """The address of the router."""
    port = free_port()
    with nginx(tmp_path, routed(port, *(each.server_port for each in replicas)), port) as url:
        yield url


def routed(port: int, *replicas: int) -> str:
    """Return the configuration with these ports on this machine."""
    text = CONF.read_text().replace("listen 8603;", f"listen 127.0.0.1:{port};")
    for number, each in enumerate(replicas, 1):
        text = text.replace(f"server replica-{number}:8602", f"server 127.0.0.1:{each}")
    return text


async def said(url: str) -> str:
    async with ModelClient(url, api_key=KEY) as client:
        return (await client.chat(model="m", messages=HELLO, sampling=Sampling(4))).text


def test_only_what_is_on_the_list_passes_and_no_call_loads_an_adapter(router: str) -> None:
    for path in PASSED:
        assert ask(router, path) == 200
        assert ask(router, path, key=None) == 401
    for path in (*REFUSED, "/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert ask(router, path) in (400, 404), path


@pytest.mark.parametrize("dies", ["before its answer", "before its first word"])
async def test_what_a_dying_replica_did_not_begin_another_one_answers(
    router: str, replicas: tuple[Replica, Replica], dies: str
) -> None:
    replicas[0].dies = dies
    assert [await said(router) for _ in range(4)] == ["second"] * 4
    assert replicas[0].asked >= 1


async def test_an_answer_that_broke_off_is_said_to_be_so_and_not_begun_again(
    router: str, replicas: tuple[Replica, Replica]
) -> None:
    for each in replicas:
        each.dies = "in the middle"
    with pytest.raises(ServerUnavailableError):
        await said(router)
    assert replicas[0].asked + replicas[1].asked == 1


async def test_a_replica_that_does_not_know_an_adapter_yet_costs_one_more_try(
    router: str, replicas: tuple[Replica, Replica]
) -> None:
    replicas[0].knows = False
    assert [await said(router) for _ in range(4)] == ["second"] * 4
    replicas[1].knows = False
    with pytest.raises(UnknownModelError):
        await said(router)


async def test_a_replica_that_is_gone_is_left_out(router: str, replicas: tuple[Replica, Replica]) -> None:
    replicas[0].shutdown()
    replicas[0].server_close()
    assert [await said(router) for _ in range(6)] == ["second"] * 6
