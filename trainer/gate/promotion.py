"""The swap: one transaction that crowns the challenger and ends its run. Blind votes, and what they say."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlite_utils
import structlog

from bot.serving.client import ModelClient
from bot.serving.errors import ServingError, UnknownModelError
from storage.config import Config
from storage.config_sections import GateConfig
from storage.db import sql
from storage.db.database import Database
from storage.errors import AdapterNotPromotableError, StaleChampionError
from storage.feedback import duels
from storage.learning import adapters, runs, trials
from storage.learning.adapters import Adapter
from storage.learning.runs import Run
from trainer.evaluation import statistics
from trainer.evaluation.evidence import MIN_PROMPTS, spent
from trainer.gate.decision import Decision
from trainer.model_server import ensure_listed

T = TypeVar("T")

log = structlog.get_logger()

ACTOR = "trainer"
# One member decides no vote alone: later votes of the same member in a run count nothing.
MAX_VOTES_PER_MEMBER = 20
# "About 37 votes": how the number needed is announced, at a true win rate of 70 %.
TYPICAL_WIN_RATE = 0.7
STALE = "the champion changed while it was judged; the next run judges against the new one"


@dataclass(frozen=True)
class VoteCount:
    """The votes of a run that count, and the evidence for and against its challenger.

    `full` says that every pair has all the votes that it takes.
    """

    wins: int
    losses: int
    ties: int
    voters: int
    evidence_for: float
    evidence_against: float
    duels: int
    offered: int
    full: bool
    outcomes: tuple[int, ...] = ()

    @property
    def on_enough_duels(self) -> bool:
        """Whether the votes are on so many different prompts that they say something of others."""
        return self.duels >= min(MIN_PROMPTS, self.offered)

    def sentence(self, evidence: float, only: str = "") -> str:
        """Say the votes: "it won 12 of 12 blind votes (e = 40)"; `only` says it of a loser."""
        return f"it won {only}{self.wins} of {self.wins + self.losses} blind votes (e = {evidence:.0f})"

    def undecided(self) -> str:
        """Say that there are no more votes to come, and that they were not enough."""
        return (
            f"every pair has all its votes, and they decide nothing: it won {self.wins} of "
            f"{self.wins + self.losses}"
        )

    def as_json(self) -> dict[str, int]:
        """Return the counts."""
        return {"wins": self.wins, "losses": self.losses, "ties": self.ties}

    @property
    def votes(self) -> int:
        """Return all counted votes, ties included."""
        return self.wins + self.losses + self.ties


def name_of(adapter_id: str | None) -> str:
    """Return how an adapter is called in a sentence."""
    return "the base model" if adapter_id is None else adapter_id


def votes_needed(settings: GateConfig, look: int = 1) -> int:
    """Return how many blind votes typically decide on the n-th challenger, for the announcement."""
    alpha = spent(settings.evote_alpha, look)
    return max(settings.min_votes, statistics.votes_to_decide(alpha, TYPICAL_WIN_RATE))


def look_of(db: sqlite_utils.Database, run: Run, champion_id: str | None) -> int:
    """Return which challenger of its champion a run's is: 1 for the first since the champion was promoted.

    Going back to a champion doesn't start the count anew.
    """
    earlier = sql.value(
        db,
        """SELECT count(DISTINCT evaluations.run_id) FROM evaluations
           JOIN runs ON runs.id = evaluations.run_id
           WHERE runs.scope = ?1 AND runs.id <> ?2 AND runs.created_ms <= ?3 AND evaluations.champion_id IS ?4
             AND evaluations.created_ms > coalesce(
                 (SELECT max(created_ms) FROM promotions WHERE scope = ?1 AND created_ms <= ?3
                  AND kind = 'promote' AND adapter_id IS ?4), 0)""",
        (run.scope, run.id, run.created_ms, champion_id),
    )
    return 1 + int(earlier)


async def swap(
    database: Database,
    client: ModelClient,
    config: Config,
    *,
    run: Run,
    adapter: Adapter,
    champion_id: str | None,
    measured: str,
    metrics: Mapping[str, Any],
) -> Run:
    """Promote a listed challenger and end its run in one transaction; a changed champion refuses it instead.

    `measured` completes the sentence "adapter X replaced Y: …". From then on the old champion keeps the
    holdback's share, so that fresh ratings of both can be compared.
    """
    await ensure_listed(client, config, adapter.id)
    sentence = f"adapter {adapter.id} replaced {name_of(champion_id)}: {measured}"

    def promote(db: sqlite_utils.Database) -> Run:
        tried = trials.of_run(db, run.id, "canary")
        if tried is not None:
            trials.end(db, tried.id, "better", measured)
        adapters.promote(
            db,
            scope=run.scope,
            base_hash=adapter.base_hash,
            adapter_id=adapter.id,
            actor=ACTOR,
            reason=measured,
            run_id=run.id,
            expected_champion=champion_id,
        )
        if config.gate.holdback_share:
            trials.begin(
                db,
                "holdback",
                scope=run.scope,
                base_hash=adapter.base_hash,
                run_id=run.id,
                newcomer_id=adapter.id,
                incumbent_id=champion_id,
                share=config.gate.holdback_share,
                days=config.gate.holdback_days,
            )
        return runs.finish(
            db,
            run.id,
            outcome="promoted",
            message=sentence,
            metrics=metrics,
            adapter_id=adapter.id,
            champion_id=champion_id,
        )

    try:
        finished = await database.awrite(promote)
    except (StaleChampionError, AdapterNotPromotableError) as error:
        reason = STALE if isinstance(error, StaleChampionError) else str(error)
        return await refuse(database, client, run=run, adapter=adapter, reason=reason, metrics=metrics)
    if adapter.id not in await client.models():
        # The bot loads a champion that the server lost from the registry; this is only worth a line.
        log.warning("the new champion is not listed", adapter_id=adapter.id, run_id=run.id)
    await retire_old_adapters(database, client)
    return finished


async def refuse(
    database: Database,
    client: ModelClient,
    *,
    run: Run,
    adapter: Adapter,
    reason: str,
    metrics: Mapping[str, Any],
    keep: bool = False,
    canary_ends: trials.Outcome = "superseded",
) -> Run:
    """End a run without a swap; the challenger is rejected unless an operator may yet promote it.

    `canary_ends` is how its canary ended, if it has one.
    """

    def work(db: sqlite_utils.Database) -> Run:
        tried = trials.of_run(db, run.id, "canary")
        if tried is not None:
            trials.end(db, tried.id, canary_ends, reason)
        current = adapters.get(db, adapter.id)
        if not keep and current is not None and current.state == "candidate":
            adapters.set_state(db, adapter.id, "rejected")
        return runs.finish(
            db,
            run.id,
            outcome="refused",
            message=f"{adapter.id} was not promoted, because {reason}",
            metrics=metrics,
            adapter_id=adapter.id,
        )

    finished = await database.awrite(work)
    await retire_old_adapters(database, client)
    return finished


async def open_vote(
    database: Database,
    settings: GateConfig,
    *,
    run: Run,
    adapter: Adapter,
    champion_id: str | None,
    pairs: Sequence[tuple[Sequence[Mapping[str, str]], str, str, str | None]],
    why: str,
    look: int,
    metrics: Mapping[str, Any],
) -> Run:
    """Leave a run's decision to the members: store blind duels, and let its canary answer where that may be.

    `pairs` are (prompt, challenger's text, champion's text, id of the reply whose prompt it is); without any,
    the canary's ratings decide alone. Which text comes first is a stable coin: hash of run and number. `why`
    continues the sentence "adapter X …".
    """
    needed = votes_needed(settings, look)
    sentence = f"{adapter.id} {why}"
    if pairs:
        sentence += f"; about {needed} blind votes needed"
    if has_canary(settings):
        sentence += f"; it answers {settings.canary_share:.0%} of new conversations as a canary"

    def work(db: sqlite_utils.Database) -> Run:
        _add_duels(db, run, adapter, champion_id, pairs)
        if has_canary(settings):
            trials.begin(
                db,
                "canary",
                scope=run.scope,
                base_hash=adapter.base_hash,
                run_id=run.id,
                newcomer_id=adapter.id,
                incumbent_id=champion_id,
                share=settings.canary_share,
                days=settings.canary_days,
            )
        return runs.finish(
            db,
            run.id,
            outcome="votes",
            message=sentence,
            metrics={**metrics, "votes_needed": needed},
            adapter_id=adapter.id,
            champion_id=champion_id,
        )

    return await database.awrite(work)


def has_canary(settings: GateConfig) -> bool:
    """Whether a challenger may answer before it is champion: never where an operator is asked first."""
    return settings.policy != "ask" and settings.canary_share > 0


def _add_duels(
    db: sqlite_utils.Database,
    run: Run,
    adapter: Adapter,
    champion_id: str | None,
    pairs: Sequence[tuple[Sequence[Mapping[str, str]], str, str, str | None]],
) -> None:
    for number, (prompt, challenger, champion, reply_id) in enumerate(pairs):
        first = hashlib.sha256(f"{run.id}/{number}".encode()).digest()[0] % 2 == 0
        duels.add(
            db,
            duel_id=f"{run.id}-{number:03d}",
            run_id=run.id,
            scope=run.scope,
            challenger_id=adapter.id,
            champion_id=champion_id,
            prompt=prompt,
            first_text=challenger if first else champion,
            second_text=champion if first else challenger,
            first_is_challenger=first,
            reply_id=reply_id,
        )


def count_votes(db: sqlite_utils.Database, run_id: str) -> VoteCount:
    """Count a run's votes in the order they were cast, at most MAX_VOTES_PER_MEMBER of each member."""
    rows = sql.many(
        db,
        """SELECT duel_votes.user_id, duels.id AS duel, iif(first_is_challenger, choice, -choice) AS outcome
           FROM duels JOIN duel_votes ON duel_votes.duel_id = duels.id
           WHERE duels.run_id = ? ORDER BY duel_votes.created_ms, duels.id, duel_votes.user_id""",
        (run_id,),
    )
    cast: Counter[int] = Counter()
    outcomes, judged = [], set()
    for row in rows:
        cast[row["user_id"]] += 1
        if cast[row["user_id"]] <= MAX_VOTES_PER_MEMBER:
            outcomes.append(int(row["outcome"]))
            judged.add(row["duel"])
    gain, loss = statistics.e_values(outcomes) if outcomes else (1.0, 1.0)
    offered = int(sql.value(db, "SELECT count(*) FROM duels WHERE run_id = ?", (run_id,)))
    votes_on = Counter(row["duel"] for row in rows)
    ties = outcomes.count(0)
    return VoteCount(
        outcomes.count(1),
        outcomes.count(-1),
        ties,
        len(cast),
        gain,
        loss,
        len(judged),
        offered,
        0 < offered == sum(votes >= duels.MOST_VOTES for votes in votes_on.values()),
        tuple(outcomes),
    )


async def retire_old_adapters(database: Database, client: ModelClient) -> list[str]:
    """Unload from the server what is neither champion, nor the one before it, nor being judged.

    Returns what was unloaded. A server that is away has nothing to unload.
    """
    unloaded = []
    try:
        for name in await client.models():
            if await database.aread(lambda db, name=name: _is_retired(db, name)):  # type: ignore[misc]
                await _tolerating_absence(lambda name=name: client.unload_adapter(name))  # type: ignore[misc]
                unloaded.append(name)
    except ServingError as error:
        log.warning("old adapters could not be unloaded", error=str(error))
    return unloaded


def verdict_of(
    evidence_for: float, evidence_against: float, votes: int, settings: GateConfig, look: int = 1
) -> Decision | None:
    """Return what blind votes decide, None while they are too few; evidence against comes first.

    Refusing is safe and takes the same evidence every time; promoting takes more with every challenger.
    """
    if votes < settings.min_votes:
        return None
    if evidence_against >= 1 / settings.evote_alpha:
        return "refuse"
    return "promote" if evidence_for >= 1 / spent(settings.evote_alpha, look) else None


def ask(measured: str) -> str:
    """Say that only an operator's word is missing."""
    return f'gate.policy is "ask": {measured}; put it in service with /promote or `strop promote`'


def _is_retired(db: sqlite_utils.Database, name: str) -> bool:
    """Whether an adapter of ours is loaded for nothing."""
    adapter = adapters.get(db, name)
    if adapter is None:
        return False
    if adapters.champion(db, adapter.scope, adapter.base_hash) == name:
        return False
    if any(trial.exception_id == name for trial in trials.active(db, adapter.scope, adapter.base_hash)):
        return False
    latest = adapters.recent_promotions(db, adapter.scope, adapter.base_hash, 1)
    if adapter.state != "tainted" and latest and latest[0].previous_id == name:
        return False
    run = runs.get(db, adapter.run_id) if adapter.run_id else None
    judged = run is not None and (run.state == "running" or run.outcome == "votes")
    return not (adapter.state == "candidate" and judged)


async def _tolerating_absence(call: Callable[[], Awaitable[None]]) -> None:
    try:
        await call()
    except UnknownModelError:
        return
