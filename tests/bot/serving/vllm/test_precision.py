"""vLLM serves the base in 4 bits where its plugin reads it, else in bfloat16; vLLM itself is a stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bot.serving.model.identity import BFLOAT16, NF4
from bot.serving.settings import Settings
from bot.serving.vllm.child import has_4_bit_plugin
from bot.serving.vllm.serving import serve

STAND_IN = """
import http.server, json, os, sys
from pathlib import Path
def flag(name):
    return sys.argv[sys.argv.index(name) + 1]
config = json.loads((Path(flag("--model")) / "config.json").read_text())
if "quantization_config" in config and os.environ["READS_4_BITS"] == "no":
    sys.exit("ValueError: Unknown quantization method: bitsandbytes")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["VLLM_PLUGINS"].encode())
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(flag("--port"))), Handler).serve_forever()
"""


def environment_with_vllm(folder: Path) -> Path:
    """Write what passes for the interpreter of vLLM's environment, with the plugin; return it."""
    script, python = folder / "stand_in.py", folder / "bin" / "python"
    script.write_text(STAND_IN)
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    python.chmod(0o700)
    plugin = folder / "lib" / "python3.12" / "site-packages" / "vllm_bnb_plugin"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").touch()
    return python


async def served(url: str) -> str:
    """Wait until the stand-in answers; return the plugins that it was told to load."""
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"{url}/health") as response:
                    return await response.text()
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("reads", "tried", "plugins"),
    [
        ("yes", [NF4], "strop_resolver,bitsandbytes"),
        ("no", [NF4, BFLOAT16], "strop_resolver"),
    ],
)
async def test_the_base_is_served_in_4_bits_where_vllm_reads_it_else_in_bfloat16(
    reads: str, tried: list[str], plugins: str, tiny_source: Path, models_dir: Path, tmp_path: Path
) -> None:
    python = environment_with_vllm(tmp_path)
    assert has_4_bit_plugin(python)
    settings = Settings(
        base=str(tiny_source),
        device="cpu",
        port=0,
        models_dir=models_dir,
        adapters_dir=tmp_path / "adapters",
        run_dir=tmp_path / "run",
    )
    announced: list[tuple[int, dict[str, Any]]] = []
    stopping, listening = asyncio.Event(), asyncio.Event()

    def announce(port: int, more: dict[str, Any]) -> None:
        announced.append((port, json.loads(json.dumps(more))))
        listening.set()

    serving = asyncio.create_task(
        serve(
            settings,
            python=python,
            secret="s",
            stopping=stopping,
            environment={**os.environ, "READS_4_BITS": reads},
            announce=announce,
            in_4_bits=True,
        )
    )
    await listening.wait()
    assert await served(f"http://127.0.0.1:{announced[0][0]}") == plugins
    stopping.set()
    await serving
    bases = [more["base"] for _, more in announced if more["base"]]
    assert [base["precision"] for base in bases] == tried
    # Whatever multiplies, it is one base: its champions are the same.
    assert len({base["hash"] for base in bases}) == 1


def test_without_the_plugin_nothing_is_tried(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    assert not has_4_bit_plugin(tmp_path / "bin" / "python")
