"""What every test needs: an environment that reaches no network, no real bot and no real data.

And how tests are told apart: `make check` leaves out those that need a model, a browser or a deployment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import structlog
from hypothesis import settings

from tests.models import bundled_folder, bundled_models, models_dir, session_folder, tiny_folder, tiny_source
from tests.skip_rule import SkipRule, is_ci

__all__ = ["bundled_folder", "bundled_models", "models_dir", "session_folder", "tiny_folder", "tiny_source"]

# OpenMP reads these once, when torch is first imported. One passive thread a process keeps tests from
# spinning against each other on small machines, and sums in one order, so that results repeat.
os.environ.update(
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="passive",
    GOMP_SPINCOUNT="0",
    TOKENIZERS_PARALLELISM="false",
)
# No test downloads a model or reports telemetry, and none picks up the developer's own bot, home or keys.
# Child processes inherit all of this.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
)
for _name in [name for name in os.environ if name.startswith(("STROP_", "DISCORD_"))]:
    del os.environ[_name]

# A busy machine is no counterexample, and continuous integration tries the same examples each time.
settings.register_profile("strop", deadline=None, derandomize=is_ci())
settings.load_profile("strop")

# The default draws every local variable of every frame: seconds, in which the event loop stands still.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

E2E = Path(__file__).parent / "e2e"
# A test module that names something out of one of these needs a model.
MODEL_ORIGINS = ("torch", "transformers", "peft", "tests.tiny_model", "tests.bot.serving.serving_process")
MODEL_FIXTURES = {"tiny_source", "bundled_folder"}
BROWSER_FIXTURES = {"browser"}
# Such waits end when nothing moves any more, see tests/e2e/deployment.py; this ends what moves for ever.
E2E_TIMEOUT_S = 1800


def pytest_configure(config: pytest.Config) -> None:
    """Hold the skip rule: see `tests/skip_rule.py`."""
    config.pluginmanager.register(SkipRule(strict=is_ci()), "strop-skip-rule")


# First, so that -m already finds the marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by what they use, and let the longest start first where workers share them."""
    for item in items:
        if isinstance(item, pytest.Function):
            _mark(item)
    if hasattr(config, "workerinput"):
        items.sort(key=_urgency)


def _mark(item: pytest.Function) -> None:
    used = set(item.fixturenames)
    if E2E in item.path.parents or "processes" in used:
        item.add_marker("e2e")
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(E2E_TIMEOUT_S))
    if used & MODEL_FIXTURES or _names_a_model_library(item.module):
        item.add_marker("model")
    if used & BROWSER_FIXTURES:
        item.add_marker("browser")
    if _shares_its_module(item):
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


def _names_a_model_library(module: ModuleType) -> bool:
    found: set[str] | None = getattr(module, "_origins", None)
    if found is None:
        found = module._origins = set(_origins(module))  # type: ignore[attr-defined]
    return any(origin == each or origin.startswith(f"{each}.") for origin in found for each in MODEL_ORIGINS)


def _origins(module: ModuleType) -> Iterator[str]:
    for value in vars(module).values():
        origin = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(origin, str):
            yield origin


def _shares_its_module(item: pytest.Function) -> bool:
    """Whether the tests of its module share something that would be made again in each worker."""
    made = (each[-1] for each in item._fixtureinfo.name2fixturedefs.values())
    return any(fixture.scope in ("module", "class") for fixture in made)


def _urgency(item: pytest.Item) -> tuple[float, list[bool]]:
    """Order by the time that a test may take, then by what it needs."""
    limit = item.get_closest_marker("timeout")
    needs = [item.get_closest_marker(name) is None for name in ("e2e", "model", "browser")]
    return (-float(limit.args[0]) if limit and limit.args else 0.0, needs)
