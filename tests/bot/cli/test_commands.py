"""Every command against a real database in a folder of its own."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sqlite_utils

from bot.cli.app import app
from storage.chat import conversations, members
from storage.config import Config
from storage.db import key_values, sql
from storage.db.clock import now_ms
from storage.db.database import Database
from storage.learning import adapters, evaluations, runs
from storage.learning.evaluations import ProcessFigures
from storage.process.locks import ProcessLock
from storage.sentences import Sentence
from tests.bot.cli.conftest import Strop
from tests.trainer.community import BASE_HASH, SCOPE, adapter_folder, champion, rated_replies

COMMANDS = [
    "up", "bot", "serve", "trainer", "playground", "retrain", "runs", "experiment", "status",
    "promote", "rollback", "rehearse", "sample", "reject", "stats", "datasette", "track",
    "report", "export", "audit", "backup", "restore", "doctor", "init", "version",
    "block", "unblock", "blocks", "health", "import", "dashboard",
]  # fmt: skip


def test_the_commands_are_all_there() -> None:
    assert sorted(
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    ) == sorted(COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "adapters"])
def test_every_command_has_help_with_an_example(strop: Strop, command: str) -> None:
    text = strop(command, "--help").output
    assert "Examples:" in text and f"strop {command}" in text


def test_version_names_strop_and_what_it_stands_on(strop: Strop) -> None:
    assert json.loads(strop("version", "--json").stdout)["torch"].startswith("2.")
    assert strop("version").stdout.startswith("strop 0.")


# ------------------------------------------------------------ faults are sentences
def test_without_data_a_command_says_how_to_get_some(strop: Strop) -> None:
    assert "start it once with `strop up`" in strop("status", code=1).stderr


def test_every_problem_of_the_configuration_is_listed_at_once(strop: Strop, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('[chat]\ntemprature = 1\n[trainer]\nnice = 40\n[discord]\ntoken = "x"\n')
    said = strop("status", "--config", str(bad), code=2).stderr
    assert all(key in said for key in ("chat.temprature", "trainer.nice", "discord.token", "3 problems"))
    assert "Traceback" not in said


def test_a_config_file_that_is_named_must_exist(strop: Strop, tmp_path: Path) -> None:
    assert "`strop init` writes one" in strop("status", "-c", str(tmp_path / "none.toml"), code=2).stderr


def test_a_database_from_a_newer_version_is_a_sentence(strop: Strop, database: Database) -> None:
    database.write(
        lambda db: db.conn.execute(
            "insert into _sqlite_migrations (migration_set, name, applied_at) values ('strop', 'm9999', '')"
        )
    )
    assert "newer Strop" in strop("status", code=1).stderr


def test_with_several_scopes_a_command_lists_them_and_asks(strop: Strop, database: Database) -> None:
    database.write(lambda db: rated_replies(db, 1, first=10, scope="guild:2"))
    said = strop("retrain", code=2).stderr
    assert "--scope" in said and SCOPE in said and "guild:2" in said
    assert "There is no scope 'guild:3'" in strop("retrain", "--scope", "guild:3", code=2).stderr
    strop("retrain", "--scope", "guild:2")


def test_direct_messages_are_no_scope_of_their_own_where_guilds_train(
    strop: Strop, database: Database
) -> None:
    database.write(
        lambda db: conversations.open_conversation(
            db, key="dm", guild_id=None, channel_id=9, scope="deployment", source="playground", public=False
        )
    )
    assert json.loads(strop("retrain", "--json").stdout)["scope"] == SCOPE


# ------------------------------------------------------------ retrain and status
def test_retrain_queues_one_run_and_says_that_nobody_works_on_it(strop: Strop, database: Database) -> None:
    first = json.loads(strop("retrain", "--json").stdout)
    assert (first["state"], first["scope"]) == ("queued", SCOPE)
    assert json.loads(strop("retrain", "--json").stdout)["run_id"] == first["run_id"]
    assert "No trainer is running" in strop("retrain").stdout
    run = database.read(lambda db: runs.expect(db, first["run_id"]))
    assert run.requested_by.startswith("cli:")


def test_a_run_takes_settings_of_its_own_and_the_audit_log_names_who_asked(
    strop: Strop, database: Database
) -> None:
    assert "must be one of auto, sft" in strop("retrain", "--objective", "magic", code=1).stderr
    queued = json.loads(strop("retrain", "--objective", "sft", "--epochs", "2", "--json").stdout)
    run = database.read(lambda db: runs.expect(db, queued["run_id"]))
    assert run.settings == {"trainer": {"objective": "sft", "epochs": 2}}
    assert f"run.enqueue run_id={run.id}" in strop("audit").stdout
    (entry, *_) = json.loads(strop("audit", "--json").stdout)
    assert entry["action"] == "run.enqueue" and entry["actor"].startswith("cli:")


def test_a_dry_run_says_what_a_run_would_use_and_queues_nothing(strop: Strop, database: Database) -> None:
    text = strop("retrain", "--dry-run").stdout
    assert "Dry run: nothing was changed." in text and "held out to judge on" in text
    found = json.loads(strop("retrain", "--dry-run", "--json").stdout)
    assert found["train"] + found["held_out"] > 0 and found["verdict"].startswith("A run would")
    assert found["forecast"] is None and "No run has trained here yet" in text
    assert database.read(lambda db: runs.latest(db, SCOPE)) == []


def test_before_the_first_run_a_dry_run_estimates_what_it_takes_on_this_machine(
    strop: Strop, home: Path, database: Database
) -> None:
    (home / "small.toml").write_text('[model]\nbase = "SmolLM2-135M-Instruct"\ndevice = "cpu"\n')
    given = ("retrain", "--dry-run", "--config", str(home / "small.toml"))
    forecast = json.loads(strop(*given, "--json").stdout)["forecast"]
    assert (forecast["runs"], forecast["from"]) == (0, "estimate")
    assert 60 < forecast["seconds"] < 3600 and 300e6 < forecast["peak_bytes"] < 10e9
    assert "estimated: no run has trained here yet" in strop(*given).stdout


def test_a_dry_run_says_how_long_a_run_takes_from_those_that_trained_here(
    strop: Strop, database: Database
) -> None:
    trained_on = json.loads(strop("retrain", "--dry-run", "--json").stdout)["train"]
    metrics = {
        "data": {"train": {"liked": trained_on, "disliked": 0, "unclear": trained_on}},
        "training": {"objective": "sft", "sft": {"steps": 20, "seconds": 400.0}},
    }

    def work(db: sqlite_utils.Database, took_s: float) -> None:
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test")
        runs.lease_next(db, "trainer", 60_000)
        runs.finish(db, run.id, outcome="refused", message=Sentence("It lost."), metrics=metrics)
        evaluations.record_process(db, run.id, ProcessFigures(took_s, 900.0, 2_000_000_000))

    for took_s in (700.0, 730.0, 5000.0):
        database.write(lambda db, took_s=took_s: work(db, took_s))
    forecast = json.loads(strop("retrain", "--dry-run", "--json").stdout)["forecast"]
    # Half of the replies take half of the 400 s of training; the one that took long is not the rule.
    assert forecast == {"seconds": 530.0, "peak_bytes": 2_000_000_000, "runs": 3, "from": "runs"}
    assert "about 9 min, with 2.0 GB of memory at most" in strop("retrain", "--dry-run").stdout


@pytest.mark.parametrize(
    ("outcome", "code"), [("promoted", 0), ("refused", 0), ("not_yet", 0), ("failed", 1)]
)
def test_waiting_follows_the_run_to_its_sentence_and_its_exit_code(
    strop: Strop, database: Database, outcome: runs.Outcome, code: int
) -> None:
    def trainer() -> None:
        while (run := database.write(lambda db: runs.lease_next(db, "me", 60_000))) is None:
            time.sleep(0.02)
        database.write(lambda db: runs.heartbeat(db, run.id, "me", "train", 0.4, 120.0, "step 4 of 10"))
        time.sleep(0.7)
        database.write(lambda db: runs.finish(db, run.id, outcome=outcome, message="One sentence."))

    working = threading.Thread(target=trainer)
    working.start()
    result = strop("retrain", "--wait", code=code)
    working.join()
    assert result.stdout.strip() == "One sentence."


def test_a_run_can_be_cancelled_and_then_there_is_nothing_to_cancel(strop: Strop, database: Database) -> None:
    strop("retrain")
    assert json.loads(strop("retrain", "--cancel", "--json").stdout)["state"] == "cancelled"
    assert "nothing to cancel" in strop("retrain", "--cancel", code=1).stderr


def test_status_says_that_a_server_refuses_the_key(strop: Strop, database: Database) -> None:
    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"error": {"message": "The key is missing."}}'
            self.send_response(401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Path("strop.toml").write_text(
            f'[server]\nbase_url = "http://127.0.0.1:{server.server_port}"\n', encoding="utf-8"
        )
        assert "Model server: refuses the request (The key is missing.)" in strop("status").stdout
        server.shutdown()


def test_status_shows_ratings_needs_server_and_trainer(
    strop: Strop, database: Database, config: Config
) -> None:
    text = strop("status").stdout
    assert (
        "3 likes" in text
        and "3 (needed: 25)" in text
        and "Trainer: not running" in text
        and "Model server: down" in text
    )
    assert "Next run: when the trainer is back" in text and "Recovered" not in text
    due_ms = now_ms() + 3 * 60 * 60 * 1000
    database.write(lambda db: key_values.put(db, key_values.NEXT_RUN, str(due_ms)))
    database.write(lambda db: key_values.put(db, key_values.RECOVERED_RATINGS, "4"))
    with ProcessLock(config.run / "trainer.lock").acquire("busy"):
        text = strop("status").stdout
        assert "Next run: by the clock in 3 h, or after 50 new ratings" in text
        assert "Recovered: 4 ratings that were given while the bot was away" in text
        record = json.loads(strop("status", "--json").stdout)
    assert record["trainer_alive"] is True
    assert (record["next_run_ms"], record["recovered_ratings"]) == (due_ms, 4)
    assert [scope["ratings"]["liked"] for scope in record["scopes"]] == [3]


# ------------------------------------------------------------ adapters
def test_adapters_are_listed_with_the_champion_marked(
    strop: Strop, database: Database, config: Config
) -> None:
    assert "No adapter has been trained yet" in strop("adapters").stdout
    adapter_id = adapter_folder(config.adapters, b"first")
    database.write(lambda db: champion(db, adapter_id))
    assert adapter_id in strop("adapters").stdout
    (row,) = json.loads(strop("adapters", "--json").stdout)
    assert (row["id"], row["champion"], row["state"]) == (adapter_id, True, "promoted")
    assert (row["replaced"], row["answered_until_ms"]) == (None, None) and row["answered_from_ms"]


def test_the_list_of_adapters_tells_their_lineage_in_plain_words(
    strop: Strop, database: Database, config: Config
) -> None:
    first, second = adapter_folder(config.adapters, b"first"), adapter_folder(config.adapters, b"second")
    database.write(lambda db: champion(db, first))
    database.write(lambda db: champion(db, second))
    text = strop("adapters").stdout
    assert re.search(
        rf"^    Promoted by itself in place of {first} \d{{4}}-\d\d-\d\d \d\d:\d\d\.$", text, re.M
    )
    assert f"; replaced by {second} 2" in text and "<t:" not in text and "`" not in text


def test_one_may_go_back_further_than_to_the_one_before(
    strop: Strop, database: Database, config: Config
) -> None:
    chain = [adapter_folder(config.adapters, name) for name in (b"first", b"second", b"third")]
    for adapter_id in chain:
        database.write(lambda db, chosen=adapter_id: champion(db, chosen))
    assert "not among the adapters that led" in strop("rollback", chain[2], code=1).stderr
    assert f"adapter {chain[0]} answers" in strop("rollback", chain[0][:8]).stdout
    assert "the base model answers" in strop("rollback", "base").stdout
    assert database.read(lambda db: adapters.champion(db, SCOPE, BASE_HASH)) is None


def test_the_card_of_an_adapter_is_the_runs_or_the_one_beside_its_files(
    strop: Strop, database: Database, config: Config
) -> None:
    adapter_id = adapter_folder(config.adapters, b"first")
    database.write(lambda db: champion(db, adapter_id))
    assert "has no card" in strop("adapters", "show", adapter_id, code=1).stderr
    (config.adapters / adapter_id / "card.md").write_text("# Beside its files")
    assert strop("adapters", "show", adapter_id[:5]).stdout == "# Beside its files\n"
    assert "strop adapters show" in strop("adapters", "show", code=2).stderr
    assert "No such command 'hide'" in strop("adapters", "hide", "a1", code=2).stderr


def test_promote_by_the_beginning_of_an_id_then_roll_back_to_the_base(
    strop: Strop, database: Database, config: Config
) -> None:
    adapter_id = adapter_folder(config.adapters, b"first")
    database.write(
        lambda db: adapters.insert_candidate(
            db, adapter_id=adapter_id, scope=SCOPE, base_hash=BASE_HASH, path=f"adapters/{adapter_id}"
        )
    )
    said = strop("promote", adapter_id[:6], "--reason", "the best one").stdout
    assert said == f"From the next reply on adapter {adapter_id} answers in {SCOPE}, not the base model.\n"
    assert "already" in strop("promote", adapter_id).stdout
    assert (
        database.read(lambda db: sql.value(db, "select reason from promotions order by id desc"))
        == "the best one"
    )
    assert json.loads(strop("rollback", "--json").stdout) == {
        "scope": SCOPE, "champion": None, "previous": adapter_id
    }  # fmt: skip
    assert "nothing came before" in strop("rollback", code=1).stderr
    strop("promote", adapter_id)
    strop("promote", "base")
    assert database.read(lambda db: adapters.champion(db, SCOPE, BASE_HASH)) is None


def test_an_adapter_whose_files_changed_cannot_be_promoted_or_rolled_back_to(
    strop: Strop, database: Database, config: Config
) -> None:
    first, second = adapter_folder(config.adapters, b"first"), adapter_folder(config.adapters, b"second")
    database.write(lambda db: champion(db, first))
    database.write(lambda db: champion(db, second))
    (config.adapters / first / "adapter_model.safetensors").write_bytes(b"tampered")
    assert "Nothing was changed" in strop("promote", first, code=1).stderr
    assert "Nothing was changed" in strop("rollback", code=1).stderr
    shutil.rmtree(config.adapters / first)
    assert "There is no adapter folder" in strop("promote", first, code=1).stderr
    assert database.read(lambda db: adapters.champion(db, SCOPE, BASE_HASH)) == second


def test_an_unknown_or_ambiguous_adapter_is_named(strop: Strop, database: Database, config: Config) -> None:
    for content in (b"first", b"second"):
        adapter_id = adapter_folder(config.adapters, content)
        database.write(lambda db, chosen=adapter_id: champion(db, chosen))
    assert "`strop adapters` lists them" in strop("promote", "zzz", code=2).stderr
    assert "write more of it" in strop("promote", "a", code=2).stderr


# ------------------------------------------------------------ export, backup, restore
def test_export_writes_chats_with_counts_and_nobodys_id(
    strop: Strop, database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "ratings.jsonl"
    assert "3 lines from 3 rated replies" in strop("export", str(path)).stderr
    assert path.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [message["role"] for message in lines[0]["messages"]] == ["user", "assistant"]
    assert (lines[0]["liked"], lines[0]["disliked"]) == (1, 0)
    assert "user_id" not in path.read_text() and "asker" not in path.read_text()
    assert "--force" in strop("export", str(path), code=1).stderr
    strop("export", str(path), "--force")


def test_export_for_preference_trainers_labels_each_completion(strop: Strop, database: Database) -> None:
    lines = [json.loads(line) for line in strop("export", "--format", "kto").stdout.splitlines()]
    assert {line["label"] for line in lines} == {True}
    assert lines[0]["completion"][0]["role"] == "assistant"


def test_what_may_not_be_trained_on_is_left_out_and_counted(strop: Strop, database: Database) -> None:
    database.write(lambda db: members.set_consent(db, 7, "out", "7"))
    result = strop("export")
    assert result.stdout == ""
    assert "Left out: 3 because somebody in its context opted out" in result.stderr


def test_a_backup_is_restored_and_the_former_database_kept(
    strop: Strop, database: Database, config: Config, tmp_path: Path
) -> None:
    dest = tmp_path / "monday"
    assert json.loads(strop("backup", str(dest), "--json").stdout)["path"] == str(dest)
    assert "exists already" in strop("backup", str(dest), code=1).stderr
    database.write(lambda db: rated_replies(db, 2, first=50))
    database.close()
    assert strop("restore", str(dest), answers="n\n", code=1).exit_code == 1
    assert Path(json.loads(strop("restore", str(dest), "--yes", "--json").stdout)["replaced"]).is_dir()
    with Database.open(config.database) as restored:
        assert restored.read(lambda db: sql.value(db, "select count(*) from replies")) == 3
    (dest / "strop.db").write_bytes(b"broken")
    assert "is damaged" in strop("restore", str(dest), "--yes", code=1).stderr


def test_nothing_is_restored_under_a_running_strop(strop: Strop, database: Database, config: Config) -> None:
    strop("backup", "copy")
    with ProcessLock(config.run / "strop.lock").acquire("busy"):
        assert "stop it first, then restore" in strop("restore", "copy", "--yes", code=1).stderr


def test_a_backup_without_a_name_is_made_in_the_backups_folder(
    strop: Strop, database: Database, config: Config
) -> None:
    strop("backup")
    assert len(list(config.backups.iterdir())) == 1


# ------------------------------------------------------------ processes
def test_a_single_process_that_makes_no_sense_here_says_so(
    strop: Strop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strop.toml").write_text('[server]\nbase_url = "http://10.0.0.1:8000"\n')
    assert "nothing to run here" in strop("serve", code=1).stderr
    monkeypatch.setenv("DISCORD_TOKEN", "x")
    assert "there is no playground" in strop("playground", code=1).stderr
    assert "only in the playground" in strop("rehearse", "--taste", "warm", code=1).stderr


def test_rehearsing_needs_a_running_playground_and_a_taste(strop: Strop) -> None:
    assert "start it with `strop up`" in strop("rehearse", "--taste", "warm", code=1).stderr
    assert "start it with `strop up`" in strop("sample", code=1).stderr


def test_a_run_is_repeated_by_its_id_and_not_where_nothing_can_be(strop: Strop, database: Database) -> None:
    def trained(db: sqlite_utils.Database) -> str:
        run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="op")
        runs.lease_next(db, "me", 60_000)
        runs.record_snapshot(db, run.id, snapshot_hash="s", rows=[])
        runs.finish(db, run.id, outcome="refused", message="no", adapter_id="a1")
        return run.id

    run_id = database.write(trained)
    assert "give it alone" in strop("retrain", "--repeat", run_id, "--epochs", "2", code=1).stderr
    queued = json.loads(strop("retrain", "--repeat", run_id[:8], "--json").stdout)
    run = database.read(lambda db: runs.expect(db, queued["run_id"]))
    assert (run.scope, run.state, run.settings) == (SCOPE, "queued", {"repeat": run_id})
    database.write(lambda db: runs.cancel(db, run.id, "test"))
    assert "it trained no adapter" in strop("retrain", "--repeat", run.id, code=1).stderr
    database.write(lambda db: db.execute("UPDATE runs SET repeatable = 0 WHERE id = ?", (run_id,)))
    assert "a member erased their data" in strop("retrain", "--repeat", run_id, code=1).stderr
    assert "No run begins with 'r0000" in strop("retrain", "--repeat", "r0000", code=1).stderr


def test_stats_counts_by_day_and_by_adapter_and_names_nobody(strop: Strop, database: Database) -> None:
    database.write(lambda db: rated_replies(db, 3))
    found = json.loads(strop("stats", "--json").stdout)
    assert sum(day["liked"] + day["disliked"] for day in found["days"]) >= 3
    assert found["adapters"][0]["interval"][0] <= found["adapters"][0]["share"]
    assert "user" not in json.dumps(found)
    assert "Share of ratings that like" in strop("stats", "--days", "30").stdout
    weeks = json.loads(strop("stats", "--weeks", "8", "--json").stdout)
    assert len(weeks["weeks"]) == 8 and weeks["weeks"][-1]["liked"] + weeks["weeks"][-1]["disliked"] > 0
    assert (
        weeks["drift"] is None
        and weeks["training"] is None
        and all("id" in each for each in weeks["channels"])
    )
    said = strop("stats", "--weeks", "8").stdout
    assert "by week" in said and said.count("nothing rated") == 7 and "`" not in said
    assert "Too few members have rated" in said
