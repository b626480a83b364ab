"""What every test needs: an environment that reaches no network, no real bot and no real data.

And how tests are told apart: `make check` leaves out those that need a model, a browser or a deployment.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from tests.compiler import share_compiled_kernels
from tests.databases import empty_database
from tests.groups import Groups, group_of, leave
from tests.models import bundled_folder, bundled_models, models_dir, session_folder, tiny_folder, tiny_source
from tests.skip_rule import SkipRule, is_ci

__all__ = [
    "bundled_folder",
    "bundled_models",
    "empty_database",
    "models_dir",
    "session_folder",
    "tiny_folder",
    "tiny_source",
]

# Collecting makes a million objects that stay: each look for garbage among them takes 0.2 s.
gc.disable()
# Otherwise each worker rewrites the asserts of all tests anew (9 s), and each child compiles our modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# OpenMP reads these once, when torch is first imported. One passive thread a process keeps tests from
# spinning against each other on small machines, and sums in one order, so that results repeat.
os.environ.update(
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="passive",
    GOMP_SPINCOUNT="0",
    TOKENIZERS_PARALLELISM="false",
    # As in a run (trainer/schedule/queue.py).
    TORCHDYNAMO_DISABLE="1",
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


@pytest.fixture(autouse=True)
def _same_log() -> Iterator[None]:
    """A command that a test calls sets up its own log; the next test captures as before."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


E2E = Path(__file__).parent / "e2e"
# A test module that imports something out of one of these needs a model.
MODEL_ORIGINS = (
    "torch",
    "transformers",
    "peft",
    "bot.serving.engine.engine",
    "bot.serving.model.loading",
    "trainer.on_policy.adapter_scale",
    "trainer.placement.carry_out",
    "trainer.run.execution",
    "trainer.run.repeat",
    "tests.tiny_model",
    "tests.trainer.placement.test_ray",
    "tests.bot.serving.builders",
    "tests.bot.serving.serving_process",
)
_IMPORTS_A_MODEL = re.compile(rf"^(from|import) ({'|'.join(map(re.escape, MODEL_ORIGINS))})\b", re.MULTILINE)
MODEL_FIXTURES = {"tiny_source", "bundled_folder"}
BROWSER_FIXTURES = {"browser"}
# Such waits end when nothing moves any more, see tests/e2e/deployment.py; this ends what moves for ever.
E2E_TIMEOUT_S = 1800
# About what a test of each kind takes of a processor, measured: how deployments are spread among the others.
COSTS_S = {"e2e": 14.0, "browser": 2.0, "model": 0.7, "": 0.1}
SPREAD = 0.85
# With such a limit a test is the longest of all, which everybody waits for in the end.
LONGEST_LIMIT_S = 7200.0
STEP_BACK = 5
# xdist gives each worker its second tests at once: those behind the longest one wait for it.
BEHIND_THE_LONGEST = 8


def pytest_configure(config: pytest.Config) -> None:
    """Hold the skip rule (see `tests/skip_rule.py`), and let all processes share what is compiled."""
    config.pluginmanager.register(SkipRule(strict=is_ci()), "strop-skip-rule")
    if not hasattr(config, "workerinput"):
        config.add_cleanup(share_compiled_kernels())
        config.pluginmanager.register(Groups(config), "strop-groups")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out unread what `-m` would leave out: importing model libraries takes each worker 8 s."""
    chosen = leaves_models_out(config) and collection_path.suffix == ".py"
    return True if chosen and imports_a_model_library(collection_path) else None


def leaves_models_out(config: pytest.Config) -> bool:
    """Whether `-m` allows no test that needs a model."""
    chosen = str(config.getoption("markexpr"))
    return bool(re.search(r"\bnot model\b", chosen)) and not re.search(r"\bor\b", chosen)


@cache
def imports_a_model_library(path: Path) -> bool:
    """Whether a test module imports a model library by itself, at its top."""
    return _IMPORTS_A_MODEL.search(path.read_text(encoding="utf-8")) is not None


# First, so that -m already finds the marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by what they use, and let the longest start first where workers share them."""
    for item in items:
        if isinstance(item, pytest.Function):
            _mark(item)
    if hasattr(config, "workerinput"):
        items[:] = in_order(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell which tests stay together, and never look for garbage among what is collected."""
    gc.freeze()
    gc.enable()
    if hasattr(session.config, "workerinput"):
        leave(session.config, session.items)


def _mark(item: pytest.Function) -> None:
    used = set(item.fixturenames)
    if E2E in item.path.parents or "processes" in used:
        item.add_marker("e2e")
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(E2E_TIMEOUT_S))
    if used & MODEL_FIXTURES or imports_a_model_library(item.path):
        item.add_marker("model")
    if used & BROWSER_FIXTURES:
        item.add_marker("browser")
    if _shares_its_module(item):
        item.add_marker(pytest.mark.xdist_group(str(item.path)))


def _shares_its_module(item: pytest.Function) -> bool:
    """Whether the tests of its module share something that would be made again in each worker."""
    made = (each[-1] for each in item._fixtureinfo.name2fixturedefs.values())
    return any(fixture.scope in ("module", "class") for fixture in made)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave the longest test a core, so that nobody waits for it alone in the end."""
    if hasattr(item.config, "workerinput") and _limit_s(item) < LONGEST_LIMIT_S and os.nice(0) < STEP_BACK:
        os.nice(STEP_BACK)


def _limit_s(item: pytest.Item) -> float:
    limit = item.get_closest_marker("timeout")
    return float(limit.args[0]) if limit and limit.args else 0.0


def _kind(item: pytest.Item) -> str:
    return next((name for name in COSTS_S if item.get_closest_marker(name) is not None), "")


def _cost_s(item: pytest.Item) -> float:
    return COSTS_S[_kind(item)]


def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return tests in the order in which workers start them.

    The longest is first, and quick ones follow it; of the others those that stay together go before what runs
    alone. Tests of deployments wait more than they compute and the
    others compute more than they wait, so the former are spread over the time that the latter take, but for a
    last part: no worker is to be left alone with a deployment at the end.
    """
    deployments = sorted((each for each in items if _kind(each) == "e2e"), key=_limit_s, reverse=True)
    longest, waiting = deployments[:1], deployments[1:]
    alone = [each for each in items if not _kind(each) and each.get_closest_marker("xdist_group") is None]
    ordered = longest + alone[: BEHIND_THE_LONGEST * len(longest)]
    rest = [each for each in items if _kind(each) != "e2e" and each not in ordered]
    together: Counter[str] = Counter()
    for each in rest:
        together[group_of(each)] += _cost_s(each)
    computing = sorted(rest, key=lambda each: together[group_of(each)], reverse=True)
    share_s = SPREAD * sum(map(_cost_s, computing)) / max(1, len(waiting))
    passed_s = due_s = 0.0
    for item in computing:
        while waiting and passed_s >= due_s:
            ordered.append(waiting.pop(0))
            due_s += share_s
        ordered.append(item)
        passed_s += _cost_s(item)
    return ordered + waiting
