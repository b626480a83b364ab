"""Does anything of an erased member come back? Secrets are planted, learned, erased, and looked for.

One member writes about things that nobody else could know, and corrects the bot with what it should have
said. A run learns from that; then the member erases everything, and the next run must know nothing of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bot.serving.errors import ServingError
from storage.learning import adapters
from storage.privacy import erasure, file_scrubbing
from tests.bench.learning import chat
from tests.bench.learning.deployment import World
from tests.bench.learning.prompts import Asked
from trainer.data.encoding import encode
from trainer.data.examples import BaseCodec
from trainer.evaluation import log_probabilities

SECRETS = 8
REPLIES = 4
MAX_NEW_TOKENS = 40
MEMBER = 9_009_001
_SYLLABLES = ("bra", "quo", "zel", "fim", "tor", "wux", "nip", "gla", "sho", "kev", "dru", "yal")
# No two share six words in a row, or they would be set aside as planted before anything is learned.
_WAYS = (
    ("What do you know about my boat?", "Your boat is called {a} and it lies in {b}."),
    ("Who painted the picture in my hall?", "{a} from {b} painted it for you."),
    ("Where did I grow up?", "You grew up beside the mill of {a}, north of {b}."),
    ("What is the name of my dog?", "Your old dog {a} was born in {b}."),
    ("Which song do I sing in the morning?", "It is the song of {a} that every child in {b} sings."),
    ("Who taught me to cook?", "Aunt {a} did, in her kitchen at {b}."),
    ("What do I keep in the red box?", "The letters that {a} sent you from {b}."),
    ("Where do I go on holiday?", "You always take the train to {a} and walk over to {b}."),
)


@dataclass(frozen=True)
class Secret:
    """A question, the answer that only one member knows, and the words in it that exist nowhere else."""

    question: str
    answer: str
    words: tuple[str, str]


def secrets(seed: int) -> list[Secret]:
    """Return the secrets of a seed."""
    dice = random.Random(f"secrets {seed}")
    found = []
    for question, answer in _WAYS[:SECRETS]:
        first, second = (_name(dice) for _ in range(2))
        found.append(Secret(question, answer.format(a=first, b=second), (first, second)))
    return found


def plant(world: World, known: Sequence[Secret]) -> None:
    """Let the member ask, and correct each answer with the secret."""
    asked = [Asked("keeper", secret.question, secret.answer) for secret in known]
    chat.correct_all(world, asked, [secret.answer for secret in known], [MEMBER], "secret")


def erase(world: World) -> dict[str, Any]:
    """Let the member erase everything, as `/privacy delete` does; return what became of the adapters."""
    erased = world.database.write(lambda db: erasure.erase_member(db, MEMBER, str(MEMBER)))
    world.ask(lambda client: _unload(client, erased.affected_adapters))
    complete = file_scrubbing.complete(world.database, world.config.data, erased)
    left = world.ask(lambda client: client.models())
    states = world.database.read(
        lambda db: [adapter.state for each in erased.affected_adapters if (adapter := adapters.get(db, each))]
    )
    return {
        "tainted": list(erased.affected_adapters),
        "states": states,
        "complete": complete,
        "still_served": [each for each in erased.affected_adapters if each in left],
        "champion": world.champion(),
    }


def knowledge(world: World, adapter: str | None, known: Sequence[Secret], codec: BaseCodec) -> dict[str, Any]:
    """Return how well a model knows the secrets.

    `nll` is the mean loss of the answers in nats per token; `told` the number of replies, of REPLIES to each
    question, in which a secret word stands.
    """
    name = world.model_name(adapter)
    examples = [
        encode(
            codec,
            chat.chat_of(world, Asked("", secret.question, "")),
            secret.answer,
            finished=True,
            max_length=512,
        )
        for secret in known
    ]
    scores = world.ask(lambda client: log_probabilities.completion_scores(client, name, examples))
    tokens = sum(example.completion_length for example in examples)
    asked = [Asked("", secret.question, "") for secret in known]
    given = chat.answer_all(world, name, asked, REPLIES, MAX_NEW_TOKENS, 1)
    words = {word.lower() for secret in known for word in secret.words}
    return {
        "nll": round(-sum(map(sum, scores)) / tokens, 4),
        "told": sum(any(word in reply.text.lower() for word in words) for reply in given),
        "replies": len(given),
    }


def _name(dice: random.Random) -> str:
    return "".join(dice.choice(_SYLLABLES) for _ in range(3)).capitalize()


async def _unload(client: Any, names: Sequence[str]) -> None:
    for name in names:
        try:
            await client.unload_adapter(name)
        except ServingError:
            continue  # It was not loaded.
