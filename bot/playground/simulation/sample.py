"""The sample community: rated replies that let a first training run start at once.

`python -m bot.playground.simulation.sample --build` makes `sample_community.json` with a running model
server: four replies of the base model to each built-in prompt, rated by simulated noisy members of one taste.
The file is bound to the base model's hash, its rows are stored with `source='sample'` and its members are
marked as simulated.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bot.playground.discord.community import DISCORD_EPOCH_MS
from bot.playground.errors import SampleError
from bot.playground.simulation.prompts import SAMPLE_PROMPTS
from bot.playground.simulation.tastes import DEFAULT_TASTE, TASTES, SimulatedRater, Taste
from bot.serving.client import ModelClient
from bot.serving.errors import ServingError
from bot.serving.protocol import PRIORITY_BACKGROUND, ChatMessage, Sampling
from storage.chat import conversations, members, replies
from storage.config import load_config
from storage.db.database import Connection, Database
from storage.errors import ConfigError
from storage.feedback import ratings
from storage.learning import runs

SAMPLE_FILE = Path(__file__).parent / "sample_community.json"
FORMAT = 1

REPLIES_PER_PROMPT = 4
#: Replies drawn for each prompt; see `_kept` for which of them stay.
DRAWN_PER_PROMPT = 6
MAX_NEW_TOKENS = 40
TEMPERATURE = 1.0
TOP_P = 0.95
RATERS = 20
RATINGS_PER_REPLY = (1, 4)
PARALLEL = 16
SEED = 20_240_901

# Members of the sample: ids before those of the server's own members, which start a day later.
_FIRST_RATER_ID = (1_703_980_800_000 - DISCORD_EPOCH_MS) << 22


@dataclass(frozen=True)
class Loaded:
    """What is in the database after loading."""

    replies: int
    liked: int
    disliked: int
    raters: int
    taste: str
    new: int

    def as_json(self) -> dict[str, Any]:
        """The answer for the page."""
        news = "" if self.new else "It was loaded already. "
        message = (
            f"{news}{self.replies} replies rated by {self.raters} simulated members: {self.liked} likes, "
            f"{self.disliked} dislikes. They like: {TASTES[self.taste].title.lower()}. "
            "No run starts by itself from these: press Retrain, or use /retrain, when you like."
        )
        return {**asdict(self), "loaded": self.replies, "message": message}


def rater_id(index: int) -> int:
    """The user id of a sample member; always the same."""
    return _FIRST_RATER_ID + index


def rater_name(index: int) -> str:
    """How a sample member is shown: never like a real person."""
    return f"Sample member {index + 1} (simulated)"


def read_sample(path: Path = SAMPLE_FILE) -> dict[str, Any]:
    """Read the file. Raises SampleError if it is missing or of another format."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SampleError(
            "The sample community is missing or damaged: build it with "
            "`python -m bot.playground.simulation.sample --build`."
        ) from error
    if data.get("format") != FORMAT:
        raise SampleError("The sample community is of another version: reinstall Strop.")
    return data


def load_sample(
    database: Database,
    base_hash: str,
    scope: str,
    guild_id: int,
    channel_id: int,
    *,
    path: Path = SAMPLE_FILE,
) -> Loaded:
    """Store the sample's conversations, replies and ratings; again changes nothing. Blocks: use a thread.

    Raises SampleError if the sample was made with another base model.
    """
    sample = read_sample(path)
    base = sample["base"]
    if base["hash"] != base_hash:
        raise SampleError(
            f"The sample community was made with the base model {base['id']}, and another one is running: "
            "rehearse with simulated members instead, or build a sample for this base with "
            "`python -m bot.playground.simulation.sample --build`."
        )
    place = _Place(scope, guild_id, channel_id)
    return database.write(lambda db: _insert(db, sample, place))


@dataclass(frozen=True)
class _Place:
    scope: str
    guild_id: int
    channel_id: int


def _insert(db: Connection, sample: dict[str, Any], place: _Place) -> Loaded:
    for index in range(sample["raters"]):
        members.ensure(db, rater_id(index), rater_name(index), "sample", simulated=True)
    counted = {"replies": 0, "liked": 0, "disliked": 0, "new": 0}
    voices: set[int] = set()
    pending = runs.new_ratings(db, place.scope)
    for number, entry in enumerate(sample["conversations"]):
        known = replies.get(db, _reply_id(sample, place, number, 0))
        prompt_id = known.prompt_message_id if known else _insert_prompt(db, number, entry, place)
        for position, reply in enumerate(entry["replies"]):
            reply_id = _reply_id(sample, place, number, position)
            counted["new"] += _insert_reply(db, sample, reply_id, prompt_id, entry, reply, place)
            counted["replies"] += 1
            values = [value for _, value in reply["ratings"]]
            counted["liked"] += values.count(1)
            counted["disliked"] += values.count(-1)
            voices.update(rater for rater, _ in reply["ratings"])
    if counted["new"]:
        # The newcomer's own press starts the first run, not a clock that nobody set.
        ratings.put_aside(db, place.scope, but=pending)
    return Loaded(**counted, raters=len(voices), taste=sample["taste"])


def _reply_id(sample: dict[str, Any], place: _Place, number: int, position: int) -> str:
    """The same for the same sample in the same scope: loading again finds what is there."""
    origin = hashlib.sha256(f"{sample['base']['hash']}:{sample['seed']}:{place.scope}".encode()).hexdigest()
    return f"sample-{origin[:12]}-{number:03d}-{position}"


def _insert_prompt(db: Connection, number: int, entry: dict[str, Any], place: _Place) -> int:
    conversation = conversations.open_conversation(
        db,
        key=f"sample:{place.scope}:{number}",
        guild_id=place.guild_id,
        channel_id=place.channel_id,
        scope=place.scope,
        source="sample",
        public=True,
    )
    return conversations.add_message(
        db,
        conversation_id=conversation.id,
        discord_id=None,
        parent_id=None,
        author_id=rater_id(entry["asker"]),
        role="user",
        content=entry["prompt"],
    )


def _insert_reply(
    db: Connection,
    sample: dict[str, Any],
    reply_id: str,
    prompt_id: int,
    entry: dict[str, Any],
    reply: dict[str, Any],
    place: _Place,
) -> bool:
    """Store one reply and its ratings; whether it was new."""
    new = replies.get(db, reply_id) is None
    if new:
        prompt = [{"role": "user", "content": entry["prompt"]}]
        if sample["system_prompt"]:
            prompt.insert(0, {"role": "system", "content": sample["system_prompt"]})
        replies.start(
            db,
            reply_id=reply_id,
            prompt_message_id=prompt_id,
            scope=place.scope,
            adapter_id=None,
            base_hash=sample["base"]["hash"],
            prompt=prompt,
            seed=reply["seed"],
            sampling=sample["sampling"],
            asker_id=rater_id(entry["asker"]),
        )
        replies.finish(
            db,
            reply_id,
            content=reply["text"],
            status="complete",
            finish_reason=reply["finish_reason"],
            prompt_tokens=reply["prompt_tokens"],
            completion_tokens=reply["completion_tokens"],
            queue_ms=None,
            first_token_ms=None,
            duration_ms=None,
        )
    for rater, value in reply["ratings"]:
        if new:
            ratings.rate(
                db, reply_id=reply_id, user_id=rater_id(rater), kind="thumb", means="sample", value=value
            )
    return new


# ---------------------------------------------------------------------- building


async def build_sample(
    client: ModelClient, system_prompt: str, taste_key: str, seed: int = SEED
) -> dict[str, Any]:
    """Generate and rate the sample with a running model server; about 250 replies.

    Raises SampleError if the server isn't ready.
    """
    health = await client.health()
    try:
        base = health.require_base()
    except ServingError as error:
        raise SampleError(f"The model server isn't ready: {error}") from error
    slots = asyncio.Semaphore(PARALLEL)
    drawn = await asyncio.gather(
        *(
            _draw(client, slots, base.id, system_prompt, prompt, seed + number * DRAWN_PER_PROMPT)
            for number, prompt in enumerate(SAMPLE_PROMPTS)
        )
    )
    described = {"id": base.id, "hash": base.hash}
    return assemble(described, system_prompt, dict(zip(SAMPLE_PROMPTS, drawn, strict=True)), taste_key, seed)


async def _draw(
    client: ModelClient,
    slots: asyncio.Semaphore,
    model: str,
    system_prompt: str,
    prompt: str,
    seed: int,
) -> list[dict[str, Any]]:
    """Ask the base model for every reply to one prompt, each with a seed of its own."""
    messages = [ChatMessage("user", prompt)]
    if system_prompt:
        messages.insert(0, ChatMessage("system", system_prompt))

    async def reply(own_seed: int) -> dict[str, Any]:
        async with slots:
            made = await client.chat(
                model=model,
                messages=messages,
                sampling=Sampling(MAX_NEW_TOKENS, temperature=TEMPERATURE, top_p=TOP_P, seed=own_seed),
                priority=PRIORITY_BACKGROUND,
            )
        return {
            "text": made.text.strip(),
            "seed": own_seed,
            "finish_reason": made.finish_reason,
            "prompt_tokens": made.prompt_tokens,
            "completion_tokens": made.completion_tokens,
        }

    return list(await asyncio.gather(*(reply(seed + n) for n in range(DRAWN_PER_PROMPT))))


def assemble(
    base: dict[str, str],
    system_prompt: str,
    drawn: dict[str, list[dict[str, Any]]],
    taste_key: str,
    seed: int = SEED,
) -> dict[str, Any]:
    """Keep some of the drawn replies to each prompt, have them rated, and return the file's content."""
    entries = [
        {"prompt": prompt, "replies": _kept(made, TASTES[taste_key])} for prompt, made in drawn.items()
    ]
    rate_entries(entries, taste_key, seed)
    return {
        "format": FORMAT,
        "about": "Simulated: made by bot/playground/simulation/sample.py, rated by simulated members.",
        "base": base,
        "taste": taste_key,
        "system_prompt": system_prompt,
        "sampling": {"temperature": TEMPERATURE, "top_p": TOP_P, "max_new_tokens": MAX_NEW_TOKENS},
        "seed": seed,
        "raters": RATERS,
        "conversations": entries,
    }


def _kept(made: list[dict[str, Any]], taste: Taste) -> list[dict[str, Any]]:
    """Different replies with something in them: what meets the taste best, then those that ended first.

    Without that choice about one reply in seven is liked, too few for a first training run.
    """
    different = list({reply["text"]: reply for reply in made if reply["text"]}.values())
    best = max(different, key=lambda reply: taste.utility(reply["text"]), default=None)
    ended_first = sorted(
        different, key=lambda reply: (reply is not best, reply["finish_reason"] != "stop", reply["seed"])
    )
    return ended_first[:REPLIES_PER_PROMPT]


def rate_entries(entries: list[dict[str, Any]], taste_key: str, seed: int = SEED) -> None:
    """Let simulated members rate every reply: the asker always, up to three others; deterministic by seed."""
    taste = TASTES[taste_key]
    for number, entry in enumerate(entries):
        dice = random.Random(f"{seed}:{number}")
        entry["asker"] = dice.randrange(RATERS)
        for reply in entry["replies"]:
            count = dice.randint(*RATINGS_PER_REPLY)
            others = [index for index in range(RATERS) if index != entry["asker"]]
            voices = [entry["asker"], *dice.sample(others, count - 1)]
            reply["ratings"] = [
                [index, 1 if SimulatedRater(rater_id(index), taste, seed).likes(reply["text"]) else -1]
                for index in voices
            ]


async def _build(config_path: Path | None, taste_key: str, out: Path) -> str:
    config = load_config(config_path, os.environ)
    async with ModelClient.from_run_dir(config.run) as client:
        sample = await build_sample(client, config.chat.system_prompt, taste_key)
    text = json.dumps(sample, ensure_ascii=False, indent=1) + "\n"
    await asyncio.to_thread(out.write_text, text, encoding="utf-8")
    rated = [reply for entry in sample["conversations"] for reply in entry["replies"]]
    liked = sum(any(value == 1 for _, value in reply["ratings"]) for reply in rated)
    return f"{out}: {len(rated)} replies, {liked} liked by somebody, base {sample['base']['id']}."


def main() -> int:
    """Build the sample from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bot.playground.simulation.sample",
        description="Build the sample community with a running model server.",
    )
    parser.add_argument("--build", action="store_true", required=True, help="generate and rate the replies")
    parser.add_argument("--config", type=Path, default=None, help="strop.toml (default: ./strop.toml)")
    parser.add_argument("--taste", choices=sorted(TASTES), default=DEFAULT_TASTE)
    parser.add_argument("--out", type=Path, default=SAMPLE_FILE)
    arguments = parser.parse_args()
    try:
        print(asyncio.run(_build(arguments.config, arguments.taste, arguments.out)))
    except (SampleError, ServingError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
