"""A real Ray cluster on this machine, driven as from another one: one worker, two, one killed, the head gone.

Needs an environment with Ray: `make test-scale`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bot.serving.model.loading import load_base
from storage.config_sections import TrainerConfig
from storage.learning import checkpoints
from storage.sentences import Sentence
from tests.trainer import interrupted
from tests.trainer.placement.test_carry_out import RANKED, a_training, files_of, own_pairs
from tests.trainer.placement.test_ranks import TOLERANCE
from trainer.errors import RunCancelledError, TrainingError
from trainer.on_policy import ranking
from trainer.placement import carry_out, elsewhere
from trainer.placement.ray_cluster import FOLDER_PREFIX, RayCluster
from trainer.placement.request import TrainingInput
from trainer.run.repeat import distance
from trainer.training.challenger import Challenger

pytestmark = [pytest.mark.scale, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[3]
START_S = 180.0


class Cluster:
    """A head with two processors, in a folder of its own."""

    def __init__(self) -> None:
        # Sockets lie in it, whose paths may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="strop-ray-", dir="/tmp"))
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.port, port = _free_port(), _free_port()
        command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2"]
        options = {
            "port": port,
            "ray-client-server-port": self.port,
            "temp-dir": self.folder / "ray",
            "include-dashboard": "false",
            "object-store-memory": 100_000_000,
        }
        self._head = subprocess.Popen(
            [*map(str, command), *(f"--{name}={value}" for name, value in options.items())],
            # What the driver has set for itself is none of the cluster's.
            env={name: value for name, value in os.environ.items() if name != "RAY_ENABLE_AUTO_CONNECT"}
            | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=(self.folder / "head.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        ends_at = time.monotonic() + START_S
        while b"Ray runtime started" not in self.log() or not self.answers():
            assert self._head.poll() is None and time.monotonic() < ends_at, self.log().decode()
            time.sleep(0.2)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def log(self) -> bytes:
        return (self.folder / "head.log").read_bytes()

    def processes(self, name: str) -> list[int]:
        """The cluster's processes of which a command line speaks so."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # By their logs: some of them overwrite their environment with a name.
                opened = {str(file.readlink()) for file in (path / "fd").iterdir()}
                of_ours = any(file.startswith(str(self.folder)) for file in opened)
                if of_ours and name.encode() in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
        return found

    def kill(self) -> None:
        """End everything at once, as a machine that loses its power."""
        for number in [*self.processes(""), self._head.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._head.wait()

    def files_with(self, words: bytes) -> list[Path]:
        """Every file of the cluster that holds these words, in whatever way it was left."""
        return [
            path
            for path in self.folder.rglob("*")
            if path.is_file() and not path.is_symlink() and words in path.read_bytes()
        ]

    def place(self, models: Path, workers: int) -> RayCluster:
        settings = TrainerConfig(
            where="ray",
            ray_address=f"ray://127.0.0.1:{self.port}",
            ray_workers=workers,
            ray_worker_cpus=2.0 / workers,
            ray_models=str(models),
        )
        return RayCluster.of(settings)


def _free_port() -> int:
    """A port below those that the kernel gives away, of which the cluster's own parts may take any."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as listening:
            listening.bind(("127.0.0.1", random.randrange(20_000, 30_000)))
            return int(listening.getsockname()[1])


@pytest.fixture(autouse=True, scope="module")
def token() -> Iterator[None]:
    """What a cluster asks for where there is one; Ray reads it once in each process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_TOKEN", "5" * 64)
        patched.setenv("RAY_AUTH_MODE", "token")
        yield


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    started = Cluster()
    yield started
    started.kill()
    shutil.rmtree(started.folder, ignore_errors=True)


def trained_by(
    place: RayCluster,
    training: TrainingInput,
    tmp_path: Path,
    *,
    on_step: Callable[[str], None] = lambda note: None,
) -> tuple[Challenger, list[str]]:
    work, notes = tmp_path / "run", list[str]()

    def progress(share: float, note: Sentence) -> None:
        notes.append(str(note))
        on_step(str(note))

    trained = elsewhere.train(
        training,
        place,
        work=work,
        adapters_dir=tmp_path / "adapters",
        ask=lambda adapter_id, number: ranking.write(own_pairs(number), work / ranking.file_of(number)),
        on_checkpoint=lambda: None,
        on_progress=progress,
        check=lambda: None,
    )
    return trained, notes


def trained_here(training: TrainingInput, base: Path, tmp_path: Path) -> Challenger:
    (tmp_path / "here").mkdir()
    return carry_out.train(
        training,
        load_base(base, "cpu", "train"),
        work=tmp_path / "here",
        adapters_dir=tmp_path / "same",
        own_pairs=lambda model, number: own_pairs(number),
    )


def test_one_worker_makes_the_very_bytes_of_a_training_here_and_leaves_no_words_behind(
    cluster: Cluster, tiny_folder: Path, models_dir: Path, tmp_path: Path
) -> None:
    settings = RANKED.model_copy(update={"ranked_rounds": 1})
    training = a_training(tmp_path / "run", tiny_folder, settings)
    place = cluster.place(models_dir, 1)
    words = training.snapshot.rows[1].text.encode()
    during: list[Path] = []

    def look(note: str) -> None:
        if note == "loading the base":
            return  # the worker reads its folder only then, and removes what it has read
        during.extend(path for path in cluster.files_with(words) if FOLDER_PREFIX in str(path))

    trained, _ = trained_by(place, training, tmp_path, on_step=look)
    here = trained_here(training, tiny_folder, tmp_path)
    assert trained.adapter_id == here.adapter_id
    assert files_of(trained.folder) == files_of(here.folder)
    assert during == [] and cluster.files_with(words) == []
    assert not list(cluster.temporary.glob(f"{FOLDER_PREFIX}*"))


def test_two_workers_go_on_from_the_checkpoint_where_one_of_them_is_killed(
    cluster: Cluster, tiny_folder: Path, models_dir: Path, tmp_path: Path
) -> None:
    training = a_training(tmp_path / "run", tiny_folder)
    killed: list[int] = []

    def kill_one(note: str) -> None:
        if not killed and (tmp_path / "run" / checkpoints.FILE).exists():
            killed.append(cluster.processes("ray::RayTrainWorker")[-1])
            os.kill(killed[0], signal.SIGKILL)

    trained, _ = trained_by(cluster.place(models_dir, 2), training, tmp_path, on_step=kill_one)
    assert len(killed) == 1
    assert distance(trained.folder, trained_here(training, tiny_folder, tmp_path).folder) < TOLERANCE
    assert len(trained.reports["sft"].losses) == 12


def test_a_cluster_that_is_gone_ends_the_run_in_one_sentence_and_leaves_its_checkpoint(
    cluster: Cluster, tiny_folder: Path, models_dir: Path, tmp_path: Path
) -> None:
    slow = interrupted.SETTINGS.model_copy(update={"objective": "sft", "epochs": 40})
    training = a_training(tmp_path / "run", tiny_folder, slow)

    def lose(note: str) -> None:
        if (tmp_path / "run" / checkpoints.FILE).exists():
            cluster.kill()

    with pytest.raises(TrainingError, match=r"^The training host was lost: [^\n]+$"):
        trained_by(cluster.place(models_dir, 1), training, tmp_path, on_step=lose)
    assert not (tmp_path / "adapters").exists()
    assert (tmp_path / "run" / checkpoints.FILE).exists()
    assert not cluster.processes(""), "nor has Ray started another cluster by itself"


def test_a_run_that_is_cancelled_ends_its_workers(
    cluster: Cluster, tiny_folder: Path, models_dir: Path, tmp_path: Path
) -> None:
    endless = interrupted.SETTINGS.model_copy(update={"objective": "sft", "epochs": 4000})
    training = a_training(tmp_path / "run", tiny_folder, endless)

    def cancel(note: str) -> None:
        raise RunCancelledError("cancelled")

    with pytest.raises(RunCancelledError):
        trained_by(cluster.place(models_dir, 1), training, tmp_path, on_step=cancel)
    ends_at = time.monotonic() + START_S
    while cluster.processes("ray::RayTrainWorker"):
        assert time.monotonic() < ends_at
        time.sleep(0.2)
