"""`python -m trainer.run [--config PATH] --run RUN_ID`: one run from snapshot to swap, in its own process.

Started by the trainer, which leases the run, lowers this process's priority and kills it when the run is
cancelled. A kill at any point leaves the old champion serving: the only change that people notice is one
transaction at the very end.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from storage.config import load_config
from storage.db.database import Database
from storage.errors import ConfigError, StorageError
from storage.process import logs
from trainer.run.execution import execute
from trainer.run.steps import RunSteps

EXIT_CONFIGURATION = 2


def main(
    arguments: Sequence[str] | None = None,
    *,
    program: str = "trainer.run",
    steps: Callable[..., RunSteps] | None = None,
) -> int:
    """Execute one leased run; return the exit code (0: the run has a result, whatever it is).

    `steps` makes another kind of run, whose own `program` this is.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=__doc__)
    parser.add_argument("--config", type=Path, default=None)
    parser.add_argument("--run", required=True)
    parsed = parser.parse_args(arguments)
    logs.configure(program)
    try:
        config = load_config(parsed.config, os.environ)
        with Database.open(config.database) as database:
            execute(database, config, parsed.run, steps=steps)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIGURATION
    except StorageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
