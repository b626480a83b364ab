"""Canaries and holdbacks to their end: real rows, a model server on a socket, the trainer's own chores."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from bot.language import texts
from bot.language.sentences import translate
from bot.serving.protocol import BaseDescription, ChatMessage
from storage.admin import audit
from storage.chat import conversations, members, replies
from storage.config import Config, load_config
from storage.db.database import Database
from storage.feedback import duels, ratings
from storage.learning import adapters, evaluations, runs, trials
from storage.learning.runs import Run
from storage.learning.trials import Trial
from tests.bot.fake_server import BASE_HASH, FakeModelServer
from tests.databases import copied
from tests.trainer.community import GUILD, SCOPE, adapter_folder
from tests.trainer.gate.test_decision import GOOD, UNPROVEN
from trainer import model_server
from trainer.evaluation.evaluate import Evaluation
from trainer.evaluation.evidence import MIN_PROMPTS
from trainer.evaluation.scores import Answer, Pair, Prompt, Scores
from trainer.gate import blind_votes, canary, pending_decisions, promotion
from trainer.run.context import RunContext
from trainer.run.heartbeat import Heartbeat
from trainer.schedule.recovery import ChampionKeeper

MEMBERS = 8


@dataclass
class Community:
    """A deployment whose members rate what they are given; `old` is champion, `new` the challenger."""

    database: Database
    config: Config
    server: FakeModelServer
    old: str
    new: str
    ids: Iterator[int] = field(default_factory=lambda: count(10_000))

    def configured(self, **gate: Any) -> Config:
        changed = self.config.gate.model_copy(update=gate)
        return self.config.model_copy(update={"gate": changed})

    def opened(self, *, pairs: int = 0, newcomer: str = "", **gate: Any) -> Run:
        """A run that left its challenger's fate to the members, as the trainer does."""
        config, challenger = self.configured(**gate), newcomer or self.new
        run = self.database.write(lambda db: _judged_run(db, challenger))
        adapter = self.database.read(lambda db: adapters.get(db, challenger))
        assert adapter is not None
        texts = [([{"role": "user", "content": f"{n}?"}], "new", "old", None) for n in range(pairs)]
        return asyncio.run(
            blind_votes.open_vote(
                self.database,
                config.gate,
                run=run,
                adapter=adapter,
                champion_id=self.old,
                pairs=texts,
                why="has not enough evidence offline, because it is a test",
                challenger_number=1,
                metrics={},
            )
        )

    def rates(
        self, likes: Callable[[str | None], bool], conversations_: int, *, raters: int = MEMBERS
    ) -> None:
        """Let members begin so many conversations and rate the answers by who gave them."""
        self.database.write(lambda db: self._rate(db, likes, conversations_, raters))

    def _rate(
        self, db: sqlite_utils.Database, likes: Callable[[str | None], bool], conversations_: int, raters: int
    ) -> None:
        for number in range(conversations_):
            user_id = number % raters + 1
            reply_id, answerer = self.answered(db, user_id)
            value = 1 if likes(answerer) else -1
            ratings.rate(db, reply_id=reply_id, user_id=user_id, kind="thumb", means="reaction", value=value)

    def answered(self, db: sqlite_utils.Database, user_id: int) -> tuple[str, str | None]:
        number = next(self.ids)
        members.ensure(db, user_id, f"member {user_id}", "playground")
        conversation = conversations.open_conversation(
            db,
            key=f"{SCOPE}/{number}",
            guild_id=GUILD,
            channel_id=5,
            scope=SCOPE,
            source="playground",
            public=True,
        )
        asked = conversations.add_message(
            db,
            conversation_id=conversation.id,
            discord_id=number,
            parent_id=None,
            author_id=user_id,
            role="user",
            content=f"question {number}",
        )
        champion = adapters.champion(db, SCOPE, BASE_HASH)
        route = trials.route(
            db,
            scope=SCOPE,
            base_hash=BASE_HASH,
            champion=champion,
            conversation=conversation,
            asker_id=user_id,
        )
        reply = replies.start(
            db,
            reply_id=f"r{number}",
            prompt_message_id=asked,
            scope=SCOPE,
            adapter_id=route.adapter_id,
            base_hash=BASE_HASH,
            prompt=[{"role": "user", "content": "?"}],
            seed=1,
            sampling={},
        )
        trials.note(db, reply.id, route)
        return reply.id, route.adapter_id

    def settle(self, **gate: Any) -> list[Run]:
        return pending_decisions.settle_votes(self.database, self.configured(**gate))

    def watch(self, **gate: Any) -> list[Trial]:
        return pending_decisions.settle_holdbacks(self.database, self.configured(**gate))

    def champion(self) -> str | None:
        return self.database.read(lambda db: adapters.champion(db, SCOPE, BASE_HASH))

    def active(self) -> dict[str, Trial]:
        found = self.database.read(lambda db: trials.active(db, SCOPE, BASE_HASH))
        return {trial.kind: trial for trial in found}

    def state(self, adapter_id: str) -> str:
        found = self.database.read(lambda db: adapters.get(db, adapter_id))
        assert found is not None
        return found.state

    def promoted(self) -> Trial:
        """`new` is promoted by a canary that everybody likes; the old champion's holdback."""
        self.opened(canary_share=0.5)
        self.rates(lambda who: who == self.new, 60)
        (ended,) = self.settle(canary_share=0.5, holdback_share=0.5)
        assert ended.outcome == "promoted"
        return self.active()["holdback"]


def _judged_run(db: sqlite_utils.Database, adapter_id: str) -> Run:
    run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="7")
    runs.lease_next(db, "trainer", 60_000)
    adapters.insert_candidate(
        db,
        adapter_id=adapter_id,
        scope=SCOPE,
        base_hash=BASE_HASH,
        path=f"adapters/{adapter_id}",
        run_id=run.id,
    )
    return runs.expect(db, run.id)


@pytest.fixture
def server() -> Iterator[FakeModelServer]:
    """The model server on a loop of its own: the chores under test bring theirs."""
    fake, loop = FakeModelServer(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(fake.start(), loop).result(20)
    yield fake
    asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def community(tmp_path: Path, empty_database: Path, server: FakeModelServer) -> Iterator[Community]:
    (tmp_path / "strop.toml").write_text(f'[server]\nbase_url = "{server.base_url}"\n')
    config = load_config(tmp_path / "strop.toml", {"STROP_HOME": str(tmp_path)})
    old, new = (adapter_folder(config.adapters, content) for content in (b"old", b"newer"))
    server.adapters = [old, new]
    with copied(empty_database, config.database) as database:
        made = Community(database, config, server, old, new)
        database.write(lambda db: _set_champion(db, old))
        yield made


def _set_champion(db: sqlite_utils.Database, adapter_id: str) -> None:
    path = f"adapters/{adapter_id}"
    adapters.insert_candidate(db, adapter_id=adapter_id, scope=SCOPE, base_hash=BASE_HASH, path=path)
    adapters.promote(
        db, scope=SCOPE, base_hash=BASE_HASH, adapter_id=adapter_id, actor="7", reason="for the test"
    )


# ----------------------------------------------------------------------------------------------- canaries
def test_a_canary_that_members_like_better_is_promoted_and_the_old_champion_is_held_back(
    community: Community,
) -> None:
    run = community.opened(pairs=3, canary_share=0.5)
    assert run.message.endswith("; it answers 50% of new conversations as a canary")
    community.rates(lambda who: who == community.new, 10)
    assert community.settle(canary_share=0.5) == []
    standing = community.active()["canary"].standing
    assert standing["newcomer"] + standing["incumbent"] == 10 and standing["needed"][0] >= 1
    community.rates(lambda who: who == community.new, 50)
    (ended,) = community.settle(canary_share=0.5)
    assert (ended.outcome, community.champion()) == ("promoted", community.new)
    assert "as a canary it was liked in 100% of" in ended.message
    assert ended.metrics.canary is not None and ended.metrics.canary.incumbent_liked == 0.0
    assert set(community.active()) == {"holdback"}
    assert community.active()["holdback"].incumbent_id == community.old
    assert {community.old, community.new} <= set(community.server.adapters)
    found = community.database.read(lambda db: evaluations.list_for_run(db, run.id))
    assert [each.value for each in found if each.metric == "canary"] == [1.0]
    trial = community.database.read(lambda db: trials.find_for_run(db, run.id, "canary"))
    assert trial is not None and trial.outcome == "better"


def test_a_canary_that_members_like_less_is_refused_and_unloaded(community: Community) -> None:
    run = community.opened(canary_share=0.5)
    community.rates(lambda who: who == community.old, 60)
    (ended,) = community.settle(canary_share=0.5)
    assert (ended.outcome, community.champion()) == ("refused", community.old)
    assert "because as a canary it was liked in 0% of" in ended.message
    assert community.active() == {} and community.state(community.new) == "rejected"
    assert community.server.adapters == [community.old]
    trial = community.database.read(lambda db: trials.find_for_run(db, run.id, "canary"))
    assert trial is not None and trial.outcome == "worse"


@pytest.mark.model
@pytest.mark.parametrize(
    ("policy", "proven", "outcome", "on_trial"),
    [
        ("auto", True, "promoted", {"holdback"}),
        ("auto", False, "votes", {"canary"}),
        ("canary-first", True, "votes", {"canary"}),
        ("canary-first", False, "votes", {"canary"}),
        ("ask", True, "refused", set()),
        ("ask", False, "votes", set()),
    ],
)
def test_the_policy_says_what_becomes_of_proof_and_of_thin_evidence(
    community: Community, policy: str, proven: bool, outcome: str, on_trial: set[str]
) -> None:
    from trainer.run.steps import RunSteps

    leased = community.database.write(lambda db: _judged_run(db, community.new))
    (community.config.runs / leased.id).mkdir(parents=True)
    adapter = community.database.read(lambda db: adapters.get(db, community.new))
    assert adapter is not None
    pair = Pair(Prompt((ChatMessage("user", "Hello?"),), None), Answer("Hello!", True), Answer("Yes?", True))
    evidence = GOOD if proven else replace(GOOD, proof=UNPROVEN)
    judged = Evaluation(Scores((pair,), (), ()), evidence, {})
    context = RunContext(BaseDescription("base-model", hash=BASE_HASH), community.old)
    with Heartbeat(community.database, leased.id, "trainer") as heartbeat:
        steps = RunSteps(community.database, community.configured(policy=policy), leased, heartbeat)
        ended = steps.decide(judged, context, adapter)
    assert ended.outcome == outcome
    assert set(community.active()) == on_trial
    assert (community.champion() == community.new) == (outcome == "promoted")
    asked = community.database.read(lambda db: duels.count_open(db, SCOPE))
    assert asked == (1 if outcome == "votes" and not proven else 0)
    assert ("offline with chance of a like +0.12" in ended.message) == (policy == "canary-first" and proven)


def test_a_canary_without_a_difference_ends_undecided_by_ratings_or_by_time(community: Community) -> None:
    community.opened(canary_share=0.5)
    community.rates(lambda who: True, 40)
    (ended,) = community.settle(canary_share=0.5, canary_most_ratings=10)
    assert ended.outcome == "refused"
    assert "its canary is undecided, and" in ended.message
    assert "rated conversations did not decide: as a canary it was liked in 100% of" in ended.message

    community.database.write(lambda db: adapters.set_state(db, community.new, "candidate"))
    second = community.opened(canary_days=1e-9)
    (ended,) = community.settle()
    assert (ended.id, ended.outcome) == (second.id, "refused")
    assert "its time ran out: nobody rated it" in ended.message
    assert community.active() == {}


def test_taking_ratings_back_takes_the_evidence_back(community: Community) -> None:
    community.opened(canary_share=0.5)
    community.rates(lambda who: who == community.new, 60)
    community.database.write(lambda db: db.execute("UPDATE ratings SET retracted = 1"))
    assert community.settle(canary_share=0.5) == []
    assert community.active()["canary"].standing["newcomer"] == 0


def test_one_member_alone_decides_nothing(community: Community) -> None:
    community.opened(canary_share=0.5)
    community.rates(lambda who: who == community.new, 60, raters=1)
    assert community.settle(canary_share=0.5) == []
    assert community.champion() == community.old


def test_a_member_whom_all_others_contradict_counts_nothing(community: Community) -> None:
    community.opened(canary_share=0.5)

    def rate(db: sqlite_utils.Database) -> None:
        for number in range(20):
            reply_id, _ = community.answered(db, 1)
            for user_id, value in ((1, 1), (2, 1), (3, 1), (4, 1), (9, -1)):
                members.ensure(db, user_id, "", "playground")
                value = value if number % 2 else -value
                ratings.rate(
                    db, reply_id=reply_id, user_id=user_id, kind="thumb", means="reaction", value=value
                )

    community.database.write(rate)
    trial = community.active()["canary"]
    given = community.database.read(lambda db: trials.ratings(db, trial.id))
    counted = community.database.read(lambda db: canary.read_evidence(db, trial))
    assert len(given) == 100 and {each.user_id for each in given} == {1, 2, 3, 4, 9}
    assert len(counted.ratings) == 80 and counted.members == {1, 2, 3, 4}


def test_blind_votes_still_decide_and_end_the_canary(community: Community) -> None:
    run = community.opened(pairs=MIN_PROMPTS)

    def vote(db: sqlite_utils.Database) -> None:
        for user_id in (1, 2):
            for duel in duels.open_for(db, SCOPE):
                choice = 1 if duel.first_is_challenger else -1
                duels.vote(db, duel_id=duel.id, user_id=user_id, choice=choice, source="playground")

    community.database.write(vote)
    (ended,) = community.settle()
    assert (ended.id, ended.outcome) == (run.id, "promoted")
    assert f"adapter {community.new} replaced {community.old}: it won 24 of 24 blind votes" in ended.message
    assert set(community.active()) == {"holdback"}


def test_votes_that_are_all_cast_and_decide_nothing_end_the_run(community: Community) -> None:
    run = community.opened(pairs=MIN_PROMPTS, canary_share=0.0)

    def vote(db: sqlite_utils.Database, last: bool) -> None:
        for number, duel in enumerate(duels.open_for(db, SCOPE)):
            for user_id in (duels.MOST_VOTES,) if last else range(1, duels.MOST_VOTES):
                choice = 1 if (number + user_id) % 2 else -1
                duels.vote(db, duel_id=duel.id, user_id=user_id, choice=choice, source="playground")

    community.database.write(lambda db: vote(db, last=False))
    assert community.settle() == []
    community.database.write(lambda db: vote(db, last=True))
    (ended,) = community.settle()
    assert (ended.id, ended.outcome) == (run.id, "refused")
    assert "every pair has all its votes and the result is undecided: it won" in ended.message
    with texts.speaking("de"):
        assert translate(ended.message) != ended.message


def test_a_newer_challenger_takes_the_canary_s_place(community: Community) -> None:
    first = community.opened()
    newest = adapter_folder(community.config.adapters, b"the newest")
    community.server.adapters.append(newest)
    second = community.opened(newcomer=newest)
    (ended,) = community.settle()
    assert (ended.id, ended.outcome) == (first.id, "refused")
    assert community.active()["canary"].run_id == second.id


def test_an_erasure_ends_canary_and_run(community: Community) -> None:
    community.opened(canary_share=1.0)
    community.database.write(lambda db: adapters.set_state(db, community.new, "tainted"))
    assert community.active() == {}
    (ended,) = community.settle()
    assert "erased" in ended.message
    assert community.server.adapters == [community.old]


def test_an_operator_s_promotion_of_the_canary_is_its_run_s_end(community: Community) -> None:
    community.opened(canary_share=1.0)
    community.database.write(
        lambda db: adapters.promote_by_hand(
            db, scope=SCOPE, base_hash=BASE_HASH, adapter_id=community.new, actor="7", reason="I like it"
        )
    )
    (ended,) = community.settle()
    assert ended.outcome == "promoted"
    assert ended.message == f"{community.new} was promoted by an operator while it was judged"
    assert community.active() == {} and community.state(community.new) == "promoted"


def test_where_an_operator_is_asked_there_is_no_canary_and_no_share_means_none(community: Community) -> None:
    assert "canary" not in community.opened(pairs=2, policy="ask").message
    assert community.active() == {}
    community.database.write(
        lambda db: runs.finish(db, runs.latest(db, SCOPE)[0].id, outcome="refused", message="-")
    )
    assert "canary" not in community.opened(pairs=2, canary_share=0.0).message
    assert community.active() == {}


def test_a_server_that_is_away_postpones_the_swap(community: Community) -> None:
    community.opened(canary_share=0.5)
    community.rates(lambda who: who == community.new, 60)
    away = community.config.server.model_copy(update={"base_url": "http://127.0.0.1:9"})
    config = community.config.model_copy(update={"server": away})
    assert pending_decisions.settle_votes(community.database, config) == []
    assert community.champion() == community.old and set(community.active()) == {"canary"}
    (ended,) = community.settle()
    assert ended.outcome == "promoted"


def test_a_restarted_server_gets_its_canary_back_and_a_damaged_one_ends(community: Community) -> None:
    async def keep() -> None:
        async with model_server.client_for(community.config) as client:
            assert await ChampionKeeper(community.database, community.config).check(client)

    community.opened()
    community.server.adapters = []
    asyncio.run(keep())
    assert sorted(community.server.adapters) == sorted([community.old, community.new])
    community.server.adapters = [community.old]
    community.server.refused_adapters = {community.new}
    asyncio.run(keep())
    assert community.active().keys() == {"canary"}, "a refusal alone is no proof against it"
    (community.config.adapters / community.new / "adapter_model.safetensors").write_bytes(b"tampered")
    asyncio.run(keep())
    assert community.active() == {} and community.state(community.new) == "rejected"
    (ended,) = community.settle()
    assert "it was set aside while it was judged" in ended.message


# ---------------------------------------------------------------------------------------------- holdbacks
def test_a_new_champion_that_is_liked_less_is_rolled_back_by_itself(community: Community) -> None:
    community.promoted()
    community.rates(lambda who: who == community.old, 60)
    (ended,) = community.watch()
    assert (ended.outcome, community.champion()) == ("worse", community.old)
    assert ended.reason.startswith("members like it less: liked in 0% of ")
    assert community.state(community.new) == "rejected" and community.active() == {}
    (latest,) = community.database.read(lambda db: adapters.recent_promotions(db, SCOPE, BASE_HASH, 1))
    assert (latest.kind, latest.actor, latest.reason) == ("rollback", "trainer", ended.reason)
    assert "champion.rollback" in {entry.action for entry in community.database.read(audit.latest)}
    assert community.watch() == []


def test_a_new_champion_that_is_liked_more_is_confirmed_and_answers_alone(community: Community) -> None:
    community.promoted()
    community.rates(lambda who: who == community.new, 60)
    (ended,) = community.watch()
    assert (ended.outcome, community.champion()) == ("better", community.new)
    assert community.active() == {}


def test_a_holdback_ends_with_its_time_and_the_champion_stays(community: Community) -> None:
    trial = community.promoted()
    community.rates(lambda who: True, 20)
    assert community.watch() == []
    community.database.write(
        lambda db: db.execute("UPDATE trials SET until_ms = 1 WHERE id = ?", (trial.id,))
    )
    (ended,) = community.watch()
    assert (ended.outcome, community.champion()) == ("undecided", community.new)


def test_an_operator_s_rollback_is_not_undone_by_the_trainer(community: Community) -> None:
    trial = community.promoted()
    community.rates(lambda who: who == community.old, 60)
    community.database.write(
        lambda db: adapters.rollback(db, scope=SCOPE, base_hash=BASE_HASH, actor="7", reason="by hand")
    )
    assert community.watch() == []
    assert community.champion() == community.old
    ended = community.database.read(lambda db: trials.expect(db, trial.id))
    assert ended.outcome == "superseded"


def test_going_back_does_not_start_the_count_of_challengers_anew(community: Community) -> None:
    def challenger_number() -> int:
        def work(db: sqlite_utils.Database) -> int:
            run = runs.enqueue(db, scope=SCOPE, trigger="manual", requested_by="7")
            found = promotion.challenger_number_of(db, run, community.old)
            runs.cancel(db, run.id, "7")
            return found

        return community.database.write(work)

    assert challenger_number() == 1
    community.promoted()
    community.rates(lambda who: who == community.old, 60)
    community.watch()
    assert challenger_number() == 2
