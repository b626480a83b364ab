"""Tests that share a module's server or browser run in one worker.

xdist's own `loadgroup` tells of a group by changing a test's id, which pytest 9.2 no longer lets it do
(github.com/pytest-dev/pytest-xdist/issues/1386): each worker then starts the servers of every module anew.
Here the workers leave the groups in a file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

FILE = "strop_groups"


class GroupScheduling(LoadScopeScheduling):
    """Gives a worker one test at a time, or all tests of a group."""

    def __init__(self, config: pytest.Config, log: Any, file: Path) -> None:
        super().__init__(config, log)
        self._file = file
        self._groups: dict[str, str] = {}

    def schedule(self) -> None:
        """Begin, or go on; every worker has collected its tests before."""
        self._groups = self._groups or json.loads(self._file.read_text(encoding="utf-8"))
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return self._groups.get(nodeid, nodeid)


class Groups:
    """The side of the process that hands out the tests."""

    def __init__(self, config: pytest.Config) -> None:
        folder = tempfile.TemporaryDirectory(prefix="strop-groups-")
        config.add_cleanup(folder.cleanup)
        self._file = Path(folder.name) / "groups.json"

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where to leave its groups."""
        node.workerinput[FILE] = str(self._file)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> GroupScheduling | None:
        """Schedule by the groups; None leaves it to xdist."""
        return GroupScheduling(config, log, self._file) if config.getvalue("dist") == "loadgroup" else None


def group_of(item: pytest.Item) -> str:
    """Return the group of a test, the test itself where it has none."""
    mark = item.get_closest_marker("xdist_group")
    return str(mark.args[0]) if mark else item.nodeid


def leave(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Write a worker's groups for the process that hands out; all workers write the same."""
    groups = {item.nodeid: group_of(item) for item in items if item.get_closest_marker("xdist_group")}
    file = Path(config.workerinput[FILE])  # type: ignore[attr-defined]
    own = file.with_suffix(f".{config.workerinput['workerid']}")  # type: ignore[attr-defined]
    own.write_text(json.dumps(groups), encoding="utf-8")
    own.rename(file)
