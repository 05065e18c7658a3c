"""Readers as Ray actors: chunks in, crops out, on any node of the cluster.

A reader holds nothing that cannot be lost: what it crops is a pure function of the turn. It is made
with `max_restarts=0`; Control notices a death and decides what to do about it.

    talk   asks Control for leases, says what was finished, and hears what may go
    fetch  reads the bytes of the next chunks
    crop   crops one chunk at a time, on one core
    take   hands rows out to trainers
"""

import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray
from ray import cloudpickle

from cluster.monitoring.process_pages import DebugPorts, ProcessPages
from cluster.monitoring.transport_readings import transport_readings
from cluster.protocol.actor_rpc import Link, Started, Unreachable
from cluster.protocol.messages import Lease, Rows
from cluster.protocol.metric import Readings
from cluster.protocol.process_memory import resident_bytes
from cluster.readers.reader_state import Stock
from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.sample_cropper import CropJob, no_crops
from shards.errors import StreamSSLError
from shards.records import ChunkCrops, bytes_of
from shards.stores.range_reader import RangeReader
from shards.tars.cutter import CutChunk

# However much there is to say: Control has others to listen to.
_MIN_SECONDS = 0.02
_PAUSE_SECONDS = 0.5
_COUNT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderConfig:
    """How far a reader works ahead of itself.

    `num_ahead` chunks are read while another one is cropped: a request to a bucket takes about
    100 ms, and small crops of a chunk take less. They may take `ahead_bytes` together; one that
    does not fit is read when its turn comes. A reader that hears of no Control for
    `orphan_seconds` ends.
    """

    num_ahead: int = 3
    ahead_bytes: int = 64 << 20
    orphan_seconds: float = 600.0


@ray.remote(
    num_cpus=1,
    max_restarts=0,
    max_task_retries=0,
    concurrency_groups={"take": 2, "left": 1},
)
class Reader:
    """One process that crops chunks, one at a time, and keeps the crops until they are released."""

    def __init__(
        self,
        name: str,
        control: str,
        job: CropJob,
        config: ReaderConfig | None = None,
        ports: DebugPorts | None = None,
    ) -> None:
        self._name, self._ports = name, ports
        self._job, self._config = job, config or ReaderConfig()
        self._control = Link(control)
        self._changed = threading.Condition()  # guards the stock
        self._stock = Stock(name, 1 + self._config.num_ahead, no_crops(job))
        self._source = RangeReader(job.sources)
        self._ahead: dict[tuple[int, int], Future[tuple[CutChunk, float]]] = {}
        self._fetchers = ThreadPoolExecutor(1 + self._config.num_ahead, "fetch")
        self._num_reports = self._num_answers = 0
        self._counted = float("-inf")
        self._hurries = False
        self._end: Future[None] = Future()

    def start(self) -> Started:
        """Get ready, then begin to ask for work. Raises ConfigError."""
        pages = ProcessPages(self._name, self._ports, self._readings)
        ready: Future[None] = Future()
        self._start_thread("crop", functools.partial(self._crop_all, ready))
        ready.result()
        self._start_thread("talk", self._talk)
        return Started(os.getpid(), ray.get_runtime_context().get_node_id(), pages.address)

    @ray.method(concurrency_group="left")
    def left(self) -> None:
        """Wait until nobody needs this reader any more. Raises what kept it from working."""
        self._end.result()

    @ray.method(concurrency_group="take")
    def take(self, term: int, wanted: Sequence[tuple[int, NDArray[np.int64]]]) -> Rows:
        """Rows of the crops of some tasks, which are numbered in this term; see `Rows`."""
        with self._changed:
            parts = self._stock.find(term, [task for task, _ in wanted])
        rows = self._stock.gather(parts, wanted)
        with self._changed:
            self._stock.spent.count(("taken_bytes",), bytes_of(rows.crops))
        return rows

    def _start_thread(self, name: str, work: Callable[[], None]) -> None:
        """A thread whose end is the end of this reader."""

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

    def _talk(self) -> None:
        heard = time.monotonic()
        seconds = 0.0
        while not self._end.done():
            with self._changed:
                self._changed.wait_for(self._wants_to_talk, seconds)
                self._hurries = False
                self._num_reports += 1
                now = time.monotonic()
                report = self._stock.report(now, resident_bytes(), self._counts(now))
            try:
                orders = self._control.call("exchange", report)
            except Unreachable:
                if time.monotonic() - heard > self._config.orphan_seconds:
                    return
                time.sleep(_PAUSE_SECONDS)
                continue
            heard = time.monotonic()
            seconds = max(orders.seconds, _MIN_SECONDS)
            with self._changed:
                self._stock.obey(report, orders)
                self._num_answers = self._num_reports
                if self._stock.is_done:
                    return
                self._changed.notify_all()
            time.sleep(_MIN_SECONDS)

    def _counts(self, now: float) -> Readings | None:
        """Since it started, for /metrics; Control has others to listen to."""
        if now - self._counted < _COUNT_SECONDS:
            return None
        self._counted = now
        return self._readings()

    def _readings(self) -> Readings:
        """Waits for nobody: whoever looks for what hangs asks for it, too."""
        return {**self._stock.spent.readings(), **transport_readings(self._source.counters)}

    def _wants_to_talk(self) -> bool:
        """Of what is finished Control hears at once: others wait for it."""
        return self._stock.has_news or self._hurries or self._end.done()

    def _wait_until_told(self) -> None:
        """Until Control has heard how things stand now.

        A reader that dies has told nothing since its last report; the next chunk would be taken
        for guilty of what this one does, or this one of what the next one does.
        """
        with self._changed:
            number = self._num_reports + 1
            self._hurries = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._num_answers >= number or self._end.done())

    def _crop_all(self, ready: "Future[None]") -> None:
        """The cropper belongs to the thread that crops."""
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
                        self._stock.finish(lease, result)
                        self._changed.notify_all()
                if lease.watched:
                    self._wait_until_told()

    def _next(self, cropper: ChunkCropper) -> Lease | None:
        """The lease whose turn it is, once there is one."""
        began = time.monotonic()
        with self._changed:
            waiting = self._stock.waiting()
            if not waiting:
                self._changed.wait(_PAUSE_SECONDS)
                self._stock.spent.for_lease += time.monotonic() - began
                return None
        self._fetch_ahead(cropper, waiting)
        return waiting[0]

    def _crop(self, cropper: ChunkCropper, lease: Lease) -> ChunkCrops | BaseException | None:
        """All that comes of a lease, or None if it was taken back.

        It is in hand from when its bytes are there.
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
        except Exception as error:  # whoever waits for the chunk is told of it
            return _portable(error)
        with self._changed:
            self._stock.spent.busy += time.monotonic() - began
        return crops

    def _begin(self, lease: Lease) -> bool:
        with self._changed:
            begun = self._stock.begin(lease, time.monotonic())
        if begun and lease.watched:
            self._wait_until_told()
        return begun

    def _read(self, cropper: ChunkCropper, lease: Lease) -> tuple[CutChunk, float]:
        """The bytes of a chunk, and how long it took to read them."""
        began = time.monotonic()
        ahead = self._ahead.pop((lease.task, lease.epoch), None)
        found = ahead.result() if ahead is not None else _fetch(cropper, lease)
        with self._changed:
            self._stock.spent.for_bucket += time.monotonic() - began
        return found

    def _fetch_ahead(self, cropper: ChunkCropper, waiting: Sequence[Lease]) -> None:
        """Begin to read what is waiting, as far as there is room; forget what is not any more."""
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
    """The error, if it survives being sent; else one of ours that says the same."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # whatever its class does when it is taken apart and put together
        return StreamSSLError(f"{type(error).__name__}: {error}")
    return error
