"""With CI=true, a skipped test is a failure unless it only lacks a GPU.

A machine of one's own may lack chromium or systemd; continuous integration installs them, so that a skip
there means that something silently stopped being tested.
"""

from __future__ import annotations

import os

import pytest

ALLOWED_MARK = "gpu"


class SkipRule:
    """A pytest plugin that collects skips and, when `strict`, fails the session for every unexpected one."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # An expected failure is reported as "skipped" too; it did run.
        if report.skipped and not hasattr(report, "wasxfail") and ALLOWED_MARK not in report.keywords:
            self.unexpected.append(_describe(report.nodeid, report.longrepr))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.unexpected.append(_describe(report.nodeid, report.longrepr))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        otherwise_green = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if self.strict and self.unexpected and otherwise_green:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not (self.strict and self.unexpected):
            return
        terminalreporter.section("skipped although CI=true: only GPU tests may be", red=True, bold=True)
        for line in self.unexpected:
            terminalreporter.line(line)


def _describe(nodeid: str, longrepr: object) -> str:
    reason = longrepr[2] if isinstance(longrepr, tuple) else longrepr
    return f"{nodeid}: {reason}"


def is_ci() -> bool:
    """Whether the environment says that this is continuous integration."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}
