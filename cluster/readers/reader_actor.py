"""Readers as Ray actors: chunks in, crops out, on any node of the cluster.

A reader holds nothing that must not be lost: its crops are a pure function of the turn. It is
created with `max_restarts=0`; Control notices its death and decides about a replacement.

    report  sends reports to Control, and applies its orders
    fetch   reads the bytes of the next chunks
    crop    crops one chunk at a time, on one core
    take    hands out rows to trainers, and lends them to trainers of its node
"""

import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import ray
from numpy.typing import NDArray
from ray import cloudpickle

from cluster.monitoring.process_pages import DebugPorts, ProcessPages
from cluster.protocol.actor_rpc import ActorClient, ActorLocation, Unreachable
from cluster.protocol.messages import Borrower, Lease, Loan, Rows
from cluster.protocol.process_memory import resident_bytes
from cluster.readers.loans import Loans
from cluster.readers.reader_config import ReaderConfig
from cluster.readers.reader_state import ReaderState
from shards.crops import array_pool
from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.sample_cropper import CropJob, no_crops
from shards.errors import StreamSSLError
from shards.input_metrics import store_readings
from shards.metric import Readings
from shards.records import ChunkCrops
from shards.stop_signals import ignore_stop_signals
from shards.stores.range_reader import RangeReader
from shards.tars.cutter import CutChunk

# Bound on the rate of reports: Control serves many readers.
_MIN_SECONDS = 0.02
# A result waits this long for others of the same report.
_RESULT_SECONDS = 0.05
_PAUSE_SECONDS = 0.5
_COUNT_SECONDS = 1.0


@ray.remote(
    num_cpus=1,
    max_restarts=0,
    max_task_retries=0,
    concurrency_groups={"take": 2, "left": 1},
)
class Reader:
    """Process that crops chunks, one at a time, and keeps the crops until they are released."""

    def __init__(
        self,
        name: str,
        control: str,
        job: CropJob,
        config: ReaderConfig | None = None,
        ports: DebugPorts | None = None,
    ) -> None:
        ignore_stop_signals()  # the driver answers them
        self._name, self._ports = name, ports
        self._job, self._config = job, config or ReaderConfig()
        self._control = ActorClient(control)
        self._changed = threading.Condition()  # guards the state and the loans
        self._state = ReaderState(name, 1 + self._config.num_ahead, no_crops(job))
        self._node = ray.get_runtime_context().get_node_id()
        self._file, self._loans = array_pool.ARRAYS.share(), Loans()
        self._source = RangeReader(job.sources)
        self._ahead: dict[tuple[int, int], Future[tuple[CutChunk, float]]] = {}
        self._fetchers = ThreadPoolExecutor(1 + self._config.num_ahead, "fetch")
        self._num_reports = self._num_answers = 0
        self._counted = float("-inf")
        self._report_now = False
        self._end: Future[None] = Future()

    def start(self) -> ActorLocation:
        """Build the cropper, then begin to report. Raises ConfigError."""
        pages = ProcessPages(
            self._name, self._ports, self._readings, ray.util.get_node_ip_address()
        )
        ready: Future[None] = Future()
        self._start_thread("crop", functools.partial(self._crop_all, ready))
        ready.result()
        self._start_thread("report", self._report_all)
        return ActorLocation(os.getpid(), self._node, pages.address)

    @ray.method(concurrency_group="left")
    def left(self) -> None:
        """Wait until this reader has left. Raises the error that ended it."""
        self._end.result()

    @ray.method(concurrency_group="take")
    def take(
        self,
        term: int,
        wanted: Sequence[tuple[int, NDArray[np.int64]]],
        borrower: Borrower | None = None,
        returned: Sequence[int] = (),
    ) -> Rows:
        """Return rows of the crops of some tasks, which are numbered in this term.

        A borrower on this node gets their places in the memory of this process. The loans that it
        has `returned` end.
        """
        file = self._file if borrower is not None and borrower.node == self._node else None
        with self._changed:
            self._loans.end(returned)
            parts = self._state.find(term, [task for task, _ in wanted])
        rows = self._state.gather(parts, wanted, file)
        with self._changed:
            self._state.work.count(("taken_bytes",), rows.num_bytes)
            if file is None or borrower is None:
                return rows
            return replace(rows, loan=Loan(self._loans.begin(borrower.pid, parts), file.name))

    @ray.method(concurrency_group="take")
    def returned(self, loans: Sequence[int]) -> None:
        """End loans of a borrower that wants no more rows now."""
        with self._changed:
            self._loans.end(loans)

    def _start_thread(self, name: str, work: Callable[[], None]) -> None:
        """Start a thread; the reader ends with it."""

        def run() -> None:
            try:
                work()
            except Exception as error:  # `left` raises it
                self._leave(error)
            self._leave()

        threading.Thread(target=run, name=name, daemon=True).start()

    def _leave(self, error: Exception | None = None) -> None:
        with self._changed:
            if self._end.done():
                return
            if error is None:
                self._end.set_result(None)
            else:
                self._end.set_exception(_portable(error))
            self._changed.notify_all()

    def _report_all(self) -> None:
        answered = time.monotonic()
        seconds = 0.0
        while not self._end.done():
            with self._changed:
                self._wait_until_due(seconds)
                self._report_now = False
                self._num_reports += 1
                report = self._state.report(resident_bytes(), self._counts(time.monotonic()))
            try:
                orders = self._control.call("exchange", report)
            except Unreachable:
                if time.monotonic() - answered > self._config.orphan_seconds:
                    return
                time.sleep(_PAUSE_SECONDS)
                continue
            answered = time.monotonic()
            seconds = max(orders.seconds, _MIN_SECONDS)
            with self._changed:
                self._state.apply_orders(report, orders)
                self._num_answers = self._num_reports
                if self._state.is_done:
                    return
                self._changed.notify_all()
            time.sleep(_MIN_SECONDS)

    def _counts(self, now: float) -> Readings | None:
        """Return the counters for /metrics, at most once a second; end loans of the dead."""
        if now - self._counted < _COUNT_SECONDS:
            return None
        self._counted = now
        self._loans.end_dead()
        return self._readings()

    def _readings(self) -> Readings:
        """Return the counters without a lock: the page of a process that hangs must answer."""
        return {**self._state.work.readings(), **store_readings(self._source.counters)}

    def _wait_until_due(self, seconds: float) -> None:
        """Wait until leases run out, a result is late, or nothing was reported for `seconds`."""
        until = time.monotonic() + seconds
        while not (self._state.runs_out or self._report_now or self._end.done()):
            if self._state.has_results:
                until = min(until, time.monotonic() + _RESULT_SECONDS)
            if (left := until - time.monotonic()) <= 0:
                return
            self._changed.wait(left)

    def _wait_for_report(self) -> None:
        """Wait until Control has received the present state.

        A reader that dies sends nothing after its last report. Without this, the next chunk would
        be blamed for a death over this one, or this one for a death over the next.
        """
        with self._changed:
            number = self._num_reports + 1
            self._report_now = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._num_answers >= number or self._end.done())

    def _crop_all(self, ready: "Future[None]") -> None:
        """Crop until the end. The cropper belongs to this thread."""
        try:
            cropper = ChunkCropper(self._job, self._source)
        except Exception as error:  # `start` raises it
            ready.set_exception(error)
            return
        ready.set_result(None)
        while not self._end.done():
            lease = self._next(cropper)
            if lease is not None:
                result = self._crop(cropper, lease)
                with self._changed:
                    if result is not None:
                        self._state.finish(lease, result)
                        self._changed.notify_all()
                if lease.watched:
                    self._wait_for_report()

    def _next(self, cropper: ChunkCropper) -> Lease | None:
        """Return the next lease; None if there is none after a short wait."""
        began = time.monotonic()
        with self._changed:
            waiting = self._state.waiting()
            if not waiting:
                self._changed.wait(_PAUSE_SECONDS)
                self._state.work.lease_wait_seconds += time.monotonic() - began
                return None
        self._fetch_ahead(cropper, waiting)
        return waiting[0]

    def _crop(self, cropper: ChunkCropper, lease: Lease) -> ChunkCrops | BaseException | None:
        """Return the result of a lease, or None if the lease was taken back.

        It becomes the current lease when its bytes were read.
        """
        try:
            if lease.isolated:
                if not self._begin(lease):
                    return None
                return cropper.crop_isolated(lease.shard, lease.turn)
            found, seconds = self._read(cropper, lease)
            if not self._begin(lease):
                return None
            began = time.monotonic()
            crops = cropper.crop_cut(lease.turn, found, seconds)
        except Exception as error:  # the result of the lease
            return _portable(error)
        with self._changed:
            self._state.work.busy_seconds += time.monotonic() - began
        return crops

    def _begin(self, lease: Lease) -> bool:
        with self._changed:
            begun = self._state.begin(lease)
        if begun and lease.watched:
            self._wait_for_report()
        return begun

    def _read(self, cropper: ChunkCropper, lease: Lease) -> tuple[CutChunk, float]:
        """Return the bytes of a chunk, and how long the read took."""
        began = time.monotonic()
        ahead = self._ahead.pop((lease.task, lease.epoch), None)
        found = ahead.result() if ahead is not None else _fetch(cropper, lease)
        with self._changed:
            self._state.work.bucket_wait_seconds += time.monotonic() - began
        return found

    def _fetch_ahead(self, cropper: ChunkCropper, waiting: Sequence[Lease]) -> None:
        """Begin to read the waiting chunks that fit; drop those that do not wait any more."""
        wanted = {(lease.task, lease.epoch): lease for lease in waiting}
        self._ahead = {key: found for key, found in self._ahead.items() if key in wanted}
        held = 0
        for key, lease in wanted.items():
            held += lease.turn.chunk.stop - lease.turn.chunk.start
            if held > self._config.ahead_bytes:
                return
            if key not in self._ahead and not lease.isolated and not lease.shard.whole:
                self._ahead[key] = self._fetchers.submit(_fetch, cropper, lease)


def _fetch(cropper: ChunkCropper, lease: Lease) -> tuple[CutChunk, float]:
    began = time.monotonic()
    return cropper.read(lease.shard, lease.turn.chunk), time.monotonic() - began


def _portable(error: BaseException) -> BaseException:
    """Return the error if it can be sent, else a StreamSSLError with the same text."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # from the methods of any class
        return StreamSSLError(f"{type(error).__name__}: {error}")
    return error
