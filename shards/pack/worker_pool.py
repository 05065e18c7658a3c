"""Shards are made side by side, in processes: most of the work holds Python's lock.

A worker knows one task at a time and dies with the process that started it, whatever that died of.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Final

from shards.errors import PackFailed, StreamSSLError, UserError
from shards.pack.pack_plan import ShardStats, ShardTask
from shards.pack.pack_target import Target
from shards.pack.shard_maker import Advance, PackJob, ShardMaker

_PATIENCE_SECONDS: Final = 5.0
_REPORT_SECONDS: Final = 0.2


def make_shards(
    job: PackJob, target: Target, tasks: Iterator[ShardTask], advance: Advance
) -> Iterator[ShardStats]:
    """Make the shards of all tasks, on `job.num_workers` processes; on this one if that is one.

    They come in any order. Raises what `ShardMaker.make` raises, and PackFailed when a worker dies.
    """
    if job.num_workers > 1:
        yield from _side_by_side(job, tasks, advance)
        return
    with ShardMaker(job, target) as maker:
        for task in tasks:
            yield maker.make(task, advance)


def _side_by_side(
    job: PackJob, tasks: Iterator[ShardTask], advance: Advance
) -> Iterator[ShardStats]:
    with ExitStack() as stack:
        idle = [stack.enter_context(_started(job)) for _ in range(job.num_workers)]
        busy: dict[Connection, _Worker] = {}
        while True:
            while idle and (task := next(tasks, None)) is not None:
                worker = idle.pop()
                worker.begin(task)
                busy[worker.pipe] = worker
            if not busy:
                return
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                answer = busy[pipe].answer()
                if isinstance(answer, int):
                    advance(answer)
                else:
                    idle.append(busy.pop(pipe))
                    yield answer


class _Worker:
    """One worker process, as its parent sees it."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self._process, self.pipe = process, pipe
        self._number = -1

    def begin(self, task: ShardTask) -> None:
        """Give it a task."""
        self._number = task.number
        try:
            self.pipe.send(task)
        except OSError as error:
            raise self._died() from error

    def answer(self) -> int | ShardStats:
        """Units that it has worked through, or the finished shard. Raises what the worker says."""
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(answer, StreamSSLError | OSError):
            raise answer
        assert isinstance(answer, int | ShardStats)
        return answer

    def end(self) -> None:
        """Make sure that it is gone; one that is idle leaves when its pipe does."""
        self.pipe.close()
        self._process.join(0.2)
        if self._process.exitcode is None:
            self._process.terminate()
            self._process.join(_PATIENCE_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()

    def _died(self) -> PackFailed:
        self._process.join(_PATIENCE_SECONDS)
        code = self._process.exitcode
        how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with status {code}"
        return PackFailed(
            f"a worker ended {how} while it made shard {self._number}; it should end last; start "
            "the same command again, it goes on where it was, with fewer --workers if memory was "
            "short"
        )


@contextmanager
def _started(job: PackJob) -> Iterator[_Worker]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, job), name="pack", daemon=True)
    # A terminal's Ctrl-C is for the parent alone; the child inherits the mask. Python's own helper
    # process, when it is started on the way, would take the mask off.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _without_main():
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()  # so that the end of the child is the end of the pipe
    worker = _Worker(process, ours)
    try:
        yield worker
    finally:
        worker.end()


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a new process from importing the program it comes from, which may take seconds."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(pipe: Connection, job: PackJob) -> None:
    """The worker's side: one shard after the other, until the parent is gone."""
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    with ShardMaker(job) as maker, suppress(EOFError, ConnectionError):
        while True:
            task = pipe.recv()
            reports = _Reports(pipe)
            try:
                answer: ShardStats | StreamSSLError | OSError = maker.make(task, reports.advance)
            except UserError as error:
                answer = UserError(str(error))
            except StreamSSLError as error:
                answer = PackFailed(str(error))
            except OSError as error:
                answer = OSError(error.errno, error.strerror)
            reports.send()
            pipe.send(answer)


class _Reports:
    """Sends how far a shard is, now and then."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._units = 0
        self._sent = time.monotonic()

    def advance(self, units: int) -> None:
        """So many units were worked through."""
        self._units += units
        if time.monotonic() - self._sent >= _REPORT_SECONDS:
            self.send()

    def send(self) -> None:
        """Say it now."""
        self._pipe.send(self._units)
        self._units, self._sent = 0, time.monotonic()


def _die_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
