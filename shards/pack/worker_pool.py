"""Pool of worker processes that make shards; threads would wait for Python's lock.

A worker has one task at a time, and ends when the process that started it ends for any reason.
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
from shards.pack.pack_target import PackTarget
from shards.pack.shard_maker import Advance, PackJob, ShardMaker

_EXIT_TIMEOUT_SECONDS: Final = 5.0
_REPORT_SECONDS: Final = 0.2


def make_shards(
    job: PackJob, target: PackTarget, tasks: Iterator[ShardTask], advance: Advance
) -> Iterator[ShardStats]:
    """Make the shards of all tasks on `job.num_workers` processes; on this one if that is 1.

    Yields them in any order. Raises as `ShardMaker.make` does, and PackFailed when a worker dies.
    """
    if job.num_workers > 1:
        yield from _make_on_workers(job, tasks, advance)
        return
    with ShardMaker(job, target) as maker:
        for task in tasks:
            yield maker.make(task, advance)


def _make_on_workers(
    job: PackJob, tasks: Iterator[ShardTask], advance: Advance
) -> Iterator[ShardStats]:
    with ExitStack() as stack:
        idle = [stack.enter_context(_started(job)) for _ in range(job.num_workers)]
        busy: dict[Connection, _PackWorker] = {}
        while True:
            while idle and (task := next(tasks, None)) is not None:
                worker = idle.pop()
                worker.begin(task)
                busy[worker.pipe] = worker
            if not busy:
                return
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                message = busy[pipe].receive()
                if isinstance(message, int):
                    advance(message)
                else:
                    idle.append(busy.pop(pipe))
                    yield message


class _PackWorker:
    """Worker process, seen from its parent."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self._process, self.pipe = process, pipe
        self._number = -1

    def begin(self, task: ShardTask) -> None:
        """Send a task."""
        self._number = task.number
        try:
            self.pipe.send(task)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> int | ShardStats:
        """Return units of progress, or the finished shard. Raises the error of the worker."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(message, StreamSSLError | OSError):
            raise message
        assert isinstance(message, int | ShardStats)
        return message

    def end(self) -> None:
        """End the process; an idle worker ends by itself when its pipe closes."""
        self.pipe.close()
        self._process.join(0.2)
        if self._process.exitcode is None:
            self._process.terminate()
            self._process.join(_EXIT_TIMEOUT_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()

    def _died(self) -> PackFailed:
        self._process.join(_EXIT_TIMEOUT_SECONDS)
        code = self._process.exitcode
        how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with status {code}"
        return PackFailed(
            f"a worker ended {how} while it made shard {self._number}; a worker must not end "
            "before its shard; start the same command again, it goes on where it was, with fewer "
            "--workers if memory was short"
        )


@contextmanager
def _started(job: PackJob) -> Iterator[_PackWorker]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run_worker, args=(theirs, job), name="pack", daemon=True)
    # Only the parent handles the terminal's Ctrl-C; the child inherits this mask. The resource
    # tracker must run before: its start would reset the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _without_main():
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()  # so that the end of the child is the end of the pipe
    worker = _PackWorker(process, ours)
    try:
        yield worker
    finally:
        worker.end()


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a new process from importing the main program, which may take seconds."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _run_worker(pipe: Connection, job: PackJob) -> None:
    """Make one shard after the other until the parent ends. Runs in the worker process."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with ShardMaker(job) as maker, suppress(EOFError, ConnectionError):
        while True:
            task = pipe.recv()
            reports = _ProgressReports(pipe)
            try:
                result: ShardStats | StreamSSLError | OSError = maker.make(task, reports.advance)
            except UserError as error:
                result = UserError(str(error))
            except StreamSSLError as error:
                result = PackFailed(str(error))
            except OSError as error:
                result = OSError(error.errno, error.strerror)
            reports.send()
            pipe.send(result)


class _ProgressReports:
    """Progress of a shard, sent at most every `_REPORT_SECONDS`."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._units = 0
        self._sent = time.monotonic()

    def advance(self, units: int) -> None:
        """Add units of progress."""
        self._units += units
        if time.monotonic() - self._sent >= _REPORT_SECONDS:
            self.send()

    def send(self) -> None:
        self._pipe.send(self._units)
        self._units, self._sent = 0, time.monotonic()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
