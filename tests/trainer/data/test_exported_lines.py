"""What `strop export` and /export write is what others read: TRL itself takes every shape as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils
from datasets import Dataset
from trl import apply_chat_template
from trl.data_utils import is_conversational

from storage.db.database import Database
from storage.feedback import ratings, side_by_side
from storage.learning import eligibility
from storage.learning.export import Shape, as_jsonl, lines
from tests.storage.conftest import SCOPE, Community, thumb
from tests.tiny_model import build_tiny_tokenizer

ANN, BO = 1, 2


@pytest.fixture
def exported(tmp_path: Path) -> Any:
    """A liked, a disliked and a corrected reply, and two answers side by side of which one was preferred."""

    def work(db: sqlite_utils.Database) -> None:
        community = Community()
        liked = community.asks(db, ANN, "hello?", answer="Hello!")
        thumb(db, liked, BO)
        below = community.follows_up(db, BO, liked, "and you?")
        thumb(db, below, ANN, -1, "👎")
        ratings.rate(
            db, reply_id=below, user_id=ANN, kind="correction", means="modal", value=1, text="Fine, thanks."
        )
        first = community.asks(db, ANN, "a or b?", answer="This is a.")
        asked = db.execute("SELECT prompt_message_id FROM replies WHERE id = ?", (first,)).fetchone()[0]
        second = community.answers(db, asked, "a or b?", answer="This is b.")
        side_by_side.add(db, first_id=first, second_id=second, usual_id=first)
        side_by_side.vote(db, first_id=first, user_id=ANN, choice=-1)
        side_by_side.vote(db, first_id=first, user_id=BO, choice=0)

    with Database.open(tmp_path / "strop.db") as database:
        database.write(work)
        found = database.read(lambda db: eligibility.eligible_rows(db, SCOPE, permission_reference=""))

    def write(shape: Shape) -> list[dict[str, Any]]:
        path = tmp_path / f"{shape}.jsonl"
        path.write_text(as_jsonl(lines(found.rows, shape)), encoding="utf-8")
        return list(Dataset.from_json(str(path), cache_dir=str(tmp_path / "cache")))

    return write


@pytest.mark.parametrize(
    ("shape", "columns"),
    [
        (Shape.CHAT, {"text"}),
        (Shape.KTO, {"prompt", "completion", "label"}),
        (Shape.DPO, {"prompt", "chosen", "rejected"}),
    ],
)
def test_trl_renders_every_line_of_every_shape(exported: Any, shape: Shape, columns: set[str]) -> None:
    rows = exported(shape)
    assert rows
    wanted = {"messages", "prompt", "completion", "label", "chosen", "rejected"}
    for row in rows:
        assert is_conversational(row)
        given = {key: value for key, value in row.items() if key in wanted}
        assert columns <= apply_chat_template(given, build_tiny_tokenizer()).keys()


def test_a_chat_line_has_its_messages_in_order_and_says_how_it_was_rated(exported: Any) -> None:
    rows = {row["messages"][-1]["content"]: row for row in exported(Shape.CHAT)}
    assert rows["Hello!"]["rating"] == 1
    below = rows["An answer."]
    assert [message["role"] for message in below["messages"]] == ["user", "assistant"] * 2
    assert (below["rating"], below["corrections"]) == (-1, ["Fine, thanks."])
    assert "user_id" not in json.dumps(list(rows.values()))


def test_pairs_are_corrections_over_originals_and_the_preferred_of_two_answers(exported: Any) -> None:
    pairs = {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in exported(Shape.DPO)}
    assert pairs == {("Fine, thanks.", "An answer."), ("This is b.", "This is a.")}
