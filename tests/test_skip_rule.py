"""The rule that a skip is a failure in continuous integration, held by running pytest on small suites."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFTEST = """
from tests.skip_rule import SkipRule, is_ci
def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.pluginmanager.register(SkipRule(strict=is_ci()))
"""


# As `make test` shares the tests out: what a worker skips has to reach the process that decides.
WORKERS = ("-p", "xdist.plugin", "-n", "2")


def run_suite(
    folder: Path, source: str, *, ci: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_suite.py").write_text("import pytest\n" + source)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            str(folder),
            *options,
        ],
        env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


SKIPPED = "def test_it():\n    pytest.skip('no chromium')\n"
SKIPPED_MODULE = "pytest.importorskip('no_such_module_anywhere')\n"
SKIPPED_BY_MARK = "@pytest.mark.skipif(True, reason='not today')\ndef test_it(): pass\n"
GPU_SKIPPED = "@pytest.mark.gpu\ndef test_it():\n    pytest.skip('no CUDA device')\ndef test_other(): pass\n"
EXPECTED_FAILURE = "@pytest.mark.xfail\ndef test_it():\n    assert False\n"


@pytest.mark.parametrize("options", [(), WORKERS], ids=["alone", "workers"])
@pytest.mark.parametrize("source", [SKIPPED, SKIPPED_MODULE, SKIPPED_BY_MARK])
def test_in_ci_a_skip_fails_the_session_and_is_named(
    tmp_path: Path, source: str, options: tuple[str, ...]
) -> None:
    result = run_suite(tmp_path, source, ci="true", options=options)
    assert result.returncode == 1, result.stdout
    assert "skipped although CI=true" in result.stdout
    assert "test_suite.py" in result.stdout.split("skipped although CI=true")[1]


@pytest.mark.parametrize("source", [GPU_SKIPPED, EXPECTED_FAILURE])
def test_in_ci_a_missing_gpu_and_an_expected_failure_are_fine(tmp_path: Path, source: str) -> None:
    result = run_suite(tmp_path, source, ci="true")
    assert result.returncode == 0, result.stdout


def test_outside_ci_a_skip_is_only_a_skip(tmp_path: Path) -> None:
    assert run_suite(tmp_path, SKIPPED, ci="").returncode == 0
