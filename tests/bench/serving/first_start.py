"""A deployment's first start and a later one: how long until there is an answer, and what the server holds.

`python -m tests.bench.serving.start` starts the model server alone, and says which file its memory holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.serving.errors import BenchError
from tests.bench.serving.memory_use import read_memory_use
from tests.bench.serving.profile import Setting
from tests.bench.serving.results import Row
from tests.e2e.deployment import Deployment, deployed

SETTINGS = (
    "[server]\nport = 0\n[playground]\nport = 0\n[trainer]\nmin_new_ratings = 0\ninterval_hours = 0.0\n"
)
QUESTION = "What do you like about rainy days?"
# (at least, aim): seconds, and GB after the first start and after later ones.
FIRST_ANSWER_GOAL = (25.0, 15.0)
MEMORY_GOALS = ((0.8, 0.45), (0.6, 0.45))


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from `make up` to the first answer's first words; bytes that the model server holds then."""

    answers_s: float
    resident: int
    pss: int


def measure_start(setting: Setting) -> list[Row]:
    """Start a deployment without any files twice, with the defaults and the packages that are installed."""
    with tempfile.TemporaryDirectory(prefix="strop-start-") as folder:
        return start_rows(asyncio.run(_starts(Path(folder))))


async def _starts(folder: Path) -> list[Start]:
    begun = time.monotonic()
    async with deployed(folder, SETTINGS, environment={"OMP_NUM_THREADS": None}) as strop:
        first = await _answered(strop, begun)
        await strop.stop()
        begun = time.monotonic()
        await strop.start()
        return [first, await _answered(strop, begun)]


async def _answered(strop: Deployment, begun: float) -> Start:
    """Ask once; the reply's row says how long its first words took."""
    ready_s = time.monotonic() - begun
    reply = await strop.ask(QUESTION)
    if reply["first_token_ms"] is None:
        raise BenchError(f"The first question was not answered: {reply['status']}.")
    server = _model_server(strop)
    resident = server.joinpath("status").read_text(encoding="utf-8").partition("VmRSS:")[2].split()[0]
    return Start(
        ready_s + reply["first_token_ms"] / 1000, int(resident) * 1024, read_memory_use(int(server.name)).pss
    )


def _model_server(strop: Deployment) -> Path:
    """Return the folder in /proc of the deployment's model server."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = process.joinpath("cmdline").read_bytes().split(b"\0")
            if b"bot.serving" in command and process.joinpath("cwd").samefile(strop.folder):
                return process
    raise BenchError("The deployment has no model server.")


def start_rows(starts: Sequence[Start]) -> list[Row]:
    """Compare the first start's seconds, and both starts' memory, with their goals."""
    first, later = starts
    seconds = Row(
        section="start",
        case="first start to first answer, packages installed",
        unit="s",
        ours=first.answers_s,
        at_least=FIRST_ANSWER_GOAL[0],
        aim=FIRST_ANSWER_GOAL[1],
        at_most=True,
        note=f"to its first words; at the next start {later.answers_s:.1f} s",
        raw={"starts": [asdict(each) for each in starts]},
    )
    memory = [
        Row(
            section="start",
            case=f"model server's memory after {name}",
            unit="GB",
            ours=each.resident / 1e9,
            at_least=goal[0],
            aim=goal[1],
            at_most=True,
            note=f"resident after the first answer; its proportional share is {each.pss / 1e9:.2f} GB",
        )
        for name, each, goal in zip(("the first start", "later starts"), starts, MEMORY_GOALS, strict=True)
    ]
    return [seconds, *memory]
