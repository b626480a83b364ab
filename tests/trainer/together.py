"""One training in several processes on this machine, joined by gloo, as a cluster would carry it out."""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import distributed

from storage.sentences import Sentence
from tests.trainer.interrupted import processes
from trainer.placement.carry_out import carry_out


def carried_out(folders: Sequence[Path], models: Path, meeting: Path, *, stop_after: int = 0) -> list[str]:
    """Carry out a training whose folder each rank has a copy of; return what the first rank told.

    `stop_after` kills the first rank after so many steps. `meeting` is a file that isn't there yet.
    """
    ours, theirs = processes.Pipe(duplex=False)
    ranks = [
        processes.Process(target=_rank, args=(number, folders, models, meeting, theirs), daemon=True)
        for number in range(len(folders))
    ]
    for rank in ranks:
        rank.start()
    theirs.close()
    told: list[str] = []
    try:
        while not stop_after or len(told) < stop_after:
            told.append(str(ours.recv()))
    except EOFError:
        assert not stop_after, told
    if stop_after:
        ranks[0].kill()
    for rank in ranks:
        rank.join()
    return told


def _rank(number: int, folders: Sequence[Path], models: Path, meeting: Path, tell: Connection) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=number, world_size=len(folders)
    )

    def say(share: float, note: Sentence) -> None:
        if number == 0:
            tell.send(note)

    carry_out(folders[number], models, device="cpu", on_progress=say)
    distributed.destroy_process_group()
