"""Counters of the model server in Prometheus' text format, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import bisect
import threading
from collections import Counter

from bot.serving.protocol import QueueState

STEP_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """Counts what the engine does. Plain numbers have one writer (the engine thread or the event loop)."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.reused_tokens = 0
        self.generated_tokens = 0
        self.rejected = 0
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._step_counts = [0] * (len(STEP_BUCKETS_S) + 1)
        self._step_sum_s = 0.0

    def count_request(self, outcome: str) -> None:
        """Count one request by how it ended."""
        with self._lock:
            self._requests[outcome] += 1

    def observe_step(self, seconds: float) -> None:
        """Count one engine step and its duration."""
        with self._lock:
            self._step_counts[bisect.bisect_left(STEP_BUCKETS_S, seconds)] += 1
            self._step_sum_s += seconds

    def render(self, *, running: int, queue: QueueState, adapters: int) -> str:
        """Return the exposition text."""
        with self._lock:
            requests = dict(self._requests)
            counts, total_s = list(self._step_counts), self._step_sum_s
        lines = _head("strop_requests_total", "counter", "Requests that ended, by how.")
        lines += [f'strop_requests_total{{outcome="{name}"}} {n}' for name, n in sorted(requests.items())]
        lines += _value("strop_rejected_total", "counter", "Requests refused by a full queue.", self.rejected)
        lines += _value(
            "strop_prompt_tokens_total",
            "counter",
            "Prompt tokens that the model read.",
            self.prompt_tokens,
        )
        lines += _value(
            "strop_reused_prompt_tokens_total",
            "counter",
            "Prompt tokens found in the cache.",
            self.reused_tokens,
        )
        lines += _value(
            "strop_generated_tokens_total", "counter", "Tokens that were written.", self.generated_tokens
        )
        lines += _value("strop_requests_running", "gauge", "Requests that are worked on.", running)
        lines += _head("strop_requests_waiting", "gauge", "Requests in the queue, by priority.")
        lines.append(f'strop_requests_waiting{{priority="people"}} {queue.people}')
        lines.append(f'strop_requests_waiting{{priority="background"}} {queue.background}')
        lines += _value("strop_users_waiting", "gauge", "Members who wait in the queue.", queue.users)
        lines += _value(
            "strop_wait_estimate_seconds",
            "gauge",
            "The wait of who comes now.",
            round(queue.wait_s, 3),
        )
        lines += _value("strop_adapters_loaded", "gauge", "Adapters that are loaded.", adapters)
        lines += _head("strop_step_seconds", "histogram", "How long the steps of the engine took.")
        cumulative = 0
        for bound, count in zip((*STEP_BUCKETS_S, "+Inf"), counts, strict=True):
            cumulative += count
            lines.append(f'strop_step_seconds_bucket{{le="{bound}"}} {cumulative}')
        lines += [f"strop_step_seconds_sum {total_s}", f"strop_step_seconds_count {cumulative}"]
        return "\n".join(lines) + "\n"


def _value(name: str, kind: str, about: str, value: float) -> list[str]:
    return [*_head(name, kind, about), f"{name} {value}"]


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
