"""Kills at any moment of a run: the old champion goes on answering, and the next run ends well."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment, deployed, until
from tests.e2e.test_whole_loop import ANY_PORTS, ENDED, TRIAL, rated

KILLS = 12


def processes(folder: Path, module: str) -> list[int]:
    """The ids of this deployment's processes that run `python -m MODULE`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if module in command and any(str(folder) in argument for argument in command):
            found.append(int(entry.name))
    return found


def champions(strop: Deployment) -> list[str | None]:
    return [row["adapter_id"] for row in strop.query("select adapter_id from champions")]


@pytest.mark.torture
@pytest.mark.timeout(3600)
async def test_a_run_killed_at_any_point_leaves_the_old_champion_answering(
    tmp_path: Path, tiny_source: Path
) -> None:
    model = f'[model]\nbase = "{tiny_source}"\n[chat]\nmax_new_tokens = 16\n[gate]\nmin_effect = 0.9\n'
    draw = random.Random(1)
    async with deployed(tmp_path, ANY_PORTS + TRIAL + model) as strop:
        for number in range(12):
            await strop.ask(f"question number {number}")
            liked = bool(number % 2)
            await rated(strop, "👍" if liked else "👎", "PUT", (1 if liked else -1, 0))
        for _ in range(KILLS):
            await strop.command("retrain")
            await until(lambda: processes(strop.folder, "trainer.run"), "the run's process", strop)
            await asyncio.sleep(draw.uniform(0.0, 25.0))
            victims = processes(strop.folder, draw.choice(["trainer.run", "trainer"]))
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            assert champions(strop) in ([], [None])
            assert (await strop.ask("still there?"))["adapter_id"] is None

            def ended() -> bool:
                rows = strop.query("select state from runs order by created_ms desc limit 1")
                return rows[0]["state"] in ENDED

            await until(ended, "the killed run to be retried or given up", strop)
        assert strop.query("pragma integrity_check") == [{"integrity_check": "ok"}]
