"""What a command may end with: one sentence and an exit code.

BotError
└── CommandError        the command can't do what was asked; exit code 1
    └── UsageError      the command was asked the wrong way; exit code 2
"""

from __future__ import annotations

from bot.errors import BotError

EXIT_INTERRUPTED = 130
"""What a shell expects of a command that Ctrl-C ended."""


class CommandError(BotError):
    """The command can't do what was asked; the text is one sentence with the way out."""

    exit_code = 1


class UsageError(CommandError):
    """An argument is missing, unknown or doesn't fit."""

    exit_code = 2
