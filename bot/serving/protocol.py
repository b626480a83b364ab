"""The values that cross the wire between the model server and its callers (torch-free).

Requests follow the OpenAI chat-completions and completions protocols and vLLM's adapter endpoints; unknown
fields are ignored as those servers do and null means the default, so that ordinary OpenAI clients work
unchanged; what would change the answer and isn't offered is refused by name. ``priority``,
``queue_updates`` and ``deadline_s`` are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from bot.serving.errors import ServerLoadingError, ServerUnavailableError
from bot.serving.messages import NOTHING, Message
from bot.serving.model.capabilities import BaseCapabilities
from bot.serving.model.identity import BaseIdentity

Role: TypeAlias = Literal["system", "user", "assistant"]
FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]
TokenIds: TypeAlias = list[int]

SECRET_HEADER = "X-Strop-Secret"
# Where the server says how to reach it, in the run folder.
SERVER_FILE = "server.json"
# What it says there of a vLLM in its place, and while a training has that one's GPU.
VLLM = "vllm"
ASLEEP = "asleep"
PRIORITY_PEOPLE = 0
PRIORITY_BACKGROUND = 1

MAX_STOP_STRINGS = 16
MAX_PROMPTS_PER_REQUEST = 256
# Pixels a side of a picture beside a question: some hundred tokens, at patches of 14 to 32 pixels a side.
MAX_PICTURE_SIDE = 768


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
class QueuePlace:
    """How many requests come before one that waits, and the server's estimate of the wait in seconds."""

    ahead: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class QueueState:
    """Who waits for the model: people's requests, background ones, of how many people.

    ``wait_s`` is about how long a newcomer would wait, in seconds; 0 where a row is free.
    """

    people: int = 0
    background: int = 0
    users: int = 0
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is chosen, and where it ends; the defaults suit a conversation."""

    max_tokens: int
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the request fields; what is not OpenAI's is sent only where it changes anything."""
        fields: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        fields |= {name: value for name, value in (("top_k", self.top_k), ("min_p", self.min_p)) if value}
        if self.repetition_penalty != 1.0:
            fields["repetition_penalty"] = self.repetition_penalty
        if self.seed is not None:
            fields["seed"] = self.seed
        if self.stop:
            fields["stop"] = list(self.stop)
        return fields


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of a streamed reply; the last one carries ``finish_reason`` and, where known, ``usage``.

    While the request waits, pieces without text carry its ``queue`` place, if the caller asked for that.
    """

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None
    queue: QueuePlace | None = None


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
    trainer loads; ``arithmetic`` is what 4-bit weights are multiplied in; ``special_tokens`` are the strings
    that its tokenizer would read as control tokens. ``stands_in_for`` names the configured base where this
    one answers in its place; the health's detail says why. ``capabilities`` were found by probing its chat
    template. ``identity`` says which base it is, also to those who hold it in another ``precision``.
    ``parameters`` counts its weights; 0: not known.
    """

    id: str
    source: str = ""
    hash: str = ""
    chat_template_hash: str = ""
    folder: str = ""
    context_tokens: int = 0
    device: str = ""
    execution: str = ""
    arithmetic: str = ""
    special_tokens: tuple[str, ...] = ()
    stands_in_for: str = ""
    capabilities: BaseCapabilities = field(default_factory=BaseCapabilities)
    identity: BaseIdentity | None = None
    precision: str = ""
    parameters: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """What ``/health`` says."""

    status: Literal["ok", "loading", "failed"]
    detail: Message = NOTHING
    base: BaseDescription | None = None
    adapters: tuple[str, ...] = ()
    running: int = 0
    waiting: int = 0
    queue: QueueState = QueueState()

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded and answers."""
        return self.status == "ok"

    def require_ready(self) -> None:
        """Raise ServerUnavailableError where the model can't be loaded, ServerLoadingError while it loads."""
        if self.status == "failed":
            raise ServerUnavailableError(self.detail or "The model server could not load its model.")
        if not self.is_ready:
            raise ServerLoadingError(self.detail or "The model is still loading.")

    def require_base(self) -> BaseDescription:
        """Return the base of a server that is ready. Raises as `require_ready`, also where none is named."""
        self.require_ready()
        if self.base is None:
            raise ServerUnavailableError("The model server does not say which base it serves.")
        return self.base

    def traffic(self) -> Message:
        """Say in a phrase who is served, who waits, and how long whoever comes now would."""
        counts = {"running": self.running, "waiting": self.waiting}
        wait_s = round(self.queue.wait_s)
        if wait_s:
            return Message(
                "{running} running and {waiting} waiting; a new request waits about {seconds} s",
                seconds=wait_s,
                **counts,
            )
        return Message("{running} running and {waiting} waiting", **counts)


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_means_default(cls, value: Any) -> Any:
        """Read null as a field that was left out: many clients send every field that they know."""
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class WireMessage(_Request):
    """A message on the wire: plain text, or OpenAI's list of text parts.

    A reply may have no content, beside the tool calls that another model made in its place.
    """

    role: Role
    content: str

    @model_validator(mode="before")
    @classmethod
    def _reply_without_text(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("role") == "assistant" and value.get("content") is None:
            return {**value, "content": ""}
        return value

    @field_validator("role", mode="before")
    @classmethod
    def _developer_is_system(cls, value: Any) -> Any:
        """Read OpenAI's newer name of the same role."""
        return "system" if value == "developer" else value

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


NOT_OFFERED = "not_offered"
"""The type of the validation error whose context names the refused field."""

# Fields that would change an answer and are not offered, with the values that ask for nothing: OpenAI's, then
# those that vLLM, llama.cpp and their clients add.
_NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template": (),
    "chat_template_kwargs": ({}, {"enable_thinking": False}),
    "documents": ([],),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "truncate_prompt_tokens": (),
    "skip_special_tokens": (True,),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "grammar": ("",),
    "json_schema": ({},),
    "typical_p": (1, 1.0),
    "mirostat": (0,),
}


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
    user: str = Field(default="", max_length=512)
    deadline_s: float | None = Field(default=None, gt=0.0, le=86_400.0)
    queue_updates: bool = False

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, value: Any) -> Any:
        """Refuse what would change the answer and isn't offered, instead of answering something else."""
        for name, harmless in _NOT_OFFERED.items() if isinstance(value, dict) else ():
            wish = value.get(name)
            if wish is not None and not any(type(wish) is type(fine) and wish == fine for fine in harmless):
                raise PydanticCustomError(
                    NOT_OFFERED, "this server does not offer it; leave it out", {"field": name}
                )
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_list(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value
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
