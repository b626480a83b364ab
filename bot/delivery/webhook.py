"""Alerts to an address of the operator's: one JSON object a message, which Slack, ntfy and their like take.

The address is a secret, since whoever knows it can write there: only its host is ever logged.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from bot.errors import BotError
from storage.config import Config

DEADLINE_S = 10.0
# https://developer.mozilla.org/docs/Web/HTTP/Reference/Status: these may be another answer next time.
_LATER = (408, 425, 429)


class WebhookError(BotError):
    """An alert that did not arrive; `refused` where trying it again soon makes no sense."""

    def __init__(self, sentence: str, *, refused: bool = False) -> None:
        super().__init__(sentence)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where alerts are sent to; `proxy` is on the way."""

    url: str = field(repr=False)
    proxy: str | None = None

    @classmethod
    def from_config(cls, config: Config) -> Webhook | None:
        """Return the one that is configured, if there is one."""
        url = config.alerts.webhook.get_secret_value()
        return cls(url, config.network.proxy_for(url)) if url else None

    @property
    def host(self) -> str:
        """What may be said of the address: its host."""
        return urlsplit(self.url).hostname or "?"

    async def send(self, lines: Sequence[str], *, title: str = "Strop") -> None:
        """Send one message. Raises WebhookError."""
        timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(
                    self.url,
                    json=payload(lines, title),
                    proxy=self.proxy,
                    allow_redirects=False,
                ) as response,
            ):
                status = response.status
        # `from None`: an error of the library holds the address.
        except (aiohttp.InvalidURL, ValueError):
            raise WebhookError("alerts.webhook is no address that can be used.", refused=True) from None
        except (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            kind = type(error).__name__
            raise WebhookError(f"The webhook at {self.host} can't be reached ({kind}).") from None
        if not 200 <= status < 300:
            refused = 300 <= status < 500 and status not in _LATER
            raise WebhookError(f"The webhook at {self.host} answers {status}.", refused=refused)


def payload(lines: Sequence[str], title: str) -> dict[str, Any]:
    """Return the message: `text` is what Slack shows; `id` is the same when it is sent again."""
    text = "\n".join(lines)
    return {
        "source": "strop",
        "id": hashlib.sha256(text.encode()).hexdigest()[:16],
        "title": title,
        "text": text,
        "lines": list(lines),
    }
