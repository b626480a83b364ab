"""Small files as people sent them: each is read for what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from storage.imports import files
from storage.imports.examples import Example

STORE, PAPER, BAG = "How do I store bread?", "Cut side down, in a paper bag.", "In a bag."
DROOPS = "My plant droops."


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SHARE_GPT = [
    {"id": "1", "conversations": [{"from": "human", "value": STORE}, {"from": "gpt", "value": PAPER}]},
    {
        "id": "2",
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": DROOPS},
            {"from": "gpt", "value": "Water it, then wait an hour."},
        ],
    },
]
MESSAGES = [
    {"messages": [said("user", STORE), said("assistant", PAPER)]},
    {"messages": [said("system", "Be kind."), said("user", DROOPS), said("assistant", "Water it.")]},
]
PREFERENCE = [
    {
        "prompt": [said("user", STORE)],
        "chosen": [said("assistant", BAG)],
        "rejected": [said("assistant", "In the sun.")],
    }
]
COMPLETION = [{"prompt": STORE, "completion": f" {BAG}"}]
CHANNEL = {
    "guild": {"id": "1", "name": "Bakery"},
    "channel": {"id": "2", "type": "GuildTextChat", "name": "general"},
    "messages": [
        {
            "id": "10",
            "type": "Default",
            "timestamp": "2024-05-01T10:00:00+00:00",
            "isPinned": False,
            "content": STORE,
            "author": {"id": "5", "name": "mia", "isBot": False},
            "attachments": [],
            "embeds": [],
            "reactions": [{"emoji": {"name": "👍"}, "count": 3}],
            "mentions": [],
        },
        {
            "id": "11",
            "type": "Reply",
            "timestamp": "2024-05-01T10:01:00+00:00",
            "content": BAG,
            "author": {"id": "6", "name": "tom", "isBot": False},
            "reference": {"messageId": "10"},
            "reactions": [],
        },
    ],
}
# The assistant greets before anybody asked anything, as role-play data does.
GREETING = [{"conversations": [{"from": "gpt", "value": "Welcome!"}, *SHARE_GPT[0]["conversations"]]}]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("sharegpt.json", SHARE_GPT, [(STORE, PAPER), (DROOPS, "Water it, then wait an hour.")]),
        ("messages.jsonl", MESSAGES, [(STORE, PAPER), (DROOPS, "Water it.")]),
        ("preference.jsonl", PREFERENCE, [(STORE, BAG)]),
        ("completion.jsonl", COMPLETION, [(STORE, BAG)]),
        ("export.json", CHANNEL, [(STORE, BAG)]),
        ("greeting.json", GREETING, [(STORE, PAPER)]),
    ],
)
def test_a_file_is_read_for_what_it_says(
    tmp_path: Path, name: str, content: Any, found: list[tuple[str, str]]
) -> None:
    path = tmp_path / name
    lines = name.endswith(".jsonl")
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content, indent=1))
    read = files.recognise(path, rating_up=["👍"], rating_down=["👎"]).examples()
    examples = [each for each in read if isinstance(each, Example)]
    # Of two answers the better one stands over the other.
    assert [(each.question, each.better or each.answer.content) for each in examples] == found
