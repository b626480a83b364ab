"""The supervisor against real processes: small scripts that behave well, badly, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from bot.cli.launch.console import JsonStage
from bot.cli.launch.supervisor import Backoff, ChildSpec, Supervisor
from storage.process.locks import AlreadyRunningError, ProcessLock, is_locked

QUICK = Backoff(first_s=0.02, limit_s=0.08, stable_s=60)
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(60)
"""


async def test_a_full_disk_behind_the_output_ends_nobody(tmp_path: Path) -> None:
    """Children are started again and stopped in order though no line of it can be written."""
    full = Path("/dev/full").open("w")  # noqa: ASYNC230, SIM115 - a device, whose closing fails like a write
    crashing = script("crashing", "print('a line', flush=True); raise SystemExit(1)")
    supervisor = Supervisor(
        [crashing, sleeper("calm")], announcer=JsonStage(full), log_dir=tmp_path, backoff=QUICK
    )
    running = asyncio.create_task(supervisor.run())
    await until(lambda: (tmp_path / "crashing.log").exists())
    await until(lambda: (tmp_path / "crashing.log").read_text().count("a line") >= 3)
    assert not running.done()
    supervisor.stop()
    assert await running == 0
    with contextlib.suppress(OSError):
        full.close()


class Recorder:
    """An announcer that remembers."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.lines: list[tuple[str, str]] = []

    def say(self, process: str, sentence: str, *, level: str = "info", **fields: object) -> None:
        self.said.append((process, sentence))

    def output(self, process: str, line: str) -> None:
        self.lines.append((process, line))

    def sentences(self, process: str) -> list[str]:
        return [sentence for name, sentence in self.said if name == process]


def script(name: str, body: str, **more: object) -> ChildSpec:
    # -S -I: these scripts need no packages, and start in 10 ms instead of 60.
    return ChildSpec(name, (sys.executable, "-I", "-S", "-c", textwrap.dedent(body)), **more)  # type: ignore[arg-type]


def sleeper(name: str, on_term: str = "") -> ChildSpec:
    return script(
        name,
        f"""
        import signal, sys, time
        def end(*_):
            print("{name} draining {on_term}", flush=True)
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("ready", flush=True)
        time.sleep(60)
        """,
    )


async def until(condition: object, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the condition never came true"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie counts as dead: it runs nothing.
    return stat_of(pid)[0] != "Z"


def stat_of(pid: int) -> list[str]:
    """The process's state, parent, ...: see proc_pid_stat(5) from field 3 on."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


async def test_children_stop_in_the_given_order_and_their_lines_are_in_the_logs(tmp_path: Path) -> None:
    recorder = Recorder()
    supervisor = Supervisor(
        [sleeper("bot"), sleeper("trainer"), sleeper("serving")], announcer=recorder, log_dir=tmp_path
    )
    running = asyncio.create_task(supervisor.run())
    await until(lambda: sum(line == "ready" for _, line in recorder.lines) == 3)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    drained = [name for name, line in recorder.lines if "draining" in line]
    assert drained == ["bot", "trainer", "serving"]
    assert (tmp_path / "bot.log").read_text().splitlines() == ["ready", "bot draining "]


async def test_a_dead_child_is_restarted_with_growing_pauses_and_says_so_in_one_sentence(
    tmp_path: Path,
) -> None:
    recorder = Recorder()
    supervisor = Supervisor(
        [script("bot", "raise SystemExit(7)")], announcer=recorder, log_dir=tmp_path, backoff=QUICK
    )
    running = asyncio.create_task(supervisor.run())
    await until(lambda: len(recorder.said) >= 4)
    supervisor.stop()
    assert await running == 0
    assert [
        sentence.partition(" in ")[2].partition(" s")[0] for sentence in recorder.sentences("bot")[:4]
    ] == [
        "0.02",
        "0.04",
        "0.08",
        "0.08",
    ]
    assert recorder.sentences("bot")[0].startswith("bot ended with code 7; starting it again in")


async def test_a_killed_child_is_restarted_and_its_grandchildren_are_gone(tmp_path: Path) -> None:
    recorder = Recorder()
    parent = script(
        "trainer",
        """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True)
        time.sleep(60)
        """,
    )
    supervisor = Supervisor([parent], announcer=recorder, log_dir=tmp_path, backoff=QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: recorder.lines)
    grandchild = int(recorder.lines[0][1])
    os.kill(int(stat_of(grandchild)[1]), signal.SIGKILL)
    await until(lambda: len(recorder.lines) == 2)
    assert "was killed by SIGKILL" in recorder.sentences("trainer")[0]
    assert not alive(grandchild)
    supervisor.stop()
    assert await running == 0


@pytest.mark.parametrize("code", [2, 3])
async def test_a_permanent_exit_stops_everything_with_that_code_and_its_sentence(
    tmp_path: Path, code: int
) -> None:
    recorder = Recorder()
    failing = script(
        "bot",
        f"""
        import sys
        print('{{"event": "structured log"}}', file=sys.stderr)
        print("Discord refused the token; make a new one.", file=sys.stderr)
        sys.exit({code})
        """,
    )
    supervisor = Supervisor([failing, sleeper("serving")], announcer=recorder, log_dir=tmp_path)
    assert await asyncio.wait_for(supervisor.run(), 20) == code
    assert recorder.sentences("bot") == ["Discord refused the token; make a new one."]


async def test_a_child_that_ignores_term_is_killed_after_the_drain_time(tmp_path: Path) -> None:
    recorder = Recorder()
    stubborn = script("serving", STUBBORN)
    supervisor = Supervisor([stubborn], announcer=recorder, log_dir=tmp_path, drain_s=0.3)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: recorder.lines)
    started = time.monotonic()
    supervisor.stop()
    # Without a drain time of its own it would be ten seconds.
    assert await running == 0
    assert 0.2 < time.monotonic() - started < 9


async def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    recorder = Recorder()
    stubborn = script("serving", STUBBORN)
    supervisor = Supervisor([stubborn], announcer=recorder, log_dir=tmp_path, drain_s=30)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: recorder.lines)
    os.kill(os.getpid(), signal.SIGINT)
    await until(lambda: len(recorder.said) == 1)
    os.kill(os.getpid(), signal.SIGINT)
    # Sooner than the drain time.
    assert await asyncio.wait_for(running, 20) == 0


async def test_secrets_arrive_on_stdin_and_never_on_the_command_line(tmp_path: Path) -> None:
    recorder = Recorder()
    echo = script(
        "serving",
        """
        import sys, time
        data = sys.stdin.read()
        secret = data.split('"')[3]
        print(secret, secret in open("/proc/self/cmdline").read(), flush=True)
        time.sleep(60)
        """,
        stdin=b'{"api_key": "sesame"}',
    )
    supervisor = Supervisor([echo], announcer=recorder, log_dir=tmp_path)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: recorder.lines)
    supervisor.stop()
    await running
    assert recorder.lines[0][1] == "sesame False"


async def test_a_line_of_a_megabyte_and_bytes_that_are_no_text_do_not_end_the_child(tmp_path: Path) -> None:
    recorder = Recorder()
    noisy = script(
        "bot",
        r"""
        import sys, time
        sys.stdout.buffer.write(b"x" * 1_000_000 + b"\n\xff\xfe\nstill here\n")
        sys.stdout.flush()
        time.sleep(60)
        """,
    )
    supervisor = Supervisor([noisy], announcer=recorder, log_dir=tmp_path)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: ("bot", "still here") in recorder.lines)
    supervisor.stop()
    assert await running == 0
    assert recorder.said == []


def test_killing_the_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
from bot.cli.launch.console import JsonStage
from bot.cli.launch.supervisor import ChildSpec, Supervisor
class Quiet:
    def say(self, process, sentence, *, level="info", **fields): print(process, sentence, flush=True)
    def output(self, process, line): print(line, flush=True)
body = {STUBBORN!r}
children = [ChildSpec(name, (sys.executable, "-I", "-S", "-c", body)) for name in ("a", "b")]
asyncio.run(Supervisor(children, announcer=Quiet(), log_dir=Path({str(tmp_path)!r})).run())
"""
    supervisor = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    with supervisor:
        pids = [int(supervisor.stdout.readline()) for _ in range(2)]
        assert all(alive(pid) for pid in pids)
        supervisor.kill()
        supervisor.wait()
        deadline = time.monotonic() + 60
        while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(alive(pid) for pid in pids)


def test_one_lock_at_a_time_and_a_dead_holder_leaves_it_free(tmp_path: Path) -> None:
    path = tmp_path / "run" / "strop.lock"
    program = (
        "import time; from pathlib import Path; from storage.process.locks import ProcessLock\n"
        f"lock = ProcessLock(Path({str(path)!r})).acquire('busy'); print('held', flush=True); time.sleep(60)"
    )
    assert not is_locked(path)
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path)
        with pytest.raises(AlreadyRunningError, match=rf"process {holder.pid} has it"):
            ProcessLock(path).acquire("process {pid} has it")
        holder.kill()
        holder.wait()
    assert not is_locked(path)
    with ProcessLock(path).acquire("busy"):
        assert is_locked(path)
    assert not is_locked(path)
