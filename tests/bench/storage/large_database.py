"""A database as a large community would have left it."""

import sqlite_utils

from storage.db.clock import DAY_MS, now_ms
from storage.learning import adapters, evaluations

BIG, BASE = "guild:1", "base"
RUNS = 200


def fill(db: sqlite_utils.Database, ratings_count: int) -> None:
    """Insert members, conversations, replies and ratings the way a large community would have left them.

    Every reply has one rating and many have up to four; nine of ten rows are in one guild.
    """
    replies_count = ratings_count * 2 // 5
    parameters = {
        "members": max(ratings_count // 50, 10),
        "replies": replies_count,
        "ratings": ratings_count,
        "now": now_ms(),
        "step": max(365 * DAY_MS // replies_count, 1),
    }
    db.conn.execute("PRAGMA cache_size=-500000")
    for statement in _FILL.split("\n\n"):
        db.conn.execute(statement, parameters)
    adapters.ensure_champion_row(db, BIG, BASE)
    for number in range(RUNS):
        run_id, adapter_id = f"run{number:04}", f"a{number:04}"
        path = f"adapters/{adapter_id}"
        adapters.insert_candidate(
            db, adapter_id=adapter_id, scope=BIG, base_hash=BASE, path=path, run_id=run_id
        )
        adapters.promote(
            db, scope=BIG, base_hash=BASE, adapter_id=adapter_id, actor="bench", reason="bench", run_id=run_id
        )
        evaluations.add(db, run_id=run_id, adapter_id=adapter_id, champion_id=None, metric="m", value=0.1)


_NUMBERS = "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {})"

_FILL = f"""
INSERT INTO members (user_id, display_name, source, consent, created_ms)
{_NUMBERS.format(":members")} SELECT i, 'member ' || i, 'discord', 'in', :now FROM n

INSERT INTO conversations (id, key, guild_id, channel_id, scope, source, public, split, created_ms)
{_NUMBERS.format(":replies")}
SELECT i, 'discord:' || i, 1 + (i % 10 = 0), i % 50, 'guild:' || (1 + (i % 10 = 0)), 'discord', 1,
       CASE WHEN i % 10 < 7 THEN 'train' WHEN i % 10 < 8 THEN 'development' ELSE 'gate' END, :now FROM n

INSERT INTO messages (id, discord_id, conversation_id, parent_id, author_id, role, content, source, consent,
                      created_ms)
{_NUMBERS.format(":replies * 2")}
SELECT i, 1000000000 + i, i / 2, iif(i % 2, i - 1, NULL), iif(i % 2, NULL, (i / 2 * 7919) % :members),
       iif(i % 2, 'assistant', 'user'),
       iif(i % 20, '', '@member ' || i % 1000 || ' ') || hex(randomblob(60)), 'discord', 'in',
       :now - (:replies - i / 2) * :step FROM n

INSERT INTO replies (id, message_id, prompt_message_id, conversation_id, asker_id, scope, base_hash,
                     prompt_json, sampling_json, status, source, created_ms)
{_NUMBERS.format(":replies")}
SELECT printf('%08x%08x', i * 2654435761 % 4294967296, i), i * 2 + 1, i * 2, i, (i * 7919) % :members,
       'guild:' || (1 + (i % 10 = 0)), 'base',
       json_array(json_object('role', 'user', 'content', hex(randomblob(60)))), '{{}}', 'complete', 'discord',
       :now - (:replies - i) * :step FROM n

INSERT INTO reply_context SELECT id, prompt_message_id, asker_id FROM replies

INSERT INTO reply_parts SELECT 1000000000 + message_id, id, 1, 0 FROM replies

INSERT INTO ratings (reply_id, user_id, scope, kind, means, value, emoji, source, consent, created_ms,
                     updated_ms)
{_NUMBERS.format("4")}
SELECT id, (asker_id + i * 31 + 1) % :members, scope, 'thumb', 'reaction', iif((message_id + i) % 3, -1, 1),
       '👍', 'discord', 'in', created_ms, created_ms
FROM replies CROSS JOIN n
WHERE i = 0 OR (message_id / 2 % 5 > 1 AND (i < 3 OR message_id / 2 % 2)) LIMIT :ratings

INSERT INTO runs (id, scope, trigger, requested_by, state, outcome, ratings_seen, created_ms, started_ms,
                  finished_ms)
{_NUMBERS.format(RUNS)}
SELECT printf('run%04d', i), 'guild:1', 'schedule', '1', 'finished', 'refused', i * 4000, started, started,
       started + 600000 FROM (SELECT i, :now - ({RUNS} - i) * {DAY_MS} AS started FROM n)

INSERT INTO run_rows
{_NUMBERS.format(RUNS)}
SELECT printf('run%04d', n.i), replies.id, 'train', 'liked', 1.0
FROM n JOIN replies ON replies.message_id / 2 % 997 = n.i

INSERT INTO audit (actor, action, detail_json, created_ms)
{_NUMBERS.format("20000")} SELECT '1', 'consent', json_object('user_id', i % 1000), :now FROM n"""
