"""What a person or the trainer waits for."""

from collections.abc import Callable
from typing import Any

import sqlite_utils

from bot.dashboard.views import LATEST_RATINGS
from storage.admin import audit, left_out
from storage.chat import conversations, latency, members, open_replies, replies
from storage.db import key_values
from storage.db.clock import DAY_MS, now_ms
from storage.feedback import duels, like_rate, my_ratings, rating_statistics, ratings
from storage.learning import (
    adapters,
    eligibility,
    evaluations,
    loop_status,
    run_summary,
    runs,
    wrongly_rejected,
)
from storage.learning.signals import of_replies
from storage.privacy import erasure
from storage.sentences import Sentence
from storage.telemetry import counts
from tests.bench.storage.large_database import BASE, BIG

Operation = Callable[[sqlite_utils.Database], object]


def operations(db: sqlite_utils.Database) -> dict[str, Operation]:
    """Return everything a person or the trainer waits for, by name."""
    reply = db.conn.execute(
        "SELECT id, message_id FROM replies WHERE scope = ? LIMIT 1 OFFSET 500", (BIG,)
    ).fetchone()
    member = db.conn.execute("SELECT user_id FROM ratings LIMIT 1 OFFSET 700").fetchone()[0]
    recently = now_ms() - 7 * DAY_MS
    thumb: dict[str, Any] = {"reply_id": reply[0], "user_id": 3, "kind": "thumb"}
    queue: dict[str, Any] = {"scope": BIG, "trigger": "manual", "requested_by": "1"}
    return {
        "chat: receive, answer": lambda db: _chat(db, reply[1]),
        "chat: chain": lambda db: conversations.chain(db, reply[1]),
        "chat: find by Discord id": lambda db: conversations.by_discord_id(db, 1_000_000_000 + reply[1]),
        "chat: find reply by part": lambda db: replies.by_discord_id(db, 1_000_000_000 + reply[1]),
        "chat: edit": lambda db: conversations.edit_message(db, 1_000_000_000, "x"),
        "chat: delete": lambda db: conversations.delete_message(db, 1_000_000_000),
        "chat: champion": lambda db: adapters.champion(db, BIG, BASE),
        "start: open replies": open_replies.all_open,
        "start: recent replies": lambda db: replies.recent(db, recently, 200),
        "rate: rate": lambda db: ratings.rate(db, **thumb, means="button", value=1),
        "rate: retract": lambda db: ratings.retract(db, **thumb),
        "rate: clear": lambda db: ratings.retract_all(db, reply[0]),
        "rate: ratings of a reply": lambda db: ratings.list_for_reply(db, reply[0]),
        "status: glance": lambda db: loop_status.read(db, BIG, BASE, permission_reference="P"),
        "status: what would train next": lambda db: eligibility.lately_rated(
            db, BIG, permission_reference="P", ratings=LATEST_RATINGS
        ),
        "status: counts": lambda db: ratings.counts(db, BIG),
        "status: adapters": lambda db: adapters.listing(db, BIG),
        "status: runs": lambda db: runs.latest(db, BIG),
        "status: audit": audit.latest,
        "privacy: consent": lambda db: members.set_consent(db, member, "out", "1"),
        "privacy: export": lambda db: erasure.export_member(db, member),
        "privacy: erase": lambda db: erasure.erase_member(db, member, "1"),
        "trainer: new ratings": lambda db: runs.new_ratings(db, BIG),
        "trainer: a page of rows": lambda db: _first_pages(db, 20),
        "trainer: a page of signals": lambda db: of_replies.of_replies(
            db, next(eligibility.pages(db, BIG)), permission_reference="P"
        ),
        "trainer: signals of unrated replies": lambda db: of_replies.of_unrated(
            db, BIG, permission_reference="P"
        ),
        "trainer: a run": lambda db: _run(db, queue),
        "trainer: roll back": lambda db: adapters.rollback(
            db, scope=BIG, base_hash=BASE, actor="1", reason=""
        ),
        "votes: duel and tally": _duel,
        "statistic: /stats": lambda db: (
            rating_statistics.by_day(db, BIG, 30),
            rating_statistics.by_adapter(db, BIG, 30, 10),
        ),
        "statistic: /stats weeks": lambda db: (
            like_rate.by_week(db, BIG, 26),
            like_rate.by_channel(db, BIG, 28, 8),
        ),
        "statistic: drift": lambda db: like_rate.drift(db, BIG),
        "statistic: monitoring": lambda db: (counts.read(db, BASE), counts.trends(db)),
        "statistic: speed": lambda db: latency.measure_speed(db, BIG, 24),
        "privacy: my ratings": lambda db: (
            my_ratings.counts(db, member),
            my_ratings.page(db, member, limit=10),
        ),
        "admin: left out": lambda db: left_out.listing(db, BIG),
        "admin: runs": lambda db: run_summary.page(db, BIG, skip=0, limit=20),
        "admin: wrongly rejected": wrongly_rejected.find,
        "facts": lambda db: key_values.get(db, "a"),
    }


def _chat(db: sqlite_utils.Database, message_id: int) -> None:
    members.ensure(db, 1, "new name", "discord")
    conversation = conversations.open_conversation(
        db, key="bench", guild_id=1, channel_id=1, scope=BIG, source="discord", public=True
    )
    asked = conversations.add_message(
        db,
        conversation_id=conversation.id,
        discord_id=1,
        parent_id=message_id,
        author_id=1,
        role="user",
        content="hello",
    )
    made_from: dict[str, Any] = {
        "adapter_id": None,
        "base_hash": BASE,
        "prompt": [],
        "seed": 1,
        "sampling": {},
    }
    replies.start(db, reply_id="bench", prompt_message_id=asked, scope=BIG, **made_from)
    replies.add_part(db, "bench", 2, 1, 0)
    figures = (
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "queue_ms",
        "first_token_ms",
        "duration_ms",
    )
    replies.finish(db, "bench", content="hi", status="complete", **dict.fromkeys(figures))


def _first_pages(db: sqlite_utils.Database, pages: int) -> None:
    for number, page in enumerate(eligibility.pages(db, BIG)):
        list(eligibility.judge_rows(db, page, "P"))
        if number == pages:
            return


def _run(db: sqlite_utils.Database, queue: dict[str, Any]) -> None:
    run = runs.enqueue(db, **queue)
    runs.lease_next(db, "bench", 60_000)
    runs.heartbeat(db, run.id, "bench", "train", 0.5)
    rows = db.conn.execute("SELECT id FROM replies LIMIT 2000").fetchall()
    runs.record_snapshot(
        db, run.id, snapshot_hash="h", rows=[runs.RunRow(row[0], "train", "liked", 1.0) for row in rows]
    )
    runs.rows_of(db, run.id)
    evaluations.list_for_run(db, run.id)
    runs.finish(db, run.id, outcome="refused", message=Sentence("no"))


def _duel(db: sqlite_utils.Database) -> None:
    texts = {"first_text": "a", "second_text": "b", "first_is_challenger": True}
    duels.add(
        db,
        duel_id="d",
        run_id="run0001",
        scope=BIG,
        challenger_id="a",
        champion_id=None,
        prompt=[],
        **texts,  # type: ignore[arg-type]
    )
    duels.vote(db, duel_id="d", user_id=1, choice=1, source="discord")
    duels.open_for(db, BIG)
    duels.tally(db, "run0001")
    duels.close(db, "run0001")
