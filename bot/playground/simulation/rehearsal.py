"""Rehearsals: simulated members chat with the real bot through the stand-in and rate its replies by a taste.

Nothing is short-circuited. A simulated member's message goes to the bot over the gateway, the bot answers
as it answers anyone, and a rating is a reaction that the bot hears of over the gateway. Only the members
are not real, and they are labelled so everywhere.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from bot.playground.discord import community
from bot.playground.discord.backend import DiscordBackend, Payload
from bot.playground.discord.community import Person
from bot.playground.errors import ActionRefusedError, RehearsalError
from bot.playground.simulation.prompts import REHEARSAL_PROMPTS
from bot.playground.simulation.tastes import NOISE, TASTES, SimulatedRater, Taste
from storage.chat import members, replies
from storage.db.database import Database
from storage.errors import StorageError
from storage.feedback import duels
from storage.learning import loop_status, runs

#: Questions in flight at once: enough to fill the model server's batch, few enough to read along.
PARALLEL = 6
#: Without a number of rounds, a rehearsal goes on until enough is liked to train, within these bounds.
MIN_ROUNDS = 24
MAX_ROUNDS = 240
#: How likely a member who did not ask rates a reply too.
OTHERS_RATE = 0.3
#: How often storage is asked whether a reply is complete, and how long a reply may take.
POLL_S = 0.25
REPLY_TIMEOUT_S = 180.0
#: A reply that storage doesn't know counts as complete when it hasn't changed for this long.
QUIET_S = 6.0
#: So many unanswered questions in a row, and the rehearsal gives up.
MAX_SILENT = 6
VOTERS_PER_DUEL = 3
#: What a rehearsal takes of an operator's own prompts.
MAX_PROMPTS = 2000
MAX_PROMPT = 2000

log = structlog.get_logger(__name__)


@dataclass
class RehearsalState:
    """What the page shows of a rehearsal."""

    taste: str
    total: int
    running: bool = True
    done: int = 0
    unanswered: int = 0
    liked: int = 0
    disliked: int = 0
    liked_replies: int = 0
    votes: int = 0
    message: str = ""
    started_s: float = field(default_factory=time.monotonic)

    def as_json(self) -> Payload:
        """The state with an estimate of the time left, from the pace so far."""
        pace_s = (time.monotonic() - self.started_s) / self.done if self.done else None
        left_s = round(pace_s * (self.total - self.done)) if pace_s is not None and self.running else None
        return {
            "running": self.running,
            "taste": self.taste,
            "done": self.done,
            "total": self.total,
            "eta_s": left_s,
            "liked": self.liked,
            "disliked": self.disliked,
            "votes": self.votes,
            "message": self.message,
        }


@dataclass(frozen=True)
class Cast:
    """Who rehearses, and what is said. Of the `members`, the last `trolls` say the opposite of the taste.

    Without `prompts` the playground's own are asked; `noise` is the standard deviation of one opinion, and
    so many `voters` vote on each pair that a run waits for.
    """

    prompts: tuple[str, ...] = REHEARSAL_PROMPTS
    members: int = len(community.SIMULATED)
    noise: float = NOISE
    trolls: int = 0
    voters: int = VOTERS_PER_DUEL

    def problem(self) -> str:
        """Say what can't be, or nothing."""
        if not 0 < len(self.prompts) <= MAX_PROMPTS or any(
            not 0 < len(prompt) <= MAX_PROMPT for prompt in self.prompts
        ):
            return f"A rehearsal takes 1 to {MAX_PROMPTS} prompts of at most {MAX_PROMPT} characters."
        if not 0 < self.voters <= self.members <= community.MAX_CROWD:
            return f"A rehearsal has {self.voters} to {community.MAX_CROWD} members."
        if not 0 <= self.trolls < self.members:
            return "There must be fewer trolls than members."
        if not 0.0 <= self.noise <= 1.0:
            return "The noise of an opinion lies between 0 and 1."
        return ""

    @property
    def people(self) -> tuple[Person, ...]:
        """The members, trolls last."""
        return community.crowd(self.members)

    def rater(self, person: Person, taste: Taste, seed: int) -> SimulatedRater:
        """What one member thinks."""
        troll = person in self.people[self.members - self.trolls :]
        return SimulatedRater(person.user_id, taste, seed, self.noise, troll)


@dataclass(frozen=True)
class RehearsalSettings:
    """How a rehearsal behaves; the product takes the defaults."""

    up: str = "👍"
    down: str = "👎"
    scope: str = f"guild:{community.GUILD_ID}"
    min_liked: int = 25
    parallel: int = PARALLEL
    quiet_s: float = QUIET_S
    reply_timeout_s: float = REPLY_TIMEOUT_S
    seed: int = 0


class ReplyWatch:
    """Finds the bot's reply to a message by watching what the page would show."""

    def __init__(self, backend: DiscordBackend) -> None:
        self._backend = backend
        self._first: dict[int, asyncio.Future[int]] = {}
        self._changed_s: dict[int, float] = {}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["ReplyWatch"]:
        """Listen while the block runs."""
        stop = self._backend.on_page_event(self._seen)
        try:
            yield self
        finally:
            stop()

    async def first_message(self, question_id: int, timeout_s: float) -> int | None:
        """The id of the bot's first message in reply to the question, or None if none comes in time."""
        future = self._first.setdefault(question_id, asyncio.get_running_loop().create_future())
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            return None
        finally:
            self._first.pop(question_id, None)

    def quiet_for_s(self, message_id: int) -> float:
        """Seconds since a watched message last changed."""
        return time.monotonic() - self._changed_s.get(message_id, time.monotonic())

    def forget(self, message_id: int) -> None:
        """Stop noting changes of a message."""
        self._changed_s.pop(message_id, None)

    def _seen(self, event: str, data: Payload) -> None:
        if event == "MESSAGE_UPDATE" and int(data["id"]) in self._changed_s:
            self._changed_s[int(data["id"])] = time.monotonic()
        if event != "MESSAGE_CREATE" or int(data["author"]["id"]) != community.BOT_ID:
            return
        question = int((data.get("message_reference") or {}).get("message_id", 0))
        future = self._first.get(question)
        if future is not None and not future.done():
            self._changed_s[int(data["id"])] = time.monotonic()
            future.set_result(int(data["id"]))


class Rehearsal:
    """Runs at most one rehearsal at a time."""

    def __init__(self, backend: DiscordBackend, database: Database, settings: RehearsalSettings) -> None:
        self._backend = backend
        self._database = database
        self._settings = settings
        self._state: RehearsalState | None = None
        self._task: asyncio.Task[None] | None = None
        self._asked = 0
        self._players = Cast()

    def state(self) -> Payload | None:
        """The running or latest rehearsal, or None before the first."""
        return None if self._state is None else self._state.as_json()

    async def start(
        self, taste: str | Taste, rounds: int | None, *, bot_online: bool, cast: Cast | None = None
    ) -> Payload:
        """Begin a rehearsal; `rounds` None means until enough is liked to train, 0 means votes only.

        Raises RehearsalError if one is running, the taste is unknown or the bot is away.
        """
        if self._task is not None and not self._task.done():
            raise RehearsalError("A rehearsal is running already: wait for it or stop it.")
        if isinstance(taste, str) and taste not in TASTES:
            raise RehearsalError(f"There is no taste “{taste}”; there are {', '.join(TASTES)}.")
        cast = cast or Cast()
        if problem := cast.problem():
            raise RehearsalError(problem)
        if rounds is not None and not 0 <= rounds <= MAX_ROUNDS:
            raise RehearsalError(f"A rehearsal has between 0 and {MAX_ROUNDS} rounds.")
        if not bot_online and rounds != 0:
            raise RehearsalError("The bot isn't connected yet: wait a moment and try again.")
        chosen = TASTES[taste] if isinstance(taste, str) else taste
        self._state = RehearsalState(chosen.key, MIN_ROUNDS if rounds is None else rounds)
        self._players = cast
        self._backend.welcome(cast.people)
        self._task = asyncio.create_task(self._run(self._state, chosen, rounds))
        return self._state.as_json()

    async def cancel(self) -> Payload | None:
        """Stop the running rehearsal; what was rated stays rated."""
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return self.state()

    async def _run(self, state: RehearsalState, taste: Taste, rounds: int | None) -> None:
        try:
            await self._introduce_members()
            await self._vote(state, taste)
            if rounds != 0:
                await self._chat(state, taste, adaptive=rounds is None)
            await self._vote(state, taste)
            state.message = _summary(state)
        except asyncio.CancelledError:
            state.message = "Stopped. " + _summary(state)
            raise
        except (RehearsalError, StorageError, ActionRefusedError) as error:
            state.message = str(error)
            log.warning("playground.rehearsal_ended", error=str(error))
        except Exception:  # the task's boundary
            state.message = "The rehearsal ended by an error; the playground's log has the details."
            log.exception("playground.rehearsal_failed")
        finally:
            state.running = False
            log.info(
                "playground.rehearsal",
                taste=state.taste,
                done=state.done,
                liked=state.liked,
                votes=state.votes,
            )

    async def _introduce_members(self) -> None:
        """Label the members in storage before their first message does it."""
        await self._database.awrite(
            lambda db: [
                members.ensure(db, person.user_id, person.display_name, "rehearsal", simulated=True)
                for person in self._players.people
            ]
        )

    async def _chat(self, state: RehearsalState, taste: Taste, *, adaptive: bool) -> None:
        """Ask and rate, several questions at a time, until the rounds are done."""
        dice = random.Random(f"{self._settings.seed}:{self._asked}")
        silent = 0
        async with ReplyWatch(self._backend).watching() as watch:
            pending: set[asyncio.Task[bool]] = set()
            try:
                while state.done + len(pending) < state.total or pending:
                    while len(pending) < self._settings.parallel and state.done + len(pending) < state.total:
                        pending.add(asyncio.create_task(self._round(state, taste, watch, dice)))
                    finished, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in finished:
                        answered = task.result()
                        silent = 0 if answered else silent + 1
                        state.unanswered += not answered
                        state.done += 1
                    if silent >= MAX_SILENT:
                        raise RehearsalError(
                            "The bot didn't answer several questions in a row: is the model loaded?"
                        )
                    if adaptive:
                        state.total = await self._rounds_needed(state)
            finally:
                for task in pending:
                    task.cancel()
                await asyncio.gather(*pending, return_exceptions=True)

    async def _rounds_needed(self, state: RehearsalState) -> int:
        """How many rounds it will probably take until enough replies are liked to train."""
        scope, wanted = self._settings.scope, self._settings.min_liked
        status = await self._database.aread(lambda db: loop_status.read(db, scope, "", min_liked=wanted))
        missing = max(0, wanted - status.ready.liked)
        rate = max(0.05, state.liked_replies / max(1, state.done))
        return min(MAX_ROUNDS, max(MIN_ROUNDS, state.done + round(missing / rate)))

    async def _round(
        self, state: RehearsalState, taste: Taste, watch: ReplyWatch, dice: random.Random
    ) -> bool:
        """One question, its reply and the ratings; whether the bot answered."""
        prompts, people = self._players.prompts, self._players.people
        prompt = prompts[self._asked % len(prompts)]
        self._asked += 1
        asker = dice.choice(people)
        # Trolls are busy: they rate whatever they see.
        trolls = people[len(people) - self._players.trolls :]
        others = [p for p in people if p != asker and (p in trolls or dice.random() < OTHERS_RATE)]
        question = self._backend.send_message(
            community.REHEARSAL_ID, asker.user_id, f"<@{community.BOT_ID}> {prompt}"
        )
        found = await self._complete_reply(int(question["id"]), watch)
        if found is None:
            return False
        message_id, text = found
        liked = [self._rate(taste, rater, message_id, text) for rater in (asker, *others)]
        state.liked += sum(liked)
        state.disliked += len(liked) - sum(liked)
        state.liked_replies += sum(liked) * 2 > len(liked)
        return True

    def _rate(self, taste: Taste, rater: Person, message_id: int, text: str) -> bool:
        liked = self._players.rater(rater, taste, self._settings.seed).likes(text)
        emoji = self._settings.up if liked else self._settings.down
        self._backend.set_reaction(community.REHEARSAL_ID, message_id, rater.user_id, emoji, reacted=True)
        return liked

    async def _complete_reply(self, question_id: int, watch: ReplyWatch) -> tuple[int, str] | None:
        """The complete reply, its first message and whole text; None if it failed or never came."""
        ends_s = time.monotonic() + self._settings.reply_timeout_s
        message_id = await watch.first_message(question_id, self._settings.reply_timeout_s)
        if message_id is None:
            return None
        try:
            while time.monotonic() < ends_s:
                reply = await self._database.aread(lambda db: replies.by_discord_id(db, message_id))
                if reply is not None and reply.status == "failed":
                    return None
                if reply is not None and reply.status != "streaming":
                    return message_id, reply.text
                if reply is None and watch.quiet_for_s(message_id) >= self._settings.quiet_s:
                    return self._shown(message_id)
                await asyncio.sleep(POLL_S)
            return None
        finally:
            watch.forget(message_id)

    def _shown(self, message_id: int) -> tuple[int, str] | None:
        message = self._backend.message(community.REHEARSAL_ID, message_id)
        return None if message is None else (message_id, str(message["content"]))

    async def _vote(self, state: RehearsalState, taste: Taste) -> None:
        """Cast blind votes where a run waits for them."""
        scope, seed = self._settings.scope, self._settings.seed
        if not await self._database.aread(lambda db: runs.awaiting_votes(db, scope)):
            return
        for duel in await self._database.aread(lambda db: duels.open_for(db, scope, limit=200)):
            voters = random.Random(f"{seed}:{duel.id}").sample(self._players.people, self._players.voters)
            for person in voters:
                choice = self._players.rater(person, taste, seed).prefers(duel.first_text, duel.second_text)
                state.votes += await self._cast(duel.id, person.user_id, choice)

    async def _cast(self, duel_id: str, user_id: int, choice: int) -> bool:
        return await self._database.awrite(
            lambda db: duels.vote(db, duel_id=duel_id, user_id=user_id, choice=choice, source="rehearsal")
        )


def _summary(state: RehearsalState) -> str:
    rated = state.done - state.unanswered
    parts = [f"{rated} replies rated: {state.liked} times liked, {state.disliked} times not."]
    if state.unanswered:
        parts.append(f"{state.unanswered} questions got no answer.")
    if state.votes:
        parts.append(f"{state.votes} blind votes cast.")
    return " ".join(parts)
