"""Show a reply while it is being written, by editing Discord messages at a pace the channel bears.

One renderer a reply, latest text wins: whoever reads tokens from the model calls
:meth:`ReplyRenderer.show`, which never waits. The final text is delivered whatever happened to the edits
before it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import structlog

from bot.delivery.splitting import visible_parts
from bot.errors import ChannelRefusedError, DeliveryError, MessageGoneError, TextRefusedError

PACE_S = 1.2
LOCAL_PACE_S = 0.3
SLOWEST_PACE_S = 5.0
"""Discord allows about five edits in five seconds a channel, whoever's replies they are."""

State = Literal["writing", "finished"]
"""What the buttons below a reply depend on."""

KEEP = object()
"""Leave the buttons of a message as they are; None takes them away."""

_FINAL_RETRIES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
_REMEMBERED_CHANNELS = 1000

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class Surface(Protocol):
    """Where a reply appears. Every method raises DeliveryError or one of its kinds."""

    async def send(self, content: str, buttons: Any = None) -> int:
        """Send one more message of the reply and return its id."""

    async def edit(self, message_id: int, content: str, buttons: Any = KEEP) -> None:
        """Replace the content of a message and, unless they are ``KEEP``, the buttons below it."""

    async def delete(self, message_id: int) -> None:
        """Take a message away that the final text doesn't need."""


class PartLog(Protocol):
    """What keeps note of a reply's messages, so that none stands in a channel unknown."""

    async def sending(self, position: int) -> None:
        """A message is about to be sent; awaited before it is."""

    async def record_sent(self, message_id: int, position: int) -> None:
        """It is there; awaited before anything else is shown."""

    async def withdrawing(self, message_id: int) -> None:
        """A message that the final text doesn't need is about to be deleted."""

    async def withdrawn(self, message_id: int) -> None:
        """It is gone."""


class ChannelPace:
    """The time between two edits in one channel, shared by all replies in it.

    It starts at ``start_s``, doubles up to ``SLOWEST_PACE_S`` while round trips take longer than the pace
    itself, and comes back when they are quick again.
    """

    def __init__(self, start_s: float = PACE_S) -> None:
        self._start_s = start_s
        self.interval_s = start_s
        self._next_at = 0.0

    async def turn(self) -> None:
        """Wait for the next free moment in this channel and take it."""
        now = asyncio.get_running_loop().time()
        moment = max(now, self._next_at)
        self._next_at = moment + self.interval_s
        if moment > now:
            await asyncio.sleep(moment - now)

    def take_free_turn(self) -> bool:
        """Take the turn of this moment if nobody has it; return whether."""
        now = asyncio.get_running_loop().time()
        if now < self._next_at:
            return False
        self._next_at = now + self.interval_s
        return True

    def observe(self, round_trip_s: float) -> None:
        """Adapt to how long Discord took for one call."""
        if round_trip_s > self.interval_s:
            self.interval_s = min(SLOWEST_PACE_S, self.interval_s * 2)
        elif round_trip_s < self.interval_s / 4:
            self.interval_s = max(self._start_s, self.interval_s / 2)


class Paces:
    """The pace of each channel in which the bot wrote lately."""

    def __init__(self, start_s: float = PACE_S) -> None:
        self._start_s = start_s
        self._paces: OrderedDict[int, ChannelPace] = OrderedDict()

    def of(self, channel_id: int) -> ChannelPace:
        """Return the channel's pace; the channel that was quiet longest is forgotten first."""
        pace = self._paces.pop(channel_id, None) or ChannelPace(self._start_s)
        self._paces[channel_id] = pace
        if len(self._paces) > _REMEMBERED_CHANNELS:
            self._paces.popitem(last=False)
        return pace


class ReplyRenderer:
    """Renders one reply onto a surface, in a task of its own.

    ``buttons`` gives what stands below the last message; ``sent`` are messages that are there already, to be
    written over.
    """

    def __init__(
        self,
        surface: Surface,
        pace: ChannelPace,
        parts: PartLog,
        buttons: Callable[[State], Any] = lambda _: None,
        sent: Sequence[tuple[int, str]] = (),
    ) -> None:
        self._surface = surface
        self._pace = pace
        self._parts = parts
        self._buttons = buttons
        self._text = ""
        self._final = False
        self._has_turn = False
        self._changed = asyncio.Event()
        self._sent: list[tuple[int, str]] = list(sent)
        # Which messages have buttons below them, and for which state; of those found here, nothing is known.
        self._below: dict[int, State | None] = {}
        self._gone: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def message_ids(self) -> list[int]:
        """The messages of the reply so far, in order."""
        return [message_id for message_id, _ in self._sent]

    @property
    def has_begun(self) -> bool:
        """Whether anything was to be shown yet."""
        return self._task is not None

    def show(self, text: str) -> None:
        """Show ``text`` as soon as the channel's pace allows; a later call replaces it."""
        if text == self._text:
            return
        self._text = text
        self._changed.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def show_if_free(self, text: str) -> bool:
        """Show ``text`` only where the channel has a free turn now; return whether it will be.

        For what may be left out: however many do this, they delay a reply's words by one turn at most.
        """
        if self._changed.is_set() or text == self._text or not self._pace.take_free_turn():
            return False
        self._has_turn = True
        self.show(text)
        return True

    async def finish(self, text: str) -> None:
        """Deliver the final text; raises DeliveryError if Discord still refuses it after 30 s of trying."""
        self._final = True
        self._text = text
        self._changed.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await self._task

    async def replace(self, text: str) -> None:
        """Deliver another text than the one that Discord refused; raises DeliveryError."""
        self._text = text
        await self._deliver(text)

    async def abandon(self) -> None:
        """Stop rendering at once, leaving on the screen what is there."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, DeliveryError):
                await self._task

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            if not self._has_turn:
                await self._pace.turn()
            self._has_turn = False
            self._changed.clear()
            text, final = self._text, self._final
            if final:
                await self._deliver(text)
                return
            try:
                await self._render(text)
            except ChannelRefusedError:
                raise
            except DeliveryError as error:
                self._pace.observe(SLOWEST_PACE_S)
                _log.info("reply.edit_failed", error=type(error.__cause__ or error).__name__)

    async def _deliver(self, text: str) -> None:
        for wait_s in _FINAL_RETRIES_S:
            try:
                return await self._render(text)
            except (ChannelRefusedError, TextRefusedError):
                raise
            except DeliveryError as error:
                _log.info(
                    "reply.delivery_retried", wait_s=wait_s, error=type(error.__cause__ or error).__name__
                )
                await asyncio.sleep(wait_s)
        await self._render(text)
        return None

    async def _render(self, text: str) -> None:
        contents = visible_parts(text)
        state: State = "finished" if self._final else "writing"
        last = len(contents) - 1
        for position, content in enumerate(contents):
            below = state if position == last else None
            if position < len(self._sent):
                await self._edit(position, content, below)
            else:
                await self._send(position, content, below)
        while self._final and len(self._sent) > len(contents):
            await self._withdraw(self._sent[-1][0])
            self._sent.pop()

    async def _withdraw(self, message_id: int) -> None:
        await self._parts.withdrawing(message_id)
        with contextlib.suppress(MessageGoneError):
            await self._timed(self._surface.delete(message_id))
        await self._parts.withdrawn(message_id)

    async def _send(self, position: int, content: str, below: State | None) -> None:
        buttons = None if below is None else self._buttons(below)
        await self._parts.sending(position)
        message_id = await self._timed(self._surface.send(content, buttons))
        self._sent.append((message_id, content))
        self._below[message_id] = None if buttons is None else below
        await self._parts.record_sent(message_id, position)

    async def _edit(self, position: int, content: str, below: State | None) -> None:
        message_id, shown = self._sent[position]
        buttons = self._change_below(message_id, below)
        # Discord drops white space around a message: a change of only that would change nothing.
        if (shown.strip() == content.strip() and buttons is KEEP) or message_id in self._gone:
            return
        try:
            await self._timed(self._surface.edit(message_id, content, buttons))
        except MessageGoneError:
            # Somebody deleted it, and that stands; the rest of the reply goes on.
            self._gone.add(message_id)
        if buttons is not KEEP:
            self._below[message_id] = None if buttons is None else below
        self._sent[position] = (message_id, content)

    def _change_below(self, message_id: int, below: State | None) -> Any:
        """Return the buttons that a message needs, or KEEP where it has them."""
        known = message_id in self._below
        if known and self._below[message_id] == below:
            return KEEP
        buttons = None if below is None else self._buttons(below)
        return KEEP if known and buttons is None and self._below[message_id] is None else buttons

    async def _timed(self, call: Awaitable[T]) -> T:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            return await call
        finally:
            self._pace.observe(loop.time() - started)
