"""Everything of the benchmark that a person can put right."""

from trainer.errors import TrainerError


class BenchError(TrainerError):
    """The benchmark can't go on; the message says what to do."""
