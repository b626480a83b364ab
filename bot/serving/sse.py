"""Server-sent events, as far as chat streams use them: reading and writing ``data:`` events.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

MAX_EVENT_BYTES = 4 * 1024 * 1024


async def events(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Yield the data of each event, however the bytes were cut; comments and other fields are dropped.

    Raises:
        ValueError: an event is larger than 4 MiB or is not UTF-8.
    """
    data: list[str] = []
    async for line in _lines(chunks):
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
    if data:
        yield "\n".join(data)


async def as_events(text: str) -> AsyncIterator[bytes]:
    """Yield a JSON document as the one event of a stream, for whoever reads streams."""
    yield b"data: " + " ".join(text.splitlines()).encode() + b"\n\n"


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Split at LF, CRLF or CR; a CR at the end of a chunk waits for the LF that may follow."""
    pending = b""
    async for chunk in chunks:
        pending += chunk
        if len(pending) > MAX_EVENT_BYTES:
            raise ValueError("the event is too large")
        held = pending.endswith(b"\r")
        body = pending[:-1] if held else pending
        lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        pending = lines.pop() + (b"\r" if held else b"")
        for line in lines:
            yield line.decode("utf-8")
    for line in pending.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if line:
            yield line.decode("utf-8")
