"""The proxy in front of vLLM with a real nginx (`make test-proxy`): what is on its list passes with a key."""

from __future__ import annotations

import http.server
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.nginx import KEY, NGINX, free_port, nginx

CONF = Path(__file__).parents[2] / "deploy" / "vllm-proxy.conf"
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]

PASSED = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/tokenize", "/health")
REFUSED = (
    *("/", "/metrics", "/sleep", "/wake_up", "/collective_rpc", "/invocations", "/server_info", "/pause"),
    *("/v1/models/", "/v1/../metrics", "/tokenizer_info", "/detokenize", "/v1/embeddings", "/v2/models"),
    *("/v1//models", "/V1/models", "/v1/models%2f..%2f..%2fmetrics"),
)


class Vllm(http.server.BaseHTTPRequestHandler):
    """Answers everything, so that whatever comes through is seen."""

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the proxy."""
    folder = tmp_path_factory.mktemp("nginx")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Vllm)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = free_port()
    text = CONF.read_text().replace("127.0.0.1:8601;", f"127.0.0.1:{server.server_port};")
    text = text.replace("listen 8602;", f"listen 127.0.0.1:{port};")
    try:
        with nginx(folder, text, port) as url:
            yield url
    finally:
        server.shutdown()
        server.server_close()


def ask(url: str, path: str, key: str | None = KEY) -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, headers=headers), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


@pytest.mark.parametrize("path", [*PASSED, "/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_what_is_on_the_list_passes_with_a_key_and_not_without(proxy: str, path: str) -> None:
    assert ask(proxy, path) == 200
    assert ask(proxy, path, key=None) == 401
    assert ask(proxy, path, key="wrong") == 401


@pytest.mark.parametrize("path", REFUSED)
def test_nothing_else_reaches_vllm_even_with_a_key(proxy: str, path: str) -> None:
    assert ask(proxy, path) in (400, 404), path
