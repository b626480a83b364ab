"""A model server in its own process and a rated community, for tests of whole runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlite_utils

from bot.serving.client import SERVER_FILE
from storage.chat import conversations, members, replies
from storage.config import Config
from storage.db.database import Database
from storage.feedback import ratings
from storage.learning import runs
from storage.learning.runs import Run
from storage.process import locks

GUILD = 100
SCOPE = f"guild:{GUILD}"
START_S = 280.0
SYSTEM = "Answer briefly."
WORDS = ("tea", "rain", "chess", "bread", "cats", "films", "music", "trains")

TRIAL: Mapping[str, Any] = {
    "discord": {},
    "trainer": {
        "min_liked": 3,
        "min_raters": 2,
        "epochs": 1,
        "ranked_replies": 96,
        "rank": 4,
        "alpha": 8,
        "max_length": 160,
    },
    "gate": {"max_prompts": 16, "max_new_tokens": 8, "bootstrap": 200, "generation_minutes": 0.5},
    "server": {"port": 0},
}


@dataclass
class Deployment:
    """A home with a database, and the configuration of everything in it."""

    config: Config
    database: Database

    def lease(self, settings: Mapping[str, Any] | None = None) -> Run:
        """Queue a run and take it, as the trainer does before it starts the child."""

        def work(db: sqlite_utils.Database) -> Run:
            runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test", settings=settings)
            leased = runs.lease_next(db, "test", 600_000)
            assert leased is not None
            return leased

        return self.database.write(work)


def configured(home: Path, base: Path, **sections: Mapping[str, Any]) -> Config:
    """A playground configuration on the given base."""
    merged: dict[str, Any] = {name: dict(values) for name, values in TRIAL.items()}
    for name, values in sections.items():
        merged[name] = merged.get(name, {}) | dict(values)
    return Config.model_validate(
        merged
        | {"home": home, "model": {"base": str(base), "device": "cpu", "context_tokens": 512, "slots": 4}}
        | {"chat": {"context_tokens": 256, "system_prompt": SYSTEM}}
    )


def serve(config: Config) -> subprocess.Popen[bytes]:
    """Start the model server and wait until it has loaded its base."""
    config.run.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "bot.serving"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=(config.run / "server.log").open("wb"),
        env={**os.environ},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(config.server_slice()).encode())
    process.stdin.close()
    log = config.run / "server.log"
    until(lambda: b"model.loaded" in log.read_bytes(), process, log)
    assert (config.run / SERVER_FILE).exists()
    return process


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    ends_at = time.monotonic() + START_S
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends_at, log.read_text()
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    locks.end(process, 20)


def community(
    db: sqlite_utils.Database,
    count: int,
    *,
    source: str = "rehearsal",
    public: bool = True,
    dislikes: bool = True,
    guild: int = GUILD,
) -> None:
    """So many conversations with one reply each; who asks back is liked, by two raters in five.

    The others are disliked by two, or, without `dislikes`, not rated.
    """
    scope, first = f"guild:{guild}", 1000 * (guild - GUILD + 1)
    for user in range(1, 6):
        members.ensure(db, user, f"Member {user}", source, simulated=True)
    for number in range(count):
        asker = number % 5 + 1
        word = WORDS[number % len(WORDS)]
        conversation = conversations.open_conversation(
            db,
            key=f"{scope}/{number}",
            guild_id=guild,
            channel_id=5,
            scope=scope,
            source=source,
            public=public,
        )
        asked = f"Tell me about {word}, number {number}."
        question = conversations.add_message(
            db,
            conversation_id=conversation.id,
            discord_id=first + number,
            parent_id=None,
            author_id=asker,
            role="user",
            content=asked,
        )
        likes = number % 3 == 0
        reply_id = f"reply-{number:03d}" if guild == GUILD else f"reply-{guild}-{number:03d}"
        replies.start(
            db,
            reply_id=reply_id,
            prompt_message_id=question,
            scope=scope,
            adapter_id=None,
            base_hash="b" * 64,
            prompt=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}],
            seed=number,
            sampling={},
        )
        replies.finish(
            db,
            reply_id,
            content=f"I like {word}. Do you?" if likes else f"There is much to say about {word} and more.",
            status="complete",
            finish_reason="stop" if likes else "length",
            prompt_tokens=20,
            completion_tokens=9,
            queue_ms=1,
            first_token_ms=2,
            duration_ms=3,
        )
        for user in (asker, asker % 5 + 1) if likes or dislikes else ():
            rate(db, reply_id, user, 1 if likes else -1)


def rate(db: sqlite_utils.Database, reply_id: str, user_id: int, value: int) -> None:
    """One member's thumb."""
    ratings.rate(
        db,
        reply_id=reply_id,
        user_id=user_id,
        kind="thumb",
        means="reaction",
        value=value,
        emoji="👍" if value > 0 else "👎",
    )
