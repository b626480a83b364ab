"""Python processes that start at once: one that has imported everything forks one for each start.

To import takes a process of Strop up to six seconds of a processor, and a thousand kills start thousands.
What is forked is a real process all the same: it runs the module's own `__main__` in an interpreter of its
own, holds its locks, sockets and connections, and dies by `kill -9` with nothing put away.

Whoever starts it starts `sys.executable`, which is a small launcher here. The launcher hands over its
arguments, environment, folder and output, waits in the place of the process, and ends as that ends; where
the launcher is killed, as the kernel does with children of a killed supervisor, the process is killed too.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
IMPORTED = (
    "bot.app",
    "bot.cli.launch.children",
    "bot.serving.api.routes",
    "bot.serving.engine.engine",
    "bot.serving.model.loading",
    "trainer.schedule.queue",
    "trainer.run.execution",
    "trainer.gate.pending_decisions",
    "transformers.models.llama.modeling_llama",
    "peft",
)
# Isolated and without site: it starts in a hundredth of a second. The kernel's shim around it is real Python.
LAUNCHER = """#!{python} -IS
import os, sys
if sys.argv[1] == "-I":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
import json, signal, socket
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
forks = socket.socket(socket.AF_UNIX)
forks.connect({address!r})
order = dict(argv=sys.argv[1:], environment=dict(os.environ), folder=os.getcwd(), group=os.getpgid(0))
order = json.dumps(order).encode()
socket.send_fds(forks, [len(order).to_bytes(8, "big")], [0, 1, 2])
forks.sendall(order)
for number in (0, 1, 2):
    os.close(number)
code = int(forks.recv(16) or b"1")
if code < 0:
    if -code != signal.SIGKILL:  # which has no handler to take back
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


class Forks:
    """Starts the process that forks, and knows what it forked."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.launcher = folder / "python"
        address = str(folder / "forks.socket")
        self.launcher.write_text(LAUNCHER.format(python=sys.executable, address=address))
        self.launcher.chmod(0o700)
        command = [sys.executable, "-m", "tests.torture.forks", address, str(self.launcher)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=dict(environment))
        while not Path(address).exists():
            assert self._process.poll() is None, "nothing forks"
            time.sleep(0.1)

    def start(self, module: str, *arguments: str, environment: Mapping[str, str], log: Path) -> int:
        """Start `python -m MODULE`; return the launcher's process id, a child of this process."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [str(self.launcher), "-m", module, *arguments],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            ).pid

    def alive(self) -> dict[int, str]:
        """Return the ids of the processes that live, each with its module's name, cut to 15 characters."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        found = {}
        for pid in map(int, children.split()):
            with contextlib.suppress(OSError):
                if "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
                    found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
        return found

    def computed_s(self) -> float:
        """Return the processor time of everything that was forked and has ended, and of what lives."""
        ticks = 0
        for pid in (self._process.pid, *self.alive()):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process that forks, and with it whatever still lives."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class _Forking:
    """Forks for each launcher that connects, and tells it how its process ended."""

    def __init__(self, address: str, launcher: str) -> None:
        self._launcher = launcher
        self._launchers: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(address)
        self._listening.listen()
        self._woken, waking = os.pipe()
        for end in (self._woken, waking):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking)
        self._waking = waking

    def serve(self) -> dict[str, Any] | None:
        """Fork until standard input ends; in a forked process return its order."""
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    for pid in self._launchers:
                        os.kill(pid, signal.SIGKILL)
                    return None
                if key.fileobj is self._listening:
                    order = self._fork()
                    if order is not None:
                        return order
                elif key.fileobj == self._woken:
                    os.read(self._woken, 4096)
                    self._reap()
                else:
                    # Nothing more is ever sent: the launcher has gone.
                    self._selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _fork(self) -> dict[str, Any] | None:
        launcher, _ = self._listening.accept()
        head, descriptors, _, _ = socket.recv_fds(launcher, 8, 3)
        if len(head) < 8:
            launcher.close()
            return None
        wanted, data = int.from_bytes(head, "big"), b""
        while len(data) < wanted and (more := launcher.recv(wanted - len(data))):
            data += more
        if len(data) < wanted:
            return None
        order: dict[str, Any] = json.loads(data)
        pid = os.fork()
        if pid == 0:
            self._put_on(order, descriptors)
            launcher.close()
            return order
        for descriptor in descriptors:
            os.close(descriptor)
        self._launchers[pid] = launcher
        self._selector.register(launcher, selectors.EVENT_READ, pid)
        return None

    def _put_on(self, order: dict[str, Any], descriptors: Sequence[int]) -> None:
        """Leave everything of the process that forks, and become what was ordered."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for other in self._launchers.values():
            other.close()
        self._listening.close()
        for descriptor in (self._woken, self._waking):
            os.close(descriptor)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        # Those of before were made for other files: what may be sought in, a pipe refuses.
        sys.stdin = os.fdopen(0, "r", encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(
            2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
        )
        with contextlib.suppress(OSError):  # the launcher has gone already
            os.setpgid(0, order["group"])
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.executable = self._launcher

    def _reap(self) -> None:
        for pid in list(self._launchers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            launcher = self._launchers.pop(pid)
            with contextlib.suppress(KeyError):
                self._selector.unregister(launcher)
            with contextlib.suppress(OSError):
                launcher.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            launcher.close()


def become(argv: Sequence[str]) -> int:
    """Run `-m MODULE ARGUMENTS` in this process; return its exit code."""
    assert argv[0] == "-m", argv
    module = argv[1]
    name = module.removeprefix("tests.torture.").encode()[:15]
    ctypes.CDLL(None).prctl(PR_SET_NAME, name, 0, 0, 0)
    sys.argv = [module, *argv[2:]]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Import everything, then fork at each order."""
    for name in IMPORTED:
        __import__(name)
    import bot.chat.generation as generation

    # A model that loads is asked every other second; here that is only waiting.
    generation.LOADING_POLL_S = 0.1
    assert threading.active_count() == 1, "what has threads can't be forked"
    order = _Forking(*sys.argv[1:]).serve()
    if order is not None:
        code = become(order["argv"])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
