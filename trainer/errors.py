"""What can go wrong in a training run, as a tree:

TrainerError
├── NotYetError           too little to learn from; the text says what is missing (no failure)
├── RunCancelledError     somebody cancelled the run, or its lease went to another trainer
├── RunSettingsError      a run's own settings name a key or a value that does not exist
├── SnapshotError         a snapshot is missing, was changed or was scrubbed
├── RequestError         a training's folder is of another version, incomplete, or was changed
├── TrainingError
│   ├── GradientLostError   an adapter receives no gradient: the base does not pass it back
│   ├── DivergedError       the loss is not a number
│   ├── PlaceLostError      where it took place is gone, or a worker of it; it may go on
│   │   └── PlaceUnreachableError  nobody answers there, and nothing has begun
│   └── MemoryShortError    the training would not fit into memory; the text names settings that would
├── BaseNotTriedError     an experiment can't serve a base beside the one that answers; the text says why
└── EvaluationError       the challenger could not be judged
"""

from storage.sentences import Sentence, Value


class TrainerError(Exception):
    """Base of everything that the trainer raises: one sentence for a person, by its template and values."""

    def __init__(self, template: str, /, **values: Value) -> None:
        super().__init__(template if isinstance(template, Sentence) else Sentence(template, **values))


class NotYetError(TrainerError):
    """There is too little to learn from; the text says what is missing and what to do."""


class RunCancelledError(TrainerError):
    """The run was cancelled, or another trainer holds its lease."""


class RunSettingsError(TrainerError):
    """A run was started with settings that do not exist."""


class SnapshotError(TrainerError):
    """A snapshot is missing, was changed after it was hashed, or was scrubbed by an erasure."""


class RequestError(TrainerError):
    """The folder of a training is of another version, is not complete, or was changed."""


class TrainingError(TrainerError):
    """The training itself failed."""


class GradientLostError(TrainingError):
    """An adapter layer received no gradient."""


class DivergedError(TrainingError):
    """The loss became infinite or not a number."""


class MemoryShortError(TrainingError):
    """The training needs more memory than there is; the text names the figures and settings that fit."""


class PlaceLostError(TrainingError):
    """The place where a training took place can't be reached any more, or has lost a worker."""


class PlaceUnreachableError(PlaceLostError):
    """Nobody answers where the training is to take place, so that nothing has begun there."""


class BaseNotTriedError(TrainerError):
    """An experiment can't serve another base beside the one that answers."""


class EvaluationError(TrainerError):
    """The challenger could not be judged."""
