"""`strop up` beside a stand-in for Discord that outlives it: bot, model server and trainer, supervised."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from bot.cli.launch.children import children, forget_stale
from bot.cli.launch.console import stage_for
from bot.cli.launch.supervisor import Backoff, Supervisor
from bot.cli.processes import ONE_AT_A_TIME
from storage.config import load_config
from storage.process.locks import ProcessLock

# What is killed every other second would soon be started once a minute.
AT_ONCE = Backoff(first_s=0.1, limit_s=0.1)


def main() -> int:
    """Supervise until a signal."""
    path = Path(sys.argv[1])
    config = load_config(path, os.environ)
    with ProcessLock(config.run / "strop.lock").acquire(ONE_AT_A_TIME):
        forget_stale(config.run)
        specs = [spec for spec in children(config, path, os.environ) if spec.name != "playground"]
        supervisor = Supervisor(
            specs, announcer=stage_for(), log_dir=config.data / "logs", backoff=AT_ONCE, drain_s=5.0
        )
        return asyncio.run(supervisor.run())


if __name__ == "__main__":
    sys.exit(main())
