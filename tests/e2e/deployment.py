"""A whole Strop deployment in real processes, in the world that users have, driven as its page drives it.

That world is a clone in a folder with a space and an umlaut in its name, with the default home in it (so
that its path is relative), no variable of the test suite's own, `make up`, and Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from storage.db.database import Database

POLL_S = 0.25
# To look whether anything has moved takes more processor time than most of what is waited for.
LOOK_S = 2.0
# A wait fails once nothing has moved for so long; what moves may take its time on a busy machine.
PATIENCE_S = 120.0
# So much processor time is a move too. Processes that only wait take several times the patience for it.
COMPUTING_S = 5.0
# Before the first line of a process's log its libraries are loaded.
STARTING_S = 300.0
STOPPING_S = 120.0
PROGRESS = "select id, state, phase, round(progress, 4) as share, note, outcome from runs"
REPOSITORY = Path(__file__).resolve().parents[2]
CLONED = ("Makefile", "pyproject.toml", "requirements.lock", "bot", "storage", "trainer")
# What the test suite sets for itself, and nobody else does.
NOT_A_USERS = (
    "DISCORD_",
    "STROP_",
    "HF_",
    "TRANSFORMERS_",
    "PYTEST_",
    "OMP_",
    "GOMP_",
    "COV_",
    "MAKE",
    "ARGS",
)


class Deployment:
    """`make up` without a token in a clone of its own, reached over its loopback sockets only."""

    def __init__(
        self,
        parent: Path,
        settings: str,
        *,
        models: Path | None = None,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self.folder = parent / "Strop für uns"
        self.folder.mkdir(parents=True)
        for name in CLONED:
            (self.folder / name).symlink_to(REPOSITORY / name)
        self.home = self.folder / "data"
        self.home.mkdir()
        if models is not None:
            models.mkdir(parents=True, exist_ok=True)
            (self.home / "models").symlink_to(models, target_is_directory=True)
        (self.folder / "strop.toml").write_text(settings)
        self.own_environment = dict(environment or {})
        self.data = self.home / "playground"
        self.log = self.folder / "up.log"
        # Where the log of the present life begins.
        self.life = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.session: aiohttp.ClientSession | None = None
        self.page: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.snapshot: dict[str, Any] = {}
        self._listener: asyncio.Task[None] | None = None

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(NOT_A_USERS)}
        # The one thread is for the tests' sake: several of them share two cores. None takes a variable away.
        own = {"OMP_NUM_THREADS": "1"} | self.own_environment
        return kept | {key: value for key, value in own.items() if value is not None}

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                # make takes the environment of the tests as it is, whichever checkout it was set up for.
                ["make", "up", f"VENV={sys.prefix}", f"RUNTIME={sys.prefix}/pyvenv.cfg"],
                cwd=self.folder,
                env=self.environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                # A terminal's Ctrl-C reaches the whole group.
                start_new_session=True,
            )

    async def start(self) -> None:
        self.snapshot, earlier = {}, self.page
        self.life = self.log.stat().st_size if self.log.exists() else 0
        self.process = self._spawn()
        pointer = self.data / "run" / "playground.json"

        def published() -> dict[str, Any] | None:
            page: dict[str, Any] = json.loads(pointer.read_text()) if pointer.exists() else earlier
            return page if page != earlier else None

        self.page = await until(published, "the playground to publish its address", self, STARTING_S)
        self.session = aiohttp.ClientSession(
            base_url=self.page["url"], headers={"X-Playground-Secret": self.page["secret"]}
        )
        self._listener = asyncio.create_task(self._listen())
        await until(lambda: bool(self.snapshot), "the page's first snapshot", self, STARTING_S)
        await until(self._serving, "the model server and the bot to be ready", self, STARTING_S)

    async def _listen(self) -> None:
        assert self.session is not None
        async with self.session.ws_connect("/playground/events", max_msg_size=0) as socket:
            await socket.send_json({"secret": self.page["secret"]})
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                item = json.loads(message.data)
                if item["t"] == "snapshot":
                    self.snapshot = item
                elif item["t"] == "loop":
                    self.snapshot["loop"] = item["loop"]
                else:
                    self.events.append(item)
                    if item["event"] == "BOT_STATUS":
                        self.snapshot["bot_online"] = bool(item["data"].get("online"))

    async def _serving(self) -> bool:
        loop = await self.get("/playground/loop")
        return loop["server"]["status"] == "ok" and bool(self.snapshot.get("bot_online"))

    async def get(self, path: str) -> Any:
        assert self.session is not None
        async with self.session.get(path) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        assert self.session is not None
        async with self.session.request(method, path, json=body or {}) as response:
            assert response.status < 300, f"{method} {path}: {response.status} {await response.text()}"
            return await response.json() if response.content_type == "application/json" else None

    @property
    def owner(self) -> dict[str, Any]:
        return next(m for m in self.snapshot["members"] if m["operator"])

    @property
    def bot(self) -> dict[str, Any]:
        return next(m for m in self.snapshot["members"] if m["bot"])

    @property
    def channel(self) -> str:
        return str(next(c["id"] for c in self.snapshot["channels"] if c["kind"] == "text"))

    def query(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        database = Database.open(self.data / "strop.db")
        try:
            return database.read(lambda db: list(db.query(sql, parameters)))
        finally:
            database.close()

    def logged(self, event: str) -> bool:
        """Whether a process has logged this since the last start."""
        with self.log.open("rb") as log:
            log.seek(self.life)
            return event.encode() in log.read()

    def progress(self) -> Any:
        """Return something that is another as soon as anything has moved: log, page, runs, computing."""
        runs = self.query(PROGRESS) if (self.data / "strop.db").exists() else []
        return self.log.stat().st_size, len(self.events), runs, int(self.computed_s() / COMPUTING_S)

    def computed_s(self) -> float:
        """Return the processor time that the living processes of the deployment have had."""
        parents, ticks = {}, {}
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # Behind the name, which may hold anything: state, parent, group, session, ..., user, system.
                fields = file.read_text().rpartition(")")[2].split()
                pid = int(file.parent.name)
                parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
        own = [pid for pid in ticks if self._started(pid, parents)]
        return sum(ticks[pid] for pid in own) / os.sysconf("SC_CLK_TCK")

    def _started(self, pid: int, parents: Mapping[int, int]) -> bool:
        """Whether a process is one of the deployment's, also in a session of its own."""
        while pid in parents:
            if self.process is not None and pid == self.process.pid:
                return True
            pid = parents[pid]
        return False

    async def ask(self, text: str) -> dict[str, Any]:
        """Mention the bot and return the finished reply's row."""
        before = {row["id"] for row in self.query("select id from replies")}
        content = f"<@{self.bot['id']}> {text}"
        message = {"channel_id": self.channel, "author_id": self.owner["id"], "content": content}
        await self.call("POST", "/playground/messages", message)

        def finished() -> dict[str, Any] | None:
            # The row ends before its message is known to the database, and a rating needs the message.
            rows = self.query(
                "select * from replies where status <> 'streaming'"
                " and exists (select 1 from reply_parts where reply_id = replies.id)"
            )
            return next((row for row in rows if row["id"] not in before), None)

        row: dict[str, Any] = await until(finished, f"an answer to {text!r}", self)
        return row

    async def command(self, name: str, options: dict[str, Any] | None = None) -> None:
        who = {"channel_id": self.channel, "user_id": self.owner["id"]}
        await self.call("POST", "/playground/commands", {**who, "name": name, "options": options or {}})

    def run_strop(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.prefix) / "bin" / "strop"), *arguments],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    async def stop(self) -> int:
        """Press Ctrl-C and wait for the end."""
        if self._listener:
            self._listener.cancel()
        if self.session:
            await self.session.close()
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            return await asyncio.to_thread(self.process.wait, STOPPING_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    async def restart(self) -> None:
        """Stop as a user does, and start again."""
        await self.stop()
        await self.start()


async def until(
    check: Callable[[], Any], what: str, deployment: Deployment, patience_s: float = PATIENCE_S
) -> Any:
    """Poll `check` (plain or async) until it is truthy and return its value.

    It fails with the log's end when the deployment ends, or when nothing in it has moved for `patience_s`.
    """
    last = deployment.progress()
    looked = moved = time.monotonic()
    while True:
        value = check()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        ended = deployment.process is not None and deployment.process.poll() is not None
        if (now_s := time.monotonic()) - looked > LOOK_S:
            looked = now_s
            if (now := deployment.progress()) != last:
                last, moved = now, now_s
        if ended or now_s - moved > patience_s:
            tail = deployment.log.read_text(errors="replace")[-4000:]
            why = "strop up ended" if ended else f"nothing moved for {patience_s:.0f} s"
            raise AssertionError(f"waiting for {what}: {why}\n{tail}")
        await asyncio.sleep(POLL_S)


@asynccontextmanager
async def deployed(
    parent: Path,
    settings: str,
    *,
    models: Path | None = None,
    environment: Mapping[str, str | None] | None = None,
) -> AsyncIterator[Deployment]:
    """A started deployment below `parent` that is stopped again, whatever happens."""
    deployment = Deployment(parent, settings, models=models, environment=environment)
    try:
        await deployment.start()
        yield deployment
    finally:
        if deployment.process is not None and deployment.process.poll() is None:
            await deployment.stop()
