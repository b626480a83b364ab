"""The base's own replies to general prompts: replayed in training, held out to measure what was forgotten.

Those of a third set settle an adapter's scale, so that the gate's own stay unseen. The prompts are frozen
with the code. The replies come from the served base, once for each base, and are cached with the models: they
hold nobody's words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bot.serving.client import ModelClient
from bot.serving.protocol import ChatMessage, Sampling
from trainer.data.encoding import Codec, Example, encode
from trainer.model_server import retry_while_unavailable

VERSION = 3
# With fewer VALIDATION_PROMPTS, or none. Their replies stay: a base that is asked again says some of them
# otherwise, since sums round by what is computed beside them, and then no earlier run repeats.
EARLIER_VERSIONS = (2, 1)
MAX_NEW_TOKENS = 40
AT_ONCE = 8

TRAIN_PROMPTS = (
    "What is the capital of France?",
    "How do I boil an egg?",
    "Explain gravity to a child.",
    "Name three fruits.",
    "What is 7 times 8?",
    "Write one sentence about autumn.",
    "Why is the sky blue?",
    "How does a bicycle stay upright?",
    "Translate 'good morning' into Spanish.",
    "What does a doctor do?",
    "Summarise the story of Cinderella.",
    "List two uses of a paper clip.",
    "What is photosynthesis?",
    "How many days are in a leap year?",
    "Give a synonym for 'happy'.",
    "Who wrote Romeo and Juliet?",
    "What is the opposite of hot?",
    "How do magnets work?",
    "Describe a cat in one sentence.",
    "At what temperature does water boil?",
    "Write a short poem about rain.",
    "What should I pack for a trip to the beach?",
    "How do I apologise to a friend?",
    "What is a prime number?",
    "Explain what a computer virus is.",
    "How can I save money on food?",
    "What is the largest ocean?",
    "Why do we sleep?",
)
VALIDATION_PROMPTS = (
    "What is a volcano?",
    "How do I make pancakes?",
    "Name a country in South America.",
    "What does a lawyer do?",
    "Why do leaves change colour?",
    "How do I remove a stain from a shirt?",
    "What is the speed of light?",
    "Write one sentence about the sea.",
    "What is a metaphor?",
    "How many minutes are in a day?",
    "Explain what a bank does.",
    "Who painted the Mona Lisa?",
    "What is an earthquake?",
    "How do I sew on a button?",
    "Name two kinds of tree.",
    "What does a nurse do?",
    "Why is the sea salty?",
    "How do I change a light bulb?",
    "How far away is the sun?",
    "Write one sentence about winter.",
    "What is an adjective?",
    "How many hours are in a week?",
    "Explain what insurance is.",
    "Who invented the telephone?",
    "What is 9 times 6?",
    "Translate 'thank you' into French.",
    "What is the opposite of early?",
    "Give a synonym for 'quick'.",
    "Name a mammal that lives in the sea.",
    "How do bees make honey?",
    "What is a good gift for a teacher?",
    "How do I cook rice?",
    "Write a short poem about the moon.",
    "What is the capital of Japan?",
    "Why do we have seasons?",
    "Summarise how a bill becomes a law.",
    "What is the difference between a lake and a river?",
    "How can I sleep better?",
    "Describe a castle in one sentence.",
    "What is gravity measured in?",
    "How do I write a cover letter?",
    "Name three musical instruments.",
    "What is 45 minus 17?",
    "Write a thank-you note to a neighbour.",
    "What does a compass do?",
    "How do aeroplanes fly?",
    "List two ways to save water.",
    "What is a mammal?",
)
HELD_OUT_PROMPTS = (
    "What is a healthy breakfast?",
    "How do plants drink water?",
    "What is democracy?",
    "Give me one tip for writing well.",
    "What is the moon made of?",
    "How do I clean a window?",
    "What causes thunder?",
    "Name a famous painter.",
    "How do I tie a shoelace?",
    "What is the difference between a frog and a toad?",
    "Write a greeting for a birthday card.",
    "What is 12 plus 30?",
)
# Asked in the community's own voice where there are few held-out conversations.
COMMUNITY_PROMPTS = (
    "hey, how are you?",
    "what are you up to today?",
    "I had a long day at work.",
    "any plans for the weekend?",
    "tell me something interesting",
    "what music do you like?",
    "I just started learning to cook.",
    "do you like games?",
    "it is raining again here",
    "what should I watch tonight?",
    "I can't sleep.",
    "recommend me a book",
    "my dog did something funny",
    "good morning everyone!",
    "what do you think about coffee?",
    "I am bored.",
    "how do I make new friends?",
    "I passed my exam!",
    "what is your favourite season?",
    "I want to start running.",
    "any tips for a small garden?",
    "where would you travel to?",
    "I need a new hobby.",
    "what is for dinner?",
)


@dataclass(frozen=True)
class BaseReply:
    """The base's reply to one general prompt; `finished` says that it ended by itself."""

    prompt: str
    text: str
    finished: bool

    @property
    def messages(self) -> list[ChatMessage]:
        """Return the prompt as a chat, without a system message of ours."""
        return [ChatMessage("user", self.prompt)]


def encoded(codec: Codec, replies: Sequence[BaseReply], max_length: int) -> list[Example]:
    """Return each reply as its prompt's completion."""
    return [
        encode(codec, reply.messages, reply.text, finished=reply.finished, max_length=max_length)
        for reply in replies
    ]


@dataclass(frozen=True)
class Replay:
    """The replies to train on, those that settle an adapter's scale, and those that the gate judges by."""

    train: tuple[BaseReply, ...]
    validation: tuple[BaseReply, ...]
    held_out: tuple[BaseReply, ...]


def cache_path(models: Path, base_hash: str, version: int = VERSION) -> Path:
    """Return where the replies of a base are kept."""
    return models / "replay" / f"{base_hash[:16]}-v{version}.json"


async def load(
    client: ModelClient,
    models: Path,
    *,
    base_id: str,
    base_hash: str,
    on_reply: Callable[[int, int], None] = lambda done, total: None,
) -> Replay:
    """Return the base's replies, from the cache or from the model server (background priority)."""
    known = await asyncio.to_thread(_read, models, base_hash)
    prompts = [
        prompt
        for prompt in (*TRAIN_PROMPTS, *VALIDATION_PROMPTS, *HELD_OUT_PROMPTS)
        if prompt not in {reply.prompt for reply in known}
    ]
    if not prompts:
        return _split(known)
    waiting = asyncio.Semaphore(AT_ONCE)
    done = 0

    async def ask(prompt: str) -> BaseReply:
        nonlocal done
        async with waiting:
            completion = await retry_while_unavailable(
                lambda: client.chat(
                    model=base_id,
                    messages=[ChatMessage("user", prompt)],
                    sampling=Sampling(
                        MAX_NEW_TOKENS, temperature=0.7, top_p=0.9, seed=zlib.crc32(prompt.encode())
                    ),
                    priority=1,
                    deadline_s=600.0,
                )
            )
        done += 1
        on_reply(done, len(prompts))
        return BaseReply(prompt, completion.text, completion.finish_reason == "stop")

    replies = [*known, *await _gather([ask(prompt) for prompt in prompts])]
    await asyncio.to_thread(_write, cache_path(models, base_hash), replies)
    return _split(replies)


async def _gather(asking: Sequence[object]) -> list[BaseReply]:
    """Run all requests; the first failure cancels the rest."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(request) for request in asking]  # type: ignore[arg-type,var-annotated]
    return [task.result() for task in tasks]


def _split(replies: Sequence[BaseReply]) -> Replay:
    """Split by prompt; a reply of nothing but white space teaches nothing."""
    kept = [reply for reply in replies if reply.text.strip()]
    sets = (TRAIN_PROMPTS, VALIDATION_PROMPTS, HELD_OUT_PROMPTS)
    return Replay(*(tuple(reply for reply in kept if reply.prompt in prompts) for prompts in sets))


def _read(models: Path, base_hash: str) -> list[BaseReply]:
    """Return the replies that are kept, those of an earlier version where there are no others."""
    for version in (VERSION, *EARLIER_VERSIONS):
        with contextlib.suppress(OSError, ValueError, TypeError):
            value = json.loads(cache_path(models, base_hash, version).read_text(encoding="utf-8"))
            return [BaseReply(**reply) for reply in value]
    return []


def _write(path: Path, replies: Sequence[BaseReply]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another run may write it at the same time.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps([asdict(reply) for reply in replies], indent=1), encoding="utf-8")
    partial.replace(path)
