"""The batching engine: one thread that alone touches the model.

Every step reads a bounded piece of waiting prompts and then decodes one token for all running requests
together. Requests join and leave between steps; each keeps its adapter from its first to its last token.
Background work (priority 1) has its own rows and runs only in steps that people leave free, apart from a
small share that keeps it from starving; on a GPU, where a row more costs next to nothing, it decodes beside
them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import torch

from bot.serving.engine.cache_rows import Rows
from bot.serving.engine.events import Ending
from bot.serving.engine.gpu.sampling import choose
from bot.serving.engine.loaded_adapters import LoadedAdapters
from bot.serving.engine.metrics import Metrics
from bot.serving.engine.model_runner import ModelRunner, Reading
from bot.serving.engine.prompt_pieces import Piece, PieceSize
from bot.serving.engine.request import Job
from bot.serving.engine.running_batch import RunningBatch
from bot.serving.engine.scheduler import RequestQueue
from bot.serving.errors import FailureCode, RequestRejectedError, ServerBusyError, ServerUnavailableError
from bot.serving.model.chat_template import end_tokens
from bot.serving.model.loading import LoadedBase
from bot.serving.protocol import PRIORITY_BACKGROUND, PRIORITY_PEOPLE, QueuePlace, QueueState

log = structlog.get_logger(__name__)

# While people are served, background work gets one step in so many; fewer while somebody waits for a first
# word, and never none, so that it goes on under any load.
BACKGROUND_SHARE = 8
BACKGROUND_SHARE_BEFORE_A_FIRST_WORD = 64
# A piece of a prompt that needs a forward pass of its own has so many tokens at least.
LEAST_APART = 16


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Sizes: context per request in tokens, concurrent rows, prompt tokens per step (alone, and at most and
    at least while others decode), threads (0: what a measurement at the start finds fastest).

    A piece of a prompt counts as ``forward_tokens`` at least: so many cost about what a forward pass costs by
    itself. ``for_gpu`` works as suits a GPU (None: where there is one).
    """

    context_tokens: int = 2048
    slots: int = 8
    chunk_tokens: int = 256
    shared_chunk_tokens: int = 64
    least_chunk_tokens: int = 8
    forward_tokens: int = 8
    threads: int = 0
    for_gpu: bool | None = None


class Engine:
    """Serves jobs on one loaded base. Create, :meth:`start`, :meth:`submit`; :meth:`stop` at the end."""

    def __init__(
        self,
        base: LoadedBase,
        options: EngineOptions,
        metrics: Metrics | None = None,
        on_waiting: Callable[[bool], None] = lambda waiting: None,
    ) -> None:
        """``on_waiting`` is told at every step whether a person waits for a first word; it must not block."""
        self.metrics = metrics or Metrics()
        self._on_waiting = on_waiting
        self.loaded_adapters = LoadedAdapters()
        self.context_tokens = min(options.context_tokens, base.info.context_tokens)
        self._options = options
        self.end_tokens = end_tokens(base.model, base.tokenizer)
        self._vocabulary = len(base.tokenizer)
        # A GPU decodes few rows in the time of one, and takes long to be told each operator.
        on_gpu = torch.device(base.device).type != "cpu"
        self._for_gpu = on_gpu if options.for_gpu is None else options.for_gpu
        self.runner = ModelRunner(
            base, options.slots, self.context_tokens, options.threads, for_gpu=self._for_gpu
        )
        self.widths = self.runner.widths
        self._rows = Rows(self.runner.cache, self.runner.slots)
        self._waiting: RequestQueue[Job] = RequestQueue(self.runner.slots)
        self._batches = {PRIORITY_PEOPLE: RunningBatch(), PRIORITY_BACKGROUND: RunningBatch()}
        self._wake = threading.Condition()
        self._closing = False
        self._stopped = False
        self._forgetting = False
        # A GPU answers before it has done its work: a clock here would tell nothing.
        least = options.least_chunk_tokens if self.runner.joins(options.least_chunk_tokens) else LEAST_APART
        self._pieces = PieceSize(
            options.shared_chunk_tokens if self._for_gpu else least, options.shared_chunk_tokens
        )
        self._steps = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job whose adapter is pinned on the shelf; the engine unpins it at the end.

        Raises:
            RequestRejectedError: the prompt is empty or leaves no room in the context.
            ServerBusyError: the queue, or this user's share of it, is full.
            ServerUnavailableError: the engine is stopping.
        """
        self._check(job)
        with self._wake:
            if self._closing:
                raise ServerUnavailableError("The model server is shutting down.")
            try:
                self._waiting.add(job, self._batches[PRIORITY_PEOPLE])
            except ServerBusyError:
                self.metrics.rejected += 1
                raise
            self._say_who_waits()
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Stop a job before its next step; a finished job is left alone."""
        with self._wake:
            job.cancelled = True
            self._wake.notify()

    def forget_prompts(self) -> None:
        """Let no later request reuse what was read so far, and overwrite it before the next step."""
        with self._wake:
            self._forgetting = True
            self._wake.notify()

    def counts(self) -> tuple[int, int]:
        """Return how many jobs run and how many wait."""
        with self._wake:
            running = sum(len(batch.jobs) for batch in self._batches.values())
            return running, len(self._waiting)

    def queue_state(self) -> QueueState:
        """Return who waits, and about how long a newcomer would."""
        with self._wake:
            return self._waiting.state(self._batches[PRIORITY_PEOPLE])

    def place(self, job: Job) -> QueuePlace | None:
        """Return a person's place in the queue, or None once the job has a row."""
        with self._wake:
            return self._waiting.place(job, self._batches[PRIORITY_PEOPLE])

    def stop(self, drain_s: float = 0.0) -> None:
        """Take no new job, let people's replies finish for ``drain_s`` seconds, then fail what is left."""
        with self._wake:
            self._closing = True
            for job in [*self._waiting, *(job for batch in self._batches.values() for job in batch.jobs)]:
                job.cancelled |= job.priority == PRIORITY_BACKGROUND
            self._wake.notify()
        if not self._thread.is_alive():
            return
        self._thread.join(timeout=drain_s)
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join(timeout=60.0)

    def _check(self, job: Job) -> None:
        if not job.tokens:
            raise RequestRejectedError("The prompt is empty.")
        # A scored prompt may fill the context; a reply needs room for one token at least.
        limit = self.context_tokens if job.score else self.context_tokens - 1
        if len(job.tokens) > limit:
            raise RequestRejectedError(
                f"The prompt has {len(job.tokens)} tokens and the context holds {limit}; "
                "shorten the conversation."
            )
        if min(job.tokens) < 0 or max(job.tokens) >= self._vocabulary:
            raise RequestRejectedError(f"Token ids must be between 0 and {self._vocabulary - 1}.")

    def _run(self) -> None:
        # OpenMP keeps the thread count per thread: it must be set on this one.
        torch.set_num_threads(self.runner.torch_threads)
        with torch.inference_mode():
            while self._wait_for_work():
                started = time.perf_counter()
                batches = self._next_lanes()
                try:
                    self._step(batches)
                except Exception:  # the loop's boundary: one bad step must not end the server
                    log.exception("engine step failed", jobs=sum(len(batch.jobs) for batch in batches))
                    self._fail_everyone("internal", "The model server failed on this request.")
                self.metrics.observe_step(time.perf_counter() - started)
            self._fail_everyone("shutting_down", "The model server is shutting down.")

    def _wait_for_work(self) -> bool:
        """Block until there is a job to run; admit and reap. False ends the loop."""
        with self._wake:
            while True:
                if self._forgetting:
                    self._rows.forget()
                    self._forgetting = False
                self._reap()
                self._admit()
                self._say_who_waits()
                running = any(batch.jobs for batch in self._batches.values())
                if self._stopped or (self._closing and not running):
                    return False
                if running:
                    return True
                self._wake.wait()

    def _say_who_waits(self) -> None:
        reading = self._batches[PRIORITY_PEOPLE].reading
        self._on_waiting(bool(reading) or bool(self._waiting.users(PRIORITY_PEOPLE)))

    def _reap(self) -> None:
        """End cancelled and expired jobs, wherever they are."""
        now = time.monotonic()
        for job in self._waiting.remove_ended(now):
            self._give_up(job)
        for batch in self._batches.values():
            for job in [job for job in batch.jobs if job.cancelled or job.expired(now)]:
                self._leave(job)
                self._give_up(job)

    def _give_up(self, job: Job) -> None:
        if job.cancelled:
            self._end(job, "cancelled")
        else:
            job.fail("deadline", "The reply was not finished before its deadline.")
            self._account(job, "deadline")

    def _admit(self) -> None:
        """Give waiting jobs rows: people first, in the place of background jobs if need be."""
        self._waiting.admit(
            self._batches[PRIORITY_PEOPLE], self._batches[PRIORITY_BACKGROUND], self._join, self._leave
        )
        for priority, batch in self._batches.items():
            batch.crowding = self._waiting.users(priority)

    def _join(self, job: Job) -> None:
        job.start()
        self._rows.take(job)
        self._batches[job.priority].join(job)

    def _leave(self, job: Job) -> None:
        self._batches[job.priority].leave(job)
        self._rows.leave(job)

    def _next_lanes(self) -> list[RunningBatch]:
        """Return whose step this is, the first one's prompts first: on a GPU all decode together."""
        self._steps += 1
        people, background = self._batches[PRIORITY_PEOPLE], self._batches[PRIORITY_BACKGROUND]
        share = BACKGROUND_SHARE_BEFORE_A_FIRST_WORD if people.reading else BACKGROUND_SHARE
        turn = self._steps % share == 0
        first = background if background.jobs and (turn or not people.jobs) else people
        return [first, people if first is background else background] if self._for_gpu else [first]

    def _step(self, batches: list[RunningBatch]) -> None:
        started, started_cpu = time.monotonic(), time.thread_time()
        read_before = self.metrics.prompt_tokens
        decoding_people = len(self._batches[PRIORITY_PEOPLE].decoding)
        delays = self._delays_people(batches)
        budget = self._pieces.beside(decoding_people) if delays else self._options.chunk_tokens
        readers: list[set[str]] = []
        joining: list[Piece] = []
        for batch in batches:
            budget, users = self._prefill(batch, budget, joining)
            readers.append(users)
        if decoding := [job for batch in batches for job in batch.decoding]:
            self._decode(decoding, joining)
        read = self.metrics.prompt_tokens - read_before
        self._pieces.saw(len(decoding), read, time.thread_time() - started_cpu)
        for batch, users in zip(batches, readers, strict=True):
            batch.count_reading(users, time.monotonic() - started)

    def _delays_people(self, batches: list[RunningBatch]) -> bool:
        """Whether somebody waits for this step to end: who decodes, or whose prompt isn't read in it.

        A run's own replies don't: beside them a person's prompt is read as fast as alone.
        """
        people = self._batches[PRIORITY_PEOPLE]
        return bool(people.decoding) or (bool(people.reading) and batches[0] is not people)

    def _prefill(self, batch: RunningBatch, budget: int, joining: list[Piece]) -> tuple[int, set[str]]:
        """Read prompt tokens, from as many jobs as the budget takes; return what is left of it, and the users
        whose prompts were read.

        Pieces that are cheaper to read in this step's decoding are added to ``joining``.
        """
        readers: set[str] = set()
        passed_over = {piece.job for piece in joining}
        while budget > 0 and (job := batch.next_to_read(passed_over)) is not None:
            passed_over.add(job)
            if any(self._rows.waits_for(job, piece.job, piece.end) for piece in joining):
                continue
            self.metrics.reused_tokens += self._rows.begin_reading(job)
            piece = Piece(job, min(budget, len(job.tokens) - job.cached))
            joins = self.runner.joins(piece.count + sum(each.count for each in joining))
            if joining and not joins:
                # A pass of its own, in the same step, would make everybody wait.
                break
            readers.add(job.user)
            if batch.decoding and joins:
                joining.append(piece)
                budget -= piece.count
            else:
                budget -= max(piece.count, self._options.forward_tokens)
                self._take_piece(piece, self.runner.read(*self._reading(piece)))
        return budget, readers

    def _reading(self, piece: Piece) -> Reading:
        job = piece.job
        return piece.tokens, job.cached, self._rows.of(job), job.adapter, piece.keep

    def _take_piece(self, piece: Piece, logits: torch.Tensor) -> None:
        """Count a piece as read, whose last positions have ``logits`` (keep, V)."""
        job, is_last = piece.job, piece.is_last
        if job.score:
            job.take_scores(logits, piece.count)
        job.cached += piece.count
        self.metrics.prompt_tokens += piece.count
        if is_last:
            self._batches[job.priority].begin_decoding(job)
            self._accept([job], logits[-1:])

    def _decode(self, jobs: list[Job], joining: Sequence[Piece]) -> None:
        jobs = sorted(jobs, key=self._rows.of)
        logits = self._next_logits(jobs, joining)
        # First all counts, then the choices: a job that leaves gives its row away, as far as it is cached.
        for job in jobs:
            job.cached += 1
        for piece in joining:
            keep = piece.keep
            self._take_piece(piece, logits[:keep])
            logits = logits[keep:]
        self._accept(jobs, logits)

    def _next_logits(self, jobs: list[Job], joining: Sequence[Piece] = ()) -> torch.Tensor:
        """Decode each job's last token; return logits (keeps + B, V), those of joining pieces first."""
        decoding = (
            [job.tokens[-1] for job in jobs],
            [job.cached for job in jobs],
            [self._rows.of(job) for job in jobs],
            [job.adapter for job in jobs],
        )
        if not joining:
            return self.runner.decode(*decoding)
        return self.runner.read_and_decode([self._reading(piece) for piece in joining], decoding)

    def _accept(self, jobs: list[Job], logits: torch.Tensor) -> None:
        """Choose the next token of each job from its row of ``logits`` (B, V); end those that it ends."""
        for job, token in zip(jobs, self._choose(jobs, logits), strict=True):
            ending = job.accept(token, self.end_tokens, self.context_tokens)
            self.metrics.generated_tokens += 1
            if ending is not None:
                self._leave(job)
                self._end(job, ending)

    def _choose(self, jobs: list[Job], logits: torch.Tensor) -> Sequence[int]:
        # Rows of the embedding beyond the tokenizer's vocabulary are padding that was never trained.
        usable = logits[:, : self._vocabulary]
        if self._for_gpu:
            seen = [job.seen(self.end_tokens) for job in jobs]
            return choose(usable, [job.sampler for job in jobs], seen)
        rows = usable.to(device="cpu", dtype=torch.float32)
        return [job.choose(row, self.end_tokens) for job, row in zip(jobs, rows, strict=True)]

    def _end(self, job: Job, ending: Ending) -> None:
        if not job.done:
            job.finish(ending)
            self._account(job, ending)

    def _account(self, job: Job, outcome: str) -> None:
        """Release what the job held and count it."""
        if job.adapter is not None:
            self.loaded_adapters.unpin(job.adapter)
        self.metrics.count_request(outcome)
        if job.priority == PRIORITY_PEOPLE and outcome in ("stop", "length"):
            with self._wake:
                self._waiting.observe(job.row_s())

    def _fail_everyone(self, code: FailureCode, message: str) -> None:
        """Fail the running jobs, and the waiting ones too when the engine ends."""
        with self._wake:
            jobs = [job for batch in self._batches.values() for job in batch.jobs]
            if code == "shutting_down":
                jobs += self._waiting.clear()
            for batch in self._batches.values():
                for job in batch.jobs:
                    self._leave(job)
            # What a failed step left in the rows is not to be trusted.
            self._rows = Rows(self.runner.cache, self.runner.slots)
        for job in jobs:
            job.fail(code, message)
            self._account(job, code)
