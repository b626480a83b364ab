"""Where operators are told: one channel on Discord, and an address of their own that takes JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from bot.client import StropClient
from bot.delivery.targets import translate_errors
from bot.delivery.webhook import Webhook, WebhookError
from bot.errors import ChannelRefusedError, DeliveryError
from bot.services import Services
from bot.ui.channel_language import language_in

REFUSED_PAUSE_S = 3600.0
# The wait after the first failure; it doubles up to the pause after a refusal.
FIRST_RETRY_S = 15.0

_log = structlog.get_logger(__name__)


class Destination(Protocol):
    """Somewhere that lines are posted to. `fact` is the key of what was told there."""

    fact: str

    @property
    def silent(self) -> bool:
        """Whether it has to be left alone for now."""

    async def language(self) -> str:
        """Return the language that is spoken there."""

    async def post(self, lines: Sequence[str]) -> bool:
        """Post the lines; False where they have to wait."""


class OperatorsChannel:
    """The channel that `discord.operators_channel` names."""

    fact = "operations.told"

    def __init__(self, services: Services, client: StropClient) -> None:
        self._services = services
        self._client = client
        self._channel_id = services.config.discord.operators_channel
        self._silent_until = 0.0

    @property
    def silent(self) -> bool:
        """Whether the channel refused lately."""
        return asyncio.get_running_loop().time() < self._silent_until

    async def language(self) -> str:
        """Return the language of the channel."""
        return await language_in(self._services, self._client, self._channel_id)

    async def post(self, lines: Sequence[str]) -> bool:
        """Write one message; False where it has to wait."""
        channel = self._client.get_partial_messageable(self._channel_id)
        try:
            await translate_errors(channel.send("\n".join(lines)[:2000]))
        except ChannelRefusedError as error:
            _log.warning("operations.refused", channel_id=self._channel_id, error=str(error))
            self._silent_until = asyncio.get_running_loop().time() + REFUSED_PAUSE_S
            return False
        except DeliveryError as error:
            _log.info("operations.retried", error=str(error))
            return False
        return True


class AlertWebhook:
    """The address that `alerts.webhook` names; what fails is tried again, each time after a longer wait."""

    fact = "operations.told_by_webhook"

    def __init__(self, webhook: Webhook, *, first_retry_s: float = FIRST_RETRY_S) -> None:
        self._webhook = webhook
        self._first_retry_s = first_retry_s
        self._failures = 0
        self._silent_until = 0.0

    @property
    def silent(self) -> bool:
        """Whether the last failure is too fresh."""
        return asyncio.get_running_loop().time() < self._silent_until

    async def language(self) -> str:
        """Return the language of logs: nobody has set one."""
        return "en"

    async def post(self, lines: Sequence[str]) -> bool:
        """Send one message; False where it has to wait."""
        try:
            await self._webhook.send(lines)
        except WebhookError as error:
            wait_s = min(self._first_retry_s * 2 ** min(self._failures, 20), REFUSED_PAUSE_S)
            wait_s = REFUSED_PAUSE_S if error.refused else wait_s
            self._failures += 1
            self._silent_until = asyncio.get_running_loop().time() + wait_s
            _log.warning("alerts.webhook_failed", reason=str(error), retry_s=wait_s)
            return False
        self._failures = 0
        return True
