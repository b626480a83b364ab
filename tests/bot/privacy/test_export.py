"""/privacy export: whatever its size, it arrives."""

from __future__ import annotations

import gzip
import json
from typing import Any

from bot.privacy.commands import export_files


def stored(messages: int) -> dict[str, Any]:
    rows = [{"id": number, "content": f"{number} " + "words " * 40} for number in range(messages)]
    return {"user_id": "7", "member": {"user_id": 7}, "messages": rows, "ratings": [{"id": 1}], "audit": []}


def test_a_small_export_is_one_file_of_plain_json() -> None:
    ((name, content),) = export_files(stored(3))
    assert name == "strop-my-data.json" and json.loads(content) == stored(3)


def test_a_large_export_comes_in_parts_that_discord_takes_and_loses_no_row() -> None:
    data = stored(2_000)
    parts = export_files(data, 100_000)
    assert len(parts) > 3
    assert parts[0][0] == f"strop-my-data-1-of-{len(parts)}.json.gz"
    opened = [json.loads(gzip.decompress(content)) for _, content in parts]
    assert all(len(gzip.decompress(content)) < 110_000 for _, content in parts)
    assert all(part["user_id"] == "7" for part in opened)
    for table in ("messages", "ratings"):
        assert [row for part in opened for row in part.get(table, [])] == data[table]
