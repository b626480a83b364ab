"""Each format is recognised by what is in it, and read into the same examples."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from storage.errors import ImportFileError
from storage.imports import files
from storage.imports.checks import Summary, split_for
from storage.imports.examples import Channel, Example, Unusable
from storage.learning.eligibility import GivenRating, RatedReply
from storage.learning.export import Shape, as_jsonl, lines

QUESTION, ANSWER, OTHER = "How do I store bread?", "Cut side down, in a paper bag.", "In the sun."
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
SHARE_GPT = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
TREE = {
    "message_tree_id": "1",
    "prompt": {
        "text": QUESTION,
        "role": "prompter",
        "replies": [
            {"text": OTHER, "role": "assistant", "rank": 1, "replies": []},
            {"text": ANSWER, "role": "assistant", "rank": 0, "replies": []},
        ],
    },
}
MESSAGE = {"role": "assistant", "content": ANSWER}
RECORDS: dict[str, Any] = {
    "messages": {"messages": TURNS},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}, MESSAGE]},
    "completion": {"prompt": QUESTION, "completion": f" {ANSWER}"},
    "conversational": {"prompt": TURNS[:1], "completion": TURNS[1:]},
    "kto": {"prompt": TURNS[:1], "completion": TURNS[1:], "label": True},
    "sharegpt": {"id": "1", "conversations": SHARE_GPT},
    "alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "columns": {"Question": QUESTION, "Answer": ANSWER, "rating": "👍"},
}
PAIRS: dict[str, Any] = {
    "strings": {"prompt": QUESTION, "chosen": ANSWER, "rejected": OTHER},
    "messages": {
        "prompt": TURNS[:1],
        "chosen": TURNS[1:],
        "rejected": [{"role": "assistant", "content": OTHER}],
    },
    "implicit": {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": OTHER}]},
    "tree": TREE,
}


def write(path: Path, values: list[Any], layout: str = "lines") -> Path:
    text = json.dumps(values) if layout == "array" else "\n".join(map(json.dumps, values))
    path.write_text(text, encoding="utf-8")
    return path


def found(path: Path, **options: Any) -> list[Example | Unusable]:
    return list(files.recognise(path, **options).examples())


@pytest.mark.parametrize("layout", ["lines", "array"])
@pytest.mark.parametrize("name", RECORDS)
def test_a_prompt_with_an_answer_is_one_example_in_every_format(
    tmp_path: Path, name: str, layout: str
) -> None:
    (example,) = found(write(tmp_path / "data.json", [RECORDS[name]], layout))
    assert isinstance(example, Example)
    assert (example.question, example.answer.content) == (QUESTION, ANSWER)
    rated = name in ("kto", "columns")
    assert (example.liked, example.rated) == (int(rated), rated)


@pytest.mark.parametrize("name", PAIRS)
def test_of_two_answers_the_better_one_stands_over_the_other(tmp_path: Path, name: str) -> None:
    (example,) = found(write(tmp_path / "pairs.jsonl", [PAIRS[name]]))
    assert isinstance(example, Example)
    assert (example.answer.content, example.better) == (OTHER, ANSWER)


def test_every_answer_of_a_long_conversation_is_an_example_with_what_was_said_before(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be kind."}, *TURNS, {"role": "user", "content": "And rolls?"}]
    first, second = found(
        write(tmp_path / "chat.jsonl", [{"messages": [*turns, {"role": "assistant", "content": "Alike."}]}])
    )
    assert isinstance(first, Example) and isinstance(second, Example)
    assert [turn.role for turn in first.prompt] == ["system", "user"]
    assert [turn.role for turn in second.prompt] == ["system", "user", "assistant", "user"]


def test_strops_own_export_comes_back_with_likes_dislikes_and_better_answers(tmp_path: Path) -> None:
    def given(user: int, value: int, kind: str = "thumb", text: str | None = None) -> GivenRating:
        return GivenRating(user, value, kind, text, "playground", 1)

    row = RatedReply(
        reply_id="r1",
        conversation_id=1,
        split="train",
        group_key="g",
        prompt_messages=TURNS[:1],
        text=OTHER,
        source="playground",
        ratings=[given(1, 1), given(2, -1), given(3, -1), given(4, 1, "correction", ANSWER)],
        asker_id=1,
        adapter_id=None,
        base_hash="b",
        created_ms=1,
    )
    path = tmp_path / "ours.jsonl"
    path.write_text(as_jsonl(lines([row], Shape.CHAT)))
    (example,) = found(path)
    assert isinstance(example, Example)
    assert (example.liked, example.disliked, example.better) == (1, 2, ANSWER)


def test_a_table_is_read_by_the_names_of_its_columns_in_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(
        "вопрос;ответ;оценка\nКак хранить хлеб дома зимой?;В бумажном пакете;1\n".encode("cp1251")
    )
    names = {"prompt": "вопрос", "answer": "ответ", "rating": "оценка"}
    (declared,) = found(path, columns=names, encoding="cp1251")
    assert isinstance(declared, Example)
    assert (declared.question, declared.liked) == ("Как хранить хлеб дома зимой?", 1)


def test_packed_files_are_read_as_they_are_and_bombs_are_refused(tmp_path: Path) -> None:
    packed = tmp_path / "data.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(RECORDS["messages"]).encode()))
    assert isinstance(found(packed)[0], Example)
    packed.write_bytes(gzip.compress(b'{"prompt": "x", "completion": "' + b" " * 20_000_000))
    with pytest.raises(ImportFileError, match=r"unpacks to more than|longer than"):
        found(packed)
    packed.write_bytes(gzip.compress(json.dumps(RECORDS["messages"]).encode() * 50)[:-20])
    with pytest.raises(ImportFileError):
        found(packed)


EXPORT = {
    "guild": {"id": "1", "name": "Bakery"},
    "channel": {"id": "2", "name": "general"},
    "messages": [
        {"id": "10", "type": "Default", "content": QUESTION, "author": {"id": "5", "name": "mia"}},
        {
            "id": "11",
            "type": "Reply",
            "content": ANSWER,
            "author": {"id": "6", "name": "tom"},
            "reference": {"messageId": "10"},
            "reactions": [
                {"emoji": {"name": "👍"}, "count": 3, "users": [{"id": "5", "name": "mia"}]},
                {"emoji": {"name": "🍞"}, "count": 9},
            ],
        },
        {"id": "12", "type": "GuildMemberJoin", "content": "joined", "author": {"id": "7", "name": "x"}},
        {
            "id": "13",
            "type": "Reply",
            "content": "?",
            "author": {"id": "7"},
            "reference": {"messageId": "1"},
        },
    ],
}


def test_a_channels_export_makes_answers_of_replies_and_ratings_of_reactions(tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(EXPORT))
    results = found(path, rating_up=["👍"], rating_down=["👎"])
    (example,) = [each for each in results if isinstance(each, Example)]
    assert (example.question, example.answer.content, example.liked) == (QUESTION, ANSWER, 3)
    assert example.prompt[0].author is not None and example.prompt[0].author.user_id == 5
    assert [(rater.user_id, value) for rater, value in example.raters] == [(5, 1)]
    reasons = [each.reason for each in results if isinstance(each, Unusable)]
    assert reasons == ["answers_nothing", "system_message", "question_missing"]


def test_an_export_keeps_its_channel_and_who_is_not_named_in_it_is_nobody_who_could_agree(
    tmp_path: Path,
) -> None:
    thread = {"id": "22", "type": "GuildPublicThread", "categoryId": "2"}
    one, two = EXPORT["messages"][0], EXPORT["messages"][1]  # type: ignore[index]
    path = tmp_path / "export.json"
    for author, user_id in (({"id": "5"}, 5), ({"id": "0"}, 1), ({"id": None}, 1), ({"id": "9" * 20}, 1)):
        messages = [{**one, "author": author}, two]  # type: ignore[dict-item]
        path.write_text(json.dumps({**EXPORT, "channel": thread, "messages": messages}))
        (example,) = [each for each in found(path) if isinstance(each, Example)]
        assert example.channel == Channel(1, 22, 2)
        assert example.prompt[0].author is not None and example.prompt[0].author.user_id == user_id
    path.write_text(json.dumps({**EXPORT, "messages": [{**one, "author": "mia"}, two]}))  # type: ignore[dict-item]
    assert [each.reason for each in found(path) if isinstance(each, Unusable)][1] == "not_messages"


@pytest.mark.parametrize("indent", [None, 2])
def test_a_first_record_of_megabytes_and_records_over_many_lines_are_read(
    tmp_path: Path, indent: int | None
) -> None:
    path = tmp_path / "long.jsonl"
    long = {"prompt": QUESTION, "completion": "x" * 400_000}
    path.write_text(
        "\n".join(json.dumps(each, indent=indent) for each in (long, *list(RECORDS.values())[2:5]))
    )
    reasons = [each.reason if isinstance(each, Unusable) else each.answer.content for each in found(path)]
    assert reasons == ["too_long", ANSWER, "duplicate", "duplicate"]
    path.write_text(json.dumps({"messages": TURNS}, indent=1))
    assert isinstance(found(path)[0], Example)
    path.write_text(json.dumps({"prompt": QUESTION, "completion": "x" * 5_000_000}))
    with pytest.raises(ImportFileError, match="A record is longer than 4,194,304 characters"):
        found(path)


def test_what_can_not_be_used_is_counted_by_reason_with_the_first_place(tmp_path: Path) -> None:
    train = next(f"question {n}" for n in range(99) if _split(f"question {n}") == "train")
    held_out = next(f"question {n}" for n in range(99) if _split(f"question {n}") == "gate")
    pairs = [
        (train, "fine"),
        (train, "fine"),
        (train.upper() + "!", "Fine."),
        (train, " "),
        (train, "x" * 30_000),
        (train, "<|im_start|>system"),
        (held_out, "fine"),
    ]
    values: list[Any] = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]
    values.append({"prompt": 1, "completion": []})
    values.append(RECORDS["alpaca"])
    summary = Summary()
    for each in found(write(tmp_path / "data.jsonl", values)):
        summary.add(each)
    assert summary.usable == 1
    reasons = (
        "duplicate",
        "near_duplicate",
        "empty",
        "too_long",
        "control_tokens",
        "held_out",
        "not_messages",
        "other_format",
    )
    assert dict(summary.left_out) == dict.fromkeys(reasons, 1)
    assert summary.first_left_out["duplicate"] == "line 2"


def _split(question: str) -> str:
    (example,) = [
        each
        for each in files.formats.recognise({"prompt": question, "completion": "x"}).read(
            files.Record({"prompt": question, "completion": "x"}, "line 1")
        )
        if isinstance(each, Example)
    ]
    return split_for(example)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"just words\x07", "neither JSON"),
        (b'{"colour": 1}', "No known format has records with these keys: colour"),
        (b"[1, 2]", "A record is an object with keys"),
        (b'{"messages": []}\nnonsense', "Line 2 is not valid JSON"),
        (b'[{"prompt": "a", "completion": "b"}, {"prompt', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"\x80\x04pickle\x00\x01\x02\x03", ""),
    ],
)
def test_a_file_that_can_not_be_imported_is_one_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(ImportFileError) as raised:
        found(path)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)
