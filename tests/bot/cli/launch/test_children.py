"""What `strop up` starts and shows, up to a real start with real processes."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from bot.cli.launch.children import children, forget_stale, watch
from bot.cli.launch.console import JsonStage, TerminalStage, visible
from storage.config import load_config
from storage.process.locks import ProcessLock
from tests.bot.fake_server import FakeModelServer

ROOT = Path(__file__).parents[4]
TOKEN = "MTIzNDU2Nzg5MDEyMzQ1Njc4.GaBcDe.abcdefghijklmnopqrstuvwxyz0123456789AB"


def test_without_a_token_the_playground_is_among_the_children(tmp_path: Path) -> None:
    config = load_config(None, {"STROP_HOME": str(tmp_path)})
    specs = children(config, tmp_path / "strop.toml", {"PATH": "/bin"})
    assert [spec.name for spec in specs] == ["bot", "trainer", "playground", "serving"]
    assert specs[0].env == {"PATH": "/bin", "STROP_PLAYGROUND": "1"}


def test_with_a_token_there_is_no_playground_and_no_secret_where_others_can_read_it(tmp_path: Path) -> None:
    environment = {"STROP_HOME": str(tmp_path), "DISCORD_TOKEN": TOKEN, "STROP_API_KEY": "sesame-sesame"}
    specs = children(load_config(None, environment), tmp_path / "strop.toml", environment)
    assert [spec.name for spec in specs] == ["bot", "trainer", "serving"]
    arguments = " ".join(part for spec in specs for part in spec.argv)
    assert TOKEN not in arguments and "sesame-sesame" not in arguments
    serving = specs[-1]
    assert not {"DISCORD_TOKEN", "STROP_API_KEY"} & set(serving.env or {})
    assert json.loads(serving.stdin or b"{}")["api_key"] == "sesame-sesame"
    assert specs[0].env is not None and specs[0].env["DISCORD_TOKEN"] == TOKEN
    for other in specs[1:]:
        assert TOKEN not in str(other.env) and TOKEN not in str(other.stdin)
    # The trainer has to know that this is no playground, whose data lies in a folder of its own.
    bots, trainers = (load_config(None, spec.env or {}) for spec in specs[:2])
    assert bots.data == trainers.data and not trainers.playground


def test_an_external_model_server_is_not_started(tmp_path: Path) -> None:
    path = tmp_path / "strop.toml"
    path.write_text('[server]\nbase_url = "http://10.0.0.1:8000"\n')
    config = load_config(path, {"STROP_HOME": str(tmp_path)})
    assert "serving" not in [spec.name for spec in children(config, path, {})]


def test_process_files_of_the_dead_are_forgotten_and_those_of_the_living_kept(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    ended.wait()
    (tmp_path / "server.json").write_text(json.dumps({"pid": ended.pid}))
    (tmp_path / "playground.json").write_text(json.dumps({"pid": os.getpid()}))
    forget_stale(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["playground.json"]
    (tmp_path / "playground.json").write_text("half writ")
    forget_stale(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------ what is shown
def shown(*lines: str) -> str:
    stream = io.StringIO()
    stage = TerminalStage(Console(file=stream, width=120, highlight=False))
    for line in lines:
        stage.output("bot", line)
    return stream.getvalue()


def test_a_terminal_shows_warnings_and_announced_events_and_leaves_the_rest_to_the_logs() -> None:
    quiet = json.dumps({"event": "reply finished", "level": "info", "timestamp": "x"})
    loud = json.dumps({"event": "rate limited", "level": "warning", "seconds": 3})
    asked = json.dumps({"event": "signed in as Strop", "level": "info", "announce": True})
    ended = json.dumps(
        {"event": "run.ended", "level": "info", "run_id": "r1", "message": "It was no better."}
    )
    text = shown(quiet, "Traceback (most recent call last):", loud, asked, ended)
    assert "reply finished" not in text and "Traceback" not in text
    assert "rate limited seconds=3" in text and "signed in as Strop" in text
    assert "Run r1: It was no better." in text


def test_text_from_elsewhere_can_neither_move_the_cursor_nor_mark_itself_up() -> None:
    assert "\x1b" not in shown(json.dumps({"event": "\x1b[2J[red]boo[/]", "level": "error"}))
    assert "[red]boo[/]" in shown(json.dumps({"event": "\x1b[2J[red]boo[/]", "level": "error"}))
    assert len(visible("x" * 1000)) == 300


def test_without_a_terminal_every_line_is_one_json_object() -> None:
    stream = io.StringIO()
    stage = JsonStage(stream)
    stage.say("strop", "Starting.")
    stage.output("bot", json.dumps({"event": "ready", "level": "info"}))
    stage.output("bot", "plain words")
    stage.output("bot", "")
    stage.announce_page("http://127.0.0.1:8600")
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["event"] for record in records] == [
        "Starting.",
        "ready",
        "plain words",
        "Open http://127.0.0.1:8600",
    ]
    assert {record["process"] for record in records} == {"strop", "bot", "playground"}


async def test_a_wrong_server_model_is_told_at_the_start_with_the_key(tmp_path: Path) -> None:
    server = FakeModelServer()
    server.describes_base = False
    await server.start()
    path = tmp_path / "strop.toml"
    path.write_text(f'[server]\nbase_url = "{server.base_url}"\nmodel = "gemma3"\n')
    stream = io.StringIO()
    await watch(load_config(path, {"STROP_HOME": str(tmp_path), "DISCORD_TOKEN": TOKEN}), JsonStage(stream))
    await server.stop()
    told = [
        record for record in map(json.loads, stream.getvalue().splitlines()) if record["level"] == "error"
    ]
    (event,) = [record["event"] for record in told]
    assert "has no model gemma3; it has " in event and event.endswith("server.model in strop.toml.")


# ------------------------------------------------------------ the real thing
def up(home: Path, **environment: str) -> subprocess.Popen[str]:
    (home / "strop.toml").parent.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DISCORD_", "STROP_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "bot.cli", "up", "--config", str(home / "strop.toml")],
        cwd=ROOT,
        env={**kept, "STROP_HOME": str(home), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def test_a_second_up_on_the_same_data_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "strop.toml").write_text("")
    run = load_config(None, {"STROP_HOME": str(tmp_path)}).run
    with ProcessLock(run / "strop.lock").acquire("busy"):
        second = up(tmp_path)
        out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (2, "")
    assert err.startswith(f"Strop already runs on this data folder (process {os.getpid()})")


# Its server loads torch before it listens.
@pytest.mark.model
def test_a_server_that_can_not_listen_stops_everything_with_its_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "strop.toml").write_text(f"[server]\nport = {port}\n[playground]\nport = 0\n")
        process = up(tmp_path)
        out, err = process.communicate(timeout=280)
    assert process.returncode == 2, out + err
    errors = [record for record in map(json.loads, out.splitlines()) if record["level"] == "error"]
    assert any(f"cannot listen on 127.0.0.1:{port}" in record["event"] for record in errors)
    assert "Traceback" not in out + err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can kill children with their parent")
def test_killing_up_leaves_none_of_its_processes(tmp_path: Path) -> None:
    (tmp_path / "strop.toml").write_text("[server]\nport = 0\n[playground]\nport = 0\n")
    process = up(tmp_path)
    assert process.stdout is not None
    with process:
        while "trainer.started" not in (line := process.stdout.readline()):
            assert line, "strop up ended"
        family = _descendants(process.pid)
        assert len(family) >= 3
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 60
    while any(_running(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in family if _running(pid)] == []


def _descendants(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(folder.name), *_descendants(int(folder.name))]
    return found


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
