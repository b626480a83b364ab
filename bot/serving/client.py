"""Talk to the model server, or to any OpenAI-compatible one such as vLLM (torch-free).

Every call has a deadline, and every failure is one of :mod:`bot.serving.errors`. A client made by
:meth:`ModelClient.from_run_dir` follows the server through restarts: port and secret are read again from
``server.json`` whenever a connection fails or the secret is refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

from bot.serving.client_parsing import (
    read_chat_stream,
    read_scores,
)
from bot.serving.endpoint import readable
from bot.serving.errors import (
    ConnectionBrokenError,
    PicturesRefusedError,
    RequestRejectedError,
    ServerUnavailableError,
    ServingError,
    UnknownModelError,
)
from bot.serving.inventory import Inventory
from bot.serving.model.capabilities import BaseCapabilities, ServerCapabilities, Turn, arrange
from bot.serving.model.thoughts import without_thoughts
from bot.serving.model.token_estimate import prompt_length
from bot.serving.protocol import (
    PRIORITY_BACKGROUND,
    PRIORITY_PEOPLE,
    VLLM,
    ChatDelta,
    ChatMessage,
    Completion,
    Sampling,
    TokenIds,
    Usage,
)
from bot.serving.protocol import SERVER_FILE as SERVER_FILE
from bot.serving.server_probe import offers_tokenize, probe
from bot.serving.sse import as_events

QUICK_DEADLINE_S = 15.0
# A server may load its model before it answers the first question.
PROBE_DEADLINE_S = 60.0
ADAPTER_DEADLINE_S = 120.0
METRICS_LIMIT_BYTES = 2 * 1024**2
SCORE_BATCH = 16
# Templates of other servers' models may know no system role (Gemma), or want turns to alternate (Mistral).
_STRICT = BaseCapabilities(system_role=False, free_order=False)


class ModelClient(Inventory):
    """What a model server can be asked. Close it with :meth:`close`, or use it in ``async with``."""

    _capabilities: ServerCapabilities | None = None
    _counts_tokens = True
    _strict = False

    async def metrics(self) -> str:
        """Return the server's own figures in Prometheus' text format; empty where it has none.

        Raises:
            ServerUnavailableError: nothing answers.
        """
        async with self._request(
            "GET", "/metrics", deadline_s=QUICK_DEADLINE_S, allow=tuple(range(200, 600))
        ) as response:
            if response.status != 200 or response.content_type != "text/plain":
                return ""
            said = bytearray()
            async for chunk in response.content.iter_any():
                said += chunk
                if len(said) >= METRICS_LIMIT_BYTES:
                    break
        # What is beyond the limit is left out from the beginning of its line.
        return said.decode("utf-8", "replace").rpartition("\n")[0] + "\n"

    async def capabilities(self) -> ServerCapabilities:
        """Return what the server offers beyond chat completions; it is tried once, then remembered.

        Raises:
            ServerUnavailableError, ServerLoadingError: as they say.
        """
        if (await self._current_endpoint()).engine == VLLM:
            # We have started it, with everything.
            return ServerCapabilities()
        if self._capabilities is None:
            names = await self.models()
            self._capabilities = await probe(self._ask, names[0] if names else "")
        return self._capabilities

    async def picture_tokens(self) -> int:
        """Return what a picture takes of the context at most; 0: the base sees none, or nothing answers."""
        try:
            return (await self.capabilities()).picture_tokens
        except ServingError:
            return 0

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[int, Mapping[str, Any] | None]:
        """Send a probing request; any status is an answer."""
        any_status = tuple(range(200, 600))
        async with self._request(
            method, path, body, deadline_s=PROBE_DEADLINE_S, allow=any_status
        ) as response:
            status, text = response.status, await response.text()
        try:
            value = json.loads(text)
        except ValueError:
            return status, None
        return status, value if isinstance(value, dict) else None

    async def chat_stream(
        self,
        *,
        model: str,
        messages: Sequence[ChatMessage],
        sampling: Sampling,
        priority: int = PRIORITY_PEOPLE,
        user: str = "",
        queue_updates: bool = False,
        pictures: Sequence[str] = (),
        deadline_s: float = 300.0,
    ) -> AsyncIterator[ChatDelta]:
        """Yield the reply piece by piece; the last piece carries ``finish_reason`` and ``usage``.

        ``user`` is a pseudonym by which the server shares its rows fairly. With ``queue_updates``, which
        only our own server knows, pieces without text tell the place in the queue. ``pictures`` are data
        URLs, shown with the last message. Closing the iterator early cancels the request on the server.

        Raises:
            ServerUnavailableError: no server, the connection broke, or ``deadline_s`` passed.
            PicturesRefusedError: the request may be served without its pictures.
            ServerLoadingError, ServerBusyError, UnknownModelError, RequestRejectedError: as they say.
        """
        body: dict[str, Any] = {
            "model": model,
            **sampling.as_json(),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        extras = {"priority": priority, "user": user, "queue_updates": queue_updates}
        body |= {name: value for name, value in extras.items() if value}
        strict, begun, broke = self._strict, False, False
        while True:
            body["messages"] = _shown(_wire(messages, strict=strict), pictures)
            try:
                # Closed at once where the caller leaves: that frees the server.
                async with contextlib.aclosing(self._stream(body, deadline_s)) as deltas:
                    async for delta in deltas:
                        begun = True
                        yield delta
            except (RequestRejectedError, ServerUnavailableError) as error:
                if isinstance(error, ConnectionBrokenError) and not begun and not broke:
                    # Of several servers behind a router one has died: another answers.
                    broke = True
                elif not begun and not strict and _is_about_roles(error, messages):
                    strict = True
                elif pictures and not begun and _may_be_about_pictures(error):
                    raise PicturesRefusedError(error.message) from error
                else:
                    raise
            else:
                self._strict = strict
                return

    async def _stream(self, body: Mapping[str, Any], deadline_s: float) -> AsyncGenerator[ChatDelta]:
        async with self._request("POST", "/v1/chat/completions", body, deadline_s=deadline_s) as response:
            # Some servers and gateways don't stream, whatever they are asked.
            whole = response.content_type == "application/json"
            body_chunks = as_events(await response.text()) if whole else response.content
            async for delta in read_chat_stream(body_chunks):
                yield delta

    async def chat(
        self,
        *,
        model: str,
        messages: Sequence[ChatMessage],
        sampling: Sampling,
        priority: int = PRIORITY_PEOPLE,
        user: str = "",
        deadline_s: float = 300.0,
    ) -> Completion:
        """Return the whole reply; same arguments and errors as :meth:`chat_stream`."""
        pieces: list[str] = []
        reason, usage = "stop", Usage(0, 0)
        async for delta in self.chat_stream(
            model=model,
            messages=messages,
            sampling=sampling,
            priority=priority,
            user=user,
            deadline_s=deadline_s,
        ):
            pieces.append(delta.text)
            reason = delta.finish_reason or reason
            usage = delta.usage or usage
        return Completion("".join(pieces), reason, usage.prompt_tokens, usage.completion_tokens)

    async def tokenize(
        self, *, model: str, messages: Sequence[ChatMessage], add_generation_prompt: bool = True
    ) -> TokenIds:
        """Return the token ids of a chat as the server would send it to the model."""
        answer = await self._tokenize(model, messages, add_generation_prompt)
        with readable("/tokenize"):
            return [int(token) for token in answer["tokens"]]

    async def count_tokens(
        self, *, model: str, messages: Sequence[ChatMessage], add_generation_prompt: bool = True
    ) -> int:
        """Return how many tokens a chat takes of the model's context; an estimate where no server counts."""
        if not self._counts_tokens:
            return prompt_length(messages)
        try:
            answer = await self._tokenize(model, messages, add_generation_prompt)
            with readable("/tokenize"):
                return int(answer["count"])
        except (RequestRejectedError, UnknownModelError, ServerUnavailableError):
            names = await self.models()
            if await offers_tokenize(self._ask, names[0] if names else model):
                raise
            self._counts_tokens = False
            return prompt_length(messages)

    async def _tokenize(
        self, model: str, messages: Sequence[ChatMessage], generation: bool
    ) -> dict[str, Any]:
        strict = self._strict
        while True:
            body = {
                "model": model,
                "messages": _wire(messages, strict=strict),
                "add_generation_prompt": generation,
            }
            try:
                answer = await self._json("POST", "/tokenize", body, deadline_s=QUICK_DEADLINE_S)
            except (RequestRejectedError, ServerUnavailableError) as error:
                if strict or not _is_about_roles(error, messages):
                    raise
                strict = True
            else:
                self._strict = strict
                return answer

    async def score(
        self,
        *,
        model: str,
        prompts: Sequence[Sequence[int]],
        priority: int = PRIORITY_BACKGROUND,
        deadline_s: float = 600.0,
    ) -> list[list[float]]:
        """Return per prompt the log-probability of each token given those before it, in nats.

        Each list is as long as its prompt; the first entry is 0.0, since nothing comes before the first.
        The order of the prompts is kept. ``deadline_s`` holds for each batch of 16 prompts.
        """
        scores: list[list[float]] = []
        for start in range(0, len(prompts), SCORE_BATCH):
            batch = [list(prompt) for prompt in prompts[start : start + SCORE_BATCH]]
            body = {
                "model": model,
                "prompt": batch,
                "max_tokens": 1,
                "prompt_logprobs": 0,
                "temperature": 0.0,
            }
            if priority:
                body["priority"] = priority
            answer = await self._json("POST", "/v1/completions", body, deadline_s=deadline_s)
            with readable("/v1/completions"):
                choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
                scores += [read_scores(choice, ids) for choice, ids in zip(choices, batch, strict=True)]
        return scores

    async def reset_prefix_cache(self) -> None:
        """Have the server drop what it keeps of earlier prompts.

        vLLM offers this in its development mode only and says 404 otherwise: it keeps them as it will.
        """
        async with self._request(
            "POST", "/reset_prefix_cache", {}, deadline_s=ADAPTER_DEADLINE_S, allow=(200, 404)
        ) as response:
            await response.read()


def _wire(messages: Sequence[ChatMessage], *, strict: bool = False) -> list[Turn]:
    """Write messages as JSON; a reply goes back without its thoughts, whichever server had written it.

    Written strictly, they have no system role, and their turns alternate.
    """
    turns = [
        {"role": each.role, "content": without_thoughts(each.content)}
        if each.role == "assistant"
        else each.as_json()
        for each in messages
    ]
    return arrange(turns, _STRICT) if strict else turns


def _shown(turns: list[Turn], pictures: Sequence[str]) -> list[Any]:
    """Return turns of which the last one is written as parts, with pictures before its words."""
    if not pictures:
        return turns
    *above, last = turns
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return [*above, {**last, "content": [*parts, {"type": "text", "text": last["content"]}]}]


def _may_be_about_pictures(error: ServingError) -> bool:
    """Whether a request may be served without its pictures: any refusal, and failures that name them.

    llama.cpp says with status 500 "image input is not supported - hint: [...] you may need to provide the
    mmproj".
    """
    said = str(error).lower()
    return isinstance(error, RequestRejectedError) or any(word in said for word in ("image", "multimodal"))


def _is_about_roles(error: ServingError, messages: Sequence[ChatMessage]) -> bool:
    """Whether a server refuses the roles of a conversation, which another order may cure.

    Templates say it in words of their own, with status 400 or 500: "System role not supported",
    "Conversation roles must alternate".
    """
    return len(messages) > 1 and "role" in str(error).lower()
