"""What the engine tells about a request: pieces of text, then exactly one terminal event (torch-free)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bot.serving.errors import FailureCode
from bot.serving.protocol import PRIORITY_PEOPLE

Ending: TypeAlias = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text of a reply that is final."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The terminal event of a request that was served, or cancelled by its caller. Times in milliseconds."""

    reason: Ending
    prompt_tokens: int
    completion_tokens: int
    queue_ms: float
    first_token_ms: float | None
    duration_ms: float
    scores: tuple[float, ...] | None = None
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The terminal event of a request that could not be served."""

    code: FailureCode
    message: str


Event: TypeAlias = TextPiece | Finished | Failed
Sink: TypeAlias = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How to choose tokens; the defaults are OpenAI's and vLLM's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What a request asks for; without ``max_tokens`` the context is the limit.

    ``user`` tells callers apart, so that each gets a fair share; ``ignore_end`` goes on past end tokens, for
    measurements of equal length.
    """

    max_tokens: int | None = None
    sampling: SamplingOptions = SamplingOptions()
    stop: Sequence[str] = ()
    priority: int = PRIORITY_PEOPLE
    user: str = ""
    score: bool = False
    deadline_s: float | None = None
    ignore_end: bool = False
