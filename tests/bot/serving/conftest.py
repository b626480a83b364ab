from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

# Imported where they are used: tests that need no model load no model library.
if TYPE_CHECKING:
    from bot.serving.engine.engine import Engine
    from bot.serving.model.loading import LoadedBase, Precision
    from tests.bot.serving.builders import Caller


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """Without structlog's rich tracebacks, which take seconds to draw."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def precision() -> Precision:
    """How a base multiplies by default when it is served."""
    return "fast"


@pytest.fixture
def base(tiny_folder: Path, precision: Precision) -> LoadedBase:
    from bot.serving.model.loading import load_base

    return load_base(tiny_folder, "cpu", precision=precision)


@pytest.fixture
def engine(base: LoadedBase) -> Iterator[Engine]:
    from bot.serving.engine.engine import Engine, EngineOptions

    engine = Engine(base, EngineOptions(context_tokens=256, slots=4, chunk_tokens=16))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def caller(engine: Engine, base: LoadedBase) -> Caller:
    from tests.bot.serving.builders import Caller

    return Caller(engine, base)
