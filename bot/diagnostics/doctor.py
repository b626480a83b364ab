"""`strop doctor`: looks at everything that has to be right, and says in one line how to fix what isn't.

Nothing here changes anything, and Discord is called only when a token is set.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime

from bot.diagnostics.base_model import examine_base
from bot.diagnostics.checks import Check, note, ok, problem
from bot.diagnostics.discord_access import DISCORD_API, examine_discord
from bot.diagnostics.machine import (
    GIB,
    block_device,
    first_gpu,
    installed_packages,
    installed_version,
    is_encrypted,
    nearest_existing,
    size_text,
    this_machine,
)
from bot.diagnostics.run_estimate import run_estimate
from bot.serving.client import SERVER_FILE
from bot.serving.model import catalogue
from bot.serving.model.memory import total_main_memory
from bot.serving.native.library import find_compiler
from bot.serving.vllm.child import find_python
from storage.config import Config
from storage.db.clock import DAY_MS, now_ms
from storage.db.database import Database, sqlite_version_problem
from storage.db.integrity import find_damage
from storage.db.sqlite_errors import translate_errors
from storage.errors import StorageError
from storage.learning import run_times
from storage.privacy import backup, backup_erasure
from storage.privacy.backup_files import MANIFEST
from storage.process import home
from storage.process.locks import BOT_LOCK, is_locked

SMALL_BASE_MEMORY = 2 * GIB
SMALL_BASE_DISK = 2 * GIB
# The default base on a GPU: about 4B parameters, downloaded in 16 bits and kept in 4 bits beside it.
LARGE_BASE_DISK = 14 * GIB
LARGE_BASE_GPU_MEMORY = 8 * GIB
# An older backup is worth a word.
BACKUP_DAYS = 7


def examine(config: Config, *, discord_api: str = DISCORD_API) -> Iterator[Check]:
    """Yield every check as soon as it is done."""
    yield from examine_discord(config, discord_api)
    yield from examine_base(config)
    yield _schedule(config)
    yield from _home(config)
    for check in (_sqlite, _database, _backup, _disk, _memory, _gpu, _compiler):
        yield check(config)
    if config.trainer.parallel_runs > 1 and config.trainer.where == "local":
        yield _parallel_runs(config)
    yield from _packages()
    yield _encryption(config)
    yield from _ports(config)


def _home(config: Config) -> Iterator[Check]:
    if reason := home.unusable(config.data):
        yield problem(
            "home",
            f"nothing can be written to {config.data}: {reason}",
            "make it a folder that this user can write to, or set STROP_HOME to another one",
        )
    elif kind := home.network_type(config.data, home.mounts()):
        yield problem(
            "home",
            f"{config.data} is on a network file system ({kind}), where SQLite's write-ahead log isn't safe",
            "set STROP_HOME to a folder on a disk of this machine",
        )
    else:
        yield ok("home", f"{config.data} can be written")


def _schedule(config: Config) -> Check:
    trainer, now = config.trainer, datetime.now(UTC)
    try:
        times = _stored_times(config, now)
    except StorageError:
        times = run_times.upcoming(trainer, None, now)
    after = f"after {trainer.min_new_ratings} new ratings" if trainer.min_new_ratings else ""
    if not times:
        return note("schedule", f"no clock: a run starts {after or 'only when it is asked for'}")
    clock = f"cron {trainer.cron!r}" if trainer.cron else f"every {trainer.interval_in_force:g} h"
    said = f"{clock}: {', '.join(run_times.format_time(time, trainer) for time in times)}"
    if trainer.cron and trainer.interval_in_force:
        hours = f"trainer.interval_hours = {trainer.interval_in_force:g}"
        return note(
            "schedule", f"two clocks start runs, trainer.cron and {hours}: set one to 0 or empty; {said}"
        )
    if trainer.cron and trainer.interval_hours:
        said += f" (the default interval of {trainer.interval_hours:g} h does not run beside it)"
    return ok("schedule", f"{said}{after and ', or '}{after}")


def _stored_times(config: Config, now: datetime) -> list[datetime]:
    if not config.database.is_file() or Database.is_outdated(config.database):
        return run_times.upcoming(config.trainer, None, now)
    with Database.open(config.database) as database:
        return database.read(lambda db: run_times.list_upcoming(db, config.trainer, now))


def _sqlite(_: Config) -> Check:
    sentence = sqlite_version_problem()
    if sentence:
        return problem("sqlite", sentence, "pip install pysqlite3, or upgrade SQLite to 3.51.3 or newer")
    from sqlite_utils.utils import sqlite3

    return ok("sqlite", f"{sqlite3.sqlite_version} (without the WAL-reset bug)")


def _database(config: Config) -> Check:
    if not config.database.is_file():
        return note("database", f"none yet; `strop up` creates {config.database}")
    try:
        if Database.is_outdated(config.database):
            return note("database", f"{config.database} is of an earlier version: the next start updates it")
        database = Database.open(config.database)
        try:
            with translate_errors(config.database):
                damage = find_damage(config.database)
            left = backup_erasure.find_unerased(database, config.backups)
        finally:
            database.close()
    except StorageError as error:
        return problem("database", str(error), "follow what it says, or `strop restore` a backup")
    if damage:
        return problem(
            "database",
            f"damaged: {' '.join(damage.split())}",
            "stop Strop and `strop restore` the newest backup",
        )
    if left:
        folders = ", ".join(f"{each.folder} ({each.reason})" for each in left)
        return problem(
            "database",
            f"words that members erased may still be in {folders}",
            "delete these backups, or let the version and the user that made them run Strop once",
        )
    return ok("database", f"{config.database} ({size_text(config.database.stat().st_size)}) is sound")


def _backup(config: Config) -> Check:
    if not config.database.is_file():
        return note("backup", "none is needed yet")
    found = backup.newest_verified(config.backups)
    if found is None:
        if any(config.backups.glob(f"*/{MANIFEST}")):
            return problem("backup", f"none in {config.backups} is whole", "run `strop backup`")
        return note("backup", f"none in {config.backups} yet: run `strop backup`, best every day")
    folder, created_ms = found
    days = (now_ms() - created_ms) / DAY_MS
    age = f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"
    if days > BACKUP_DAYS:
        return note("backup", f"the newest whole one, {folder.name}, is {age} old: run `strop backup`")
    return ok("backup", f"{folder.name} is whole and {age} old")


def _disk(config: Config) -> Check:
    folder = nearest_existing(config.home)
    free = shutil.disk_usage(folder).free
    needed = LARGE_BASE_DISK if config.model.base == "auto" and first_gpu() else SMALL_BASE_DISK
    if free < needed:
        return problem(
            "disk",
            f"{size_text(free)} free at {folder}",
            f"free {size_text(needed - free)}, or move STROP_HOME to a larger disk",
        )
    return ok("disk", f"{size_text(free)} free at {folder}")


def _memory(_: Config) -> Check:
    limit = total_main_memory()
    if limit is None:
        return note("memory", "this system doesn't say how much there is")
    if limit < SMALL_BASE_MEMORY:
        return problem(
            "memory",
            f"{size_text(limit)}",
            f"the smallest base and its training need {size_text(SMALL_BASE_MEMORY)}",
        )
    return ok("memory", size_text(limit))


def _parallel_runs(config: Config) -> Check:
    count = config.trainer.parallel_runs
    machine = this_machine(config.model.device)
    total = machine.gpu_bytes or machine.memory_bytes
    base = config.model.base
    if base == "auto" and not machine.gpu_bytes:
        base = catalogue.BUNDLED.id
    estimate = run_estimate(config, base)
    if estimate is None:
        return note("parallel runs", f"up to {count}; what one takes isn't known before the first")
    needed = count * estimate.peak_bytes
    said = f"{count} trainings of about {size_text(estimate.peak_bytes)} on {size_text(total)}"
    if needed > total:
        fitting = max(total // max(estimate.peak_bytes, 1), 1)
        return problem(
            "parallel runs",
            f"{said} don't fit: a run waits until another has ended",
            f"set trainer.parallel_runs to {fitting}",
        )
    return ok("parallel runs", said)


def _compiler(_: Config) -> Check:
    compiler = find_compiler()
    if compiler is None and first_gpu() is None:
        return problem(
            "compiler",
            "no C compiler, so replies take about three times as long and eight times the memory",
            "install gcc (on Debian and Ubuntu: apt install gcc libc6-dev)",
        )
    return ok("compiler", compiler or "none, and none is needed on a GPU")


def _gpu(config: Config) -> Check:
    found = first_gpu()
    if found is None:
        if config.model.device.startswith("cuda"):
            return problem("gpu", "model.device asks for one, none is found", 'set model.device = "auto"')
        return note("gpu", "none: the model runs on the CPU")
    name, total = found
    if total < LARGE_BASE_GPU_MEMORY and config.model.base == "auto":
        return problem(
            "gpu",
            f"{name} with {size_text(total)}",
            "too small for the default base: set model.base to a smaller one",
        )
    server = config.server
    if server.engine != "strop" and not server.base_url and find_python(os.environ) is None:
        advice = "vLLM, which is made for it, is not installed: make install-gpu"
        return note("gpu", f"{name}, {size_text(total)}; {advice}")
    return ok("gpu", f"{name}, {size_text(total)}")


def _packages() -> Iterator[Check]:
    torch = installed_version("torch")
    nvidia = sorted(name for name in installed_packages() if name.startswith("nvidia-"))
    if torch is None:
        yield problem("torch", "not installed", "run `make up`, which installs it")
    elif "+cpu" in torch and nvidia:
        yield problem(
            "torch",
            f"{torch} is a CPU build, but {len(nvidia)} nvidia-* packages are installed for nothing",
            f"pip uninstall -y {nvidia[0]} and the other nvidia-* packages",
        )
    elif "+cpu" in torch and first_gpu():
        yield problem("torch", f"{torch} can't use the GPU", "reinstall torch from a CUDA index")
    else:
        yield ok("torch", torch)
    if installed_version("kernels") is not None:
        yield problem(
            "kernels",
            "the `kernels` package makes bitsandbytes fetch native code from the internet",
            "pip uninstall -y kernels",
        )
    else:
        yield ok("kernels", "no package that fetches native code from the internet")


def _encryption(config: Config) -> Check:
    folder = nearest_existing(config.home)
    device = block_device(folder)
    if device is None:
        return note("encryption", f"can't be seen for {folder}: encryption at rest is the host's to provide")
    if is_encrypted(device):
        return note("encryption", f"{folder} is on {device.name}, which the kernel reports as dm-crypt")
    return note(
        "encryption", f"no dm-crypt seen under {folder} ({device.name}): encrypt the disk if the host doesn't"
    )


def _ports(config: Config) -> Iterator[Check]:
    if not config.server.base_url:
        yield _port(config, "server", config.server.host, config.server.port, SERVER_FILE)
    if config.playground:
        page = config.playground_page
        yield _port(config, "playground", page.host, page.port, "playground.json")
    if config.metrics.port:
        yield _port(config, "metrics", config.metrics.host, config.metrics.port, BOT_LOCK)


def _port(config: Config, section: str, host: str, port: int, file: str) -> Check:
    name = f"port {port}" if port else f"{section} port"
    if port == 0:
        return ok(name, f"{section}: any free one")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            ours = is_locked(config.run / "strop.lock") and (config.run / file).is_file()
            if ours or is_locked(config.run / file):
                return ok(name, f"{section}: in use by this Strop, which is running")
            fix = f"stop the other program, or set another {section}.port"
            return problem(name, f"{section}: {host}:{port} can't be used ({error.strerror})", fix)
    return ok(name, f"{section}: {host}:{port} is free")
