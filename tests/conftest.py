"""What every test needs: an environment that reaches no network, no real bot and no real data."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.skip_rule import SkipRule, is_ci

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


def pytest_configure(config: pytest.Config) -> None:
    """Hold the skip rule: see `tests/skip_rule.py`."""
    config.pluginmanager.register(SkipRule(strict=is_ci()), "strop-skip-rule")
