"""A fixed number of readers on Ray for one stream: until runs go through Control.

To the stream it is a `submit` like the one of `shards.stream.ThreadReaders`, so order and content
of the batches cannot differ from those of a single process. What crops take in the object store is
bounded by the stream, which never asks for more than its `max_bytes`.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.errors import ReadersLost
from shards.chunks import ChunkCropper, CropJob
from shards.errors import StreamSSLError
from shards.manifest import Manifest
from shards.records import Chunk, ChunkCrops, ShardInfo, Turn
from shards.redaction import redact
from shards.stores.sources import RangeReader
from shards.tars.cutting import Cut

# Chunks that are read while another one is cropped: a request to a bucket takes about 100 ms, and
# small crops of a chunk take less.
_NUM_AHEAD: Final = 3
# What they may take together; a chunk that does not fit is read when its turn comes.
_MOST_BYTES_AHEAD: Final = 64 << 20
# In the hands of a reader: one chunk that is cropped, and those that are read meanwhile.
_PENDING_PER_READER = 1 + _NUM_AHEAD
# A chunk in whose hands this many readers died is cropped in isolation, which costs it time alone.
_DEATHS_TO_ISOLATE = 2
_DEATHS_PER_CHUNK = 4
_DEATHS_AT_START = 4
_POLL_SECONDS = 0.1
# A cluster may have to start a machine before the first reader has a core.
_START_SECONDS = 900.0


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, concurrency_groups={"fetch": 1})
class FixedReader:
    """One process that crops chunks, one at a time and in the order of the calls, on one core.

    While it crops one, the bytes of the next are read on other threads: `fetch` announces that
    `crop` will be called with the same ticket. Tickets grow; 0 stands for none.
    """

    def __init__(self, job: CropJob) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._newest = 0  # the ticket of the chunk in hand
        self._ahead: dict[int, tuple[int, Future[tuple[Cut, float]]]] = {}
        self._fetchers = ThreadPoolExecutor(_NUM_AHEAD, "fetch")

    def start(self) -> int:
        """Get ready, on the thread that will crop; the process number. Raises ConfigError."""
        self._cropper = ChunkCropper(self._job, RangeReader(self._job.sources))
        return os.getpid()

    @ray.method(concurrency_group="fetch")
    def fetch(self, ticket: int, shard: ShardInfo, chunk: Chunk) -> None:
        """Begin to read a chunk, unless its turn has come by now or there is no room for it."""
        num_bytes = chunk.stop - chunk.start
        with self._lock:
            held = sum(held for held, _ in self._ahead.values())
            has_room = held + num_bytes <= _MOST_BYTES_AHEAD and not shard.whole
            if ticket > self._newest and has_room:
                self._ahead[ticket] = num_bytes, self._fetchers.submit(self._read, shard, chunk)

    def crop(self, shard: ShardInfo, turn: Turn, ticket: int = 0) -> ChunkCrops:
        """See `ChunkCropper.crop`."""
        with self._lock:
            self._newest = max(self._newest, ticket)
            ahead = self._ahead.pop(ticket, None)
        found, seconds = ahead[1].result() if ahead else self._read(shard, turn.chunk)
        return self._cropper.crop_cut(turn, found, seconds)

    def crop_isolated(self, shard: ShardInfo, turn: Turn) -> ChunkCrops:
        """See `ChunkCropper.crop_isolated`."""
        return self._cropper.crop_isolated(shard, turn)

    def pid(self) -> int:
        """The process number of this reader."""
        return os.getpid()

    def _read(self, shard: ShardInfo, chunk: Chunk) -> tuple[Cut, float]:
        began = time.monotonic()
        return self._cropper.read(shard, chunk), time.monotonic() - began


@dataclass(slots=True)
class _Task:
    """One chunk asked for, and how many readers died while it was in their hands."""

    turn: Turn
    future: "Future[ChunkCrops]" = field(default_factory=Future)
    num_deaths: int = 0

    @property
    def isolated(self) -> bool:
        return self.num_deaths >= _DEATHS_TO_ISOLATE


class RayReaders:
    """`num_readers` reader actors and the thread that keeps them busy. Use as a context.

    `on_crops` is told of every finished chunk, `on_lost` of every reader that died; both are
    called from the feed's thread. Only readers that answered get chunks, so those for which the
    cluster has no core yet hold nothing up. A chunk of a dead reader goes to another one; a chunk
    in whose hands two readers died is cropped in isolation, and if that was the end of another two
    readers, too, the stream ends with ReadersLost. So do readers that cannot start.
    """

    def __init__(
        self,
        manifest: Manifest,
        job: CropJob,
        num_readers: int,
        on_crops: Callable[[ChunkCrops], None] = lambda _: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._manifest = manifest
        self._job = ray.put(job)
        self._on_crops, self._on_lost = on_crops, on_lost
        self._queue: deque[_Task] = deque()
        self._running: dict[Any, tuple[_Task, Any]] = {}
        self._readers: list[Any] = []
        self._starting: dict[Any, Any] = {}  # the first answer of a reader, and the reader
        self._num_deaths_at_start = 0
        self._last_ticket = 0
        self._last_with_reader = time.monotonic()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="feed", daemon=True)
        for _ in range(num_readers):
            self._start_reader()

    def submit(self, turn: Turn) -> "Future[ChunkCrops]":
        """A future of the crops of this chunk in this epoch."""
        task = _Task(turn)
        with self._changed:
            if self._error is not None:
                task.future.set_exception(self._error)
                return task.future
            self._queue.append(task)
            self._changed.notify()
        return task.future

    def pids(self) -> list[int]:
        """Process numbers of the readers that are up, for those who want to look at them."""
        return list(ray.get([reader.pid.remote() for reader in tuple(self._readers)]))

    def _start_reader(self) -> None:
        reader = FixedReader.remote(self._job)  # type: ignore[attr-defined]
        self._starting[reader.start.remote()] = reader

    def _loop(self) -> None:
        try:
            while self._work():
                pass
        except Exception as error:  # nobody else would hear of it, and the stream would wait on
            self._fail(error)

    def _work(self) -> bool:
        """One round: hand out what can be, collect what is there. False after the end."""
        with self._changed:
            while not (self._queue or self._running or self._starting or self._closed):
                self._changed.wait()
            if self._closed or self._error is not None:
                return False
            self._hand_out()
        refs = [*self._running, *self._starting]
        finished, _ = ray.wait(refs, num_returns=1, timeout=_POLL_SECONDS)
        for ref in finished:
            if ref in self._starting:
                self._started(ref)
            else:
                self._collect(ref)
        self._check_start()
        return True

    def _hand_out(self) -> None:
        load = {id(reader): 0 for reader in self._readers}
        for _, reader in self._running.values():
            load[id(reader)] = load.get(id(reader), 0) + 1
        while self._queue and self._readers:
            reader = min(self._readers, key=lambda reader: load[id(reader)])
            if load[id(reader)] >= _PENDING_PER_READER:
                return
            task = self._queue.popleft()
            self._running[self._send(task, reader, waits=load[id(reader)] > 0)] = (task, reader)
            load[id(reader)] += 1

    def _send(self, task: _Task, reader: Any, *, waits: bool) -> Any:
        """Give a chunk to a reader; it `waits` there while another one is cropped."""
        shard = self._manifest.shards[task.turn.chunk.shard]
        if task.isolated:
            return reader.crop_isolated.remote(shard, task.turn)
        self._last_ticket += 1
        if waits:
            reader.fetch.remote(self._last_ticket, shard, task.turn.chunk)
        return reader.crop.remote(shard, task.turn, self._last_ticket)

    def _started(self, ref: Any) -> None:
        reader = self._starting.pop(ref)
        try:
            ray.get(ref)
        except RayTaskError as error:
            ray.kill(reader)
            if isinstance(error.cause, StreamSSLError):
                self._fail(error.cause)  # it would be no better on another node
            else:
                self._lost_at_start(error)
        except RayActorError as error:
            self._lost_at_start(error)
        else:
            self._num_deaths_at_start = 0
            self._readers.append(reader)

    def _lost_at_start(self, error: RayError) -> None:
        self._on_lost()
        self._num_deaths_at_start += 1
        if self._num_deaths_at_start < _DEATHS_AT_START:
            self._start_reader()
        elif not (self._readers or self._starting):
            self._fail(
                ReadersLost(
                    f"{self._num_deaths_at_start} readers died before they did anything "
                    f"({_cause(error)}); mend that, then start the same command again"
                )
            )

    def _check_start(self) -> None:
        """End the wait for a first reader that the cluster seems unable to start."""
        if self._readers:
            self._last_with_reader = time.monotonic()
        elif time.monotonic() - self._last_with_reader > _START_SECONDS:
            cores = ray.cluster_resources().get("CPU", 0)
            self._fail(
                ReadersLost(
                    f"no reader started in {_START_SECONDS:.0f} s; each needs a free core, and "
                    f"the Ray cluster has {cores:g} in all; add nodes, or run with --cluster none"
                )
            )

    def _collect(self, ref: Any) -> None:
        task, reader = self._running[ref]
        if self._deliver(task, ref):
            del self._running[ref]
            return
        self._replace(reader)
        blame = True  # the oldest chunk was in its hands; those behind it are innocent
        for other in [ref for ref, (_, holder) in self._running.items() if holder is reader]:
            task, _ = self._running.pop(other)
            if not self._deliver(task, other):
                self._retry(task, blame=blame)
                blame = False

    def _deliver(self, task: _Task, ref: Any) -> bool:
        """Give a chunk to who waits for it, as crops or as an error; False if its reader died."""
        try:
            result: ChunkCrops = ray.get(ref)
        except RayActorError:
            return False
        except RayTaskError as error:
            cause = error.cause
            task.future.set_exception(cause if isinstance(cause, StreamSSLError) else error)
        except RayError:  # the object was lost with its node: make it again
            self._retry(task, blame=True)
        else:
            self._on_crops(result)
            task.future.set_result(result)
        return True

    def _retry(self, task: _Task, *, blame: bool) -> None:
        task.num_deaths += blame
        if task.num_deaths >= _DEATHS_PER_CHUNK:
            chunk = task.turn.chunk
            shard = redact(self._manifest.shards[chunk.shard].uri)
            task.future.set_exception(
                ReadersLost(
                    f"{task.num_deaths} readers died one after the other, the last two while they "
                    f"cropped in isolation, on bytes {chunk.start}-{chunk.stop} of {shard}; "
                    "look at the shard with `streamssl shards verify`, and at the memory of the "
                    "nodes"
                )
            )
            return
        with self._changed:
            self._queue.appendleft(task)

    def _replace(self, reader: Any) -> None:
        """Start a reader in the place of a dead one."""
        self._readers.remove(reader)
        self._last_with_reader = time.monotonic()
        self._on_lost()
        self._start_reader()

    def _fail(self, error: BaseException) -> None:
        """Let everyone who waits for crops, now or later, know that there will be none."""
        with self._changed:
            self._error = error
            waiting = [*self._queue, *(task for task, _ in self._running.values())]
            self._queue.clear()
            self._running.clear()
        for task in waiting:
            if not task.future.done():
                task.future.set_exception(error)

    def __enter__(self) -> "RayReaders":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for reader in (*self._readers, *self._starting.values()):
            ray.kill(reader)
        for task in (*self._queue, *(task for task, _ in self._running.values())):
            task.future.cancel()


def _cause(error: BaseException) -> str:
    """The last line of what a reader's constructor said: Ray puts a whole traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
