"""How much memory Strop's processes use, with the pages that they share counted once.

The proportional set size (PSS, proc(5)) divides each page by the processes that map it: summed over all of
them it is what ending them would free. Only Linux has it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

from storage.config import Config
from storage.process.locks import TRAINER_LOCK

PROC = Path("/proc")


def read_by_process(config: Config, proc: Path = PROC) -> dict[str, int]:
    """Return the PSS in bytes of each process of a deployment that runs: server, trainer, training run.

    A process of another user, or a system without `/proc`, leaves an entry out.
    """
    found: dict[str, int] = {}
    for name, pid, module in _roots(config):
        if not _runs(pid, module, proc):
            continue  # a number left by a process that is gone, perhaps another's by now
        for process in (pid, *_descendants(pid, proc)):
            size = _pss(process, proc)
            if size is None:
                continue
            label = "training run" if _runs(process, "trainer.run", proc) else name
            found[label] = found.get(label, 0) + size
    return found


def read_own(proc: Path = PROC) -> int | None:
    """Return the PSS in bytes of the process that asks; None where the system doesn't tell."""
    return _pss(os.getpid(), proc)


def return_freed() -> None:
    """Give memory that is free back to the system, so that nothing of what was in it stays (glibc's only)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def sentence(sizes: dict[str, int]) -> str:
    """Say it to an operator in one line; empty where nothing is known."""
    if not sizes:
        return ""
    parts = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in sizes.items())
    return f"Memory: {sum(sizes.values()) / 1e6:,.0f} MB ({parts}; shared pages counted once)"


def oom_kills(proc: Path = PROC, cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many processes the kernel has ended so far because memory ran out; None where it won't say.

    Counted for this process's own control group where there is one (cgroup v2, then v1), else for the whole
    system: https://docs.kernel.org/admin-guide/cgroup-v2.html, `memory.events`.
    """
    for file in (*_own_groups(proc, cgroups), proc / "vmstat"):
        with contextlib.suppress(OSError, ValueError):
            for line in file.read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return None


def _own_groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield cgroups / path.lstrip("/") / "memory.events"
                # In a container the path is the host's, and its own group is mounted at the top.
                yield cgroups / "memory.events"
            elif "memory" in controllers.split(","):
                yield cgroups / "memory" / path.lstrip("/") / "memory.oom_control"
                yield cgroups / "memory" / "memory.oom_control"


def _roots(config: Config) -> Iterator[tuple[str, int, str]]:
    try:
        record = json.loads((config.run / "server.json").read_text(encoding="utf-8"))
        yield "model server", int(record["pid"]), "bot.serving"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with contextlib.suppress(OSError, ValueError):
        yield "trainer", int((config.run / TRAINER_LOCK).read_text(encoding="ascii")), "trainer"


def _descendants(pid: int, proc: Path) -> list[int]:
    children: list[int] = []
    for file in (proc / str(pid) / "task").glob("*/children"):
        try:
            children += [int(child) for child in file.read_text(encoding="ascii").split()]
        except OSError:
            continue
    return [process for child in children for process in (child, *_descendants(child, proc))]


def _pss(pid: int, proc: Path) -> int | None:
    try:
        lines = (proc / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)


def _runs(pid: int, module: str, proc: Path) -> bool:
    try:
        return module.encode() in (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
