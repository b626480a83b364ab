BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'strop','m0001_people_and_conversations','2026-11-30 02:53:53.271900+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'strop','m0002_replies_and_ratings','2026-11-30 02:53:53.272432+00:00');
INSERT INTO "_sqlite_migrations" VALUES(3,'strop','m0003_rating_counters','2026-11-30 02:53:53.272812+00:00');
INSERT INTO "_sqlite_migrations" VALUES(4,'strop','m0004_runs_and_adapters','2026-11-30 02:53:53.273291+00:00');
INSERT INTO "_sqlite_migrations" VALUES(5,'strop','m0005_evidence_and_audit','2026-11-30 02:53:53.273720+00:00');
INSERT INTO "_sqlite_migrations" VALUES(6,'strop','m0006_settings_and_moderation','2026-11-30 02:53:53.274749+00:00');
INSERT INTO "_sqlite_migrations" VALUES(7,'strop','m0007_versions_and_comparisons','2026-11-30 02:53:53.305967+00:00');
INSERT INTO "_sqlite_migrations" VALUES(8,'strop','m0010_trials','2026-11-30 02:53:53.306418+00:00');
INSERT INTO "_sqlite_migrations" VALUES(9,'strop','m0011_tastings','2026-11-30 02:53:53.306713+00:00');
INSERT INTO "_sqlite_migrations" VALUES(10,'strop','m0013_deleted_messages','2026-11-30 02:53:53.306824+00:00');
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
) STRICT;
INSERT INTO "adapters" VALUES('a3aa54ace3d23c56','guild:5','a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca',NULL,'r9c4954d1d276','promoted',0,'adapters/a3aa54ace3d23c56','{"base_hash": "a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca", "chat_template_hash": "c5f99ac95866dd9e38dc647fe9954145155845f13f74d99ecf23de19730fc693", "config": {"alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null, "base_model_name_or_path": "tiny", "bias": "none", "corda_config": null, "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 4, "lora_bias": false, "lora_dropout": 0.0, "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null, "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 2, "rank_pattern": {}, "revision": null, "target_modules": ["model.layers.0.mlp.down_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.o_proj", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj", "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.o_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"], "target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null, "use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null}, "extra": {"rehearsal": false, "snapshot": "hash-1"}, "files": {"adapter_config.json": "9ec092443e45ebf52c0ed72b8c322dbd36992be9d6595e8b392947bdcd82af9b", "adapter_model.safetensors": "cd0e00b1e1868f58062f41c4c6e90fd2d25deb84afc476dd340d33f60cd6ec05"}, "format": 1, "id": "a3aa54ace3d23c56"}',1796007233416);
INSERT INTO "adapters" VALUES('abc6f130400f040a','guild:5','a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca',NULL,'rd8ed13429573','candidate',0,'adapters/abc6f130400f040a','{"base_hash": "a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca", "chat_template_hash": "c5f99ac95866dd9e38dc647fe9954145155845f13f74d99ecf23de19730fc693", "config": {"alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null, "base_model_name_or_path": "tiny", "bias": "none", "corda_config": null, "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 4, "lora_bias": false, "lora_dropout": 0.0, "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null, "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 2, "rank_pattern": {}, "revision": null, "target_modules": ["model.layers.0.mlp.down_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.o_proj", "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj", "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.o_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"], "target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null, "use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null}, "extra": {"rehearsal": false, "snapshot": "hash-2"}, "files": {"adapter_config.json": "9ec092443e45ebf52c0ed72b8c322dbd36992be9d6595e8b392947bdcd82af9b", "adapter_model.safetensors": "010e9c2e9c8700c351855e60d508d88ff54f5bef4d677d94d40e5f536ecd6b98"}, "format": 1, "id": "abc6f130400f040a"}',1796007233417);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    detail_json TEXT NOT NULL CHECK (json_valid(detail_json)),
    created_ms INTEGER NOT NULL
) STRICT;
INSERT INTO "audit" VALUES(1,'1','consent','{"user_id": 1, "from": "unset", "to": "in"}',1796007233389);
INSERT INTO "audit" VALUES(2,'2','consent','{"user_id": 2, "from": "unset", "to": "in"}',1796007233390);
INSERT INTO "audit" VALUES(3,'3','consent','{"user_id": 3, "from": "unset", "to": "in"}',1796007233390);
INSERT INTO "audit" VALUES(4,'9','settings.change','{"guild_id": "5", "channel_id": null, "key": "language", "to": "de"}',1796007233394);
INSERT INTO "audit" VALUES(5,'9','settings.change','{"guild_id": "5", "channel_id": "6", "key": "temperature", "to": 0.2}',1796007233394);
INSERT INTO "audit" VALUES(6,'9','settings.change','{"guild_id": "5", "channel_id": null, "key": "rating_up", "to": ["\ud83d\udc4d", "\u2764\ufe0f"]}',1796007233394);
INSERT INTO "audit" VALUES(7,'9','member.block','{"user_id": 77, "guild_id": "5"}',1796007233394);
INSERT INTO "audit" VALUES(8,'9','run.enqueue','{"run_id": "r9c4954d1d276", "scope": "guild:5", "trigger": "manual"}',1796007233415);
INSERT INTO "audit" VALUES(9,'strop','champion.initial','{"scope": "guild:5", "base_hash": "a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca", "adapter_id": null, "previous_id": null, "run_id": null, "reason": "the base model starts"}',1796007233416);
INSERT INTO "audit" VALUES(10,'trainer','champion.promote','{"scope": "guild:5", "base_hash": "a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca", "adapter_id": "a3aa54ace3d23c56", "previous_id": null, "run_id": "r9c4954d1d276", "reason": "+0.12 (95 % CI 0.05 to 0.19) on 64 held-out conversations"}',1796007233416);
INSERT INTO "audit" VALUES(11,'trainer','run.enqueue','{"run_id": "r9ee85ad5995e", "scope": "guild:5", "trigger": "ratings"}',1796007233417);
INSERT INTO "audit" VALUES(12,'9','run.enqueue','{"run_id": "rd8ed13429573", "scope": "guild:5", "trigger": "manual"}',1796007233417);
INSERT INTO "audit" VALUES(13,'trainer','canary.begin','{"trial_id": 1, "scope": "guild:5", "run_id": "rd8ed13429573", "newcomer_id": "abc6f130400f040a", "incumbent_id": "a3aa54ace3d23c56", "share": 0.2}',1796007233418);
CREATE TABLE blocks (
    guild_id INTEGER NOT NULL DEFAULT 0,
    user_id INTEGER NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (guild_id, user_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "blocks" VALUES(5,77,'9','spam',1796007233394);
CREATE TABLE champions (
    scope TEXT NOT NULL,
    base_hash TEXT NOT NULL,
    adapter_id TEXT REFERENCES adapters (id),
    promotion_id INTEGER NOT NULL REFERENCES promotions (id),
    PRIMARY KEY (scope, base_hash)
) STRICT, WITHOUT ROWID
;
INSERT INTO "champions" VALUES('guild:5','a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca','a3aa54ace3d23c56',2);
CREATE TABLE comparisons (
    first_id TEXT PRIMARY KEY REFERENCES replies (id),
    second_id TEXT NOT NULL UNIQUE REFERENCES replies (id),
    usual_id TEXT NOT NULL REFERENCES replies (id),
    scope TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
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
, parent_channel_id INTEGER) STRICT;
INSERT INTO "conversations" VALUES(1,'discord:1000',5,6,'guild:5','discord',1,'gate','0c573006b300fc10',1796007233390,NULL);
INSERT INTO "conversations" VALUES(2,'discord:1002',5,6,'guild:5','discord',1,'train','869004bb07b8e332',1796007233391,NULL);
INSERT INTO "conversations" VALUES(3,'discord:1004',5,6,'guild:5','discord',1,'train','62973543ea768bad',1796007233392,NULL);
INSERT INTO "conversations" VALUES(4,'discord:1006',5,6,'guild:5','discord',1,'train','fe355a06fd765383',1796007233392,NULL);
CREATE TABLE duel_votes (
    duel_id TEXT NOT NULL REFERENCES duels (id),
    user_id INTEGER NOT NULL REFERENCES members (user_id),
    choice INTEGER NOT NULL CHECK (choice IN (-1, 0, 1)),
    source TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (duel_id, user_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "duel_votes" VALUES('rd8ed13429573-000',2,1,'discord',1796007233418);
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
) STRICT, WITHOUT ROWID;
INSERT INTO "duels" VALUES('rd8ed13429573-000','rd8ed13429573','guild:5','abc6f130400f040a','a3aa54ace3d23c56',NULL,'[{"role": "user", "content": "Hi"}]','Hello','Hey',1,1796007233418,NULL);
CREATE TABLE erasures (
    id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL,
    requested_ms INTEGER NOT NULL,
    run_id TEXT REFERENCES runs (id),
    scrub_json TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(scrub_json)),
    done_ms INTEGER
) STRICT;
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
) STRICT;
INSERT INTO "evaluations" VALUES(1,'r9c4954d1d276','a3aa54ace3d23c56',NULL,'preference',0.12,0.05,0.19,64,'{}',1796007233417);
CREATE TABLE facts (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID
;
CREATE TABLE fresh_starts (
    channel_id INTEGER PRIMARY KEY,
    message_id INTEGER NOT NULL,
    actor TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE members (
    user_id INTEGER PRIMARY KEY,
    display_name TEXT NOT NULL,
    source TEXT NOT NULL,
    simulated INTEGER NOT NULL DEFAULT 0 CHECK (simulated IN (0, 1)),
    consent TEXT NOT NULL DEFAULT 'unset' CHECK (consent IN ('unset', 'in', 'out')),
    consent_ms INTEGER,
    erased_ms INTEGER,
    created_ms INTEGER NOT NULL
) STRICT;
INSERT INTO "members" VALUES(1,'member 1','discord',0,'in',1796007233389,NULL,1796007233389);
INSERT INTO "members" VALUES(2,'member 2','discord',0,'in',1796007233390,NULL,1796007233389);
INSERT INTO "members" VALUES(3,'member 3','discord',0,'in',1796007233390,NULL,1796007233390);
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
, attached_text TEXT NOT NULL DEFAULT '', visible INTEGER CHECK (visible IN (0, 1))) STRICT;
INSERT INTO "messages" VALUES(1,1000,1,NULL,1,'user','How does a knight move, part 0?','discord','in',NULL,1796007233390,NULL,NULL,'',NULL);
INSERT INTO "messages" VALUES(2,1001,1,1,NULL,'assistant','In an L.','discord','unset',NULL,1796007233390,NULL,NULL,'',NULL);
INSERT INTO "messages" VALUES(3,1002,2,NULL,1,'user','How does a knight move, part 1?','discord','in',NULL,1796007233391,NULL,NULL,'',NULL);
INSERT INTO "messages" VALUES(4,1003,2,3,NULL,'assistant','In an L.','discord','unset',NULL,1796007233391,NULL,NULL,'',NULL);
INSERT INTO "messages" VALUES(5,1004,3,NULL,1,'user','How does a knight move, part 2?','discord','in',NULL,1796007233392,NULL,NULL,'',NULL);
INSERT INTO "messages" VALUES(6,1005,3,5,NULL,'assistant','In an L.','discord','unset',NULL,1796007233392,NULL,NULL,'',NULL);
INSERT INTO "messages" VALUES(7,1006,4,NULL,1,'user','How does a knight move, part 3?','discord','in',NULL,1796007233392,NULL,NULL,'',NULL);
INSERT INTO "messages" VALUES(8,1007,4,7,NULL,'assistant','In an L.','discord','unset',NULL,1796007233392,NULL,NULL,'',NULL);
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
) STRICT;
INSERT INTO "promotions" VALUES(1,'guild:5','a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca',NULL,NULL,NULL,'initial','strop','the base model starts',1796007233416);
INSERT INTO "promotions" VALUES(2,'guild:5','a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca','a3aa54ace3d23c56',NULL,'r9c4954d1d276','promote','trainer','+0.12 (95 % CI 0.05 to 0.19) on 64 held-out conversations',1796007233416);
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
) STRICT;
INSERT INTO "ratings" VALUES(1,'reply-1001',2,'guild:5','thumb','reaction',1,'👍',NULL,0,'discord','in',NULL,1796007233393,1796007233393);
INSERT INTO "ratings" VALUES(2,'reply-1001',3,'guild:5','thumb','reaction',1,'👍',NULL,0,'discord','in',NULL,1796007233393,1796007233393);
INSERT INTO "ratings" VALUES(3,'reply-1003',2,'guild:5','thumb','reaction',1,'👍',NULL,0,'discord','in',NULL,1796007233393,1796007233393);
INSERT INTO "ratings" VALUES(4,'reply-1003',3,'guild:5','thumb','reaction',1,'👍',NULL,0,'discord','in',NULL,1796007233393,1796007233393);
INSERT INTO "ratings" VALUES(5,'reply-1005',2,'guild:5','thumb','reaction',1,'👍',NULL,0,'discord','in',NULL,1796007233394,1796007233394);
INSERT INTO "ratings" VALUES(6,'reply-1005',3,'guild:5','thumb','reaction',1,'👍',NULL,0,'discord','in',NULL,1796007233394,1796007233394);
INSERT INTO "ratings" VALUES(7,'reply-1007',2,'guild:5','thumb','reaction',-1,'👎',NULL,0,'discord','in',NULL,1796007233394,1796007233394);
INSERT INTO "ratings" VALUES(8,'reply-1007',3,'guild:5','correction','modal',0,NULL,'Two squares and one to the side.',0,'discord','in',NULL,1796007233394,1796007233394);
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
) STRICT, WITHOUT ROWID;
INSERT INTO "replies" VALUES('reply-1001',2,1,1,1,'guild:5',NULL,'a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca','[{"role": "user", "content": "How does a knight move, part 0?"}]',7,'{"temperature": 0.7}',10,5,'stop',1,20,200,'complete',NULL,'discord',1796007233390);
INSERT INTO "replies" VALUES('reply-1003',4,3,2,1,'guild:5',NULL,'a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca','[{"role": "user", "content": "How does a knight move, part 1?"}]',7,'{"temperature": 0.7}',10,5,'stop',1,20,200,'complete',NULL,'discord',1796007233391);
INSERT INTO "replies" VALUES('reply-1005',6,5,3,1,'guild:5',NULL,'a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca','[{"role": "user", "content": "How does a knight move, part 2?"}]',7,'{"temperature": 0.7}',10,5,'stop',1,20,200,'complete',NULL,'discord',1796007233392);
INSERT INTO "replies" VALUES('reply-1007',8,7,4,1,'guild:5',NULL,'a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca','[{"role": "user", "content": "How does a knight move, part 3?"}]',7,'{"temperature": 0.7}',10,5,'stop',1,20,200,'complete',NULL,'discord',1796007233392);
CREATE TABLE reply_context (
    reply_id TEXT NOT NULL REFERENCES replies (id),
    message_id INTEGER NOT NULL REFERENCES messages (id),
    user_id INTEGER REFERENCES members (user_id),
    PRIMARY KEY (reply_id, message_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "reply_context" VALUES('reply-1001',1,1);
INSERT INTO "reply_context" VALUES('reply-1003',3,1);
INSERT INTO "reply_context" VALUES('reply-1005',5,1);
INSERT INTO "reply_context" VALUES('reply-1007',7,1);
CREATE TABLE reply_parts (
    discord_id INTEGER PRIMARY KEY,
    reply_id TEXT NOT NULL REFERENCES replies (id),
    channel_id INTEGER NOT NULL,
    position INTEGER NOT NULL
) STRICT;
INSERT INTO "reply_parts" VALUES(1001,'reply-1001',6,0);
INSERT INTO "reply_parts" VALUES(1003,'reply-1003',6,0);
INSERT INTO "reply_parts" VALUES(1005,'reply-1005',6,0);
INSERT INTO "reply_parts" VALUES(1007,'reply-1007',6,0);
CREATE TABLE reply_versions (
    reply_id TEXT PRIMARY KEY REFERENCES replies (id),
    first_id TEXT NOT NULL REFERENCES replies (id),
    number INTEGER NOT NULL,
    shown INTEGER NOT NULL CHECK (shown IN (0, 1)),
    UNIQUE (first_id, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE run_rows (
    run_id TEXT NOT NULL REFERENCES runs (id),
    reply_id TEXT NOT NULL REFERENCES replies (id),
    split TEXT NOT NULL CHECK (split IN ('train', 'development', 'gate')),
    label TEXT NOT NULL,
    weight REAL NOT NULL,
    PRIMARY KEY (run_id, reply_id)
) STRICT, WITHOUT ROWID;
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
) STRICT;
INSERT INTO "runs" VALUES('r9c4954d1d276','guild:5','manual','9','finished',NULL,1.0,NULL,'',NULL,NULL,1000,1796007233416,1,8,NULL,'{}','{"headline": {"value": 0.12, "low": 0.05, "high": 0.19, "n": 64}, "training": {"objective": "sft", "reason": "DPO needs 50 preference pairs to train on; there are 3"}, "data": {"train": {"liked": 3, "disliked": 1, "corrections": 1, "pairs": 1}, "development": {}, "gate": {}, "raters": 3, "replies": 4, "rated_by_asker_only": 0}, "excluded": {"no_consent": 2}, "guardrails": [{"name": "held-out corrections, lost", "value": 0, "limit": 2, "kept": true}], "evaluation": {"same_replies": 0.1, "extra_prompts": 4}, "decision": "promote", "reason": "+0.12"}','promoted','adapter a3aa54ace3d23c56 replaced the base model: +0.12 (95 % CI 0.05 to 0.19) on 64 held-out conversations',NULL,'a3aa54ace3d23c56',NULL,NULL,NULL,1,1796007233415,1796007233416,1796007233416);
INSERT INTO "runs" VALUES('r9ee85ad5995e','guild:5','ratings','trainer','finished',NULL,1.0,NULL,'',NULL,NULL,1000,1796007233417,1,8,NULL,'{}','{}','not_yet','not yet: 2 of 3 liked replies, 2 of 5 raters',NULL,NULL,NULL,NULL,NULL,1,1796007233417,1796007233417,1796007233417);
INSERT INTO "runs" VALUES('rd8ed13429573','guild:5','manual','9','finished','votes',1.0,NULL,'',NULL,NULL,1000,1796007233417,1,8,NULL,'{}','{"votes_needed": 37}','votes','abc6f130400f040a won offline with +0.10 (95 % CI 0.02 to 0.18) on 64 held-out conversations, and its canary has to confirm it; it answers 20% of new conversations as a canary',NULL,'abc6f130400f040a','a3aa54ace3d23c56',NULL,NULL,1,1796007233417,1796007233417,1796007233418);
CREATE TABLE scope_counts (
    scope TEXT PRIMARY KEY,
    liked INTEGER NOT NULL DEFAULT 0,
    disliked INTEGER NOT NULL DEFAULT 0,
    corrections INTEGER NOT NULL DEFAULT 0,
    changes INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
INSERT INTO "scope_counts" VALUES('guild:5',6,1,1,8);
CREATE TABLE scope_raters (
    scope TEXT NOT NULL,
    user_id INTEGER NOT NULL,
    ratings INTEGER NOT NULL,
    PRIMARY KEY (scope, user_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "scope_raters" VALUES('guild:5',2,4);
INSERT INTO "scope_raters" VALUES('guild:5',3,4);
CREATE TABLE settings (
    guild_id INTEGER NOT NULL,
    channel_id INTEGER NOT NULL DEFAULT 0,
    key TEXT NOT NULL,
    value_json TEXT NOT NULL CHECK (json_valid(value_json)),
    actor TEXT NOT NULL,
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (guild_id, channel_id, key)
) STRICT, WITHOUT ROWID;
INSERT INTO "settings" VALUES(5,0,'language','"de"','9',1796007233394);
INSERT INTO "settings" VALUES(5,0,'rating_up','["\ud83d\udc4d", "\u2764\ufe0f"]','9',1796007233394);
INSERT INTO "settings" VALUES(5,6,'temperature','0.2','9',1796007233394);
CREATE TABLE tasting_prompts (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    key TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE tasting_turns (
    discord_id INTEGER PRIMARY KEY,
    tasting_id TEXT NOT NULL REFERENCES tastings (id),
    key TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
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
) STRICT;
CREATE TABLE trial_replies (
    trial_id INTEGER NOT NULL REFERENCES trials (id),
    reply_id TEXT NOT NULL REFERENCES replies (id),
    side TEXT NOT NULL CHECK (side IN ('newcomer', 'incumbent')),
    PRIMARY KEY (trial_id, reply_id)
) STRICT, WITHOUT ROWID;
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
) STRICT;
INSERT INTO "trials" VALUES(1,'canary','guild:5','a244ef67ec27140886f57e3b8afcd31dca1903a83c7f4205fb3dcc90d7ec1eca','rd8ed13429573','abc6f130400f040a','a3aa54ace3d23c56',0.2,1796007233418,10436007233418,'{}','',0,NULL,NULL,'');
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE TRIGGER conversations_split_is_immutable BEFORE UPDATE OF split, group_key ON conversations
WHEN old.group_key IS NOT NULL BEGIN
    SELECT RAISE(ABORT, 'the split of a conversation never changes');
END;
CREATE INDEX messages_by_conversation ON messages (conversation_id);
CREATE INDEX messages_by_parent ON messages (parent_id);
CREATE INDEX messages_by_author ON messages (author_id, created_ms) WHERE author_id IS NOT NULL
;
CREATE INDEX replies_by_time ON replies (created_ms);
CREATE INDEX replies_by_conversation ON replies (conversation_id);
CREATE INDEX replies_by_prompt ON replies (prompt_message_id);
CREATE INDEX replies_by_asker ON replies (asker_id) WHERE asker_id IS NOT NULL;
CREATE INDEX replies_streaming ON replies (created_ms) WHERE status = 'streaming';
CREATE INDEX reply_context_by_message ON reply_context (message_id);
CREATE INDEX reply_context_by_user ON reply_context (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX reply_parts_by_reply ON reply_parts (reply_id, position);
CREATE INDEX ratings_by_user ON ratings (user_id);
CREATE INDEX ratings_active ON ratings (scope, reply_id) WHERE retracted = 0;
CREATE INDEX ratings_by_time ON ratings (scope, updated_ms, kind, value, user_id) WHERE retracted = 0
;
CREATE TRIGGER ratings_inserted AFTER INSERT ON ratings BEGIN
    INSERT INTO scope_counts (scope) VALUES (new.scope) ON CONFLICT DO NOTHING;
    UPDATE scope_counts SET
        liked = liked + (new.retracted = 0 AND new.kind = 'thumb' AND new.value = 1),
        disliked = disliked + (new.retracted = 0 AND new.kind = 'thumb' AND new.value = -1),
        corrections = corrections + (new.retracted = 0 AND new.kind = 'correction'),
        changes = changes + 1
    WHERE scope = new.scope;
    INSERT INTO scope_raters VALUES (new.scope, new.user_id, 0 + (new.retracted = 0 AND new.kind IN ('thumb', 'correction')))
        ON CONFLICT DO UPDATE SET ratings = ratings + (new.retracted = 0 AND new.kind IN ('thumb', 'correction'));
    DELETE FROM scope_raters WHERE scope = new.scope AND user_id = new.user_id AND ratings = 0;
END;
CREATE TRIGGER ratings_updated AFTER UPDATE OF value, retracted, kind, scope, text ON ratings BEGIN
    INSERT INTO scope_counts (scope) VALUES (old.scope) ON CONFLICT DO NOTHING;
    UPDATE scope_counts SET
        liked = liked - (old.retracted = 0 AND old.kind = 'thumb' AND old.value = 1),
        disliked = disliked - (old.retracted = 0 AND old.kind = 'thumb' AND old.value = -1),
        corrections = corrections - (old.retracted = 0 AND old.kind = 'correction'),
        changes = changes + 0
    WHERE scope = old.scope;
    INSERT INTO scope_raters VALUES (old.scope, old.user_id, 0 - (old.retracted = 0 AND old.kind IN ('thumb', 'correction')))
        ON CONFLICT DO UPDATE SET ratings = ratings - (old.retracted = 0 AND old.kind IN ('thumb', 'correction'));
    DELETE FROM scope_raters WHERE scope = old.scope AND user_id = old.user_id AND ratings = 0;
    INSERT INTO scope_counts (scope) VALUES (new.scope) ON CONFLICT DO NOTHING;
    UPDATE scope_counts SET
        liked = liked + (new.retracted = 0 AND new.kind = 'thumb' AND new.value = 1),
        disliked = disliked + (new.retracted = 0 AND new.kind = 'thumb' AND new.value = -1),
        corrections = corrections + (new.retracted = 0 AND new.kind = 'correction'),
        changes = changes + 1
    WHERE scope = new.scope;
    INSERT INTO scope_raters VALUES (new.scope, new.user_id, 0 + (new.retracted = 0 AND new.kind IN ('thumb', 'correction')))
        ON CONFLICT DO UPDATE SET ratings = ratings + (new.retracted = 0 AND new.kind IN ('thumb', 'correction'));
    DELETE FROM scope_raters WHERE scope = new.scope AND user_id = new.user_id AND ratings = 0;
END;
CREATE TRIGGER ratings_deleted AFTER DELETE ON ratings BEGIN
    INSERT INTO scope_counts (scope) VALUES (old.scope) ON CONFLICT DO NOTHING;
    UPDATE scope_counts SET
        liked = liked - (old.retracted = 0 AND old.kind = 'thumb' AND old.value = 1),
        disliked = disliked - (old.retracted = 0 AND old.kind = 'thumb' AND old.value = -1),
        corrections = corrections - (old.retracted = 0 AND old.kind = 'correction'),
        changes = changes + 0
    WHERE scope = old.scope;
    INSERT INTO scope_raters VALUES (old.scope, old.user_id, 0 - (old.retracted = 0 AND old.kind IN ('thumb', 'correction')))
        ON CONFLICT DO UPDATE SET ratings = ratings - (old.retracted = 0 AND old.kind IN ('thumb', 'correction'));
    DELETE FROM scope_raters WHERE scope = old.scope AND user_id = old.user_id AND ratings = 0;
END;
CREATE UNIQUE INDEX runs_one_at_a_time ON runs (state) WHERE state = 'running';
CREATE UNIQUE INDEX runs_one_queued_per_scope ON runs (scope) WHERE state = 'queued';
CREATE INDEX runs_by_scope ON runs (scope, created_ms);
CREATE INDEX runs_by_finish ON runs (scope, finished_ms) WHERE finished_ms IS NOT NULL;
CREATE INDEX run_rows_by_reply ON run_rows (reply_id);
CREATE INDEX adapters_by_scope ON adapters (scope, created_ms);
CREATE INDEX adapters_by_run ON adapters (run_id);
CREATE INDEX promotions_by_scope ON promotions (scope, base_hash, id);
CREATE INDEX evaluations_by_run ON evaluations (run_id);
CREATE INDEX duels_open ON duels (scope, created_ms) WHERE closed_ms IS NULL;
CREATE INDEX duels_by_run ON duels (run_id);
CREATE INDEX duels_by_reply ON duels (reply_id) WHERE reply_id IS NOT NULL;
CREATE INDEX duel_votes_by_user ON duel_votes (user_id);
CREATE INDEX erasures_by_user ON erasures (user_id);
CREATE INDEX audit_by_actor ON audit (actor);
CREATE INDEX audit_by_member ON audit (detail_json ->> 'user_id');
CREATE INDEX blocks_by_user ON blocks (user_id);
CREATE INDEX reply_parts_by_channel ON reply_parts (channel_id, discord_id);
CREATE INDEX messages_visible ON messages (created_ms) WHERE visible = 1 AND deleted_ms IS NULL;
CREATE INDEX conversations_by_channel ON conversations (channel_id);
CREATE UNIQUE INDEX reply_versions_one_shown ON reply_versions (first_id) WHERE shown = 1;
CREATE INDEX comparisons_by_scope ON comparisons (scope, created_ms)
;
CREATE UNIQUE INDEX trials_one_of_a_kind ON trials (scope, base_hash, kind) WHERE ended_ms IS NULL;
CREATE INDEX trials_by_run ON trials (run_id);
CREATE INDEX trial_replies_by_reply ON trial_replies (reply_id)
;
CREATE UNIQUE INDEX tastings_one_in_a_channel ON tastings (channel_id) WHERE state = 'running';
CREATE INDEX tasting_turns_by_tasting ON tasting_turns (tasting_id, created_ms);
CREATE INDEX tasting_turns_by_key ON tasting_turns (key)
;
CREATE INDEX messages_deleted ON messages (deleted_ms) WHERE deleted_ms IS NOT NULL
;
COMMIT;
