"""A million lines: read as a stream within bounded memory, with the time left, stopped and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from storage.db.database import Database
from storage.imports import imports
from storage.imports.importing import BATCH

LINES = 1_000_000
MOST_MB = 500

_IMPORT = """
import json, resource, sys
from pathlib import Path
from storage.db.database import Database
from storage.imports import files
from storage.imports.importing import BATCH, Statement, look, take_in

told = []

def stop(progress):
    told.append(progress)
    if progress.records == 5 * BATCH:
        raise KeyboardInterrupt

found = files.recognise(Path(sys.argv[2]))
before = found.state()
summary = look(found, told.append)
left = told[len(told) // 2].left_s
stopped = False
try:
    with Database.open(Path(sys.argv[1])) as database:
        take_in(database, found, before, summary, Statement("guild:1", "ours", "ours", "test"), stop)
except KeyboardInterrupt:
    stopped = True
# All of it is read once more, as an import that isn't interrupted does.
again = sum(1 for _ in found.examples())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps([summary.usable, again, left is not None, stopped, peak]))
"""


@pytest.mark.torture
def test_a_million_lines_fit_into_memory_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    path, database = tmp_path / "chats.jsonl", tmp_path / "strop.db"
    with path.open("w") as file:
        for number in range(LINES):
            asked = f"What did customer {number} ask about order {number * 7}?"
            answer = f"They asked when order {number * 7} arrives; we said in {number % 9} days."
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", _IMPORT, str(database), str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
        usable, again, estimated, stopped, peak = json.loads(ended.stdout)
        assert usable > LINES / 2 and again == LINES and estimated and stopped
        assert peak < MOST_MB
        with Database.open(database) as opened:
            (begun,) = opened.read(imports.listing)
        assert (begun.state, begun.stored, begun.known) == ("running", 5 * BATCH, 0)
