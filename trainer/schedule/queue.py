"""Runs the queue: leases the next runs, starts their child processes, and watches them to their ends.

Everything here belongs to the trainer's main thread: Linux ties a child's life to the thread that started it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import sqlite_utils
import structlog

from bot.serving.model.processors import usable_cores
from storage.db.database import Database
from storage.errors import DatabaseError
from storage.learning import runs
from storage.learning.runs import Run
from storage.process import memory
from storage.process.locks import die_with_parent
from storage.sentences import Sentence

log = structlog.get_logger()

# The child renews its lease at every heartbeat; importing torch on a busy machine is the longest silence.
LEASE_MS = 180_000
TERM_WAIT_S = 5.0
OUTPUT_WAIT_S = 2.0
LINE_BYTES = 256 * 1024
INTERRUPTED = Sentence("the trainer was stopped in the middle of it")
KILLED = Sentence("its process was killed")


@dataclass
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    output: _Output
    oom_kills: int | None
    kill_at: float | None = None


class RunQueue:
    """At most `at_once` runs of different scopes, each in a child process at low priority.

    Call `tick` about once a second. The processor's cores are divided among the runs, so that one that is
    alone makes the very adapter that it makes beside others.
    """

    def __init__(
        self,
        database: Database,
        command: Callable[[Run], Sequence[str]],
        *,
        owner: str,
        at_once: int = 1,
        nice: int = 19,
        environment: Mapping[str, str] | None = None,
        term_wait_s: float = TERM_WAIT_S,
    ) -> None:
        self._database = database
        self._command = command
        self._owner = owner
        self._at_once = at_once
        self._nice = nice
        self._environment = child_environment(os.environ if environment is None else environment, at_once)
        self._term_wait_s = term_wait_s
        self._children: list[_Child] = []

    @property
    def busy(self) -> bool:
        """Whether any run's process is alive."""
        return bool(self._children)

    def tick(self) -> None:
        """See which runs ended or were cancelled, and start the next one where there is a place.

        A busy or full database is no reason to die: the next tick tries again.
        """
        try:
            has_place = len(self._children) < self._at_once
            for child in tuple(self._children):
                if child.process.poll() is None:
                    self._end_if_cancelled(child)
                else:
                    self._settle(child)
            if has_place:
                self._start_next()
        except DatabaseError as error:
            log.warning("the database can't be used at the moment", error=str(error))

    def stop(self) -> None:
        """End the runs' processes and put their runs back into the queue, to be tried again."""
        children, self._children = self._children, []
        for child in children:
            _signal(child.process, signal.SIGTERM)
        ends_at = time.monotonic() + self._term_wait_s
        for child in children:
            try:
                child.process.wait(max(ends_at - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                _signal(child.process, signal.SIGKILL)
                child.process.wait()
            child.output.finish()
        for child in children:
            self._requeue(child.run)

    def _requeue(self, run: Run) -> None:
        requeued = self._database.write(lambda db: _requeue_if_on(db, run.id, self._owner, INTERRUPTED))
        if requeued:
            log.info("run.interrupted", run_id=run.id, state=requeued.state, note=requeued.note)

    def _start_next(self) -> None:
        busy = [child.run.scope for child in self._children]
        run = self._database.write(
            lambda db: runs.lease_next(db, self._owner, LEASE_MS, at_once=self._at_once, busy_scopes=busy)
        )
        if run is None:
            return
        try:
            process = subprocess.Popen(
                die_with_parent(self._command(run)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                process_group=0,
            )
        except OSError as error:
            self._fail(
                run,
                Sentence(
                    "The run's process could not be started ({value}).", value=error.strerror or str(error)
                ),
                str(error),
            )
            return
        _lower_priority(process.pid, self._nice)
        self._children.append(_Child(run, process, _Output(process.stdout), memory.oom_kills()))
        log.info("run.started", run_id=run.id, scope=run.scope, trigger=run.trigger, attempt=run.attempts)

    def _end_if_cancelled(self, child: _Child) -> None:
        if child.kill_at is not None:
            if time.monotonic() >= child.kill_at:
                _signal(child.process, signal.SIGKILL)
            return
        current = self._database.read(lambda db: runs.get(db, child.run.id))
        if current is None or current.state != "running" or current.lease_owner != self._owner:
            # A run that just wrote its result is about to end by itself: it gets the same grace.
            child.kill_at = time.monotonic() + self._term_wait_s
            if current is None or current.state != "finished":
                log.info("run.withdrawn", run_id=child.run.id)
                _signal(child.process, signal.SIGTERM)

    def _settle(self, child: _Child) -> None:
        """Record how the run ended; a child that died without a result leaves the old champion in place."""
        code = child.process.wait()
        # Whatever the child left behind must not go on computing.
        _signal(child.process, signal.SIGKILL)
        child.output.finish()
        run = self._database.read(lambda db: runs.get(db, child.run.id))
        if run is not None and run.state == "running" and run.lease_owner == self._owner:
            if code == -signal.SIGKILL and not _ran_out_of_memory(child.oom_kills):
                self._resume(run)
            else:
                self._fail(run, _exit_reason(code), child.output.last_line or f"exit code {code}")
        elif run is not None:
            log.info(
                "run.ended",
                run_id=run.id,
                outcome=run.outcome,
                message=run.message,
                scope=run.scope,
            )
        self._children.remove(child)

    def _resume(self, run: Run) -> None:
        """Let a run go on from its checkpoint whose process somebody killed; at the second time it fails."""
        requeued = self._database.write(lambda db: _requeue_if_on(db, run.id, self._owner, KILLED))
        if requeued:
            log.warning("run interrupted", run_id=run.id, state=requeued.state, note=requeued.note)

    def _fail(self, run: Run, sentence: Sentence, error: str) -> None:
        message = Sentence("{before} The champion was not changed.", before=sentence)
        self._database.write(lambda db: runs.fail(db, run.id, error=error, message=message))
        log.error("run failed", run_id=run.id, scope=run.scope, message=message, error=error)


class _Output:
    """Passes a child's lines on to our own log stream and remembers the last one that is no log record."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        self._stream = stream
        self._last = b""
        self._thread = threading.Thread(target=self._pump, name="run output", daemon=True)
        self._thread.start()

    @property
    def last_line(self) -> str:
        """The last plain line: the sentence, or the end of a traceback."""
        return self._last.decode("utf-8", "replace").strip()[:500]

    def finish(self) -> None:
        """Wait a moment for the rest of the output."""
        self._thread.join(OUTPUT_WAIT_S)

    def _pump(self) -> None:
        if self._stream is None:
            return
        with self._stream as stream:
            while line := stream.readline(LINE_BYTES):
                if line.strip() and not line.startswith(b"{"):
                    self._last = line
                # A full disk behind our own output must not stop the run, which waits until it is read.
                with contextlib.suppress(OSError):
                    sys.stderr.buffer.write(line)
                    sys.stderr.buffer.flush()


def child_environment(environment: Mapping[str, str], at_once: int = 1) -> dict[str, str]:
    """The environment of one of so many runs: threads that wait must sleep, or they slow the server down.

    OpenMP's spinning made decoding eleven times slower where threads outnumbered cores. Nothing in a run is
    compiled by torch, whose compiler bitsandbytes otherwise loads: a second of processor time.
    """
    defaults = {
        "OMP_NUM_THREADS": str(max(usable_cores() // at_once, 1)),
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHDYNAMO_DISABLE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return {**defaults, **environment, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def _ran_out_of_memory(oom_kills: int | None) -> bool:
    """Whether the kernel has ended a process for want of memory since there were so many; None is unknown."""
    now = memory.oom_kills()
    return oom_kills is not None and now is not None and now > oom_kills


def _requeue_if_on(db: sqlite_utils.Database, run_id: str, owner: str, reason: Sentence) -> Run | None:
    run = runs.get(db, run_id)
    if run is None or run.state != "running" or run.lease_owner != owner:
        return None
    return runs.requeue(db, run_id, reason)


def _lower_priority(pid: int, nice: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, pid, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    except (OSError, AttributeError) as error:
        log.warning("the run's priority could not be lowered", error=str(error))


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _exit_reason(code: int) -> Sentence:
    if code == -signal.SIGKILL:
        return Sentence("The system ended the run's process because memory ran out.")
    if code < 0:
        return Sentence("The run's process ended by {signal}.", signal=signal.Signals(-code).name)
    return Sentence("The run's process ended with code {code} before it had a result.", code=code)
