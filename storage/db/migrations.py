"""The schema, one step at a time. A step that shipped is never edited: the next one changes it.

Times are milliseconds since the epoch (UTC), booleans 0 or 1, Discord's ids integers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlite_utils
from sqlite_utils import Migrations

from storage.errors import NewerDatabaseError

steps = Migrations("strop")


def apply(db: sqlite_utils.Database, path: Path, steps: Migrations = steps) -> None:
    """Apply what is pending, inside the caller's write transaction (so that processes take turns).

    Raises NewerDatabaseError if the file has steps that this version does not know.
    """
    _refuse_unknown([step.name for step in steps.applied(db)], path, steps)
    if steps.pending(db):
        steps.apply(db)


def require_known(connection: Any, path: Path) -> None:
    """Refuse a database file with steps that this version does not know, without touching it."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone():
        return
    rows = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = 'strop'")
    _refuse_unknown([row[0] for row in rows], path, steps)


def _refuse_unknown(applied: Sequence[str], path: Path, steps: Migrations) -> None:
    known = {step.name for step in steps._migrations}
    unknown = [name for name in applied if name not in known]
    if unknown:
        raise NewerDatabaseError(
            f"{path} was written by a newer Strop (step {unknown[-1]!r} is unknown to this version): "
            "upgrade Strop, or restore a backup that this version made."
        )


def _run(db: sqlite_utils.Database, script: str) -> None:
    """Run statements separated by a blank line, without the COMMIT that executescript() would issue."""
    for statement in script.split("\n\n"):
        if statement.strip():
            db.conn.execute(statement)


def m0001_people_and_conversations(db: sqlite_utils.Database) -> None:
    """Members, conversations and their messages; a message's parent makes branches possible."""
    _run(
        db,
        """
CREATE TABLE members (
    user_id INTEGER PRIMARY KEY,
    display_name TEXT NOT NULL,
    source TEXT NOT NULL,
    simulated INTEGER NOT NULL DEFAULT 0 CHECK (simulated IN (0, 1)),
    consent TEXT NOT NULL DEFAULT 'unset' CHECK (consent IN ('unset', 'in', 'out')),
    consent_ms INTEGER,
    erased_ms INTEGER,
    created_ms INTEGER NOT NULL
) STRICT

CREATE TABLE conversations (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    guild_id INTEGER,
    channel_id INTEGER NOT NULL,
    scope TEXT NOT NULL,
    source TEXT NOT NULL,
    public INTEGER NOT NULL CHECK (public IN (0, 1)),
    split TEXT NOT NULL CHECK (split IN ('train', 'development', 'gate')),
    group_key TEXT,
    created_ms INTEGER NOT NULL
) STRICT

CREATE TRIGGER conversations_split_is_immutable BEFORE UPDATE OF split, group_key ON conversations
WHEN old.group_key IS NOT NULL BEGIN
    SELECT RAISE(ABORT, 'the split of a conversation never changes');
END

CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    discord_id INTEGER UNIQUE,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id),
    parent_id INTEGER REFERENCES messages (id),
    author_id INTEGER REFERENCES members (user_id),
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    content TEXT NOT NULL,
    source TEXT NOT NULL,
    consent TEXT NOT NULL CHECK (consent IN ('unset', 'in', 'out')),
    permission_reference TEXT,
    created_ms INTEGER NOT NULL,
    edited_ms INTEGER,
    deleted_ms INTEGER
) STRICT

CREATE INDEX messages_by_conversation ON messages (conversation_id)

CREATE INDEX messages_by_parent ON messages (parent_id)

CREATE INDEX messages_by_author ON messages (author_id, created_ms) WHERE author_id IS NOT NULL
""",
    )


def m0002_replies_and_ratings(db: sqlite_utils.Database) -> None:
    """Replies with what produced them, whose words they were made from, and what members thought of them."""
    _run(
        db,
        """
CREATE TABLE replies (
    id TEXT PRIMARY KEY,
    message_id INTEGER NOT NULL UNIQUE REFERENCES messages (id),
    prompt_message_id INTEGER NOT NULL REFERENCES messages (id),
    conversation_id INTEGER NOT NULL REFERENCES conversations (id),
    asker_id INTEGER REFERENCES members (user_id),
    scope TEXT NOT NULL,
    adapter_id TEXT,
    base_hash TEXT NOT NULL,
    prompt_json TEXT NOT NULL CHECK (json_valid(prompt_json)),
    seed INTEGER,
    sampling_json TEXT NOT NULL CHECK (json_valid(sampling_json)),
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    finish_reason TEXT,
    queue_ms INTEGER,
    first_token_ms INTEGER,
    duration_ms INTEGER,
    status TEXT NOT NULL CHECK (status IN ('streaming', 'complete', 'stopped', 'failed')),
    error TEXT,
    source TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID

CREATE INDEX replies_by_time ON replies (created_ms)

CREATE INDEX replies_by_conversation ON replies (conversation_id)

CREATE INDEX replies_by_prompt ON replies (prompt_message_id)

CREATE INDEX replies_by_asker ON replies (asker_id) WHERE asker_id IS NOT NULL

CREATE INDEX replies_streaming ON replies (created_ms) WHERE status = 'streaming'

CREATE TABLE reply_context (
    reply_id TEXT NOT NULL REFERENCES replies (id),
    message_id INTEGER NOT NULL REFERENCES messages (id),
    user_id INTEGER REFERENCES members (user_id),
    PRIMARY KEY (reply_id, message_id)
) STRICT, WITHOUT ROWID

CREATE INDEX reply_context_by_message ON reply_context (message_id)

CREATE INDEX reply_context_by_user ON reply_context (user_id) WHERE user_id IS NOT NULL

CREATE TABLE reply_parts (
    discord_id INTEGER PRIMARY KEY,
    reply_id TEXT NOT NULL REFERENCES replies (id),
    channel_id INTEGER NOT NULL,
    position INTEGER NOT NULL
) STRICT

CREATE INDEX reply_parts_by_reply ON reply_parts (reply_id, position)

CREATE TABLE ratings (
    id INTEGER PRIMARY KEY,
    reply_id TEXT NOT NULL REFERENCES replies (id),
    user_id INTEGER NOT NULL REFERENCES members (user_id),
    scope TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('thumb', 'correction', 'vote')),
    means TEXT NOT NULL CHECK (means IN ('reaction', 'button', 'modal', 'page', 'sample')),
    value INTEGER NOT NULL CHECK (value IN (-1, 0, 1)),
    emoji TEXT,
    text TEXT,
    retracted INTEGER NOT NULL DEFAULT 0 CHECK (retracted IN (0, 1)),
    source TEXT NOT NULL,
    consent TEXT NOT NULL CHECK (consent IN ('unset', 'in', 'out')),
    permission_reference TEXT,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    UNIQUE (reply_id, user_id, kind)
) STRICT

CREATE INDEX ratings_by_user ON ratings (user_id)

CREATE INDEX ratings_active ON ratings (scope, reply_id) WHERE retracted = 0

CREATE INDEX ratings_by_time ON ratings (scope, updated_ms, kind, value, user_id) WHERE retracted = 0
""",
    )


def m0003_rating_counters(db: sqlite_utils.Database) -> None:
    """Counting a million ratings takes too long for a status line: triggers keep the counts."""
    _run(
        db,
        f"""
CREATE TABLE scope_counts (
    scope TEXT PRIMARY KEY,
    liked INTEGER NOT NULL DEFAULT 0,
    disliked INTEGER NOT NULL DEFAULT 0,
    corrections INTEGER NOT NULL DEFAULT 0,
    changes INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID

CREATE TABLE scope_raters (
    scope TEXT NOT NULL,
    user_id INTEGER NOT NULL,
    ratings INTEGER NOT NULL,
    PRIMARY KEY (scope, user_id)
) STRICT, WITHOUT ROWID

CREATE TRIGGER ratings_inserted AFTER INSERT ON ratings BEGIN
    {_count("new", "+", changes=1)}
END

CREATE TRIGGER ratings_updated AFTER UPDATE OF value, retracted, kind, scope, text ON ratings BEGIN
    {_count("old", "-", changes=0)}
    {_count("new", "+", changes=1)}
END

CREATE TRIGGER ratings_deleted AFTER DELETE ON ratings BEGIN
    {_count("old", "-", changes=0)}
END
""",
    )


def _count(row: str, sign: str, *, changes: int) -> str:
    """Return the trigger statements that add a rating to its scope's counts, or take it out."""
    counted = f"({row}.retracted = 0 AND {row}.kind IN ('thumb', 'correction'))"
    return f"""INSERT INTO scope_counts (scope) VALUES ({row}.scope) ON CONFLICT DO NOTHING;
    UPDATE scope_counts SET
        liked = liked {sign} ({row}.retracted = 0 AND {row}.kind = 'thumb' AND {row}.value = 1),
        disliked = disliked {sign} ({row}.retracted = 0 AND {row}.kind = 'thumb' AND {row}.value = -1),
        corrections = corrections {sign} ({row}.retracted = 0 AND {row}.kind = 'correction'),
        changes = changes + {changes}
    WHERE scope = {row}.scope;
    INSERT INTO scope_raters VALUES ({row}.scope, {row}.user_id, 0 {sign} {counted})
        ON CONFLICT DO UPDATE SET ratings = ratings {sign} {counted};
    DELETE FROM scope_raters WHERE scope = {row}.scope AND user_id = {row}.user_id AND ratings = 0;"""


def m0004_runs_and_adapters(db: sqlite_utils.Database) -> None:
    """The run queue, what each run trained on, the adapter registry and its champions."""
    _run(
        db,
        """
CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    scope TEXT NOT NULL,
    trigger TEXT NOT NULL CHECK (trigger IN ('manual', 'schedule', 'ratings', 'erasure')),
    requested_by TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'finished', 'failed', 'cancelled')),
    phase TEXT CHECK (phase IN ('snapshot', 'train', 'evaluate', 'decide', 'swap', 'votes')),
    progress REAL NOT NULL DEFAULT 0,
    eta_s REAL,
    note TEXT NOT NULL DEFAULT '',
    lease_owner TEXT,
    lease_until_ms INTEGER,
    lease_ms INTEGER,
    heartbeat_ms INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    ratings_seen INTEGER,
    snapshot_hash TEXT,
    settings_json TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(settings_json)),
    metrics_json TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(metrics_json)),
    outcome TEXT CHECK (outcome IN ('promoted', 'refused', 'not_yet', 'votes', 'failed', 'cancelled')),
    message TEXT NOT NULL DEFAULT '',
    error TEXT,
    adapter_id TEXT,
    champion_id TEXT,
    report_channel_id INTEGER,
    report_message_id INTEGER,
    repeatable INTEGER NOT NULL DEFAULT 1 CHECK (repeatable IN (0, 1)),
    created_ms INTEGER NOT NULL,
    started_ms INTEGER,
    finished_ms INTEGER
) STRICT

CREATE UNIQUE INDEX runs_one_at_a_time ON runs (state) WHERE state = 'running'

CREATE UNIQUE INDEX runs_one_queued_per_scope ON runs (scope) WHERE state = 'queued'

CREATE INDEX runs_by_scope ON runs (scope, created_ms)

CREATE INDEX runs_by_finish ON runs (scope, finished_ms) WHERE finished_ms IS NOT NULL

CREATE TABLE run_rows (
    run_id TEXT NOT NULL REFERENCES runs (id),
    reply_id TEXT NOT NULL REFERENCES replies (id),
    split TEXT NOT NULL CHECK (split IN ('train', 'development', 'gate')),
    label TEXT NOT NULL,
    weight REAL NOT NULL,
    PRIMARY KEY (run_id, reply_id)
) STRICT, WITHOUT ROWID

CREATE INDEX run_rows_by_reply ON run_rows (reply_id)

CREATE TABLE adapters (
    id TEXT PRIMARY KEY,
    scope TEXT NOT NULL,
    base_hash TEXT NOT NULL,
    parent_id TEXT,
    run_id TEXT REFERENCES runs (id),
    state TEXT NOT NULL CHECK (state IN ('candidate', 'promoted', 'rejected', 'retired', 'tainted')),
    rehearsal INTEGER NOT NULL DEFAULT 0 CHECK (rehearsal IN (0, 1)),
    path TEXT NOT NULL,
    manifest_json TEXT NOT NULL CHECK (json_valid(manifest_json)),
    created_ms INTEGER NOT NULL
) STRICT

CREATE INDEX adapters_by_scope ON adapters (scope, created_ms)

CREATE INDEX adapters_by_run ON adapters (run_id)

CREATE TABLE promotions (
    id INTEGER PRIMARY KEY,
    scope TEXT NOT NULL,
    base_hash TEXT NOT NULL,
    adapter_id TEXT REFERENCES adapters (id),
    previous_id TEXT,
    run_id TEXT REFERENCES runs (id),
    kind TEXT NOT NULL CHECK (kind IN ('promote', 'rollback', 'erase', 'initial')),
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT

CREATE INDEX promotions_by_scope ON promotions (scope, base_hash, id)

CREATE TABLE champions (
    scope TEXT NOT NULL,
    base_hash TEXT NOT NULL,
    adapter_id TEXT REFERENCES adapters (id),
    promotion_id INTEGER NOT NULL REFERENCES promotions (id),
    PRIMARY KEY (scope, base_hash)
) STRICT, WITHOUT ROWID
""",
    )


def m0005_evidence_and_audit(db: sqlite_utils.Database) -> None:
    """Evaluations, blind votes, erasures, the audit log and small facts."""
    _run(
        db,
        """
CREATE TABLE evaluations (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs (id),
    adapter_id TEXT,
    champion_id TEXT,
    metric TEXT NOT NULL,
    value REAL,
    low REAL,
    high REAL,
    n INTEGER,
    detail_json TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(detail_json)),
    created_ms INTEGER NOT NULL
) STRICT

CREATE INDEX evaluations_by_run ON evaluations (run_id)

CREATE TABLE duels (
    id TEXT PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs (id),
    scope TEXT NOT NULL,
    challenger_id TEXT NOT NULL,
    champion_id TEXT,
    reply_id TEXT REFERENCES replies (id),
    prompt_json TEXT NOT NULL CHECK (json_valid(prompt_json)),
    first_text TEXT NOT NULL,
    second_text TEXT NOT NULL,
    first_is_challenger INTEGER NOT NULL CHECK (first_is_challenger IN (0, 1)),
    created_ms INTEGER NOT NULL,
    closed_ms INTEGER
) STRICT, WITHOUT ROWID

CREATE INDEX duels_open ON duels (scope, created_ms) WHERE closed_ms IS NULL

CREATE INDEX duels_by_run ON duels (run_id)

CREATE INDEX duels_by_reply ON duels (reply_id) WHERE reply_id IS NOT NULL

CREATE TABLE duel_votes (
    duel_id TEXT NOT NULL REFERENCES duels (id),
    user_id INTEGER NOT NULL REFERENCES members (user_id),
    choice INTEGER NOT NULL CHECK (choice IN (-1, 0, 1)),
    source TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (duel_id, user_id)
) STRICT, WITHOUT ROWID

CREATE INDEX duel_votes_by_user ON duel_votes (user_id)

CREATE TABLE erasures (
    id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL,
    requested_ms INTEGER NOT NULL,
    run_id TEXT REFERENCES runs (id),
    scrub_json TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(scrub_json)),
    done_ms INTEGER
) STRICT

CREATE INDEX erasures_by_user ON erasures (user_id)

CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    detail_json TEXT NOT NULL CHECK (json_valid(detail_json)),
    created_ms INTEGER NOT NULL
) STRICT

CREATE INDEX audit_by_actor ON audit (actor)

CREATE INDEX audit_by_member ON audit (detail_json ->> 'user_id')

CREATE TABLE facts (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID
""",
    )


def m0006_settings_and_moderation(db: sqlite_utils.Database) -> None:
    """What a server sets for itself and its channels, fresh starts, blocked members, text out of files."""
    _run(
        db,
        """
CREATE TABLE settings (
    guild_id INTEGER NOT NULL,
    channel_id INTEGER NOT NULL DEFAULT 0,
    key TEXT NOT NULL,
    value_json TEXT NOT NULL CHECK (json_valid(value_json)),
    actor TEXT NOT NULL,
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (guild_id, channel_id, key)
) STRICT, WITHOUT ROWID

CREATE TABLE fresh_starts (
    channel_id INTEGER PRIMARY KEY,
    message_id INTEGER NOT NULL,
    actor TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT

CREATE TABLE blocks (
    guild_id INTEGER NOT NULL DEFAULT 0,
    user_id INTEGER NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (guild_id, user_id)
) STRICT, WITHOUT ROWID

CREATE INDEX blocks_by_user ON blocks (user_id)

CREATE INDEX reply_parts_by_channel ON reply_parts (channel_id, discord_id)

ALTER TABLE messages ADD COLUMN attached_text TEXT NOT NULL DEFAULT ''

ALTER TABLE conversations ADD COLUMN parent_channel_id INTEGER
""",
    )


def m0007_versions_and_comparisons(db: sqlite_utils.Database) -> None:
    """Several versions of one reply, one of them shown, and pairs of candidates that members vote on.

    `messages.visible` 0 marks a slash command's prompt, which has no message of its own; NULL is unknown.
    """
    _run(
        db,
        """
ALTER TABLE messages ADD COLUMN visible INTEGER CHECK (visible IN (0, 1))

CREATE INDEX messages_visible ON messages (created_ms) WHERE visible = 1 AND deleted_ms IS NULL

CREATE INDEX conversations_by_channel ON conversations (channel_id)

CREATE TABLE reply_versions (
    reply_id TEXT PRIMARY KEY REFERENCES replies (id),
    first_id TEXT NOT NULL REFERENCES replies (id),
    number INTEGER NOT NULL,
    shown INTEGER NOT NULL CHECK (shown IN (0, 1)),
    UNIQUE (first_id, number)
) STRICT, WITHOUT ROWID

CREATE UNIQUE INDEX reply_versions_one_shown ON reply_versions (first_id) WHERE shown = 1

CREATE TABLE comparisons (
    first_id TEXT PRIMARY KEY REFERENCES replies (id),
    second_id TEXT NOT NULL UNIQUE REFERENCES replies (id),
    usual_id TEXT NOT NULL REFERENCES replies (id),
    scope TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID

CREATE INDEX comparisons_by_scope ON comparisons (scope, created_ms)
""",
    )


def m0010_trials(db: sqlite_utils.Database) -> None:
    """Canaries and holdbacks: two adapters side by side, and which replies count on which side."""
    _run(
        db,
        """
CREATE TABLE trials (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('canary', 'holdback')),
    scope TEXT NOT NULL,
    base_hash TEXT NOT NULL,
    run_id TEXT NOT NULL REFERENCES runs (id),
    newcomer_id TEXT NOT NULL REFERENCES adapters (id),
    incumbent_id TEXT REFERENCES adapters (id),
    share REAL NOT NULL CHECK (share > 0 AND share <= 1),
    started_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    standing_json TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(standing_json)),
    seen TEXT NOT NULL DEFAULT '',
    judged_ms INTEGER NOT NULL DEFAULT 0,
    ended_ms INTEGER,
    outcome TEXT CHECK (outcome IN ('better', 'worse', 'undecided', 'superseded')),
    reason TEXT NOT NULL DEFAULT '',
    CHECK ((ended_ms IS NULL) = (outcome IS NULL))
) STRICT

CREATE UNIQUE INDEX trials_one_of_a_kind ON trials (scope, base_hash, kind) WHERE ended_ms IS NULL

CREATE INDEX trials_by_run ON trials (run_id)

CREATE TABLE trial_replies (
    trial_id INTEGER NOT NULL REFERENCES trials (id),
    reply_id TEXT NOT NULL REFERENCES replies (id),
    side TEXT NOT NULL CHECK (side IN ('newcomer', 'incumbent')),
    PRIMARY KEY (trial_id, reply_id)
) STRICT, WITHOUT ROWID

CREATE INDEX trial_replies_by_reply ON trial_replies (reply_id)
""",
    )


def m0011_tastings(db: sqlite_utils.Database) -> None:
    """The operator's prompts, the tastings in which they are asked, and which message asked which.

    `tasting_turns.discord_id` is the id of the prompt's row in `messages`, which no Discord message shows.
    """
    _run(
        db,
        """
CREATE TABLE tasting_prompts (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    key TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL
) STRICT

CREATE TABLE tastings (
    id TEXT PRIMARY KEY,
    guild_id INTEGER NOT NULL,
    channel_id INTEGER NOT NULL,
    scope TEXT NOT NULL,
    wanted INTEGER NOT NULL,
    every_s REAL NOT NULL,
    pairs INTEGER NOT NULL CHECK (pairs IN (0, 1)),
    again INTEGER NOT NULL CHECK (again IN (0, 1)),
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'stopped')),
    why TEXT NOT NULL DEFAULT '',
    requested_by TEXT NOT NULL,
    next_ms INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    ended_ms INTEGER
) STRICT

CREATE UNIQUE INDEX tastings_one_in_a_channel ON tastings (channel_id) WHERE state = 'running'

CREATE TABLE tasting_turns (
    discord_id INTEGER PRIMARY KEY,
    tasting_id TEXT NOT NULL REFERENCES tastings (id),
    key TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT

CREATE INDEX tasting_turns_by_tasting ON tasting_turns (tasting_id, created_ms)

CREATE INDEX tasting_turns_by_key ON tasting_turns (key)
""",
    )


def m0013_deleted_messages(db: sqlite_utils.Database) -> None:
    """What was deleted lately is looked for every minute, to take it out of the files of runs."""
    _run(
        db,
        """
CREATE INDEX messages_deleted ON messages (deleted_ms) WHERE deleted_ms IS NOT NULL
""",
    )


def m0014_facts_of_messages(db: sqlite_utils.Database) -> None:
    """What was so when a message was written, and what is known of each channel today.

    NULL in `messages.public` and `messages.channel_id` is an older row, for which its conversation speaks;
    NULL in `duel_votes.guild_id` is a vote of unknown origin.
    """
    _run(
        db,
        """
ALTER TABLE messages ADD COLUMN public INTEGER CHECK (public IN (0, 1))

ALTER TABLE messages ADD COLUMN channel_id INTEGER

ALTER TABLE messages ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0 CHECK (blocked IN (0, 1))

ALTER TABLE duel_votes ADD COLUMN guild_id INTEGER

CREATE TABLE channels (
    channel_id INTEGER PRIMARY KEY,
    guild_id INTEGER,
    parent_channel_id INTEGER,
    public INTEGER NOT NULL CHECK (public IN (0, 1)),
    seen_ms INTEGER NOT NULL
) STRICT

CREATE INDEX channels_private ON channels (channel_id) WHERE public = 0
""",
    )


def m0020_imports(db: sqlite_utils.Database) -> None:
    """Files whose conversations were brought in, with the right to use them as the operator stated it."""
    _run(
        db,
        """
CREATE TABLE imports (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    format TEXT NOT NULL,
    rights TEXT NOT NULL,
    licence TEXT NOT NULL,
    scope TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'removed')),
    stored INTEGER NOT NULL DEFAULT 0,
    known INTEGER NOT NULL DEFAULT 0,
    left_out_json TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(left_out_json)),
    actor TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    ended_ms INTEGER
) STRICT

CREATE UNIQUE INDEX imports_once ON imports (scope, sha256) WHERE state <> 'removed'
""",
    )


def m0021_base_identities(db: sqlite_utils.Database) -> None:
    """Which base each base hash stands for; champions keep their hash, and others find it by this."""
    _run(
        db,
        """
CREATE TABLE base_identities (
    base_hash TEXT NOT NULL,
    identity TEXT NOT NULL,
    source TEXT NOT NULL,
    revision TEXT NOT NULL,
    chat_template_hash TEXT NOT NULL,
    precision TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (base_hash, identity)
) STRICT

CREATE INDEX base_identities_by_identity ON base_identities (identity)
""",
    )


def m0022_sentences(db: sqlite_utils.Database) -> None:
    """Beside each sentence for people its template and values as JSON; empty where only the text is known."""
    _run(
        db,
        """
ALTER TABLE runs ADD COLUMN message_sentence TEXT NOT NULL DEFAULT ''

ALTER TABLE runs ADD COLUMN note_sentence TEXT NOT NULL DEFAULT ''

ALTER TABLE trials ADD COLUMN reason_sentence TEXT NOT NULL DEFAULT ''

ALTER TABLE promotions ADD COLUMN reason_sentence TEXT NOT NULL DEFAULT ''
""",
    )


def m0031_left_out_replies(db: sqlite_utils.Database) -> None:
    """Rated replies that an operator keeps out of training by hand."""
    _run(
        db,
        """
CREATE TABLE left_out_replies (
    reply_id TEXT PRIMARY KEY REFERENCES replies (id) ON DELETE CASCADE,
    actor TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT
""",
    )


def m0032_reported_outcomes(db: sqlite_utils.Database) -> None:
    """Which outcome the latest message about a run says; those of before said it in an edit."""
    _run(
        db,
        """
ALTER TABLE runs ADD COLUMN report_outcome TEXT

UPDATE runs SET report_outcome = outcome WHERE report_message_id IS NOT NULL
""",
    )


def m0033_origins_of_prompts(db: sqlite_utils.Database) -> None:
    """Which member of Discord wrote a prompt of the bank, and which import it came with."""
    _run(
        db,
        """
ALTER TABLE tasting_prompts ADD COLUMN author_id INTEGER REFERENCES members (user_id)

ALTER TABLE tasting_prompts ADD COLUMN import_id INTEGER REFERENCES imports (id)
""",
    )


def m0034_parts_on_their_way(db: sqlite_utils.Database) -> None:
    """Messages after a reply's first that are being sent: a kill may leave one whose id nobody stored."""
    _run(
        db,
        """
CREATE TABLE parts_on_their_way (
    reply_id TEXT PRIMARY KEY REFERENCES replies (id) ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT
""",
    )


def m0035_channels_of_prompts(db: sqlite_utils.Database) -> None:
    """Where on Discord a prompt of the bank was written: its channel's settings hold for it."""
    _run(
        db,
        """
ALTER TABLE tasting_prompts ADD COLUMN guild_id INTEGER

ALTER TABLE tasting_prompts ADD COLUMN channel_id INTEGER

ALTER TABLE tasting_prompts ADD COLUMN parent_channel_id INTEGER
""",
    )


def m0036_ratings_of_own_replies(db: sqlite_utils.Database) -> None:
    """The index of ratings by time tells those of imported replies apart, which no like rate counts."""
    _run(
        db,
        """
DROP INDEX ratings_by_time

CREATE INDEX ratings_by_time ON ratings (scope, updated_ms, kind, value, user_id, reply_id)
WHERE retracted = 0
""",
    )


def m0037_imported_copies(db: sqlite_utils.Database) -> None:
    """Which messages of Discord an import's are copies of: they go when it is deleted there."""
    _run(
        db,
        """
CREATE TABLE imported_copies (
    discord_id INTEGER NOT NULL,
    message_id INTEGER NOT NULL REFERENCES messages (id),
    PRIMARY KEY (discord_id, message_id)
) STRICT, WITHOUT ROWID

ALTER TABLE tasting_prompts ADD COLUMN discord_id INTEGER
""",
    )


def m0038_texts_with_mentions(db: sqlite_utils.Database) -> None:
    """Where to look for an erased member's name: without these an erasure reads every text."""
    _run(
        db,
        """
CREATE INDEX messages_with_mentions ON messages (id)
WHERE instr(content, '@') OR instr(attached_text, '@')

CREATE INDEX replies_with_mentions ON replies (id) WHERE instr(prompt_json, '@')

CREATE INDEX duels_with_mentions ON duels (id) WHERE instr(prompt_json, '@')
""",
    )


def m0039_runs_side_by_side(db: sqlite_utils.Database) -> None:
    """Runs of different scopes may be on at the same time, of one scope never two."""
    _run(
        db,
        """
DROP INDEX runs_one_at_a_time

CREATE UNIQUE INDEX runs_one_running_per_scope ON runs (scope) WHERE state = 'running'
""",
    )


def m0040_pictures(db: sqlite_utils.Database) -> None:
    """How many pictures the model was shown with a message: what was answered to those never trains."""
    _run(
        db,
        """
ALTER TABLE messages ADD COLUMN pictures INTEGER NOT NULL DEFAULT 0
""",
    )


def m0041_sources_of_replies(db: sqlite_utils.Database) -> None:
    """An index says which adapter wrote a reply, and where: /stats asks that for every rating."""
    _run(
        db,
        """
CREATE INDEX replies_sources ON replies (id, adapter_id, conversation_id)
""",
    )


def m0042_counts_of_days(db: sqlite_utils.Database) -> None:
    """What was liked on each day (UTC) by adapter and channel, and who rated in each week (from Monday on).

    Statistics of months looked up the reply of every rating. Triggers keep the counts, which leave out what
    was taken back; an adapter of '' is the base model. Imported replies, whose ids begin with "import-", are
    told apart by day and left out by week.
    """
    _run(
        db,
        """
CREATE TABLE rating_days (
    scope TEXT NOT NULL,
    day INTEGER NOT NULL,
    adapter_id TEXT NOT NULL,
    channel_id INTEGER NOT NULL,
    public INTEGER NOT NULL,
    imported INTEGER NOT NULL,
    liked INTEGER NOT NULL,
    disliked INTEGER NOT NULL,
    PRIMARY KEY (scope, day, adapter_id, channel_id, public, imported)
) STRICT, WITHOUT ROWID

CREATE TABLE rater_weeks (
    scope TEXT NOT NULL,
    week INTEGER NOT NULL,
    user_id INTEGER NOT NULL,
    ratings INTEGER NOT NULL,
    PRIMARY KEY (scope, week, user_id)
) STRICT, WITHOUT ROWID
""",
    )
    db.conn.execute(f"INSERT INTO rating_days {_by_day('true')} GROUP BY 1, 2, 3, 4, 5, 6")
    db.conn.execute(f"INSERT INTO rater_weeks {_by_week('true')} GROUP BY 1, 2, 3")
    changed = "UPDATE OF reply_id, user_id, scope, kind, value, retracted, updated_ms ON ratings"
    by_reply = "ratings.reply_id = old.id"
    by_conversation = "ratings.reply_id IN (SELECT id FROM replies WHERE conversation_id = old.id)"
    for name, event, row, sign in (
        ("ratings_count_new", "AFTER INSERT ON ratings", "ratings.id = new.id", "+"),
        ("ratings_count_before", f"BEFORE {changed}", "ratings.id = old.id", "-"),
        ("ratings_count_after", f"AFTER {changed}", "ratings.id = new.id", "+"),
        ("ratings_count_gone", "BEFORE DELETE ON ratings", "ratings.id = old.id", "-"),
    ):
        db.conn.execute(f"CREATE TRIGGER {name} {event} BEGIN {_add(row, sign)} {_add_rater(row, sign)} END")
    for table, columns, rows in (
        ("replies", ("adapter_id",), by_reply),
        ("conversations", ("channel_id", "public"), by_conversation),
    ):
        differs = " OR ".join(f"old.{column} IS NOT new.{column}" for column in columns)
        for time, sign in (("BEFORE", "-"), ("AFTER", "+")):
            db.conn.execute(
                f"""CREATE TRIGGER {table}_count_{time.lower()}
                    {time} UPDATE OF {", ".join(columns)} ON {table} WHEN {differs} BEGIN
                    {_add(rows, sign)} END"""
            )


def _by_day(rows: str, sign: str = "+") -> str:
    """Return the select of what some ratings add to their days' counts; its caller groups it."""
    return f"""SELECT ratings.scope, ratings.updated_ms / 86400000, coalesce(replies.adapter_id, ''),
        conversations.channel_id, conversations.public,
        ratings.reply_id >= 'import-' AND ratings.reply_id < 'import-~',
        {sign}sum(ratings.value > 0), {sign}sum(ratings.value < 0)
    FROM ratings CROSS JOIN replies INDEXED BY replies_sources ON replies.id = ratings.reply_id
    CROSS JOIN conversations ON conversations.id = replies.conversation_id
    WHERE {rows} AND {_COUNTED}"""


def _by_week(rows: str, sign: str = "+") -> str:
    return f"""SELECT ratings.scope, (ratings.updated_ms / 86400000 - 4) / 7, ratings.user_id, {sign}count(*)
    FROM ratings WHERE {rows} AND {_COUNTED}
        AND (ratings.reply_id < 'import-' OR ratings.reply_id >= 'import-~')"""


_COUNTED = "ratings.retracted = 0 AND ratings.kind = 'thumb' AND ratings.value <> 0"


def _add(rows: str, sign: str) -> str:
    return f"""INSERT INTO rating_days {_by_day(rows, sign)} GROUP BY 1, 2, 3, 4, 5, 6
        ON CONFLICT DO UPDATE SET liked = liked + excluded.liked, disliked = disliked + excluded.disliked;"""


def m0043_replies_of_a_scope_by_time(db: sqlite_utils.Database) -> None:
    """A scope's newest replies: those that nobody rated, for a run, and how quick they lately were."""
    _run(db, "CREATE INDEX replies_by_scope ON replies (scope, created_ms)")


def _add_rater(row: str, sign: str) -> str:
    """Return the statements for one rating; of who doesn't rate any more no row stays."""
    return f"""INSERT INTO rater_weeks {_by_week(row, sign)} GROUP BY 1, 2, 3
        ON CONFLICT DO UPDATE SET ratings = ratings + excluded.ratings;
    DELETE FROM rater_weeks WHERE ratings = 0 AND (scope, week, user_id) IN (
        SELECT ratings.scope, (ratings.updated_ms / 86400000 - 4) / 7, ratings.user_id
        FROM ratings WHERE {row});"""


for _step in (
    m0001_people_and_conversations,
    m0002_replies_and_ratings,
    m0003_rating_counters,
    m0004_runs_and_adapters,
    m0005_evidence_and_audit,
    m0006_settings_and_moderation,
    m0007_versions_and_comparisons,
    m0010_trials,
    m0011_tastings,
    m0013_deleted_messages,
    m0014_facts_of_messages,
    m0020_imports,
    m0021_base_identities,
    m0022_sentences,
    m0031_left_out_replies,
    m0032_reported_outcomes,
    m0033_origins_of_prompts,
    m0034_parts_on_their_way,
    m0035_channels_of_prompts,
    m0036_ratings_of_own_replies,
    m0037_imported_copies,
    m0038_texts_with_mentions,
    m0039_runs_side_by_side,
    m0040_pictures,
    m0041_sources_of_replies,
    m0042_counts_of_days,
    m0043_replies_of_a_scope_by_time,
):
    steps()(_step)
