"""The page's outer boundary in tests: a small server that speaks the page API with scripted payloads.

It says exactly what a test wants the page to hear, at a pace of milliseconds. Run it by hand to look at the
page with everything on it: `python -m tests.bot.playground.page.page_fixture`.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from bot.dashboard.responses import SHARED

PAGE_DIR = Path(__file__).parents[4] / "bot" / "playground" / "page" / "static"
SECRET = "fixture-secret"
CSP = "default-src 'self'; connect-src 'self' ws://{host}; base-uri 'none'; form-action 'none'"
CACHED = {"Cache-Control": "max-age=600"}
ANSWER = "Rye bread keeps **longer** than wheat, because it holds more water. Do you bake it yourself?"
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

YOU, ADA, SIM, BOT = "1001", "1002", "1101", "2"
GENERAL, LAB, DM = "101", "102", "201"

Payload = dict[str, Any]

MEMBERS = [
    {"id": YOU, "name": "You", "color": "#5865f2", "bot": False, "simulated": False, "operator": True},
    {"id": ADA, "name": "Ada", "color": "#e67e22", "bot": False, "simulated": False, "operator": False},
    {"id": "1003", "name": "Grace", "color": "#1abc9c", "bot": False, "simulated": False, "operator": False},
    {
        "id": SIM,
        "name": "Mara (simulated)",
        "color": "#9b59b6",
        "bot": False,
        "simulated": True,
        "operator": False,
    },
    {
        "id": "1102",
        "name": "Kofi (simulated)",
        "color": "#11806a",
        "bot": False,
        "simulated": True,
        "operator": False,
    },
    {"id": BOT, "name": "Strop", "color": "#f2c94c", "bot": True, "simulated": False, "operator": False},
]
CHANNELS = [
    {
        "id": GENERAL,
        "name": "general",
        "kind": "text",
        "topic": "Talk to Strop, then rate its answers with 👍 and 👎.",
    },
    {"id": LAB, "name": "lab", "kind": "text", "topic": "For the operators."},
    {"id": DM, "name": "You", "kind": "dm", "user_id": YOU},
    {"id": "202", "name": "Ada", "kind": "dm", "user_id": ADA},
]
COMMANDS = [
    {
        "name": "ask",
        "type": 1,
        "description": "Ask Strop without mentioning it",
        "options": [
            {"name": "question", "type": 3, "description": "What to ask", "required": True},
            {
                "name": "tone",
                "type": 3,
                "description": "How to answer",
                "choices": [{"name": "Brief", "value": "brief"}, {"name": "Warm", "value": "warm"}],
            },
            {"name": "tokens", "type": 4, "description": "At most", "min_value": 1, "max_value": 400},
        ],
    },
    {"name": "retrain", "type": 1, "description": "Train a challenger now"},
    {"name": "rollback", "type": 1, "description": "Go back to the previous champion"},
    {"name": "status", "type": 1, "description": "What Strop has collected and what it is doing"},
    {"name": "correct", "type": 1, "description": "Write what the last reply should have been"},
    {
        "name": "privacy",
        "type": 1,
        "description": "Your data",
        "options": [
            {"name": "opt-in", "type": 1, "description": "Let your words train Strop"},
            {"name": "export", "type": 1, "description": "Get everything Strop stores about you"},
        ],
    },
    {
        "name": "prompts",
        "type": 1,
        "description": "What the bot is to answer",
        "options": [
            {
                "name": "add",
                "type": 1,
                "description": "Read them from a file",
                "options": [{"name": "file", "type": 11, "description": "One a line", "required": True}],
            },
        ],
    },
]
TASTES = [
    {
        "key": "brief",
        "title": "Short answers that end with a question",
        "description": "One or two sentences, and a question back.",
        "example": "Rye keeps longer than wheat. What are you baking?",
        "default": True,
    },
    {
        "key": "plain",
        "title": "Plain words",
        "description": "No lists, no headings, no exclamation marks.",
        "example": "Soak the beans overnight. It makes them easier to cook.",
        "default": False,
    },
]


def idle_loop() -> Payload:
    """The loop before anything has happened."""
    return {
        "scope": "guild:1",
        "champion": {"id": None, "since_ms": None},
        "ratings": {"liked": 0, "disliked": 0, "corrections": 0, "raters": 0, "new_since_run": 0},
        "needs": {"liked": [0, 25], "raters": [0, 5]},
        "run": None,
        "last_run": None,
        "history": [],
        "promotions": [],
        "excluded": {},
        "duels": {"open": 0, "votes": 0, "needed": None},
        "trials": {},
        "rehearsal": None,
        "server": {"status": "ok", "detail": "SmolLM2-135M-Instruct"},
        "trainer_alive": True,
    }


class PageWorld:
    """One community on one port. Tests read `calls` and speak through `say`, `edit`, `react`, `set_loop`."""

    def __init__(self) -> None:
        self.pace_s = 0.05
        self.url = ""
        self._sockets: set[web.WebSocketResponse] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_id = 10_000
        self._runner: web.AppRunner | None = None
        self.clear()

    def clear(self) -> None:
        """Forget everything that was said and called."""
        for task in self._tasks:
            task.cancel()
        self.calls: list[tuple[str, Payload]] = []
        self.messages: dict[str, list[Payload]] = {str(channel["id"]): [] for channel in CHANNELS}
        self.loop = idle_loop()
        self.duels: list[Payload] = []
        self.bot_online = True
        self.reply_buttons: bool | None = None

    # ------------------------------------------------------------------ running

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/static/{name}", self._static)
        app.router.add_get("/playground/events", self._events)
        routes: list[tuple[str, str, Callable[[Payload, Any], Awaitable[Any]]]] = [
            ("POST", "/messages", self._send),
            ("PATCH", "/messages/{channel_id}/{id}", self._edit),
            ("DELETE", "/messages/{channel_id}/{id}", self._delete),
            ("PUT", "/reactions", self._react),
            ("DELETE", "/reactions", self._unreact),
            ("POST", "/commands", self._command),
            ("POST", "/components", self._component),
            ("POST", "/modals", self._modal),
            ("POST", "/sample", self._sample),
            ("GET", "/tastes", self._tastes),
            ("POST", "/rehearsal", self._rehearse),
            ("DELETE", "/rehearsal", self._stop_rehearsal),
            ("GET", "/duels", self._duels),
            ("POST", "/duels/{id}/votes", self._vote),
        ]
        for method, path, handler in routes:
            app.router.add_route(method, f"/playground{path}", self._called(f"{method} {path}", handler))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/"

    async def stop(self) -> None:
        self.clear()
        await self.drop_connections()
        if self._runner is not None:
            await self._runner.cleanup()

    async def drop_connections(self) -> None:
        for socket in list(self._sockets):
            await socket.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ what a test says

    async def publish(self, frame: Payload) -> None:
        for socket in list(self._sockets):
            await socket.send_str(json.dumps(frame))

    async def event(self, name: str, data: Payload) -> None:
        await self.publish({"t": "event", "event": name, "data": data})

    async def set_loop(self, **changes: Any) -> None:
        self.loop = {**self.loop, **changes}
        await self.publish({"t": "loop", "loop": self.loop})

    def message(self, author_id: str, content: str, channel_id: str = GENERAL, **extra: Any) -> Payload:
        """Store a message without telling anybody."""
        member = next(entry for entry in MEMBERS if entry["id"] == author_id)
        self._next_id += 1
        user = {
            "id": author_id,
            "username": str(member["name"]).lower(),
            "global_name": member["name"],
            "bot": member["bot"],
        }
        message: Payload = {
            "id": str(self._next_id),
            "channel_id": channel_id,
            "author": user,
            "content": content,
            "timestamp": datetime.now(UTC).isoformat(),
            "edited_timestamp": None,
            "flags": 0,
            "type": 0,
            "mentions": [],
            "reactions": [],
            "embeds": [],
            "components": [],
            "attachments": [],
            **extra,
        }
        self.messages[channel_id].append(message)
        return message

    async def say(self, author_id: str, content: str, channel_id: str = GENERAL, **extra: Any) -> Payload:
        message = self.message(author_id, content, channel_id, **extra)
        await self.event("MESSAGE_CREATE", message)
        return message

    async def answer(self, question: Payload, text: str = "", **extra: Any) -> Payload:
        """The bot's reply to a message."""
        reference = {"message_id": question["id"], "channel_id": question["channel_id"]}
        return await self.say(
            BOT, text, question["channel_id"], type=19, message_reference=reference, **extra
        )

    async def edit(self, message: Payload, content: str) -> None:
        message.update(content=content, edited_timestamp=datetime.now(UTC).isoformat())
        await self.event("MESSAGE_UPDATE", message)

    async def react(self, message: Payload, user_id: str, emoji: str, *, added: bool = True) -> None:
        found = next((entry for entry in message["reactions"] if entry["emoji"]["name"] == emoji), None)
        if found is None:
            found = {"emoji": {"id": None, "name": emoji}, "count": 0, "users": []}
            message["reactions"].append(found)
        found["users"] = [user for user in found["users"] if user != user_id] + ([user_id] if added else [])
        found["count"] = len(found["users"])
        message["reactions"] = [entry for entry in message["reactions"] if entry["users"]]
        data = {
            "user_id": user_id,
            "channel_id": message["channel_id"],
            "message_id": message["id"],
            "emoji": {"id": None, "name": emoji},
        }
        await self.event(f"MESSAGE_REACTION_{'ADD' if added else 'REMOVE'}", data)

    # ------------------------------------------------------------------ the page and its events

    async def _page(self, request: web.Request) -> web.Response:
        text = (PAGE_DIR / "index.html").read_text("utf-8").replace("{{PLAYGROUND_SECRET}}", SECRET)
        policy = {"Content-Security-Policy": CSP.format(host=request.host)}
        return web.Response(text=text, content_type="text/html", headers=policy)

    async def _static(self, request: web.Request) -> web.Response:
        name = Path(request.match_info["name"]).name
        path = PAGE_DIR / name if (PAGE_DIR / name).is_file() else SHARED / name
        if path.suffix not in TYPES or not path.is_file():
            raise web.HTTPNotFound
        return web.Response(
            body=path.read_bytes(), content_type=TYPES[path.suffix], charset="utf-8", headers=CACHED
        )

    async def _events(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        first = await socket.receive(timeout=5)
        if first.type is not WSMsgType.TEXT or json.loads(first.data) != {"secret": SECRET}:
            await socket.close(code=4403)
            return socket
        snapshot = {
            "t": "snapshot",
            "guild": {"id": "1", "name": "Strop Playground"},
            "channels": CHANNELS,
            "members": MEMBERS,
            "messages": self.messages,
            "commands": COMMANDS,
            "loop": self.loop,
            "bot_online": self.bot_online,
            "reply_buttons": self.reply_buttons,
        }
        await socket.send_str(json.dumps(snapshot))
        self._sockets.add(socket)
        async for _ in socket:
            pass
        self._sockets.discard(socket)
        return socket

    def _called(
        self, name: str, handler: Callable[[Payload, Any], Awaitable[Any]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def called(request: web.Request) -> web.Response:
            if request.headers.get("X-Playground-Secret") != SECRET:
                return web.json_response({"error": "This page is out of date: reload it."}, status=403)
            body = json.loads(await request.text() or "{}")
            self.calls.append((name, {**body, **request.match_info}))
            result = await handler(body, request.match_info)
            if isinstance(result, str):
                return web.json_response({"error": result}, status=400)
            return web.json_response(result)

        return called

    # ------------------------------------------------------------------ what the page calls

    def _find(self, channel_id: str, message_id: str) -> Payload:
        return next(entry for entry in self.messages[channel_id] if entry["id"] == message_id)

    async def _send(self, body: Payload, _: Any) -> Payload | str:
        if len(body["content"]) > 2000 or "refuse me" in body["content"]:
            return "A message has at most 2000 characters."
        extra: Payload = {}
        if body.get("reply_to"):
            extra = {
                "type": 19,
                "message_reference": {"message_id": body["reply_to"], "channel_id": body["channel_id"]},
            }
        message = await self.say(body["author_id"], body["content"], body["channel_id"], **extra)
        if f"<@{BOT}>" in body["content"] or body["channel_id"] in (DM, "202"):
            self._spawn(self._stream(message))
        return message

    async def _stream(self, question: Payload) -> None:
        await self.event("TYPING_START", {"channel_id": question["channel_id"], "user_id": BOT})
        await asyncio.sleep(self.pace_s)
        words = ANSWER.split()
        reply = await self.answer(question, words[0])
        for end in (*range(3, len(words), 3), len(words)):
            await asyncio.sleep(self.pace_s)
            await self.edit(reply, " ".join(words[:end]))

    async def _edit(self, body: Payload, path: Any) -> Payload:
        message = self._find(path["channel_id"], path["id"])
        await self.edit(message, body["content"])
        return message

    async def _delete(self, body: Payload, path: Any) -> Payload:
        self.messages[path["channel_id"]].remove(self._find(path["channel_id"], path["id"]))
        await self.event("MESSAGE_DELETE", {"id": path["id"], "channel_id": path["channel_id"]})
        return {"ok": True}

    async def _react(self, body: Payload, _: Any) -> Payload:
        await self.react(self._find(body["channel_id"], body["message_id"]), body["user_id"], body["emoji"])
        return {"ok": True}

    async def _unreact(self, body: Payload, _: Any) -> Payload:
        message = self._find(body["channel_id"], body["message_id"])
        await self.react(message, body["user_id"], body["emoji"], added=False)
        return {"ok": True}

    async def _command(self, body: Payload, _: Any) -> Payload:
        user = {"id": body["user_id"], "username": "member"}
        if body["name"] == "correct":
            field = {
                "type": 4,
                "custom_id": "better",
                "label": "A better reply",
                "style": 2,
                "required": True,
            }
            components = [{"type": 1, "components": [field]}]
            modal = {
                "modal_id": "77",
                "user_id": body["user_id"],
                "title": "Correct the reply",
                "components": components,
            }
            await self.event("MODAL_OPEN", modal)
        elif body["name"] == "ask":
            metadata = {"name": "ask", "user": user}
            text = f"You asked: {body['options']['question']}"
            await self.say(BOT, text, body["channel_id"], interaction_metadata=metadata)
        else:
            await self.whisper(body["user_id"], f"/{body['name']} was run", body["channel_id"])
        return {"interaction_id": "1"}

    async def whisper(self, user_id: str, content: str, channel_id: str = GENERAL, **extra: Any) -> Payload:
        """An ephemeral message."""
        return await self.say(BOT, content, channel_id, flags=64, visible_to=user_id, **extra)

    async def _component(self, body: Payload, _: Any) -> Payload:
        message = self._find(body["channel_id"], body["message_id"])
        await self.edit(message, f"{message['content']} [{body['custom_id']}]")
        return {"interaction_id": "1"}

    async def _modal(self, body: Payload, _: Any) -> Payload:
        await self.whisper(body["user_id"], f"Noted: {body['values']['better']}")
        return {"interaction_id": "1"}

    async def _sample(self, body: Payload, _: Any) -> Payload:
        counts = {"liked": 31, "disliked": 199, "corrections": 0, "raters": 20, "new_since_run": 230}
        await self.set_loop(ratings=counts, needs={"liked": [31, 25], "raters": [20, 5]})
        return {"loaded": 230, "message": "230 replies rated by 20 simulated members."}

    async def _tastes(self, body: Payload, _: Any) -> list[Payload]:
        return TASTES

    async def _rehearse(self, body: Payload, _: Any) -> Payload:
        state = {"running": True, "taste": body["taste"], "done": 14, "total": 60, "eta_s": 190, "liked": 3}
        await self.set_loop(rehearsal={**state, "disliked": 11, "votes": 0, "message": ""})
        return {"rehearsal": self.loop["rehearsal"]}

    async def _stop_rehearsal(self, body: Payload, _: Any) -> Payload:
        ended = {"running": False, "message": "Stopped. What was rated stays rated."}
        await self.set_loop(rehearsal={**self.loop["rehearsal"], **ended})
        return {"rehearsal": self.loop["rehearsal"]}

    async def _duels(self, body: Payload, _: Any) -> Payload:
        return {"duels": self.duels, "open": len(self.duels)}

    async def _vote(self, body: Payload, path: Any) -> Payload:
        self.duels = [duel for duel in self.duels if duel["id"] != path["id"]]
        return {"ok": True, "first_is_challenger": True}


def furnish(world: PageWorld) -> None:
    """A lived-in community, to look at."""
    now = datetime.now(UTC)

    def past(minutes: float) -> str:
        return (now - timedelta(minutes=minutes)).isoformat()

    def reply(question: Payload, text: str, minutes: float, likes: list[str], dislikes: list[str]) -> Payload:
        reference = {"message_id": question["id"], "channel_id": GENERAL}
        thumbs = [
            {"emoji": {"id": None, "name": emoji}, "count": len(users) + 1, "users": [BOT, *users]}
            for emoji, users in (("👍", likes), ("👎", dislikes))
        ]
        return world.message(
            BOT, text, timestamp=past(minutes), message_reference=reference, reactions=thumbs, type=19
        )

    first = world.message(
        ADA, f"<@{BOT}> what's the difference between a strop and a whetstone?", timestamp=past(44)
    )
    text = (
        "A **whetstone** takes steel away and makes a new edge. A **strop** takes almost none: the leather "
        "straightens and polishes the edge that is there. Which blade are you working on?"
    )
    reply(first, text, 43, [ADA, "1003", SIM], [])
    world.message(ADA, "A paring knife. It slides off tomatoes 🍅", timestamp=past(41))
    world.message(ADA, "and I'd rather not buy another one", timestamp=past(40.5))
    second = world.message("1003", f"<@{BOT}> how do I list the adapters from a script?", timestamp=past(31))
    text = (
        "Ask for JSON and pick the ids:\n```sh\nstrop adapters --json | jq -r '.[].id'\n```\n"
        "- champions come first\n- `--scope` narrows it to one community\n"
        "> A rolled-back adapter stays listed."
    )
    reply(second, text, 30, ["1003"], [])
    third = world.message(SIM, f"<@{BOT}> tell me something about tea", timestamp=past(12))
    reply(
        third,
        "Tea is a drink. Tea is made from tea leaves. There are many kinds of tea.",
        11,
        [],
        [SIM, "1102"],
    )
    world.message("1003", "حسنًا، هذا أفضل بكثير من الأمس", timestamp=past(6))
    fourth = world.message(YOU, f"<@{BOT}> does rye bread keep longer than wheat?", timestamp=past(2))
    text = "Yes: rye holds more water, so it stays moist for days. Do you bake it yourself?"
    reply(fourth, text, 1.5, [YOU], [])
    private = {
        "flags": 64,
        "visible_to": YOU,
        "timestamp": past(1),
        "interaction_metadata": {"name": "status", "user": {"id": YOU, "username": "You"}},
    }
    world.message(BOT, "31 liked, 199 disliked by 20 raters. The next run starts in 3 hours.", **private)
    world.loop = busy_loop()
    world.duels = [
        {
            "id": "d1",
            "prompt": [{"role": "user", "content": "What should I cook tonight?"}],
            "first": "Lentils with lemon: twenty minutes and one pot. Do you have cumin?",
            "second": "There are many things that you can cook. You can cook pasta. You can cook rice.",
            "votes": 4,
        }
    ]


def busy_loop() -> Payload:
    """A loop with a past and a run under way."""
    now_ms = int(time.time() * 1000)
    outcomes = [
        ("a41c09be77d1", "refused", -0.04, -0.12, 0.03),
        ("a8de21f00c3b", "promoted", 0.24, 0.18, 0.30),
        ("a03b9d5517e2", "refused", 0.02, -0.05, 0.08),
        ("a7790ce1b2d4", "votes", 0.05, -0.01, 0.11),
        ("a92f4be0cd18", "promoted", 0.12, 0.05, 0.19),
    ]
    history = [
        {
            "run_id": f"r{index}",
            "adapter_id": adapter,
            "outcome": outcome,
            "value": value,
            "low": low,
            "high": high,
            "n": 64,
            "message": f"{adapter} {outcome}",
            "finished_ms": now_ms - (5 - index) * 86_400_000,
        }
        for index, (adapter, outcome, value, low, high) in enumerate(outcomes)
    ]
    return {
        **idle_loop(),
        "champion": {"id": "a92f4be0cd18", "since_ms": now_ms - 86_400_000},
        "ratings": {"liked": 31, "disliked": 199, "corrections": 4, "raters": 20, "new_since_run": 12},
        "needs": {"liked": [31, 25], "raters": [4, 5]},
        "run": {
            "id": "r6",
            "state": "running",
            "phase": "train",
            "progress": 0.42,
            "eta_s": 96,
            "note": "SFT, epoch 2 of 4",
            "message": "",
            "outcome": None,
        },
        "history": history,
        "promotions": [
            {
                "adapter_id": "a92f4be0cd18",
                "previous_id": "a8de21f00c3b",
                "kind": "promote",
                "reason": "+0.12 (0.05 to 0.19)",
                "created_ms": now_ms - 86_400_000,
            },
            {
                "adapter_id": None,
                "previous_id": "a8de21f00c3b",
                "kind": "rollback",
                "reason": "asked by You",
                "created_ms": now_ms - 2 * 86_400_000,
            },
        ],
        "excluded": {"not_public": 6, "no_consent": 3},
        "duels": {"open": 1, "votes": 12, "needed": [21, 70]},
        "trials": {
            "canary": {"adapter_id": "ac51d0a7e2b9", "share": 0.1, "rated": [4, 31], "needed": [12, 61]}
        },
        "next_run": {"at_ms": now_ms + 3 * 3_600_000, "after_ratings": 50},
    }


async def show(port: int) -> None:
    """Serve a furnished community until interrupted."""
    world = PageWorld()
    furnish(world)
    await world.start(port)
    print(world.url, flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await world.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the page with a scripted community.")
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(show(parser.parse_args().port))
