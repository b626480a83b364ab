"""The proxy in front of vLLM with a real nginx (`make test-proxy`): what is on its list passes with a key."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

CONF = Path(__file__).parents[2] / "deploy" / "vllm-proxy.conf"
NGINX = os.environ.get("TEST_NGINX") or shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
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


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the proxy."""
    folder = tmp_path_factory.mktemp("nginx")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Vllm)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = free_port()
    text = CONF.read_text().replace("127.0.0.1:8601;", f"127.0.0.1:{server.server_port};")
    text = text.replace("listen 8602;", f"listen 127.0.0.1:{port};")
    (folder / "vllm-keys.conf").write_text('"Bearer k3y" 1;\n')
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    conf = folder / "nginx.conf"
    head = f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
    conf.write_text(f"{head}http {{\naccess_log off;\n{temporary}{text}}}\n")
    arguments = [str(NGINX), "-p", str(folder), "-c", str(conf), "-e", f"{folder}/error.log"]
    checked = subprocess.run([*arguments, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen(arguments)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url)
        yield url
    finally:
        process.terminate()
        process.wait(10)
        server.shutdown()
        server.server_close()


def _wait_for(url: str) -> None:
    ends = time.monotonic() + 10
    while True:
        try:
            ask(url, "/")
        except OSError:
            assert time.monotonic() < ends
            time.sleep(0.05)
        else:
            return


def ask(url: str, path: str, key: str | None = "k3y") -> int:
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
