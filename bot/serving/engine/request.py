"""A request inside the engine, from its submission to its one terminal event."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from bot.serving.engine.detokenizer import TextStream
from bot.serving.engine.events import Ending, Failed, Finished, JobOptions, Sink, TextPiece
from bot.serving.engine.lora import Adapter
from bot.serving.engine.sampling import Sampler
from bot.serving.errors import FailureCode


class Job:
    """One generation, or one scoring of a prompt; after its submission only the engine changes it.

    ``tokens`` holds the prompt and everything generated; the first ``cached`` of them are in the row cache.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: JobOptions,
        *,
        sink: Sink,
        tokenizer: Any,
        adapter: Adapter | None = None,
    ) -> None:
        self.tokens = list(prompt)
        self.prompt_length = len(self.tokens)
        self.max_tokens = options.max_tokens
        self.adapter = adapter
        self.priority = options.priority
        self.user = options.user
        self.score = options.score
        self.scores: list[float] = []
        self._ignore_end = options.ignore_end
        self.cached = 0
        self.cancelled = False
        self.done = False
        self._sink = sink
        self._stream = TextStream(tokenizer, options.stop)
        self.sampler = Sampler(options.sampling)
        self._submitted = time.monotonic()
        self._started: float | None = None
        self._row_since: float | None = None
        self._row_s = 0.0
        self._first_token: float | None = None
        self._expires = None if options.deadline_s is None else self._submitted + options.deadline_s

    @property
    def generated(self) -> int:
        """How many tokens were generated."""
        return len(self.tokens) - self.prompt_length

    def start(self) -> None:
        """Note that the job has a row now; its time in the queue is that before the first one.

        One that had stepped aside is scored anew.
        """
        self.scores.clear()
        self._row_since = time.monotonic()
        if self._started is None:
            self._started = self._row_since

    def step_aside(self) -> None:
        """Note that the job has lost its row and waits for another; what it has generated stays."""
        self._row_s = self.row_s()
        self._row_since = None

    def row_s(self) -> float:
        """Return for how long the job has had a row, in seconds."""
        return self._row_s + (0.0 if self._row_since is None else time.monotonic() - self._row_since)

    def expired(self, now: float) -> bool:
        """Whether the job's deadline has passed."""
        return self._expires is not None and now >= self._expires

    def choose(self, logits: torch.Tensor, end_tokens: frozenset[int]) -> int:
        """Choose the next token from ``logits`` (V,), float32 on the CPU."""
        seen = self.seen(end_tokens)
        return self.sampler.choose(logits, None if seen is None else torch.tensor(seen))

    def seen(self, end_tokens: frozenset[int]) -> list[int] | None:
        """Return the ids that the choice of the next token penalises, where it does.

        A chat template ends every turn with an end token: penalised too, no reply would find its end.
        """
        if self.sampler.options.repetition_penalty == 1.0:
            return None
        return sorted({*self.tokens} - end_tokens) or None

    def take_scores(self, logits: torch.Tensor, count: int) -> None:
        """Add the log-probability of the token after each of the next ``count``; ``logits`` (count, V)."""
        following = self.tokens[self.cached + 1 : self.cached + count + 1]
        if not following:
            return
        logits = logits[: len(following)].to(torch.float32)
        targets = torch.tensor(following, device=logits.device)[:, None]
        chosen = logits.gather(1, targets)[:, 0] - torch.logsumexp(logits, dim=-1)
        self.scores += chosen.tolist()

    def accept(self, token: int, end_tokens: frozenset[int], context_tokens: int) -> Ending | None:
        """Take the next token and send the text that it completes; return a reason to end."""
        self.tokens.append(token)
        if self._first_token is None:
            self._first_token = time.monotonic()
        if token in end_tokens and not self._ignore_end:
            return "stop"
        self._send(self._stream.push(token))
        if self._stream.stopped:
            return "stop"
        enough = self.max_tokens is not None and self.generated >= self.max_tokens
        return "length" if enough or len(self.tokens) >= context_tokens else None

    def finish(self, reason: Ending) -> None:
        """Send the rest of the text and the terminal event; later calls do nothing."""
        if self.done:
            return
        if reason != "cancelled":
            self._send(self._stream.finish())
        now = time.monotonic()
        started = self._started if self._started is not None else now
        first = self._first_token
        self._end(
            Finished(
                reason=reason,
                prompt_tokens=self.prompt_length,
                completion_tokens=self.generated,
                queue_ms=(started - self._submitted) * 1000,
                first_token_ms=None if first is None else (first - self._submitted) * 1000,
                duration_ms=(now - self._submitted) * 1000,
                scores=tuple(self.scores) if self.score else None,
                token_ids=tuple(self.tokens[self.prompt_length :]),
            )
        )

    def fail(self, code: FailureCode, message: str) -> None:
        """Send the terminal event of a failure; later calls do nothing."""
        if not self.done:
            self._end(Failed(code, message))

    def _send(self, text: str) -> None:
        if text:
            self._sink(TextPiece(text))

    def _end(self, event: Finished | Failed) -> None:
        self.done = True
        self._sink(event)
