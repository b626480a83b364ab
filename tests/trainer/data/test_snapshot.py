from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.learning.preference_votes import GivenVote, VotedPair
from tests.trainer.rows import correction, reply, thumb
from trainer.data import snapshot
from trainer.data.snapshot import Snapshot
from trainer.errors import SnapshotError
from trainer.evaluation import regressions

ROWS = [
    reply("c", thumb(1, 1), thumb(2, 1), split="gate"),
    reply("a", thumb(1, -1), correction(2, "Better, isn’t it? 🎉")),
    reply("b", thumb(3, 1), split="development", text="Line one\u2028line two"),
]
PAIRS = [
    VotedPair(
        pair_id=name,
        reply_id=name,
        split=split,  # type: ignore[arg-type]
        group_key=group,
        prompt_messages=[{"role": "user", "content": "Tea\u2028or coffee?"}],
        texts=("Tea.", "Coffee."),
        finished=(True, False),
        votes=[GivenVote(user, choice) for user, choice in votes],
        source="playground",
    )
    for name, group, split, votes in [
        ("v2", "a", "train", [(1, -1), (9, -1)]),
        ("v1", "v1", "train", [(1, 1), (2, -1)]),
        ("v3", "c", "train", [(9, 1)]),
    ]
]
REASONS: dict[str, str | None] = {"a": "stop", "b": "length", "c": "stop"}


def test_the_same_rows_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    first = snapshot.write(snapshot.build(ROWS, REASONS), tmp_path / "one").read_bytes()
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert snapshot.write(snapshot.build(shuffled, REASONS), tmp_path / "two").read_bytes() == first


def as_kept(built: Snapshot) -> Snapshot:
    """What is only worked out for a report is not written down."""
    return replace(built, without={}, retired_corrections=())


def test_a_snapshot_reads_back_as_it_was(tmp_path: Path) -> None:
    built = snapshot.build(ROWS, REASONS)
    snapshot.write(built, tmp_path)
    assert snapshot.read(tmp_path, built.content_hash) == as_kept(built)


def test_votes_become_pairs_that_read_back_and_lie_where_their_group_lies(tmp_path: Path) -> None:
    built = snapshot.build(ROWS, REASONS, voted=PAIRS)
    snapshot.write(built, tmp_path)
    again = snapshot.read(tmp_path, built.content_hash)
    assert again == as_kept(built)
    # v1 is a draw of two members who count alike. v3 shares its prompt with a held-out reply.
    (first, second) = built.pairs
    assert (first.pair_id, first.split, first.chosen, first.rejected) == ("v2", "train", "Coffee.", "Tea.")
    assert first.finished == (False, True)
    assert (second.pair_id, second.split) == ("v3", "gate")
    assert 0 < second.weight < first.weight < 1
    assert [pair.pair_id for pair in built.preferences("train")] == ["a/0", "v2"]


def test_a_correction_is_preferred_to_the_reply_that_it_corrects() -> None:
    (pair,) = snapshot.build(ROWS, REASONS).preferences("train")
    assert (pair.chosen, pair.rejected) == ("Better, isn’t it? 🎉", "Sure.")
    assert 0 < pair.weight <= 1


def test_one_more_vote_changes_the_hash_and_no_votes_leave_it_alone() -> None:
    hashes = [
        snapshot.build(ROWS, REASONS, voted=voted).content_hash
        for voted in ([], PAIRS[1:2], PAIRS[:1], PAIRS)
    ]
    assert hashes[0] == hashes[1] == snapshot.build(ROWS, REASONS).content_hash
    assert len(set(hashes)) == 3


def test_a_pair_of_a_retired_group_is_left_out_and_a_lent_prompt_can_be_traced() -> None:
    assert [p.pair_id for p in snapshot.build(ROWS, REASONS, {"c": 20}, PAIRS).pairs] == ["v2"]
    kept = {row.reply_id: row.label for row in snapshot.run_rows(snapshot.build(ROWS, REASONS, voted=PAIRS))}
    assert kept == {"a": "corrected", "b": "liked", "c": "liked", "v2": "compared", "v3": "compared"}


def test_one_more_rating_changes_the_hash() -> None:
    more = [reply("c", thumb(1, 1), thumb(2, 1), thumb(4, -1), split="gate"), *ROWS[1:]]
    assert snapshot.build(more, REASONS).content_hash != snapshot.build(ROWS, REASONS).content_hash


def test_a_snapshot_that_was_changed_or_scrubbed_cannot_be_repeated_from(tmp_path: Path) -> None:
    built = snapshot.build(ROWS, REASONS)
    path = snapshot.write(built, tmp_path)
    path.write_text(path.read_text().replace("Sure", "Sour"))
    with pytest.raises(SnapshotError, match="changed"):
        snapshot.read(tmp_path, built.content_hash)
    path.unlink()
    with pytest.raises(SnapshotError, match="gone"):
        snapshot.read(tmp_path, built.content_hash)


def test_a_held_out_group_is_used_up_after_so_many_looks_and_never_trained_on() -> None:
    fresh = snapshot.build(ROWS, REASONS, {"c": snapshot.MAX_LOOKS - 1, "a": 99})
    assert (fresh.retired, {row.reply_id for row in fresh.rows}) == (0, {"a", "b", "c"})
    used_up = snapshot.build(ROWS, REASONS, {"c": snapshot.MAX_LOOKS})
    assert (used_up.retired, {row.reply_id for row in used_up.rows}) == (1, {"a", "b"})
    assert used_up.raters == fresh.raters


def test_the_corrections_of_a_conversation_that_is_used_up_go_on_testing_for_losses() -> None:
    rows = [*ROWS, reply("d", correction(2, "Better so."), split="gate")]
    used_up = snapshot.build(rows, REASONS, {"c": snapshot.MAX_LOOKS, "d": snapshot.MAX_LOOKS})
    assert "d" not in {row.reply_id for row in used_up.rows}
    assert [row.reply_id for row in used_up.retired_corrections if row.reply_id == "d"] == ["d"]
    assert "d" in {case.row.reply_id for case in regressions.cases(used_up)}


def test_a_reply_cut_off_by_its_length_is_not_finished() -> None:
    finished = {row.reply_id: row.finished for row in snapshot.build(ROWS, REASONS).rows}
    assert finished == {"a": True, "b": False, "c": True}


def test_corrections_count_as_liked_and_are_named_in_the_database_rows() -> None:
    built = snapshot.build(ROWS, REASONS)
    assert {row.reply_id: row.label for row in snapshot.run_rows(built)} == {
        "a": "corrected",
        "b": "liked",
        "c": "liked",
    }
    assert all(row.liked for row in built.rows)


@given(
    st.lists(
        st.tuples(st.sampled_from("xyz"), st.sampled_from(["train", "development", "gate"])),
        min_size=1,
        max_size=12,
    )
)
def test_a_group_of_prompts_is_never_on_both_sides(groups: list[tuple[str, str]]) -> None:
    rows = [reply(f"r{n}", thumb(1, 1), split=split, group=group) for n, (group, split) in enumerate(groups)]
    built = snapshot.build(rows, {})
    train = {row.group_key for row in built.of("train")}
    assert train.isdisjoint({row.group_key for row in built.of("development", "gate")})
    assert len(built.rows) == len(rows)
