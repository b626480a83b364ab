"""The values that cross the wire between the model server and its callers (torch-free).

Requests follow the OpenAI chat-completions and completions protocols and vLLM's adapter endpoints; unknown
fields are ignored as those servers do, so that ordinary OpenAI clients work unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

Role: TypeAlias = Literal["system", "user", "assistant"]
FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]
TokenIds: TypeAlias = list[int]

SECRET_HEADER = "X-Strop-Secret"
PRIORITY_PEOPLE = 0
PRIORITY_BACKGROUND = 1

MAX_STOP_STRINGS = 16
MAX_PROMPTS_PER_REQUEST = 256


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation, as a caller writes it."""

    role: Role
    content: str

    def as_json(self) -> dict[str, str]:
        """Return the OpenAI form of the message."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of a streamed reply; the last one carries ``finish_reason`` and, where known, ``usage``."""

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole reply."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class BaseDescription:
    """The base model that a server serves.

    ``hash`` identifies the 4-bit weights on every machine; ``folder`` is the cached 4-bit form that the
    trainer loads; ``special_tokens`` are the strings that its tokenizer would read as control tokens.
    """

    id: str
    source: str = ""
    hash: str = ""
    chat_template_hash: str = ""
    folder: str = ""
    context_tokens: int = 0
    device: str = ""
    execution: str = ""
    special_tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Health:
    """What ``/health`` says."""

    status: Literal["ok", "loading", "failed"]
    detail: str = ""
    base: BaseDescription | None = None
    adapters: tuple[str, ...] = ()
    running: int = 0
    waiting: int = 0


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class WireMessage(_Request):
    """A message on the wire: plain text, or OpenAI's list of text parts."""

    role: Role
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in value):
            raise ValueError("only text parts are supported")
        return "".join(str(part.get("text", "")) for part in value)


class StreamOptions(_Request):
    """OpenAI's ``stream_options``."""

    include_usage: bool = False


class _Generation(_Request):
    model: str = Field(min_length=1, max_length=256)
    temperature: float = Field(default=1.0, ge=0.0, le=10.0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=-1, le=1_000_000)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0, allow_inf_nan=False)
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=10.0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: list[str] = Field(default_factory=list, max_length=MAX_STOP_STRINGS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    priority: int = Field(default=PRIORITY_PEOPLE, ge=0, le=1)
    n: int = Field(default=1, ge=1, le=1)

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_list(cls, value: Any) -> Any:
        stops = [] if value is None else [value] if isinstance(value, str) else value
        if isinstance(stops, list) and any(not isinstance(s, str) or not 0 < len(s) <= 256 for s in stops):
            raise ValueError("each stop string needs 1 to 256 characters")
        return stops


class ChatRequest(_Generation):
    """``POST /v1/chat/completions``."""

    messages: list[WireMessage] = Field(min_length=1, max_length=1024)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)


class CompletionRequest(_Generation):
    """``POST /v1/completions``; with ``prompt_logprobs`` the prompt itself is scored."""

    prompt: str | TokenIds | list[str] | list[TokenIds]
    max_tokens: int = Field(default=16, ge=1)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=0)

    def prompts(self) -> list[str] | list[TokenIds]:
        """Return the prompts as a list, whichever of the four wire forms was used."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class LoadAdapterRequest(_Request):
    """``POST /v1/load_lora_adapter``."""

    lora_name: str = Field(min_length=1, max_length=256)
    lora_path: str = Field(min_length=1, max_length=4096)


class UnloadAdapterRequest(_Request):
    """``POST /v1/unload_lora_adapter``."""

    lora_name: str = Field(min_length=1, max_length=256)


class TokenizeRequest(_Request):
    """``POST /tokenize``: a chat (rendered through the template) or plain text."""

    model: str = ""
    messages: list[WireMessage] | None = Field(default=None, max_length=1024)
    prompt: str | None = None
    add_generation_prompt: bool = True
