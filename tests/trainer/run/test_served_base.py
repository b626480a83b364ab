"""A run stands on the base that is configured, or it ends with a sentence that names both."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.serving.client import ModelClient
from storage.config import Config, load_config
from tests.bot.fake_server import FakeModelServer
from trainer.errors import EvaluationError
from trainer.model_server import require_served_base


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    server = FakeModelServer()
    server.identity = {"source": "hub:owner/small", "revision": "c" * 40, "chat_template_hash": "t" * 64}
    await server.start()
    yield server
    await server.stop()


def configured(tmp_path: Path, server: FakeModelServer, base: str) -> Config:
    file = tmp_path / "strop.toml"
    file.write_text(f'[model]\nbase = "{base}"\n[server]\nbase_url = "{server.base_url}"\n')
    return load_config(file, {})


async def test_a_server_with_another_base_is_refused_by_name(server: FakeModelServer, tmp_path: Path) -> None:
    async with ModelClient(server.base_url) as client:
        with pytest.raises(EvaluationError, match="it has owner/small@cccccccccccc, not owner/large@"):
            await require_served_base(client, configured(tmp_path, server, "owner/large"))
        # The configured one, or any where none is named, is refused only for what it doesn't say.
        for base in ("owner/small", "auto"):
            with pytest.raises(EvaluationError, match="does not say which base"):
                await require_served_base(client, configured(tmp_path, server, base))
