"""A Ray cluster as a place to train: Ray Train's TorchTrainer starts the workers, torch joins them.

Everything goes through one actor of the run, the mailbox: the workers fetch the training's folder from it
and leave progress, checkpoints and the result there; the run polls it. So no storage has to be shared, and
nothing of a training is left in the cluster once the actor is gone. Needs `strop[ray]` on both sides, of the
same versions. https://docs.ray.io/en/latest/train/api/doc/ray.train.torch.TorchTrainer.html
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from storage.config_sections import TrainerConfig
from storage.learning import checkpoints
from storage.sentences import Sentence
from trainer.errors import PlaceLostError, PlaceUnreachableError, TrainingError
from trainer.placement import outcome
from trainer.placement.carry_out import carry_out
from trainer.placement.elsewhere import Files, Watcher
from trainer.placement.outcome import ADAPTERS
from trainer.placement.ray_mailbox import Mailbox
from trainer.training import ranks

log = structlog.get_logger()

POLL_S = 0.5
# Workers that have not begun by then don't come: the cluster is too small, or others hold it.
START_S = 600.0
FOLDER_PREFIX = "strop-training-"
TOKEN = Path("~/.ray/auth_token")


@dataclass(frozen=True)
class RayCluster:
    """The cluster at an address; `models` is the folder of bases on its machines."""

    address: str
    workers: int
    cpus: float
    gpus: float
    models: str

    @classmethod
    def of(cls, settings: TrainerConfig) -> RayCluster:
        """Return the configured cluster."""
        return cls(
            settings.ray_address,
            settings.ray_workers,
            settings.ray_worker_cpus,
            settings.ray_worker_gpus,
            settings.ray_models,
        )

    def carry_out(self, sent: Files, watcher: Watcher) -> Files:
        """Start the workers, pass on what they tell, and return what they made.

        Raises:
            PlaceLostError: the cluster can't be reached, a worker died, or none came.
            TrainingError: Ray is not installed here.
        """
        ray = _ray()
        with _connected(ray, self.address):
            mailbox = ray.remote(num_cpus=0)(Mailbox).remote(dict(sent))
            job = ray.remote(num_cpus=0, max_retries=0)(_fit).remote(mailbox, self)
            try:
                return self._watch(ray, job, mailbox, watcher)
            finally:
                with contextlib.suppress(Exception):  # the cluster may be gone, which is as good
                    ray.cancel(job, force=True)
                with contextlib.suppress(Exception):
                    ray.kill(mailbox)

    def _watch(self, ray: Any, job: Any, mailbox: Any, watcher: Watcher) -> Files:
        seen, begun, ends_at = 0, False, time.monotonic() + START_S
        while True:
            done, _ = ray.wait([job], timeout=POLL_S)
            news = ray.get(mailbox.news.remote(seen))
            if news.number > seen and news.note is not None:
                watcher.progress(news.share, Sentence.from_json(news.note))
                begun = True
            seen = max(seen, news.number)
            if news.checkpoint is not None:
                watcher.checkpoint(news.checkpoint)
                begun = True
            watcher.check()
            if done:
                ray.get(job)
                received: Files = ray.get(mailbox.result.remote())
                return received
            if not begun and time.monotonic() > ends_at:
                raise PlaceLostError("the cluster has started no worker in ten minutes")


def _ray() -> Any:
    # Without a connection Ray's functions would start a cluster of this machine's own.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    # A cluster takes a token where it finds one, a client from outside only where it is told to.
    # https://docs.ray.io/en/latest/ray-security/token-auth.html
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or TOKEN.expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError as error:
        raise TrainingError(
            "Training on a Ray cluster needs the package ray: install {extra}.", extra="strop[ray]"
        ) from error
    return ray


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Connect for one training; whatever Ray raises is the same to a run: the place is lost."""
    connected = False
    try:
        # Ray's own logs of the workers would bring their lines into ours, and their sentences twice.
        ray.init(address=address, log_to_driver=False, configure_logging=False, namespace="strop")
        connected = True
        yield
    except ray.exceptions.RayError as error:
        log.warning("a worker was lost", error=str(error))
        raise PlaceLostError("a worker was lost ({error})", error=_last_line(error)) from error
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        log.warning("the cluster was lost", error=str(error))
        reason = Sentence("the Ray cluster at {address} can't be reached", address=address)
        raise (PlaceLostError(reason) if connected else PlaceUnreachableError(reason)) from error
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _fit(mailbox: Any, cluster: RayCluster) -> None:
    """Run TorchTrainer in the cluster, until all workers are done."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": cluster.cpus} | ({"GPU": cluster.gpus} if cluster.gpus else {})
    # Ray keeps its own notes of a training there, and nothing of ours.
    storage = tempfile.mkdtemp(prefix=FOLDER_PREFIX)
    try:
        TorchTrainer(
            _work,
            train_loop_config={"mailbox": mailbox, "cluster": cluster},
            scaling_config=ScalingConfig(
                num_workers=cluster.workers, use_gpu=cluster.gpus > 0, resources_per_worker=resources
            ),
            # The run starts again from its checkpoint itself, which it holds: also where the head is gone.
            run_config=RunConfig(
                name="training", storage_path=storage, failure_config=FailureConfig(max_failures=0)
            ),
            torch_config=TorchConfig(backend=None if cluster.gpus else "gloo"),
        ).fit()
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _work(config: Mapping[str, Any]) -> None:
    """Train as one of the workers: the folder is copied to this machine, and is gone before the end."""
    import ray

    mailbox, cluster = config["mailbox"], config["cluster"]
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    try:
        for name, content in ray.get(mailbox.folder.remote()).items():
            (folder / name).write_bytes(content)
        if ranks.is_first():
            _train(ray, mailbox, folder, cluster)
        else:
            carry_out(folder, Path(cluster.models).expanduser(), device=_device(cluster), forget=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _train(ray: Any, mailbox: Any, folder: Path, cluster: RayCluster) -> None:
    """Train as the first worker, which tells how it goes."""
    # Before the base is fetched, which may take long: the run waits for workers ten minutes only.
    ray.get(mailbox.tell.remote(0.0, Sentence("loading the base").as_json()))
    ended = carry_out(
        folder,
        Path(cluster.models).expanduser(),
        device=_device(cluster),
        forget=True,
        on_checkpoint=lambda: ray.get(mailbox.keep.remote((folder / checkpoints.FILE).read_bytes())),
        on_progress=lambda share, note: ray.get(mailbox.tell.remote(share, note.as_json())),
    )
    made = [folder / outcome.FILE, *(folder / ADAPTERS / ended.adapter_id).glob("*")]
    result = {str(path.relative_to(folder)): path.read_bytes() for path in made if path.is_file()}
    ray.get(mailbox.put_result.remote(result))


def _device(cluster: RayCluster) -> str:
    return "cuda" if cluster.gpus else "cpu"
