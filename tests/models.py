"""The models of the tests, as fixtures: each is made once, whichever worker of a session needs it first.

A test that needs a model asks for one of these fixtures, and is marked `model` for that alone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Imported where they are used: a test run without models loads no model library for them.
# Outside the tests' temporary folders on purpose: quantizing takes half a minute; only the first run pays it.
BUNDLED_MODELS_DIR = Path(__file__).resolve().parents[1] / "build" / "models"


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all workers of one session share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_source(session_folder: Path) -> Path:
    """The unquantized tiny model."""
    from tests.tiny_model import build_tiny_base

    with made_once(session_folder / "tiny") as (folder, new):
        return build_tiny_base(folder) if new else folder


@pytest.fixture(scope="session")
def models_dir(session_folder: Path) -> Path:
    """The folder of the tiny model in 4 bits."""
    return session_folder / "models"


@pytest.fixture(scope="session")
def tiny_folder(tiny_source: Path, models_dir: Path) -> Path:
    """The tiny model in 4 bits, as the server and the trainer load it."""
    return prepared(str(tiny_source), models_dir)


@pytest.fixture(scope="session")
def bundled_folder() -> Path:
    """The packaged 135M model in 4 bits."""
    return prepared("SmolLM2-135M-Instruct", BUNDLED_MODELS_DIR)


@pytest.fixture(scope="session")
def bundled_models(bundled_folder: Path) -> Path:
    """The folder of models that it lies in."""
    return bundled_folder.parent


def prepared(base: str, models_dir: Path) -> Path:
    """Return a base in 4 bits, which one worker makes and the others wait for."""
    from bot.serving.model.quantize import prepare_base

    with locked(models_dir):
        return prepare_base(base, "", device="cpu", models_dir=models_dir)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder against the other workers."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def made_once(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Hold a folder's lock and say whether it is still to be made; what fails half-way is made again."""
    done = folder.with_name(f".{folder.name}.done")
    with locked(folder):
        new = not done.exists()
        yield folder, new
        done.touch()
