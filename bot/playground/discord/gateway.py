"""The gateway half of the stand-in: Discord's WebSocket protocol, version 10, JSON encoding.

A session outlives its connection: events go to the session, which numbers and keeps them; whichever
connection holds the session sends them. A resumed connection gets what it missed from the buffer.
"""

import asyncio
import hmac
import json
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import discord
import structlog
from aiohttp import WSMsgType, web

from bot.playground.discord.backend import DiscordBackend, Payload
from bot.playground.discord.gateway_session import (
    ALREADY_AUTHENTICATED,
    BAD_TOKEN,
    COMPRESSIONS,
    DECODE_ERROR,
    DISALLOWED_INTENTS,
    HEARTBEAT,
    HEARTBEAT_ACK,
    HELLO,
    IDENTIFY,
    INVALID_INTENTS,
    INVALID_SESSION,
    INVALID_SHARD,
    NOT_AUTHENTICATED,
    PRESENCE,
    RECONNECT,
    REQUEST_MEMBERS,
    RESUME,
    SESSION_TIMED_OUT,
    UNKNOWN_OPCODE,
    VOICE_STATE,
    Connection,
    ConnectionRefusal,
    Session,
    as_object,
)

GATEWAY_PATH = "/gateway"
#: How long a session waits for its client to come back.
SESSION_LIFETIME_S = 300.0
IDENTIFIES_PER_DAY = 1000
#: How late a heartbeat is acknowledged; a real gateway is farther away than this.
ACK_DELAY_S = 0.05
KNOWN_INTENTS = discord.Intents.all().value | (1 << 24) | (1 << 25)

log = structlog.get_logger(__name__)


class Gateway:
    """Accepts the bot's WebSocket and keeps its sessions."""

    def __init__(self, backend: DiscordBackend, token: str, *, heartbeat_ms: int = 41_250) -> None:
        self.url = ""
        self.heartbeat_ms = heartbeat_ms
        self.sessions: dict[str, Session] = {}
        self._backend = backend
        self._token = token
        self._connections: set[Connection] = set()
        self.identified_s: deque[float] = deque(maxlen=IDENTIFIES_PER_DAY)
        self.resumed = 0
        self._online = False
        backend.on_gateway_event(self._emit)

    def add_routes(self, app: web.Application) -> None:
        """Mount the WebSocket on the application."""
        for path in (GATEWAY_PATH, GATEWAY_PATH + "/"):
            app.router.add_get(path, self.handle)

    def describe(self) -> Payload:
        """The answer to GET /gateway/bot."""
        day_ago_s = time.monotonic() - 86_400
        used = sum(moment > day_ago_s for moment in self.identified_s)
        return {
            "url": self.url,
            "shards": 1,
            "session_start_limit": {
                "total": IDENTIFIES_PER_DAY,
                "remaining": IDENTIFIES_PER_DAY - used,
                "reset_after": 86_400_000,
                "max_concurrency": 1,
            },
        }

    @property
    def online(self) -> bool:
        """Whether a client is identified and connected."""
        return any(session.connection is not None for session in self.sessions.values())

    # ------------------------------------------------------------------ test hooks

    def drop_connections(self, code: int | None = None, *, shard: int | None = None) -> None:
        """Cut connections (as a network failure), or close them with `code`; sessions stay resumable."""
        for connection in self._connected(shard):
            if code is None:
                connection.cut()
            else:
                connection.close_soon(code, "dropped")

    def ask_to_reconnect(self) -> None:
        """Send op 7 to every client, as Discord does before it restarts a gateway host."""
        for connection in self._connected():
            connection.send_op(RECONNECT)

    def invalidate_sessions(self, *, resumable: bool = False, shard: int | None = None) -> None:
        """Send op 9; sessions that aren't resumable are forgotten."""
        for connection in self._connected(shard):
            if not resumable and connection.session is not None:
                self.sessions.pop(connection.session.session_id, None)
            connection.send_op(INVALID_SESSION, resumable)

    def send_raw(self, frame: str) -> None:
        """Send a frame to every client as it is, which may be anything but one of the protocol's."""
        for connection in self._connected():
            connection.send(frame)

    def _connected(self, shard: int | None = None) -> list["Connection"]:
        """The open connections, or those of one shard's sessions."""
        return [
            connection
            for connection in self._connections
            if shard is None or (connection.session is not None and connection.session.shard[0] == shard)
        ]

    async def close(self) -> None:
        """Close every connection so that the server can stop."""
        for connection in tuple(self._connections):
            await connection.socket.close(code=1001, message=b"going away")

    # ------------------------------------------------------------------ one connection

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one WebSocket from HELLO to its end."""
        compression = COMPRESSIONS.get(request.query.get("compress", ""))
        socket = web.WebSocketResponse(max_msg_size=1 << 16)
        await socket.prepare(request)
        connection = Connection(request, socket, compression() if compression is not None else None)
        self._connections.add(connection)
        writer = asyncio.create_task(connection.write())
        connection.send_op(HELLO, {"heartbeat_interval": self.heartbeat_ms})
        watch = asyncio.create_task(self._watch_heartbeat(connection))
        try:
            await self._read(connection)
        except ConnectionRefusal as reason:
            log.info("playground.gateway_closed", code=reason.code, reason=str(reason))
            await socket.close(code=reason.code, message=str(reason).encode())
        finally:
            writer.cancel()
            watch.cancel()
            self._connections.discard(connection)
            self._leave(connection)
        return socket

    async def _read(self, connection: Connection) -> None:
        async for message in connection.socket:
            if message.type is not WSMsgType.TEXT:
                raise ConnectionRefusal(DECODE_ERROR, "Error while decoding payload.")
            try:
                frame = json.loads(message.data)
                self._receive(connection, int(frame["op"]), frame.get("d"))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise ConnectionRefusal(DECODE_ERROR, "Error while decoding payload.") from error

    async def _watch_heartbeat(self, connection: Connection) -> None:
        """Close a connection whose client fell silent for two intervals."""
        interval_s = self.heartbeat_ms / 1000
        while True:
            await asyncio.sleep(interval_s / 4)
            if time.monotonic() - connection.last_heartbeat_s > 2 * interval_s:
                connection.close_soon(SESSION_TIMED_OUT, "Session timed out.")
                return

    def _receive(self, connection: Connection, op: int, data: Any) -> None:
        if op == HEARTBEAT:
            connection.last_heartbeat_s = time.monotonic()
            # discord.py notes when it sent a heartbeat only after sending it: an answer that overtakes that
            # note, as on loopback, reads as a whole interval of latency.
            asyncio.get_running_loop().call_later(ACK_DELAY_S, connection.send_op, HEARTBEAT_ACK)
        elif op == IDENTIFY:
            self._identify(connection, as_object(data))
        elif op == RESUME:
            self._resume(connection, as_object(data))
        elif connection.session is None:
            raise ConnectionRefusal(NOT_AUTHENTICATED, "Not authenticated.")
        elif op == REQUEST_MEMBERS:
            self._request_members(connection.session, as_object(data))
        elif op not in (PRESENCE, VOICE_STATE):
            raise ConnectionRefusal(UNKNOWN_OPCODE, "Unknown opcode.")

    def _identify(self, connection: Connection, data: Payload) -> None:
        if connection.session is not None:
            raise ConnectionRefusal(ALREADY_AUTHENTICATED, "Already authenticated.")
        self._check_token(data)
        session = Session(self._declared_intents(data), _shard(data))
        self._forget_old_sessions()
        self.identified_s.append(time.monotonic())
        self.sessions[session.session_id] = session
        session.connection, connection.session = connection, session
        session.dispatch("READY", self._ready(session))
        for guild in self._backend.guild_creates():
            if session.concerns("GUILD_CREATE", guild):
                self._send_to(session, "GUILD_CREATE", guild)
        self._tell_status()

    def _check_token(self, data: Payload) -> None:
        if not hmac.compare_digest(str(data.get("token", "")).encode(), self._token.encode()):
            raise ConnectionRefusal(BAD_TOKEN, "Authentication failed.")

    def _declared_intents(self, data: Payload) -> discord.Intents:
        value = data.get("intents")
        if not isinstance(value, int) or value < 0 or value & ~KNOWN_INTENTS:
            raise ConnectionRefusal(INVALID_INTENTS, "Invalid intent(s).")
        declared = discord.Intents.none()
        declared.value = value
        if self._backend.missing_approval(declared):
            raise ConnectionRefusal(DISALLOWED_INTENTS, "Disallowed intent(s).")
        return declared

    def _ready(self, session: Session) -> Payload:
        user = self._backend.bot_user()
        return {
            "v": 10,
            "user": user,
            "guilds": [
                {"id": guild["id"], "unavailable": True}
                for guild in self._backend.guild_creates()
                if session.concerns("GUILD_CREATE", guild)
            ],
            "session_id": session.session_id,
            "resume_gateway_url": self.url,
            "shard": list(session.shard),
            "application": {"id": user["id"], "flags": 0},
        }

    def _resume(self, connection: Connection, data: Payload) -> None:
        if connection.session is not None:
            raise ConnectionRefusal(ALREADY_AUTHENTICATED, "Already authenticated.")
        self._check_token(data)
        self._forget_old_sessions()
        session = self.sessions.get(str(data.get("session_id")))
        missed = session.frames_since(int(data.get("seq") or 0)) if session is not None else None
        if session is None or missed is None:
            connection.send_op(INVALID_SESSION, False)
            return
        if session.connection is not None:
            session.connection.cut()
        session.connection, connection.session = connection, session
        for frame in missed:
            connection.send(frame)
        session.dispatch("RESUMED", {})
        self.resumed += 1
        self._tell_status()

    def _request_members(self, session: Session, data: Payload) -> None:
        ids = data.get("user_ids") or []
        chunk = self._backend.member_chunk(
            int(data.get("guild_id", 0)),
            query=data.get("query"),
            limit=int(data.get("limit") or 0),
            user_ids=[int(user_id) for user_id in (ids if isinstance(ids, list) else [ids])],
            nonce=data.get("nonce"),
        )
        if chunk is not None:
            session.dispatch("GUILD_MEMBERS_CHUNK", chunk)

    def _leave(self, connection: Connection) -> None:
        session = connection.session
        if session is not None and session.connection is connection:
            session.connection, session.left_s = None, time.monotonic()
            self._tell_status()

    # ------------------------------------------------------------------ sessions

    def _emit(self, event: str, payload: Payload) -> None:
        for session in self._waiting_or_connected():
            if session.concerns(event, payload):
                self._send_to(session, event, payload)

    def _send_to(self, session: Session, event: str, payload: Payload) -> None:
        own = self._backend.filter_by_intents(event, payload, session.intents)
        if own is not None:
            session.dispatch(event, own)

    def _waiting_or_connected(self) -> Iterator[Session]:
        self._forget_old_sessions()
        return iter(tuple(self.sessions.values()))

    def _forget_old_sessions(self) -> None:
        oldest_s = time.monotonic() - SESSION_LIFETIME_S
        for session_id, session in tuple(self.sessions.items()):
            if session.connection is None and session.left_s < oldest_s:
                del self.sessions[session_id]

    def _tell_status(self) -> None:
        if self.online != self._online:
            self._online = self.online
            self._backend.tell_page("BOT_STATUS", {"online": self._online})


def _shard(data: Payload) -> tuple[int, int]:
    shard = data.get("shard") or (0, 1)
    try:
        index, count = (int(part) for part in shard)
    except (TypeError, ValueError) as error:
        raise ConnectionRefusal(INVALID_SHARD, "Invalid shard.") from error
    if not 0 <= index < count:
        raise ConnectionRefusal(INVALID_SHARD, "Invalid shard.")
    return index, count
