"""The command `strop`; its commands are in one module a topic, put together in `bot.cli.app`."""

from __future__ import annotations

import sys

from bot.cli.errors import EXIT_INTERRUPTED


def main() -> None:
    """The entry point of the command `strop`."""
    try:
        from storage.process.terminal import tolerate_encoding

        tolerate_encoding()
        # Imported here, so that a Ctrl-C meanwhile ends like any other instead of with a traceback.
        from bot.cli.app import app

        app()
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
