"""What `make check` leaves out, and what it must not load for that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import STEP_BACK, imports_a_model_library, in_order, leaves_models_out

ROOT = Path(__file__).parent.parent


def test_whoever_leaves_models_out_loads_no_model_library(pytestconfig: pytest.Config) -> None:
    """It takes each worker 8 s: import it where it is used, or name the module that does in MODEL_ORIGINS."""
    assert not leaves_models_out(pytestconfig) or "torch" not in sys.modules


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch\n", True),
        ("import os\nfrom transformers import AutoConfig\n", True),
        ("from tests.tiny_model import build_tiny_base\n", True),
        ("import torchlight\n", False),
        ("from bot.serving.engine import scheduler\n", False),
        ("def test_it():\n    import torch\n", False),
    ],
)
def test_a_module_needs_a_model_where_it_imports_one_at_its_top(
    tmp_path: Path, source: str, expected: bool
) -> None:
    (tmp_path / "test_it.py").write_text(source)
    assert imports_a_model_library(tmp_path / "test_it.py") is expected


@dataclass
class Marked:
    """A test as far as its place in the order goes."""

    name: str
    marks: dict[str, tuple[float, ...]]

    @property
    def nodeid(self) -> str:
        return self.name

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return getattr(pytest.mark, name).with_args(*self.marks[name]).mark if name in self.marks else None


def test_deployments_are_spread_over_the_others_and_the_longest_is_first() -> None:
    quick = [Marked(f"quick {number}", {}) for number in range(100)]
    models = [Marked(f"model {number}", {"model": ()}) for number in range(20)]
    deployments = [Marked(f"e2e {number}", {"e2e": (), "timeout": (1800.0,)}) for number in range(5)]
    longest = Marked("longest", {"e2e": (), "model": (), "timeout": (7200.0,)})
    given: list[Any] = [*quick, *deployments, longest, *models]
    order: list[Any] = in_order(given)
    assert sorted(each.name for each in order) == sorted(each.name for each in given)
    assert order[0] is longest
    # Whoever takes it is given a second test at once, which then waits for it.
    assert all(each in quick for each in order[1:9])
    assert [each for each in order if each in models] == models
    places = [place for place, each in enumerate(order) if each in deployments]
    assert places[0] > 8 and places[-1] < len(order) - 5
    assert all(later - earlier > 1 for earlier, later in pairwise(places))


def test_workers_step_back_for_the_longest_test(pytestconfig: pytest.Config) -> None:
    assert not hasattr(pytestconfig, "workerinput") or os.nice(0) >= STEP_BACK


TOGETHER = """
import os
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(6))
def test_together(number):
    print("together in", os.environ["PYTEST_XDIST_WORKER"])

@pytest.mark.parametrize("number", range(6))
def test_alone(number):
    print("alone in", os.environ["PYTEST_XDIST_WORKER"])
"""
GROUPING = """
from tests.groups import Groups, leave
def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Groups(config))
def pytest_collection_finish(session):
    if hasattr(session.config, "workerinput"):
        leave(session.config, session.items)
"""


def test_what_shares_a_server_runs_in_one_worker_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(GROUPING)
    (tmp_path / "test_suite.py").write_text(TOGETHER)
    options = ("-p", "xdist.plugin", "-n", "3", "--dist", "loadgroup", "--no-loadscope-reorder", "-rP", "-v")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "12 passed" in done.stdout, done.stdout + done.stderr
    assert len(set(re.findall(r"together in (gw\d)", done.stdout))) == 1
    assert len(set(re.findall(r"alone in (gw\d)", done.stdout))) > 1
    assert "test_suite.py::test_together[5] " in done.stdout
