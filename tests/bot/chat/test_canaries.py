"""Who answers while a canary or a holdback is on: rows, reasons, and never an error."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from storage.feedback import side_by_side
from storage.learning import adapters, runs, trials
from tests.bot import adapter_files
from tests.bot.conftest import Community
from tests.bot.fake_server import BASE_HASH, FakeModelServer
from tests.bot.feedback.test_reply_buttons import press
from tests.bot.test_commands import FIRST, SECOND, register, text


def on_trial(community: Community, kind: trials.Kind = "canary", share: float = 1.0) -> trials.Trial:
    """SECOND on trial beside FIRST: before its promotion, or after it."""
    register(community, FIRST, promote=True)
    scope = f"guild:{community.guild.id}"

    def work(db: Any) -> trials.Trial:
        where = {"scope": scope, "base_hash": BASE_HASH}
        run = runs.enqueue(db, scope=scope, trigger="manual", requested_by="test")
        runs.lease_next(db, "trainer", 60_000)
        adapters.insert_candidate(db, adapter_id=SECOND, path=f"adapters/{SECOND}", run_id=run.id, **where)
        runs.finish(db, run.id, outcome="votes", message="it waits", adapter_id=SECOND)
        if kind == "holdback":
            adapters.promote(db, adapter_id=SECOND, actor="trainer", reason="+0.1", **where)
        trial_id = trials.begin(
            db, kind, run_id=run.id, newcomer_id=SECOND, incumbent_id=FIRST, share=share, days=14, **where
        )
        return trials.expect(db, trial_id)

    return community.services.database.write(work)


async def ask(community: Community, words: str = "hello") -> None:
    await community.ann.send(community.channel, f"{community.mention} {words}")


def answered_by(community: Community) -> list[str | None]:
    return [reply.adapter_id for reply in community.replies()]


async def test_a_canary_answers_its_conversation_to_the_end_and_says_why(
    community: Community, model_server: FakeModelServer
) -> None:
    trial = on_trial(community)
    model_server.adapters = [FIRST, SECOND]
    await ask(community)
    await community.ann.send(community.channel, "go on", reply_to=community.messages()[0])
    assert answered_by(community) == [SECOND, SECOND]
    assert [request["model"] for request in model_server.requests] == [SECOND, SECOND]
    why = text(await community.bob.click(community.messages()[0], **press("why", community.replies()[0].id)))
    assert f"**Adapter `{SECOND}`**" in why and "as a **canary**: 100% of new conversations" in why
    await community.bob.react(community.messages()[0], "👍")
    (rating,) = community.services.database.read(lambda db: trials.ratings(db, trial.id))
    assert (rating.side, rating.user_id, rating.value) == ("newcomer", community.bob.id, 1)


async def test_most_conversations_stay_with_the_champion_and_count_on_its_side(
    community: Community, model_server: FakeModelServer
) -> None:
    trial = on_trial(community, share=0.4)
    model_server.adapters = [FIRST, SECOND]
    for number in range(12):
        await ask(community, f"question {number}")
    who = answered_by(community)
    assert set(who) == {FIRST, SECOND}
    for message in community.messages():
        await community.bob.react(message, "👍")
    sides = [each.side for each in community.services.database.read(lambda db: trials.ratings(db, trial.id))]
    assert sides.count("newcomer") == who.count(SECOND) and sides.count("incumbent") == who.count(FIRST)


async def test_a_holdback_is_answered_by_the_champion_before_and_says_so(
    community: Community, model_server: FakeModelServer
) -> None:
    on_trial(community, "holdback")
    model_server.adapters = [FIRST, SECOND]
    await ask(community)
    assert answered_by(community) == [FIRST]
    why = text(await community.bob.click(community.messages()[0], **press("why", community.replies()[0].id)))
    assert "as a **holdback**" in why


async def test_a_canary_that_is_not_loaded_lets_the_champion_answer(
    community: Community, model_server: FakeModelServer
) -> None:
    trial = on_trial(community)
    model_server.adapters = [FIRST]
    await ask(community)
    assert answered_by(community) == [FIRST]
    assert SECOND not in model_server.adapters
    assert community.said() == ["Hello there, friend."]
    await community.bob.react(community.messages()[0], "👍")
    assert community.services.database.read(lambda db: trials.ratings(db, trial.id)) == []


async def test_behind_a_router_a_canary_is_asked_for_though_no_list_names_it(
    community: Community, model_server: FakeModelServer
) -> None:
    on_trial(community)
    adapter_files.lay(community.services.config.adapters, FIRST, SECOND)
    model_server.execution = "vllm"

    async def refuse(_: web.Request) -> web.Response:
        raise AssertionError("a router lets no adapter be loaded")

    model_server.on_load = refuse
    await ask(community)
    await ask(community)
    assert answered_by(community) == [SECOND, SECOND]
    assert model_server.adapters == []


async def test_a_canary_that_the_server_lost_a_moment_ago_lets_the_champion_answer(
    community: Community, model_server: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = on_trial(community)
    model_server.adapters = [FIRST, SECOND]
    health = model_server._health

    async def outdated(request: web.Request) -> web.Response:
        answer = await health(request)
        model_server.adapters = [FIRST]
        return answer

    await model_server.stop()
    monkeypatch.setattr(model_server, "_health", outdated)
    await model_server.start()
    await ask(community)
    assert answered_by(community) == [FIRST]
    assert [request["model"] for request in model_server.requests] == [SECOND, FIRST]
    assert community.said() == ["Hello there, friend."]
    await community.bob.react(community.messages()[0], "👍")
    assert community.services.database.read(lambda db: trials.ratings(db, trial.id)) == []


async def test_writing_a_reply_again_stays_with_the_canary(
    community: Community, model_server: FakeModelServer
) -> None:
    on_trial(community)
    model_server.adapters = [FIRST, SECOND]
    await ask(community)
    await community.ann.click(community.messages()[0], **press("regenerate", community.replies()[0].id))
    assert answered_by(community) == [SECOND, SECOND]


@pytest.mark.parametrize("settings", ["[replies]\ncompare = 1.0"])
async def test_side_by_side_a_canary_meets_the_champion(
    community: Community, model_server: FakeModelServer
) -> None:
    trial = on_trial(community)
    model_server.adapters = [FIRST, SECOND]
    await ask(community)
    assert set(answered_by(community)) == {FIRST, SECOND}
    pair = community.services.database.read(lambda db: side_by_side.of(db, community.replies()[0].id))
    assert pair is not None
    first_id = pair.first_id
    shown_first = next(reply for reply in community.replies() if reply.id == first_id)
    choice = "first" if shown_first.adapter_id == SECOND else "second"
    custom_id = f"strop:compare:{first_id}:{choice}"
    await community.bob.click(community.messages()[0], custom_id=custom_id)
    (vote,) = community.services.database.read(lambda db: trials.pair_votes(db, trial))
    assert (vote.user_id, vote.outcome) == (community.bob.id, 1)


async def test_a_channel_that_is_named_is_left_out(
    community: Community, model_server: FakeModelServer
) -> None:
    on_trial(community)
    model_server.adapters = [FIRST, SECOND]
    left_out = community.services.config.gate.model_copy(update={"canary_not_in": (community.channel.id,)})
    community.services.config = community.services.config.model_copy(update={"gate": left_out})
    await ask(community)
    assert answered_by(community) == [FIRST]
