"""What the stand-in's gateway keeps of a client: its session, and the connection that carries it now."""

import asyncio
import json
import secrets
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import discord
from aiohttp import web

from bot.playground.discord.backend import Payload

#: Events kept a session for a resume, about Discord's order of magnitude.
REPLAY_EVENTS = 2000
#: Frames waiting for one connection before it counts as stuck and is dropped (the session stays resumable).
MAX_QUEUED_FRAMES = 4000

DISPATCH, HEARTBEAT, IDENTIFY, PRESENCE, VOICE_STATE = 0, 1, 2, 3, 4
RESUME, RECONNECT, REQUEST_MEMBERS, INVALID_SESSION, HELLO, HEARTBEAT_ACK = 6, 7, 8, 9, 10, 11

UNKNOWN_ERROR, UNKNOWN_OPCODE, DECODE_ERROR, NOT_AUTHENTICATED, BAD_TOKEN = 4000, 4001, 4002, 4003, 4004
ALREADY_AUTHENTICATED, SESSION_TIMED_OUT, INVALID_SHARD = 4005, 4009, 4010
INVALID_INTENTS, DISALLOWED_INTENTS = 4013, 4014


class _Compressor(Protocol):
    def __call__(self, text: str) -> bytes: ...


def _zlib_stream() -> _Compressor:
    """One zlib stream a connection, flushed at every message, as `compress=zlib-stream` asks."""
    stream = zlib.compressobj()
    return lambda text: stream.compress(text.encode()) + stream.flush(zlib.Z_SYNC_FLUSH)


def _zstd_stream() -> _Compressor:
    """The same with zstd, which discord.py prefers where Python 3.14 or the `zstandard` package offers it."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        import zstandard  # type: ignore[import-not-found,unused-ignore]

        packed = zstandard.ZstdCompressor().compressobj()
        return lambda text: packed.compress(text.encode()) + packed.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    stream = zstd.ZstdCompressor()
    return lambda text: bytes(stream.compress(text.encode(), zstd.ZstdCompressor.FLUSH_BLOCK))


COMPRESSIONS: dict[str, Callable[[], _Compressor]] = {
    "zlib-stream": _zlib_stream,
    "zstd-stream": _zstd_stream,
}


class ConnectionRefusal(Exception):
    """The connection must be closed with a code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Session:
    """What the gateway remembers of one identified client."""

    def __init__(self, intents: discord.Intents, shard: tuple[int, int]) -> None:
        self.session_id = secrets.token_hex(16)
        self.intents = intents
        self.shard = shard
        self.sequence = 0
        self.sent: deque[tuple[int, str]] = deque(maxlen=REPLAY_EVENTS)
        self.connection: Connection | None = None
        self.left_s = 0.0

    def dispatch(self, event: str, data: Payload) -> None:
        """Number an event, keep it for a resume and send it if somebody is connected."""
        self.sequence += 1
        frame = json.dumps({"op": DISPATCH, "s": self.sequence, "t": event, "d": data})
        self.sent.append((self.sequence, frame))
        if self.connection is not None:
            self.connection.send(frame)

    def frames_since(self, sequence: int) -> list[str] | None:
        """The frames after `sequence`, or None if the buffer doesn't reach back that far."""
        if sequence > self.sequence or (self.sent and sequence < self.sent[0][0] - 1):
            return None
        return [frame for number, frame in self.sent if number > sequence]

    def concerns(self, event: str, data: Payload) -> bool:
        """Whether an event belongs to this session's shard."""
        index, count = self.shard
        guild_id = data.get("guild_id") or (data.get("id") if event.startswith("GUILD_") else None)
        return index == (0 if guild_id is None else (int(guild_id) >> 22) % count)


class Connection:
    """One WebSocket: a reader in its request handler and a writer task with a bounded queue."""

    def __init__(
        self, request: web.Request, socket: web.WebSocketResponse, compress: _Compressor | None
    ) -> None:
        self.socket = socket
        self._request = request
        self.session: Session | None = None
        self.last_heartbeat_s = time.monotonic()
        self._compress = compress
        self._frames: asyncio.Queue[str] = asyncio.Queue(MAX_QUEUED_FRAMES)
        self._tasks: set[asyncio.Task[Any]] = set()

    def send(self, frame: str) -> None:
        """Queue a frame; a client that doesn't read loses its connection, not its session."""
        try:
            self._frames.put_nowait(frame)
        except asyncio.QueueFull:
            self.close_soon(UNKNOWN_ERROR, "too slow")

    def send_op(self, op: int, data: Any = None) -> None:
        """Queue a frame that isn't an event."""
        self.send(json.dumps({"op": op, "d": data, "s": None, "t": None}))

    def close_soon(self, code: int, reason: str) -> None:
        """Close from outside the handler."""
        task = asyncio.get_running_loop().create_task(self.socket.close(code=code, message=reason.encode()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cut(self) -> None:
        """Break the line as a network failure does, without a closing handshake."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def write(self) -> None:
        """Send queued frames in order until cancelled or the line breaks."""
        while not self.socket.closed:
            frame = await self._frames.get()
            try:
                if self._compress is None:
                    await self.socket.send_str(frame)
                else:
                    await self.socket.send_bytes(self._compress(frame))
            except (ConnectionError, RuntimeError):
                return


def as_object(data: Any) -> Payload:
    """Return what a frame carries; raises ConnectionRefusal where it is no object."""
    if not isinstance(data, dict):
        raise ConnectionRefusal(DECODE_ERROR, "Error while decoding payload.")
    return data
