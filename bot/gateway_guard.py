"""Keep a malformed gateway event from ending the client.

discord.py parses each event synchronously in its read loop; an exception there (a reaction without
``message_id`` was seen to do it) leaves ``Client.start()`` and with it the process. The parsers stand in
one dictionary of the connection state, and each is wrapped here: a bad event is counted and logged, the
next one is read.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import discord
import structlog

_log = structlog.get_logger(__name__)

PINNED_VERSION = "2.7.1"
"""The discord.py release whose internals this was written for; a test compares it with the installed one."""


class GatewayGuard:
    """The wrapped parsers of one client; ``malformed`` counts the swallowed events by name."""

    def __init__(self) -> None:
        self.malformed: Counter[str] = Counter()

    def install(self, client: discord.Client) -> None:
        """Wrap every parser of ``client``; call it before connecting."""
        parsers = client._connection.parsers
        for event, parser in list(parsers.items()):
            parsers[event] = self._guarded(event, parser)

    def _guarded(self, event: str, parser: Callable[[Any], None]) -> Callable[[Any], None]:
        @functools.wraps(parser)
        def parse(data: Any) -> None:
            try:
                parser(data)
            except Exception as error:  # The boundary to what Discord sends: anything may be wrong with it.
                self.malformed[event] += 1
                _log.warning(
                    "gateway.event_malformed",
                    event_name=event,
                    error=type(error).__name__,
                    count=self.malformed[event],
                )

        return parse
