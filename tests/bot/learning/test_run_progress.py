"""Runs are shown in the channel in one message each, and blind votes as pairs with buttons."""

from __future__ import annotations

from typing import Any

import pytest

from bot.app import make_client
from bot.learning.blind_votes import CLOSED, MOST_UNANSWERED
from bot.learning.run_progress import NO_EMBEDS, ProgressReporter
from bot.operators import NOT_OPERATOR
from bot.services import Services
from storage.admin import blocks
from storage.feedback import duels, tastings
from storage.learning import adapters, runs, trials
from storage.process.locks import ProcessLock
from storage.sentences import Sentence
from tests.bot.conftest import Community
from tests.bot.feedback.test_reply_buttons import buttons
from tests.bot.test_commands import text


class Trainer:
    """Writes the rows that a trainer writes."""

    def __init__(self, community: Community) -> None:
        self.database = community.services.database
        self.scope = f"guild:{community.guild.id}"

    def enqueue(self, trigger: Any = "schedule") -> str:
        run = self.database.write(
            lambda db: runs.enqueue(db, scope=self.scope, trigger=trigger, requested_by="scheduler")
        )
        return run.id

    def take(self) -> str:
        run = self.database.write(lambda db: runs.lease_next(db, "trainer", 60_000))
        assert run is not None
        return run.id

    def beat(self, run_id: str, phase: Any, progress: float, eta_s: float | None = None) -> None:
        assert self.database.write(lambda db: runs.heartbeat(db, run_id, "trainer", phase, progress, eta_s))

    def finish(self, run_id: str, outcome: Any, message: str) -> None:
        self.database.write(lambda db: runs.finish(db, run_id, outcome=outcome, message=Sentence(message)))

    def candidate(self, run_id: str, adapter_id: str, message: Sentence | None = None) -> None:
        def work(db: Any) -> None:
            adapters.insert_candidate(
                db, adapter_id=adapter_id, scope=self.scope, base_hash="b", path="p", run_id=run_id
            )
            runs.finish(
                db, run_id, outcome="refused", message=message or Sentence("it lost"), adapter_id=adapter_id
            )

        self.database.write(work)

    def duel(self, run_id: str, number: int) -> str:
        duel_id = f"d{number}"
        self.database.write(
            lambda db: duels.add(
                db,
                duel_id=duel_id,
                run_id=run_id,
                scope=self.scope,
                challenger_id="a1",
                champion_id=None,
                prompt=[
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": f"question {number}"},
                ],
                first_text=f"first {number}",
                second_text=f"second {number}",
                first_is_challenger=True,
            )
        )
        return duel_id

    def on_trial(self, run_id: str, kind: trials.Kind) -> int:
        """Put adapter a1 on trial against the base: before its promotion, or after it."""

        def work(db: Any) -> int:
            where = {"scope": self.scope, "base_hash": "b"}
            adapters.ensure_champion_row(db, self.scope, "b")
            adapters.insert_candidate(db, adapter_id="a1", path="p", run_id=run_id, **where)
            if kind == "canary":
                runs.finish(db, run_id, outcome="votes", message="It is thin.", adapter_id="a1")
            else:
                adapters.promote(db, adapter_id="a1", actor="trainer", reason="+0.12", **where)
                runs.finish(db, run_id, outcome="votes", message="-", adapter_id="a1")
            return trials.begin(
                db, kind, run_id=run_id, newcomer_id="a1", incumbent_id=None, share=0.1, days=14, **where
            )

        return self.database.write(work)

    def count(self, trial_id: int, standing: dict[str, int]) -> None:
        self.database.write(lambda db: trials.record_judgement(db, trial_id, standing, str(standing)))

    def go_back(self, trial_id: int) -> None:
        def work(db: Any) -> None:
            trials.end(db, trial_id, "worse", "members like it less")
            adapters.rollback(db, scope=self.scope, base_hash="b", actor="trainer", reason="-")
            adapters.set_state(db, "a1", "rejected")

        self.database.write(work)


@pytest.fixture
def trainer(community: Community) -> Trainer:
    return Trainer(community)


async def tick(community: Community, seconds: float = 2.0) -> None:
    await community.env.advance_time(seconds)


@pytest.mark.parametrize("noticed", [True, False])
async def test_a_run_whose_message_was_deleted_says_how_it_ended_in_another_once(
    community: Community, trainer: Trainer, noticed: bool
) -> None:
    await community.ann.slash(community.channel, "retrain")
    run_id = trainer.take()
    trainer.beat(run_id, "train", 0.2)
    await tick(community)
    (message,) = [each for each in community.messages() if run_id in each.content]
    community.env.backend.delete_message(community.channel.id, message.id)
    for progress in (0.4, 0.6) if noticed else ():
        trainer.beat(run_id, "train", progress)
        await tick(community, 5)
        assert not any(run_id in each for each in public(community))
    trainer.finish(run_id, "refused", "it lost")
    await tick(community, 10)
    (said,) = [each for each in community.messages() if run_id in each.content]
    assert "it lost" in said.content
    community.env.backend.delete_message(community.channel.id, said.id)
    await tick(community, 60)
    assert not any(run_id in each for each in public(community))


async def test_a_run_is_one_message_and_its_result_replies_to_it(
    community: Community, trainer: Trainer
) -> None:
    await community.ann.slash(community.channel, "retrain")
    with ProcessLock(community.services.config.run / "trainer.lock").acquire("{pid}"):
        await tick(community)
    (waiting,) = public(community)
    assert "Waiting for the trainer" in waiting

    run_id = trainer.take()
    trainer.beat(run_id, "snapshot", 1.0)
    await tick(community)
    trainer.beat(run_id, "train", 0.43, 190.0)
    await tick(community, 3)
    (shown,) = public(community)
    assert "✅ Snapshot of the rated replies" in shown
    assert "▶️ Training the challenger ▰▰▰▰▱▱▱▱▱▱ 43% · about 3 min left" in shown
    assert "▫️ Deciding" in shown

    sentence = (
        "adapter a2 replaced a1: chance of a like +0.12 (95 % CI 0.05 to 0.19) on 64 held-out conversations"
    )
    trainer.beat(run_id, "swap", 1.0)
    trainer.finish(run_id, "promoted", sentence)
    await tick(community)
    first, result = community.messages()
    assert first.content.count("✅") == 5 and first.content.endswith("The result is in my reply below.")
    assert sentence in result.content and "✅" not in result.content
    assert result.reference.message_id == first.id


async def test_a_second_retrain_links_to_the_message_of_the_run_that_is_on(
    community: Community, trainer: Trainer
) -> None:
    await community.ann.slash(community.channel, "retrain")
    trainer.take()
    await tick(community, 10)
    (message,) = [each for each in community.messages() if "Retraining" in each.content]
    answer = text(await community.ann.slash(community.channel, "retrain"))
    assert f"/{community.channel.id}/{message.id}" in answer


async def test_a_run_that_is_not_worth_it_says_why(community: Community, trainer: Trainer) -> None:
    await community.ann.slash(community.channel, "retrain")
    run_id = trainer.take()
    sentence = "not yet: 11 of 25 liked replies, 3 of 5 raters"
    trainer.finish(run_id, "not_yet", sentence)
    await tick(community, 3)
    (final,) = public(community)
    assert sentence in final and "Deciding" not in final


async def test_what_a_run_was_cancelled_in_is_not_shown_as_done(
    community: Community, trainer: Trainer
) -> None:
    await community.ann.slash(community.channel, "retrain")
    run_id = trainer.take()
    trainer.beat(run_id, "evaluate", 0.1)
    await tick(community, 3)
    await community.ann.click(community.messages()[-1], custom_id=f"strop:run:{run_id}:cancel")
    await tick(community, 3)
    lines = public(community)[0].split("\n")[1:]
    assert [line.split()[0] for line in lines] == ["✅", "✅", "⏹️", "⏹️"]


async def test_a_trainer_that_is_away_is_said_so(
    community: Community, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.learning.run_progress.TRAINER_PATIENCE_MS", -1)
    await community.ann.slash(community.channel, "retrain")
    await tick(community)
    assert "trainer is not running right now" in public(community)[0]


async def test_scheduled_runs_report_where_retrain_was_used_last(
    community: Community, trainer: Trainer
) -> None:
    run_id = trainer.enqueue()
    trainer.take()
    trainer.beat(run_id, "train", 0.5)
    await tick(community, 6)
    assert public(community) == []
    trainer.finish(run_id, "refused", "a1 was not promoted, because it lost")

    await community.ann.slash(community.channel, "retrain")
    trainer.finish(trainer.take(), "refused", "a2 was not promoted")
    await tick(community, 6)
    seen = len(public(community))

    quiet = trainer.enqueue()
    trainer.take()
    trainer.finish(quiet, "not_yet", "not yet: 1 of 25")
    await tick(community, 6)
    assert len(public(community)) == seen

    run_id = trainer.enqueue("ratings")
    trainer.take()
    trainer.beat(run_id, "train", 0.5)
    await tick(community, 6)
    assert len(public(community)) == seen + 1 and run_id in public(community)[-1]


async def test_a_refused_run_shows_no_swap_and_says_that_its_time_limit_cut_it_short(
    community: Community, trainer: Trainer
) -> None:
    await community.ann.slash(community.channel, "retrain")
    run_id = trainer.take()
    trainer.beat(run_id, "swap", 0.0)
    await tick(community, 3)
    metrics = {"training": {"objective": "sft", "sft": {"steps": 12, "shortened": True}}}
    trainer.database.write(
        lambda db: runs.finish(db, run_id, outcome="refused", message=Sentence("it lost"), metrics=metrics)
    )
    await tick(community, 6)
    first, result = public(community)
    assert "Swapping" not in first and first.count("✅") == 4
    assert "ended its training early" in result


async def test_an_operator_ends_a_vote_below_it_or_with_reject(
    community: Community, trainer: Trainer
) -> None:
    await community.ann.slash(community.channel, "retrain")
    run_id = trainer.take()
    trainer.on_trial(run_id, "canary")
    await tick(community, 4)
    asked = community.messages()[-1]
    assert buttons(asked) == ["Reject, and end the vote"]
    assert said(await community.bob.click(asked, label="Reject, and end the vote")) == NOT_OPERATOR
    ended = said(await community.ann.click(asked, label="Reject, and end the vote"))
    assert ended == "Adapter `a1` is rejected; the base model goes on answering."
    assert trainer.database.read(lambda db: adapters.expect(db, "a1")).state == "rejected"
    again = text(await community.ann.slash(community.channel, "reject", adapter="a1"))
    assert "nothing left to reject" in again
    assert "no adapter" in text(await community.ann.slash(community.channel, "reject", adapter="a2"))
    assert len(community.env.errors) == 2


async def test_a_second_retrain_links_to_the_run_that_is_on(community: Community, trainer: Trainer) -> None:
    await community.ann.slash(community.channel, "retrain")
    trainer.take()
    await tick(community, 3)
    (shown,) = community.messages()
    again = text(await community.ann.slash(community.channel, "retrain"))
    assert f"https://discord.com/channels/{community.guild.id}/{community.channel.id}/{shown.id}" in again


async def test_a_restart_goes_on_with_the_same_message(
    community: Community, trainer: Trainer, services: Services
) -> None:
    await community.ann.slash(community.channel, "retrain")
    run_id = trainer.take()
    trainer.beat(run_id, "train", 0.1)
    await tick(community, 3)
    await community.bot.feature(ProgressReporter).stop()
    await community.env.restart_bot(make_client(services))
    trainer.finish(run_id, "refused", "not promoted, because the lower bound is below zero")
    await tick(community, 6)
    before, final = public(community)
    assert "lower bound is below zero" in final and "below" in before
    await community.bot.feature(ProgressReporter).stop()
    await community.env.restart_bot(make_client(services))
    await tick(community, 6)
    assert public(community) == [before, final]


async def test_a_channel_that_refuses_the_report_disturbs_nothing(
    community: Community, trainer: Trainer
) -> None:
    await community.ann.slash(community.channel, "retrain")
    community.env.inject_error("POST", "/channels/*/messages", status=403, code=50013, times=None)
    trainer.take()
    await tick(community, 8)
    posts = [r for r in community.env.http_requests if r.method == "POST" and r.path.endswith("/messages")]
    assert len(posts) == 1


async def test_votes_are_pairs_that_do_not_tell_whose_is_whose(
    community: Community, trainer: Trainer
) -> None:
    run_id = await voting(community, trainer, pairs=7)
    pairs = [message for message in community.messages() if "like better" in message.content]
    assert len(pairs) == MOST_UNANSWERED
    (result,) = [message for message in community.messages() if "The pairs are below" in message.content]
    assert result.id < min(pair.id for pair in pairs)
    assert "> question 0\n\n**A**\nfirst 0\n\n**B**\nsecond 0" in pairs[0].content
    assert not any("a1" in pair.content or run_id in pair.content for pair in pairs)

    voted = await community.bob.click(pairs[0], label="A")
    assert voted.ephemeral and "Counted: A" in said(voted)
    await community.ann.click(pairs[0], label="B")
    await community.bob.click(pairs[1], label="Tie")
    await community.bob.click(pairs[0], label="B")
    tally = community.services.database.read(lambda db: duels.tally(db, run_id))
    assert (tally.wins, tally.losses, tally.ties, tally.voters) == (0, 2, 1, 2)


async def test_a_pair_that_is_gone_after_a_restart_is_posted_again(
    community: Community, trainer: Trainer, services: Services
) -> None:
    """The playground forgets what the bot said; the vote goes on all the same."""
    await voting(community, trainer, pairs=2)

    def pairs() -> list[Any]:
        return [message for message in community.messages() if "like better" in message.content]

    gone, kept = pairs()
    community.env.backend.delete_message(community.channel.id, gone.id)
    await tick(community, 6)
    assert [pair.id for pair in pairs()] == [kept.id]
    await community.env.restart_bot(make_client(services))
    await tick(community, 6)
    (left, again) = pairs()
    assert left.id == kept.id and again.content == gone.content
    assert "Counted: A" in said(await community.bob.click(again, label="A"))


async def test_a_blind_vote_is_taken_back_by_its_button_or_in_the_members_own_list_while_it_is_open(
    community: Community, trainer: Trainer
) -> None:
    run_id = await voting(community, trainer, pairs=2)
    pairs = [message for message in community.messages() if "like better" in message.content]

    def voters() -> int:
        return community.services.database.read(lambda db: duels.tally(db, run_id)).voters

    await community.bob.click(pairs[0], label="A")
    assert voters() == 1
    assert said(await community.bob.click(pairs[0], label="A")) == "Your vote is taken back."
    assert voters() == 0

    await community.bob.click(pairs[1], label="Tie")
    listed = (await community.bob.slash(community.channel, "privacy ratings")).response
    assert "⚖️ Tie" in listed.content
    (choice,) = listed.components[0]["components"][0]["options"]
    await community.bob.select(listed, [choice["value"]])
    assert voters() == 0 and listed.content.startswith("Taken back: 1.")

    await community.bob.click(pairs[0], label="B")
    community.services.database.write(lambda db: duels.close(db, run_id))
    listed = (await community.bob.slash(community.channel, "privacy ratings")).response
    assert "⚖️ B" in listed.content and listed.components == []


async def test_a_vote_makes_room_for_the_next_pair(community: Community, trainer: Trainer) -> None:
    await voting(community, trainer, pairs=7)
    pairs = [message for message in community.messages() if "like better" in message.content]
    await community.bob.click(pairs[0], label="A")
    await tick(community, 20)
    assert len([text for text in public(community) if "like better" in text]) == MOST_UNANSWERED + 1


async def test_vote_buttons_survive_a_restart_and_close_with_the_run(
    community: Community, trainer: Trainer, services: Services
) -> None:
    run_id = await voting(community, trainer, pairs=2)
    await community.bot.feature(ProgressReporter).stop()
    await community.env.restart_bot(make_client(services))
    pairs = [message for message in community.messages() if "like better" in message.content]
    assert "Counted" in said(await community.bob.click(pairs[0], label="A"))

    trainer.finish(run_id, "promoted", "adapter a1 replaced the base model by 20 votes")
    late = await community.bob.click(pairs[1], label="A")
    assert "over" in said(late)
    await tick(community, 6)
    texts = public(community)
    assert texts.count(CLOSED) == 2 and any("20 votes" in text for text in texts)
    assert all(not message.components for message in community.messages())


async def test_a_run_on_trial_says_how_its_canary_goes_and_never_who_is_ahead(
    community: Community, trainer: Trainer
) -> None:
    await community.ann.slash(community.channel, "retrain")
    run_id = trainer.take()
    trial_id = trainer.on_trial(run_id, "canary")
    trainer.count(trial_id, {"newcomer": 4, "incumbent": 31, "needed": [12, 61]})
    await tick(community, 4)
    (shown,) = public(community)
    assert (
        "Canary: adapter a1 answers 10% of new conversations; rated: 4 of its conversations, "
        "31 of the champion's; in half of all cases 12 to 61 more decide (reckoned anew with each)" in shown
    )
    assert "Votes so far" not in shown and "%" not in shown.split("rated:")[1]
    trainer.count(trial_id, {"newcomer": 5, "incumbent": 40, "needed": [9, 50]})
    await tick(community, 4)
    assert "rated: 5 of its conversations" in public(community)[0]
    trainer.finish(run_id, "refused", "a1 was not promoted, because as a canary it was liked in 10%")
    await tick(community, 6)
    votes, final = public(community)
    assert "Canary:" not in final and "liked in 10%" in final
    assert "Canary:" not in votes and "The vote is over" in votes


async def test_the_card_of_a_promoted_run_says_that_it_is_watched_and_what_came_of_it(
    community: Community, trainer: Trainer
) -> None:
    await community.ann.slash(community.channel, "retrain")
    run_id = trainer.take()
    trial_id = trainer.on_trial(run_id, "holdback")
    trainer.finish(run_id, "promoted", "adapter a1 replaced the base model: +0.12")
    await tick(community, 6)

    def card() -> dict[str, str]:
        (embed,) = community.messages()[0].embeds
        return {"": embed.description or "", **{each.name: each.value for each in embed.fields}}

    assert card()[""] == "It answers now."
    assert card()["Since its promotion"].startswith("10% of new conversations stay with the base model until")
    edits = len(community.env.http_requests)
    trainer.count(trial_id, {"newcomer": 9, "incumbent": 1})
    await tick(community, 6)
    assert len(community.env.http_requests) == edits
    trainer.go_back(trial_id)
    await tick(community, 6)
    assert card()[""] == "It was rolled back: members liked the one before it better."
    assert card()["Since its promotion"] == "Liked less, and rolled back: members like it less"


async def voting(community: Community, trainer: Trainer, pairs: int) -> str:
    await community.ann.slash(community.channel, "retrain")
    run_id = trainer.take()
    trainer.beat(run_id, "decide", 1.0)
    for number in range(pairs):
        trainer.duel(run_id, number)
    trainer.finish(run_id, "votes", "The offline evidence is thin: please vote.")
    await tick(community, 3)
    return run_id


def public(community: Community) -> list[str]:
    """What everyone in the channel sees of the bot."""
    return [message.content for message in community.messages() if not message.flags.ephemeral]


def said(result: Any) -> str:
    messages = [result.response] if result.response is not None else []
    return "\n".join(message.content for message in [*messages, *result.followups])


async def test_a_channel_without_embeds_still_hears_the_last_word(
    community: Community, trainer: Trainer
) -> None:
    await community.ann.slash(community.channel, "retrain")
    run_id = trainer.take()
    await tick(community, 3)
    community.env.inject_error("POST", "/channels/*/messages", status=403, code=50013, times=1)
    trainer.candidate(run_id, "a1111111111111111")
    await tick(community, 6)
    _, final = community.messages()
    assert "it lost" in final.content and NO_EMBEDS in final.content and not final.embeds


async def test_a_run_that_found_nothing_to_train_on_offers_a_tasting_in_place(community: Community) -> None:
    trainer = Trainer(community)
    await community.ann.slash(community.channel, "retrain")
    trainer.finish(trainer.take(), "not_yet", f"not yet: nothing may train. {tastings.OFFER}")
    await community.env.advance_time(3)
    message = community.messages()[-1]
    assert buttons(message) == ["Start a tasting"]
    assert text(await community.bob.click(message, label="Start a tasting")) == NOT_OPERATOR
    form = await community.ann.click(message, label="Start a tasting")
    await community.ann.submit_modal(form, {"text": "What is good bread?"})
    begun = text(await community.ann.click(message, label="Start a tasting"))
    assert begun.startswith("The tasting begins: 1 prompts")


async def test_a_blocked_member_is_told_that_their_vote_does_not_count(
    community: Community, trainer: Trainer
) -> None:
    run_id = await voting(community, trainer, pairs=1)
    (pair,) = [message for message in community.messages() if "like better" in message.content]
    database = community.services.database
    database.write(
        lambda db: blocks.block(db, guild_id=community.guild.id, user_id=community.bob.id, actor="7")
    )
    assert "doesn't count" in said(await community.bob.click(pair, label="A"))
    assert database.read(lambda db: duels.tally(db, run_id)).votes == 0
