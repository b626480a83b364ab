import json
import subprocess
import sys
from pathlib import Path

import pytest

from storage.config import load_config
from storage.process import memory


def test_the_server_the_trainer_and_its_run_are_counted(tmp_path: Path) -> None:
    config = load_config(None, {"STROP_HOME": str(tmp_path)})
    config.run.mkdir(parents=True)
    # Stand-ins: a server, and a trainer with a child whose command line names the run.
    wait = "print(flush=True); input()"
    server = subprocess.Popen(
        [sys.executable, "-c", wait, "bot.serving"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    (config.run / "server.json").write_text(json.dumps({"pid": server.pid}))
    code = (
        "import subprocess, sys\n"
        "run = subprocess.Popen([sys.executable, '-c', 'print(flush=True); input()', 'trainer.run'],"
        " stdin=subprocess.PIPE)\n"
        "input(); run.communicate(b'')\n"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, "trainer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    for process in (server, trainer):
        assert process.stdout is not None
        process.stdout.readline()
    (config.run / "trainer.lock").write_text(f"{trainer.pid}\n")
    sizes = memory.by_process(config)
    for process in (trainer, server):
        process.communicate(b"\n")
    assert memory.by_process(config) == {}
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this system does not count shared pages")
    assert {"model server", "trainer", "training run"} <= set(sizes)
    assert all(size > 1e6 for size in sizes.values())
    assert "training run" in memory.sentence(sizes)


def test_nothing_is_said_where_nothing_runs(tmp_path: Path) -> None:
    config = load_config(None, {"STROP_HOME": str(tmp_path)})
    assert memory.by_process(config) == {}
    assert memory.sentence({}) == ""
