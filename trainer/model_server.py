"""One reply from the model server as a run asks for it: behind everybody who chats, and with patience."""

from __future__ import annotations

from collections.abc import Sequence

from bot.serving.client import ModelClient
from bot.serving.protocol import PRIORITY_BACKGROUND, ChatMessage, Completion, Sampling
from storage.config_sections import ChatConfig
from trainer.patience import patiently

# Requests that a run has in flight at the same time.
AT_ONCE = 8
DEADLINE_S = 600.0


async def reply(
    client: ModelClient,
    model: str,
    messages: Sequence[ChatMessage],
    *,
    chat: ChatConfig,
    max_new_tokens: int,
    seed: int,
) -> Completion:
    """Let a model answer as it would in the chat.

    Raises:
        EvaluationError: the server stayed away for minutes.
    """
    sampling = Sampling(
        max_new_tokens, temperature=chat.temperature, top_p=chat.top_p, top_k=chat.top_k, seed=seed
    )
    return await patiently(
        lambda: client.chat(
            model=model,
            messages=messages,
            sampling=sampling,
            priority=PRIORITY_BACKGROUND,
            deadline_s=DEADLINE_S,
        )
    )
