"""What an interruption leaves behind, with real files and a real model-server stand-in over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bot.serving.client import ModelClient
from storage.admin import audit
from storage.config import Config, load_config
from storage.db import sql
from storage.db.database import Database
from storage.learning import adapters, runs
from storage.learning.wrongly_rejected import RESTORED
from tests.trainer.community import BASE_HASH, SCOPE, adapter_folder, champion, open_database
from trainer.schedule.recovery import ChampionKeeper, reconcile, replace_champion


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(None, {"STROP_HOME": str(tmp_path)})


@pytest.fixture
def database(tmp_path: Path, empty_database: Path, config: Config) -> Iterator[Database]:
    with open_database(tmp_path, empty_database) as opened:
        yield opened


def crowned(database: Database, config: Config, content: bytes) -> str:
    adapter_id = adapter_folder(config.adapters, content)
    database.write(lambda db: champion(db, adapter_id))
    return adapter_id


def present(database: Database) -> str | None:
    return database.read(lambda db: adapters.champion(db, SCOPE, BASE_HASH))


def adapter_state(database: Database, adapter_id: str) -> str:
    found = database.read(lambda db: adapters.get(db, adapter_id))
    assert found is not None
    return found.state


def test_a_clean_start_finds_nothing_and_changes_nothing(database: Database, config: Config) -> None:
    adapter_id = crowned(database, config, b"first")
    assert not reconcile(database, config)
    assert present(database) == adapter_id
    assert (
        database.read(lambda db: sql.value(db, "select count(*) from audit where action like 'trainer%'"))
        == 0
    )


def test_a_run_whose_trainer_died_goes_back_into_the_queue_whatever_its_lease_says(
    database: Database, config: Config
) -> None:
    run = database.write(lambda db: runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="test"))
    database.write(lambda db: runs.lease_next(db, "trainer-that-died", 3_600_000))
    assert reconcile(database, config).interrupted_runs == [run.id]
    assert database.read(lambda db: runs.expect(db, run.id)).state == "queued"


def test_a_champion_whose_files_changed_gives_way_to_the_one_before_it_with_an_audit_entry(
    database: Database, config: Config
) -> None:
    first, second = crowned(database, config, b"first"), crowned(database, config, b"second")
    (config.adapters / second / "adapter_model.safetensors").write_bytes(b"tampered")
    found = reconcile(database, config)
    assert found.replaced_champions == {second: first}
    assert "does not have the hash" in found.refused_adapters[second]
    assert present(database) == first
    assert adapter_state(database, second) == "rejected"
    (entry,) = database.read(
        lambda db: sql.many(db, "select actor, detail_json from audit where action = 'champion.rollback'")
    )
    assert entry["actor"] == "trainer" and second in entry["detail_json"]


def test_when_every_earlier_champion_is_missing_too_the_base_model_answers(
    database: Database, config: Config
) -> None:
    first, second, third = (crowned(database, config, name) for name in (b"first", b"second", b"third"))
    for adapter_id in (first, second, third):
        shutil.rmtree(config.adapters / adapter_id)
    found = reconcile(database, config)
    assert set(found.refused_adapters) == {first, second, third}
    assert found.replaced_champions == {third: None}
    assert present(database) is None
    assert not reconcile(database, config)


def test_an_earlier_champion_is_checked_before_it_comes_back(database: Database, config: Config) -> None:
    first, second, third = (crowned(database, config, name) for name in (b"first", b"second", b"third"))
    for adapter_id in (second, third):
        (config.adapters / adapter_id / "adapter_model.safetensors").write_bytes(b"tampered")
    assert reconcile(database, config).replaced_champions == {third: first}
    assert present(database) == first
    assert [adapter_state(database, each) for each in (second, third)] == ["rejected", "rejected"]


def test_of_those_that_are_retired_a_start_reads_no_weights(database: Database, config: Config) -> None:
    first, _ = crowned(database, config, b"first"), crowned(database, config, b"second")
    (config.adapters / first / "adapter_model.safetensors").write_bytes(b"tampered")
    assert not reconcile(database, config)
    (config.adapters / first / "adapter_model.safetensors").unlink()
    assert list(reconcile(database, config).refused_adapters) == [first]


def test_a_damaged_candidate_is_set_aside_and_the_champion_stays(database: Database, config: Config) -> None:
    good = crowned(database, config, b"first")
    bad = adapter_folder(config.adapters, b"candidate")
    database.write(
        lambda db: adapters.insert_candidate(
            db, adapter_id=bad, scope=SCOPE, base_hash=BASE_HASH, path=f"adapters/{bad}"
        )
    )
    (config.adapters / bad / "manifest.json").write_text("{")
    reconcile(database, config)
    assert (present(database), adapter_state(database, bad)) == (good, "rejected")


def test_folders_that_nobody_knows_are_listed_and_left_alone(database: Database, config: Config) -> None:
    orphan = adapter_folder(config.adapters, b"orphan")
    half = config.runs / "r0123456789ab"
    half.mkdir(parents=True)
    (half / "adapter_model.safetensors").write_bytes(b"half")
    found = reconcile(database, config)
    assert (found.unknown_adapter_folders, found.unknown_run_folders) == ([orphan], ["r0123456789ab"])
    assert (config.adapters / orphan).is_dir() and half.is_dir()


class StandIn:
    """A model server's edge: health, and the loading of adapters."""

    def __init__(self) -> None:
        self.status = "ok"
        self.loaded: list[str] = []
        self.refuse: set[str] = set()
        self.server = TestServer(self._app())

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        body = {
            "status": self.status,
            "detail": "converting to 4 bits" if self.status == "loading" else "",
            "base": {"id": "tiny", "hash": BASE_HASH},
            "adapters": self.loaded,
            "queue": {"running": 0, "waiting": 0},
        }
        return web.json_response(body, status=200 if self.status == "ok" else 503)

    async def _load(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        name = body["lora_name"]
        if name in self.refuse:
            error = {
                "message": f"{name} has the wrong shape.",
                "type": "invalid_request",
                "code": "adapter_refused",
            }
            return web.json_response({"error": error}, status=400)
        self.loaded.append(name)
        return web.json_response({})


@pytest.fixture
async def model_server() -> AsyncIterator[StandIn]:
    stand_in = StandIn()
    await stand_in.server.start_server()
    yield stand_in
    await stand_in.server.close()


def client_of(stand_in: StandIn) -> ModelClient:
    return ModelClient(str(stand_in.server.make_url("")), secret="sesame")


async def test_champions_are_loaded_once_and_again_after_the_server_restarted(
    database: Database, config: Config, model_server: StandIn
) -> None:
    adapter_id = crowned(database, config, b"first")
    keeper = ChampionKeeper(database, config)
    async with client_of(model_server) as client:
        assert await keeper.check(client)
        assert await keeper.check(client)
        assert model_server.loaded == [adapter_id]
        model_server.loaded.clear()
        assert await keeper.check(client)
        assert model_server.loaded == [adapter_id]


async def test_a_server_that_is_loading_or_away_is_waited_for(
    database: Database, config: Config, model_server: StandIn
) -> None:
    crowned(database, config, b"first")
    keeper = ChampionKeeper(database, config)
    model_server.status = "loading"
    async with client_of(model_server) as client:
        assert not await keeper.check(client)
        await model_server.server.close()
        assert not await keeper.check(client)
    assert model_server.loaded == []


async def test_a_champion_that_the_server_refuses_stays_while_its_files_are_sound(
    database: Database, config: Config, model_server: StandIn
) -> None:
    crowned(database, config, b"first")
    second = crowned(database, config, b"second")
    model_server.refuse.add(second)
    keeper = ChampionKeeper(database, config)
    async with client_of(model_server) as client:
        assert await keeper.check(client)
        assert (present(database), model_server.loaded) == (second, [])
        model_server.refuse.clear()
        assert await keeper.check(client)
    assert model_server.loaded == [second]


async def test_a_champion_that_the_server_refuses_gives_way_where_its_files_are_damaged(
    database: Database, config: Config, model_server: StandIn
) -> None:
    first, second = crowned(database, config, b"first"), crowned(database, config, b"second")
    model_server.refuse.add(second)
    (config.adapters / second / "adapter_model.safetensors").write_bytes(b"tampered")
    keeper = ChampionKeeper(database, config)
    async with client_of(model_server) as client:
        assert await keeper.check(client)
        assert present(database) == first
        assert await keeper.check(client)
    assert model_server.loaded == [first]


@pytest.mark.parametrize("home", ["data", "../other", "./Ströp & Co"])
def test_a_relative_home_means_the_same_files_in_every_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path / "clone")
    relative = load_config(None, {"STROP_HOME": home})
    with open_database(relative.home) as opened:
        adapter_id = crowned(opened, relative, b"first")
        assert not reconcile(opened, relative)
        assert present(opened) == adapter_id


def test_no_check_that_fails_for_the_machines_reasons_rejects_an_adapter(
    database: Database, config: Config
) -> None:
    adapter_id = crowned(database, config, b"first")
    (config.adapters / adapter_id / ".DS_Store").write_bytes(b"a file browser's")
    found = reconcile(database, config)
    assert "unexpected file" in found.unchecked_adapters[adapter_id]
    assert (present(database), adapter_state(database, adapter_id)) == (adapter_id, "promoted")
    config.adapters.rename(config.adapters.with_name("not-mounted"))
    assert "is not there" in reconcile(database, config).unchecked_adapters[adapter_id]
    assert (present(database), adapter_state(database, adapter_id)) == (adapter_id, "promoted")


def misjudge(database: Database, *refused: str) -> None:
    """What version 0.1 wrote at a start with a relative home: the audit line and the changes of champion."""
    folder = "data/playground/adapters"
    reason = f"The adapter path {folder}/{{}} is not a folder directly inside {folder}."
    reasons = {adapter_id: reason.format(adapter_id) for adapter_id in refused}
    if (champion_id := present(database)) in refused:
        replace_champion(database, SCOPE, BASE_HASH, set(refused), reasons[str(champion_id)])
    for adapter_id in refused:
        database.write(lambda db, wanted=adapter_id: adapters.set_state(db, wanted, "rejected"))  # type: ignore[misc]
    database.write(lambda db: audit.record(db, "trainer", "trainer.reconcile", {"refused_adapters": reasons}))


def test_what_a_relative_home_once_cost_comes_back_with_a_line_in_the_audit(
    database: Database, config: Config
) -> None:
    first, second = crowned(database, config, b"first"), crowned(database, config, b"second")
    misjudge(database, first, second)
    misjudge(database)
    assert present(database) is None
    found = reconcile(database, config)
    assert (found.restored_adapters, found.restored_champions) == ([first, second], [second])
    assert present(database) == second
    assert (adapter_state(database, first), adapter_state(database, second)) == ("retired", "promoted")
    lines = database.read(
        lambda db: [e.detail["adapter_id"] for e in audit.latest(db) if e.action == RESTORED]
    )
    assert sorted(lines) == sorted([first, second])
    assert not reconcile(database, config)


def test_a_champion_that_was_chosen_after_the_mistake_stays(database: Database, config: Config) -> None:
    first = crowned(database, config, b"first")
    misjudge(database, first)
    later = crowned(database, config, b"later")
    found = reconcile(database, config)
    assert (found.restored_adapters, found.restored_champions) == ([first], [])
    assert (present(database), adapter_state(database, first)) == (later, "retired")


def test_a_restored_candidate_that_is_refused_later_stays_refused(database: Database, config: Config) -> None:
    candidate = adapter_folder(config.adapters, b"candidate")
    database.write(
        lambda db: adapters.insert_candidate(
            db, adapter_id=candidate, scope=SCOPE, base_hash=BASE_HASH, path=f"adapters/{candidate}"
        )
    )
    misjudge(database, candidate)
    assert reconcile(database, config).restored_adapters == [candidate]
    assert adapter_state(database, candidate) == "candidate"
    database.write(lambda db: adapters.reject(db, candidate, actor="operator", reason="too chatty"))
    assert not reconcile(database, config)
    assert adapter_state(database, candidate) == "rejected"


def test_a_wrongly_rejected_adapter_whose_files_are_damaged_stays_rejected(
    database: Database, config: Config
) -> None:
    first = crowned(database, config, b"first")
    misjudge(database, first)
    (config.adapters / first / "adapter_model.safetensors").write_bytes(b"tampered")
    assert not reconcile(database, config).restored_adapters
    assert (present(database), adapter_state(database, first)) == (None, "rejected")
