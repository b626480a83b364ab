"""What a verdict hangs on: one loud member, or a taste that has changed."""

from __future__ import annotations

from bot.serving.protocol import ChatMessage
from storage.config_sections import GateConfig
from storage.learning.eligibility import RatedReply
from tests.trainer.rows import reply, thumb
from trainer.data import snapshot
from trainer.evaluation import evaluate, sensitivity
from trainer.evaluation.evidence import Ratings
from trainer.evaluation.reward_model import RatedText
from trainer.evaluation.scores import Answer, Pair, Prompt

ANSWER = {"answer": 1.0}
SETTINGS = GateConfig(bootstrap=400)
WORDS = ("tea", "rain", "chess", "bread", "cats", "films", "music", "trains")


def pairs(count: int = 24) -> list[Pair]:
    """A challenger that asks back where the champion tells."""
    return [
        Pair(
            Prompt((ChatMessage("user", f"Number {n}?"),), f"g{n}"),
            Answer(f"I like {WORDS[n % 8]}. Do you?", True),
            Answer(f"I like {WORDS[n % 8]} and {WORDS[n % 7]} a lot.", True),
        )
        for n in range(count)
    ]


def rated(asks_liked: bool, *, first: int, count: int = 40, created_ms: int = 0) -> list[RatedText]:
    found = []
    for n in range(first, first + count):
        asks = n % 2 == 0
        text = (
            f"I like {WORDS[n % 8]}. Do you?" if asks else f"I like {WORDS[n % 8]} and {WORDS[n % 7]} a lot."
        )
        found.append(RatedText(text, asks == asks_liked, 0.5, f"c{n}", created_ms + n))
    return found


def test_a_gain_that_one_member_made_up_is_gone_without_them() -> None:
    # The judge is fitted on held-out ratings.
    calm = Ratings((), tuple(rated(True, first=0)))
    against = Ratings((), tuple(rated(False, first=0)))
    found = sensitivity.without_members(
        pairs(), {"member 1": against, "member 2": calm}, ANSWER, SETTINGS, seed=0
    )
    assert [(each["name"], each["still_better"]) for each in found] == [
        ("member 1", False),
        ("member 2", True),
    ]
    assert found[0]["value"] < 0 < found[1]["value"]


def test_without_ratings_of_both_kinds_nothing_is_said() -> None:
    liked_only = Ratings((), tuple(item for item in rated(True, first=0) if item.liked))
    assert sensitivity.without_members(pairs(), {"member 1": liked_only}, ANSWER, SETTINGS, seed=0) == []


def test_a_taste_that_lasts_is_predicted_from_the_older_ratings_and_one_that_turned_is_not() -> None:
    lasting = Ratings(tuple(rated(True, first=0, count=100)), ())
    older, newer = rated(True, first=0, count=70), rated(False, first=70, count=30)
    turned = Ratings(tuple(older + newer), ())
    same, other = (sensitivity.time_forward(found, ANSWER, SETTINGS, seed=0) for found in (lasting, turned))
    assert same is not None and same.value > 0.9
    assert other is not None and other.value < 0.1


def test_without_times_or_with_too_few_ratings_there_is_no_forward_test() -> None:
    untimed = tuple(RatedText(item.text, item.liked, 0.5, item.group) for item in rated(True, first=0))
    assert sensitivity.time_forward(Ratings(untimed, ()), ANSWER, SETTINGS, seed=0) is None
    assert (
        sensitivity.time_forward(Ratings(tuple(rated(True, first=0, count=8)), ()), ANSWER, SETTINGS, 0)
        is None
    )


def test_a_snapshot_knows_its_labels_without_each_of_the_loudest_members() -> None:
    rows: list[RatedReply] = [reply(f"r{n:02d}", thumb(1, 1), thumb(2, -1 if n < 2 else 1)) for n in range(9)]
    rows += [reply(f"s{n:02d}", thumb(3, -1)) for n in range(3)]
    built = snapshot.build(rows, {})
    assert set(built.without) == {"member 1", "member 2", "member 3"}
    votes = {member.name: member.votes for member in built.influence}
    for name, without in built.without.items():
        unclear = [row.reply_id for row in without if row.verdict == "unclear"]
        # Without the third member: two ties, and replies that nobody else has rated. Without others no tie.
        assert unclear == (["r00", "r01", "s00", "s01", "s02"] if votes[name] == 3 else [])
    assert evaluate.ratings_of(built).train
