"""What `make check` leaves out, and what it must not load for that."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import STEP_BACK, imports_a_model_library, in_order, leaves_models_out


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
