"""`python -m trainer.experiment [--config PATH] --run RUN_ID`: one experiment, in its own process.

Started by the trainer in place of `trainer.run` for a run that is an experiment; it is leased, watched and
cancelled like any other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.experiment.steps import Experiment
from trainer.run import __main__ as run


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute one leased experiment; return the exit code (0: the run has a result, whatever it is)."""
    return run.main(arguments, program="trainer.experiment", steps=Experiment)


if __name__ == "__main__":
    sys.exit(main())
