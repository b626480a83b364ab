"""Keep a malformed gateway event from ending the client.

discord.py parses each event synchronously in its read loop; an exception there (a reaction without
``message_id`` was seen to do it) leaves ``Client.start()`` and with it the process. The parsers stand in
one dictionary of the connection state, and each is wrapped here: a bad event is counted and logged, the
next one is read. What goes wrong before a parser is reached (no JSON, no object, an event without a name)
is caught where a socket's frames come in.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import discord
import structlog
from discord.gateway import DiscordWebSocket

_log = structlog.get_logger(__name__)

PINNED_VERSION = "2.7.1"
"""The discord.py release whose internals this was written for; a test compares it with the installed one."""

FRAME = "frame"
"""Under this name frames are counted that no parser saw."""

_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_read_frame = DiscordWebSocket.received_message


class GatewayGuard:
    """The wrapped parsers of one client; ``malformed`` counts the swallowed events by name."""

    def __init__(self) -> None:
        self.malformed: Counter[str] = Counter()

    def install(self, client: discord.Client) -> None:
        """Wrap every parser of ``client``, and the reading of its sockets; call it before connecting."""
        parsers = client._connection.parsers
        for event, parser in list(parsers.items()):
            parsers[event] = self._guarded(event, parser)
        _guards[client._connection] = self
        DiscordWebSocket.received_message = _received  # type: ignore[method-assign]

    async def receive(self, socket: DiscordWebSocket, frame: Any) -> None:
        """Read one frame of a socket.

        Raises ConnectionError, after which discord.py connects again, where nothing later could be
        understood: a broken compression, or a malformed greeting.
        """
        text, sequence = await _unpacked(socket, frame), socket.sequence
        if text is None:
            return
        try:
            await _read_frame(socket, text)
        except _MALFORMED as error:
            self._note(FRAME, error)
            if socket._keep_alive is None or socket.session_id is None:
                await socket.close()
                raise ConnectionError("The gateway's greeting was malformed.") from error
        finally:
            # A resume names the last number; anything else in its place would cost the session.
            if not isinstance(socket.sequence, int | None):
                socket.sequence = sequence

    def _guarded(self, event: str, parser: Callable[[Any], None]) -> Callable[[Any], None]:
        @functools.wraps(parser)
        def parse(data: Any) -> None:
            try:
                parser(data)
            except Exception as error:  # The boundary to what Discord sends: anything may be wrong with it.
                self._note(event, error)

        return parse

    def _note(self, event: str, error: Exception) -> None:
        self.malformed[event] = count = self.malformed[event] + 1
        # The first, the second, the fourth and so on: a flood of events is no flood of lines.
        if count & (count - 1) == 0:
            _log.warning("gateway.event_malformed", event_name=event, error=type(error).__name__, count=count)


_guards: WeakKeyDictionary[Any, GatewayGuard] = WeakKeyDictionary()


async def _received(socket: DiscordWebSocket, frame: Any, /) -> None:
    """Stand in for ``DiscordWebSocket.received_message``; clients without a guard keep discord.py's."""
    guard = _guards.get(socket._connection)
    await (_read_frame(socket, frame) if guard is None else guard.receive(socket, frame))


async def _unpacked(socket: DiscordWebSocket, frame: Any) -> Any:
    """Return the text of a frame; None while parts of it are missing."""
    if type(frame) is not bytes:
        return frame
    try:
        return socket._decompressor.decompress(frame)
    except Exception as error:  # Each compression has errors of its own, and none is curable.
        await socket.close()
        raise ConnectionError("The gateway's compressed stream is broken.") from error
