"""What can go wrong in storage, as a tree:

StorageError
├── ConfigError                 strop.toml or the environment has problems (all of them listed)
├── HomeError                   the data folder can't be written
├── CronError                   a cron line or time zone that says no time
├── DatabaseError
│   ├── NewerDatabaseError      written by a newer Strop
│   ├── CorruptDatabaseError    not a database, or a damaged one
│   ├── DiskFullError           nothing was lost, but nothing more can be written
│   ├── DatabaseBusyError       another process held the write lock for too long
│   ├── DatabaseUnavailableError  cannot be opened, read or written
│   └── DatabaseClosedError     used after close()
├── RuleError                   a request that the rules of the data do not allow
│   ├── UnknownRowError         no such reply, run, adapter, member, message or duel
│   ├── StaleChampionError      the champion changed since the decision was made
│   ├── AdapterNotPromotableError  tainted, or of another scope or base
│   ├── NothingToRollBackError  the base model already answers
│   ├── RunNotActiveError       the run is over, or belongs to another trainer
│   ├── SettingError            a setting that isn't there, or a value that it can't have
│   ├── BlockError              a member who can't be blocked, or isn't
│   └── TastingError            a tasting that can't begin; the text says what is in the way
├── ExperimentError             a setting that an experiment can't try; the text says which it takes
├── ImportFileError             a file that can't be imported; the text says why
└── BackupError                 a backup that is incomplete, damaged, or in the way
"""

from storage.sentences import Sentence, Value


class StorageError(Exception):
    """Base of everything that storage raises; its text is one sentence for a person."""


class ConfigError(StorageError):
    """The configuration has problems; `problems` holds one line for each, by dotted key."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class HomeError(StorageError):
    """Nothing can be written to the data folder; the text says why and what to do."""


class CronError(StorageError):
    """A cron line that can't be read or is never due, or no time zone; the text is half a sentence."""


class DatabaseError(StorageError):
    """The database file could not do what was asked."""


class NewerDatabaseError(DatabaseError):
    """The database was written by a newer version of Strop."""


class CorruptDatabaseError(DatabaseError):
    """The file is not a SQLite database, or a damaged one."""


class DiskFullError(DatabaseError):
    """There is no room left to write; the transaction was rolled back whole."""


class DatabaseBusyError(DatabaseError):
    """Another process held the write lock for longer than the busy timeout."""


class DatabaseUnavailableError(DatabaseError):
    """The file cannot be opened, read or written."""


class DatabaseClosedError(DatabaseError):
    """The database was used after it was closed."""


class RuleError(StorageError):
    """A request that the rules of the data do not allow; nothing was changed.

    It is made of a sentence's template and values, because people read it in their language.
    """

    def __init__(self, template: str, /, **values: Value) -> None:
        super().__init__(Sentence(template, **values))


class UnknownRowError(RuleError):
    """No row with that id."""


class StaleChampionError(RuleError):
    """The champion is no longer the one that the challenger was judged against."""


class AdapterNotPromotableError(RuleError):
    """The adapter is tainted, or belongs to another scope or base model."""


class NothingToRollBackError(RuleError):
    """There is no earlier champion to go back to."""


class RunNotActiveError(RuleError):
    """The run is over, was cancelled, or is held by another trainer."""


class SettingError(RuleError):
    """There is no such setting, or it can't have this value; the text says what it can have."""


class BlockError(RuleError):
    """This member can't be blocked, or was not."""


class TastingError(RuleError):
    """A tasting can't begin, or the operator's prompts can't be taken; the text says why."""


class ExperimentError(StorageError):
    """A setting that an experiment can't try, or a value that the trainer does not take."""


class ImportFileError(StorageError):
    """A file that can't be imported; the text says what is wrong with it."""


class BackupError(StorageError):
    """A backup is incomplete or damaged, or would overwrite something."""
