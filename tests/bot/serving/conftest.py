from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import torch

from bot.serving.engine.engine import Engine, EngineOptions
from bot.serving.model.loading import LoadedBase, load_base
from bot.serving.model.quantize import prepare_base
from tests.bot.serving.builders import Caller
from tests.tiny_model import build_tiny_base


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Without structlog's rich tracebacks, which take seconds to draw."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unquantized tiny model."""
    return build_tiny_base(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_folder(tiny_source: Path, models_dir: Path) -> Path:
    """The tiny model in 4 bits, as the server and the trainer load it."""
    return prepare_base(str(tiny_source), "", device="cpu", models_dir=models_dir)


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
