"""What a rehearsal was worth: the taste itself judges replies before and after, to prompts never rehearsed.

Neither trainer nor gate sees this measure. It exists only where a taste is a rule that can be computed, which
is what makes a rehearsal a test of the loop and not only a show.
"""

import asyncio
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bot.playground.errors import RehearsalError
from bot.playground.simulation.tastes import Taste
from bot.serving.client import ModelClient
from bot.serving.protocol import ChatMessage, Sampling
from storage.config_sections import ChatConfig

#: Every so many prompts one is kept back to measure with.
KEPT_OF = 4
MIN_PROMPTS = 8
MAX_MEASURED = 40
#: So many replies from each side, a few to each prompt where there are few prompts.
REPLIES = 64
SAMPLES = 3
RESAMPLES = 2000
_PARALLEL = 8


@dataclass(frozen=True)
class Worth:
    """Mean utilities of the same prompts before and after, and the gain with its 95 % interval."""

    before: float
    after: float
    gain: float
    low: float
    high: float
    prompts: int

    def as_json(self) -> dict[str, Any]:
        """The figures, for people and scripts."""
        return {
            "before": round(self.before, 3),
            "after": round(self.after, 3),
            "gain": round(self.gain, 3),
            "low": round(self.low, 3),
            "high": round(self.high, 3),
            "prompts": self.prompts,
        }


def split_prompts(prompts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split prompts into those to rehearse and those to measure with, by a hash: the same every time.

    Raises RehearsalError where there are too few for both.
    """
    if len(prompts) < MIN_PROMPTS:
        raise RehearsalError(
            f"That needs at least {MIN_PROMPTS} prompts (a quarter is kept back to measure with); "
            f"there are {len(prompts)}."
        )
    shuffled = sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.encode()).hexdigest())
    count = min(MAX_MEASURED, max(2, len(prompts) // KEPT_OF))
    kept = set(shuffled[:count])
    return tuple(each for each in prompts if each not in kept), tuple(shuffled[:count])


def repeat_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """Return the prompts once or a few times over, so that there are enough replies to say something."""
    return tuple(prompts) * max(1, REPLIES // len(prompts))


async def answers(
    client: ModelClient, model: str, prompts: Sequence[str], chat: ChatConfig, seed: int
) -> list[str]:
    """Let a model answer each prompt as the bot would ask it, each with a seed of its own."""
    turns = asyncio.Semaphore(_PARALLEL)
    head = [ChatMessage("system", chat.system_prompt)] if chat.system_prompt.strip() else []

    async def answer(number: int, prompt: str) -> str:
        sampling = Sampling(max_tokens=chat.max_new_tokens, seed=seed + number, **chat.sampling)
        async with turns:
            messages = [*head, ChatMessage("user", prompt)]
            done = await client.chat(model=model, messages=messages, sampling=sampling, deadline_s=600.0)
        return done.text.strip()

    return list(await asyncio.gather(*(answer(number, prompt) for number, prompt in enumerate(prompts))))


def measure_worth(
    taste: Taste, before: Sequence[str], after: Sequence[str], prompts: int, seed: int = 0
) -> Worth:
    """Compare replies to so many prompts, repeated in turn, by the taste: a paired bootstrap over prompts."""
    pairs = [
        (
            fmean(taste.utility(text) for text in before[prompt::prompts]),
            fmean(taste.utility(text) for text in after[prompt::prompts]),
        )
        for prompt in range(prompts)
    ]
    gains = [new - old for old, new in pairs]
    dice = random.Random(seed)
    means = sorted(fmean(dice.choices(gains, k=len(gains))) for _ in range(RESAMPLES))
    return Worth(
        before=fmean(old for old, _ in pairs),
        after=fmean(new for _, new in pairs),
        gain=fmean(gains),
        low=means[round(0.025 * (RESAMPLES - 1))],
        high=means[round(0.975 * (RESAMPLES - 1))],
        prompts=len(pairs),
    )


def samples(
    taste: Taste, prompts: Sequence[str], before: Sequence[str], after: Sequence[str]
) -> list[dict[str, Any]]:
    """The first few prompts with both replies and what the taste thinks of them."""
    return [
        {
            "prompt": prompt,
            "before": old,
            "before_utility": round(taste.utility(old), 3),
            "after": new,
            "after_utility": round(taste.utility(new), 3),
        }
        for prompt, old, new in list(zip(prompts, before, after, strict=False))[:SAMPLES]
    ]
