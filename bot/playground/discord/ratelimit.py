"""Discord's rate limits: per-route buckets and one global limit, with the headers discord.py steers by."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Prefix of the names in X-RateLimit-Bucket; Discord's own are hashes, which a reader can't tell apart.
_BUCKET_PREFIX = "playground-"


@dataclass(frozen=True)
class Rule:
    """At most `limit` calls in `per_s` seconds for each major parameter of the routes that match."""

    name: str
    method: str
    pattern: str
    limit: int
    per_s: float


def default_rules(*, edits_per_5_s: int = 30) -> tuple[Rule, ...]:
    """Limits like Discord's, with more room for edits than its 5 in 5 s: streaming should feel alive."""
    message = r"/channels/(\d+)/messages"
    return (
        Rule("edit", "PATCH", message + r"/\d+", edits_per_5_s, 5.0),
        Rule("send", "POST", message, 15, 5.0),
        Rule("delete", "DELETE", message + r"/\d+", 15, 5.0),
        Rule("react", "PUT", message + r"/\d+/reactions/.*", 8, 1.0),
        Rule("unreact", "DELETE", message + r"/\d+/reactions/.*", 8, 1.0),
        Rule("typing", "POST", r"/channels/(\d+)/typing", 5, 5.0),
        Rule("commands", "PUT", r"/applications/(\d+)/.*commands", 5, 20.0),
        Rule("followup", ".*", r"/webhooks/(\d+/[^/]+).*", 30, 5.0),
        Rule("other", ".*", r"/[a-z@0-9-]+(?:/(\d+))?.*", 50, 1.0),
    )


@dataclass(frozen=True)
class Verdict:
    """Whether a call may pass, and the headers to answer it with."""

    allowed: bool
    headers: dict[str, str]
    retry_after_s: float = 0.0
    is_global: bool = False


@dataclass
class _Window:
    limit: int
    per_s: float
    used: int = 0
    ends_s: float = -math.inf

    def take(self, now_s: float) -> bool:
        if now_s >= self.ends_s:
            self.used, self.ends_s = 0, now_s + self.per_s
        if self.used >= self.limit:
            return False
        self.used += 1
        return True


class RateLimiter:
    """Counts the bot's REST calls in fixed windows; `refused` is how many got a 429.

    `clock` returns seconds and never goes back.
    """

    def __init__(
        self,
        rules: tuple[Rule, ...] | None = None,
        *,
        global_per_s: int = 50,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = [(rule, re.compile(rule.pattern)) for rule in rules or default_rules()]
        self._windows: dict[tuple[str, str], _Window] = {}
        self._global = _Window(global_per_s, 1.0)
        self._shut_until_s = -math.inf
        self._clock = clock
        self.refused = 0

    def shut(self, for_s: float) -> None:
        """Refuse every call for a while: a burst of 429s, for tests."""
        self._shut_until_s = self._clock() + for_s

    def check(self, method: str, path: str) -> Verdict:
        """Count one call. Interaction callbacks are not limited, as at Discord."""
        verdict = self._judge(method, path)
        self.refused += not verdict.allowed
        return verdict

    def _judge(self, method: str, path: str) -> Verdict:
        if path.startswith("/interactions/"):
            return Verdict(True, {})
        now_s = self._clock()
        if now_s < self._shut_until_s:
            return _global_refusal(self._shut_until_s - now_s)
        if not self._global.take(now_s):
            return _global_refusal(self._global.ends_s - now_s)
        found = self._window(method, path)
        if found is None:
            return Verdict(True, {})
        rule, window = found
        allowed = window.take(now_s)
        wait_s = max(0.0, window.ends_s - now_s)
        headers = self._headers(rule, window, wait_s)
        if not allowed:
            headers.update({"Retry-After": _up(wait_s), "X-RateLimit-Scope": "user"})
        return Verdict(allowed, headers, wait_s)

    def _window(self, method: str, path: str) -> tuple[Rule, _Window] | None:
        for rule, pattern in self._rules:
            match = pattern.fullmatch(path) if re.fullmatch(rule.method, method) else None
            if match:
                major = next((group for group in match.groups() if group), "")
                self._drop_ended()
                return rule, self._windows.setdefault((rule.name, major), _Window(rule.limit, rule.per_s))
        return None

    def _drop_ended(self) -> None:
        if len(self._windows) > 512:
            now_s = self._clock()
            self._windows = {key: window for key, window in self._windows.items() if window.ends_s > now_s}

    def _headers(self, rule: Rule, window: _Window, wait_s: float) -> dict[str, str]:
        return {
            "X-RateLimit-Limit": str(rule.limit),
            "X-RateLimit-Remaining": str(window.limit - window.used),
            "X-RateLimit-Reset": f"{time.time() + wait_s:.3f}",
            "X-RateLimit-Reset-After": f"{wait_s:.3f}",
            "X-RateLimit-Bucket": _BUCKET_PREFIX + rule.name,
        }


def _global_refusal(wait_s: float) -> Verdict:
    headers = {
        "X-RateLimit-Global": "true",
        "X-RateLimit-Scope": "global",
        "Retry-After": _up(wait_s),
    }
    return Verdict(False, headers, wait_s, is_global=True)


def _up(seconds: float) -> str:
    return str(math.ceil(seconds))
