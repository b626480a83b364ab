"""The batching engine: one thread that alone touches the model.

Every step reads a bounded piece of waiting prompts and then decodes one token for all running requests
together. Requests join and leave between steps; each keeps its adapter from its first to its last token.
Background work (priority 1) has its own rows and runs only in steps that people leave free, apart from a
small share that keeps it from starving.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

import structlog
import torch

from bot.serving.base import LoadedBase
from bot.serving.errors import RequestRejectedError, ServerBusyError, ServerUnavailableError
from bot.serving.events import Ending, FailureCode
from bot.serving.jobs import Job
from bot.serving.kv_cache import CausalMasks, RowCache
from bot.serving.lanes import Lane
from bot.serving.lora import RowPlan, wrap_linears
from bot.serving.metrics import Metrics
from bot.serving.protocol import PRIORITY_BACKGROUND, PRIORITY_PEOPLE
from bot.serving.shelf import AdapterShelf

log = structlog.get_logger(__name__)

MAX_WAITING = {PRIORITY_PEOPLE: 64, PRIORITY_BACKGROUND: 512}
# While people are served, background work gets one step in so many.
BACKGROUND_SHARE = 8
# Below this many quantized weights one thread beats several (at 135M two are slower up to 4 streams).
SMALL_MODEL_WEIGHTS = 500_000_000


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Sizes: context per request in tokens, concurrent rows, prompt tokens per step, threads."""

    context_tokens: int = 2048
    slots: int = 8
    chunk_tokens: int = 128
    threads: int = 1


class Engine:
    """Serves jobs on one loaded base. Create, :meth:`start`, :meth:`submit`; :meth:`stop` at the end."""

    def __init__(self, base: LoadedBase, options: EngineOptions, metrics: Metrics | None = None) -> None:
        self.metrics = metrics or Metrics()
        self.shelf = AdapterShelf()
        self.context_tokens = min(options.context_tokens, base.info.context_tokens)
        self._options = options
        self._model = base.model
        self._device = torch.device(base.device)
        self._dtype: torch.dtype = base.model.dtype
        self._plan = RowPlan()
        self.widths = wrap_linears(base.model, self._plan)
        self._masks = CausalMasks(base.model.config)
        self._end_tokens = _end_tokens(base)
        self._vocabulary = len(base.tokenizer)
        self._cache = self._new_cache()
        self._waiting: dict[int, deque[Job]] = {PRIORITY_PEOPLE: deque(), PRIORITY_BACKGROUND: deque()}
        self._lanes = self._new_lanes()
        self._wake = threading.Condition()
        self._closing = False
        self._stopped = False
        self._steps = 0
        self._mean_job_s = 5.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def adapter_dtype(self) -> torch.dtype:
        """The precision in which adapters multiply: the model's own."""
        return self._dtype

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job whose adapter is pinned on the shelf; the engine unpins it at the end.

        Raises:
            RequestRejectedError: the prompt is empty or leaves no room in the context.
            ServerBusyError: the queue is full.
            ServerUnavailableError: the engine is stopping.
        """
        self._check(job)
        with self._wake:
            if self._closing:
                raise ServerUnavailableError("The model server is shutting down.")
            queue = self._waiting[job.priority]
            if len(queue) >= MAX_WAITING[job.priority]:
                self.metrics.rejected += 1
                raise ServerBusyError(
                    f"{len(queue)} requests are waiting already; try again in a moment.",
                    self._retry_after_s(),
                )
            queue.append(job)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Stop a job before its next step; a finished job is left alone."""
        with self._wake:
            job.cancelled = True
            self._wake.notify()

    def counts(self) -> tuple[int, int]:
        """Return how many jobs run and how many wait."""
        with self._wake:
            running = sum(len(lane.jobs) for lane in self._lanes.values())
            return running, sum(len(queue) for queue in self._waiting.values())

    def stop(self, drain_s: float = 0.0) -> None:
        """Take no new job, let people's replies finish for ``drain_s`` seconds, then fail what is left."""
        with self._wake:
            self._closing = True
            for job in [*self._waiting[PRIORITY_BACKGROUND], *self._lanes[PRIORITY_BACKGROUND].jobs]:
                job.cancelled = True
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

    def _retry_after_s(self) -> float:
        waiting = len(self._waiting[PRIORITY_PEOPLE]) + 1
        return max(1.0, waiting / self._options.slots * self._mean_job_s)

    def _new_cache(self) -> RowCache:
        return RowCache(self._model.config, self._options.slots, self.context_tokens)

    def _new_lanes(self) -> dict[int, Lane]:
        slots, move = self._options.slots, self._move_row
        return {
            PRIORITY_PEOPLE: Lane(slots, from_top=False, move_row=move),
            PRIORITY_BACKGROUND: Lane(slots, from_top=True, move_row=move),
        }

    def _move_row(self, source: int, target: int, length: int) -> None:
        self._cache.move(source, target, length)

    def _run(self) -> None:
        # OpenMP keeps the thread count per thread: it must be set on this one.
        torch.set_num_threads(self._options.threads)
        with torch.inference_mode():
            while self._wait_for_work():
                started = time.perf_counter()
                lane = self._next_lane()
                try:
                    self._step(lane)
                except Exception:  # the loop's boundary: one bad step must not end the server
                    log.exception("engine step failed", jobs=len(lane.jobs))
                    self._fail_everyone("internal", "The model server failed on this request.")
                self.metrics.observe_step(time.perf_counter() - started)
            self._fail_everyone("shutting_down", "The model server is shutting down.")

    def _wait_for_work(self) -> bool:
        """Block until there is a job to run; admit and reap. False ends the loop."""
        with self._wake:
            while True:
                self._reap()
                self._admit()
                running = any(lane.jobs for lane in self._lanes.values())
                if self._stopped or (self._closing and not running):
                    return False
                if running:
                    return True
                self._wake.wait()

    def _reap(self) -> None:
        """End cancelled and expired jobs, wherever they are."""
        now = time.monotonic()
        for queue in self._waiting.values():
            for job in [job for job in queue if job.cancelled or job.expired(now)]:
                queue.remove(job)
                self._give_up(job)
        for lane in self._lanes.values():
            for job in [job for job in lane.jobs if job.cancelled or job.expired(now)]:
                lane.leave(job)
                self._give_up(job)

    def _give_up(self, job: Job) -> None:
        if job.cancelled:
            self._end(job, "cancelled")
        else:
            job.fail("deadline", "The reply was not finished before its deadline.")
            self._account(job, "deadline")

    def _admit(self) -> None:
        """Give waiting jobs rows: people first, in the place of background jobs if need be."""
        people, background = self._lanes[PRIORITY_PEOPLE], self._lanes[PRIORITY_BACKGROUND]
        queue = self._waiting[PRIORITY_PEOPLE]
        while queue and len(people.jobs) < self._options.slots:
            if len(people.jobs) + len(background.jobs) == self._options.slots:
                evicted = background.jobs[-1]
                background.leave(evicted)
                # It keeps its tokens and its generator: its row is computed again later.
                self._waiting[PRIORITY_BACKGROUND].appendleft(evicted)
            job = queue.popleft()
            job.start()
            people.join(job)
        queue = self._waiting[PRIORITY_BACKGROUND]
        while queue and len(people.jobs) + len(background.jobs) < self._options.slots:
            job = queue.popleft()
            job.start()
            background.join(job)

    def _next_lane(self) -> Lane:
        self._steps += 1
        people, background = self._lanes[PRIORITY_PEOPLE], self._lanes[PRIORITY_BACKGROUND]
        turn = self._steps % BACKGROUND_SHARE == 0
        return background if background.jobs and (turn or not people.jobs) else people

    def _step(self, lane: Lane) -> None:
        self._prefill(lane)
        if lane.decoding:
            self._decode(lane)

    def _prefill(self, lane: Lane) -> None:
        """Read up to one chunk of prompt tokens, from as many jobs as it takes."""
        budget = self._options.chunk_tokens
        while budget > 0 and (job := lane.prefilling_job()) is not None:
            count = min(budget, len(job.tokens) - job.cached)
            budget -= count
            last = job.cached + count == len(job.tokens)
            keep = count if job.score else 1
            logits = self._forward(
                lane.row(lane.decoding), [job], [job.tokens[job.cached : job.cached + count]], keep
            )[0]
            if job.score:
                self._collect_scores(job, logits, count)
            job.cached += count
            self.metrics.prompt_tokens += count
            if last:
                lane.begin_decoding()
                self._accept(lane, job, logits[-1])

    def _collect_scores(self, job: Job, logits: torch.Tensor, count: int) -> None:
        """Add the log-probability of each next token; ``logits`` (count, V) start at the first uncached."""
        following = job.tokens[job.cached + 1 : job.cached + count + 1]
        if not following:
            return
        logits = logits[: len(following)].to(torch.float32)
        targets = torch.tensor(following, device=logits.device)[:, None]
        chosen = logits.gather(1, targets)[:, 0] - torch.logsumexp(logits, dim=-1)
        job.scores += [float(score) for score in chosen]

    def _decode(self, lane: Lane) -> None:
        jobs = lane.decoding_jobs()
        logits = self._forward(lane.first_decoding_row(), jobs, [job.tokens[-1:] for job in jobs], 1)
        rows = logits[:, -1].to(device="cpu", dtype=torch.float32)
        # First all counts, then the choices: a job that leaves moves another's row, as far as it is cached.
        for job in jobs:
            job.cached += 1
        for job, row in zip(jobs, rows, strict=True):
            self._accept(lane, job, row)

    def _accept(self, lane: Lane, job: Job, logits: torch.Tensor) -> None:
        # Rows of the embedding beyond the tokenizer's vocabulary are padding that was never trained.
        usable = logits[: self._vocabulary].to(device="cpu", dtype=torch.float32)
        ending = job.accept(usable, self._end_tokens, self.context_tokens)
        self.metrics.generated_tokens += 1
        if ending is not None:
            lane.leave(job)
            self._end(job, ending)

    def _forward(self, first_row: int, jobs: list[Job], tokens: list[list[int]], keep: int) -> torch.Tensor:
        """Run the model on rows from ``first_row`` on; return logits (B, keep, V) of the last positions."""
        ids = torch.tensor(tokens, device=self._device)
        starts = torch.tensor([job.cached for job in jobs], device=self._device)
        positions = starts[:, None] + torch.arange(ids.shape[1], device=self._device)
        span = max(job.cached for job in jobs) + ids.shape[1]
        self._cache.select(first_row, positions, span)
        self._plan.assign([job.adapter for job in jobs], self._device)
        output = self._model(
            input_ids=ids,
            attention_mask=self._masks.build(positions, span, self._dtype),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits
        return logits

    def _end(self, job: Job, ending: Ending) -> None:
        if not job.done:
            job.finish(ending)
            self._account(job, ending)

    def _account(self, job: Job, outcome: str) -> None:
        """Release what the job held and count it."""
        if job.adapter is not None:
            self.shelf.unpin(job.adapter)
        self.metrics.count_request(outcome)
        if job.priority == PRIORITY_PEOPLE and outcome in ("stop", "length"):
            self._mean_job_s += 0.1 * (job.running_s() - self._mean_job_s)

    def _fail_everyone(self, code: FailureCode, message: str) -> None:
        """Fail the running jobs, and the waiting ones too when the engine ends."""
        with self._wake:
            jobs = [job for lane in self._lanes.values() for job in lane.jobs]
            if code == "shutting_down":
                jobs += [job for queue in self._waiting.values() for job in queue]
                for queue in self._waiting.values():
                    queue.clear()
            self._lanes = self._new_lanes()
            self._cache = self._new_cache()
        for job in jobs:
            job.fail(code, message)
            self._account(job, code)


def choose_threads(configured: int, base: LoadedBase, cores: int) -> int:
    """Return the configured number of threads, or what is fastest for a model of this size."""
    if configured > 0:
        return configured
    return 1 if base.info.linear_parameters < SMALL_MODEL_WEIGHTS else max(1, cores)


def _end_tokens(base: LoadedBase) -> frozenset[int]:
    """Collect every token that ends a reply: the generation configuration's and the tokenizer's."""
    configured = getattr(base.model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured, base.model.config.eos_token_id]
    tokenizer = base.tokenizer
    named = [tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(token) for token in _TURN_ENDS)]
    unknown = tokenizer.unk_token_id
    return frozenset(
        int(token)
        for token in (*ids, *named)
        if isinstance(token, int) and (token != unknown or token == tokenizer.eos_token_id)
    )


# A chat model that starts another turn, or another document, has ended its own.
_TURN_ENDS = ("<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<|endoftext|>")
