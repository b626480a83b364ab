from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import torch

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.model.loading import LoadedBase, load_base
from tests.bot.serving.builders import Caller


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Without structlog's rich tracebacks, which take seconds to draw."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def base(tiny_folder: Path) -> LoadedBase:
    return load_base(tiny_folder, "cpu")


@pytest.fixture
def engine(base: LoadedBase) -> Iterator[Engine]:
    engine = Engine(base, EngineOptions(context_tokens=256, slots=4, chunk_tokens=16))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def caller(engine: Engine, base: LoadedBase) -> Caller:
    return Caller(engine, base)
