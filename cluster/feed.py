"""The trainer's side of the readers: hands out chunks, collects crops, outlives lost readers.

To the stream it is a `submit` like the one of `shards.stream.ThreadReaders`, so order and content
of the batches cannot differ from those of a single process. What crops take in the object store is
bounded by the stream, which never asks for more than its `max_bytes`.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.errors import ReadersLost
from cluster.readers import Reader
from shards.chunks import CropJob
from shards.errors import ConfigError, StreamSSLError
from shards.manifest import Manifest
from shards.records import Chunk, ChunkCrops

# Two chunks a reader: one in its hands, one waiting, so that it never waits for the driver.
_PENDING_PER_READER = 2
_ATTEMPTS_PER_CHUNK = 4
_POLL_SECONDS = 0.1


@contextmanager
def ray_session(address: str, num_readers: int, max_bytes: int) -> Iterator[None]:
    """A connection to Ray: 'local' starts one for this run, 'auto' or 'ray://…' joins one.

    `max_bytes` is what the stream may hold; a Ray that is started here gets room for it. Raises
    ConfigError when there is no such cluster.
    """
    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    if address == "local":
        room = int(1.25 * max_bytes) + (256 << 20)
        options |= {
            "num_cpus": num_readers,
            "object_store_memory": room,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({reason}); give --cluster local to start one "
            "here, auto to find one that runs, or ray://HOST:10001"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(slots=True)
class _Task:
    """One chunk asked for, and how often it was tried."""

    chunk: Chunk
    epoch: int
    future: "Future[ChunkCrops]" = field(default_factory=Future)
    attempts: int = 0


class RayReaders:
    """`num_readers` reader actors and the thread that keeps them busy. Use as a context.

    `on_crops` is told of every finished chunk, `on_lost` of every reader that died; both are
    called from the feed's thread. A chunk of a dead reader goes to another one; a chunk on which
    four readers died ends the stream with ReadersLost.
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
        self._readers: list[Any] = [self._new_reader() for _ in range(num_readers)]
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="feed", daemon=True)

    @staticmethod
    def check_room(num_readers: int, address: str) -> None:
        """Raise ConfigError when the cluster has no node with a core for a reader."""
        cores = ray.cluster_resources().get("CPU", 0)
        if cores < 1:
            raise ConfigError(
                f"the Ray cluster at {address!r} has {cores:g} cores, {num_readers} readers need "
                "one each; add nodes, or run with --cluster none"
            )

    def submit(self, chunk: Chunk, epoch: int) -> "Future[ChunkCrops]":
        """A future of this chunk's crops."""
        task = _Task(chunk, epoch)
        with self._changed:
            self._queue.append(task)
            self._changed.notify()
        return task.future

    def pids(self) -> list[int]:
        """Process numbers of the readers, for those who want to look at them."""
        return list(ray.get([reader.pid.remote() for reader in self._readers]))

    def _new_reader(self) -> Any:
        return Reader.remote(self._job)  # type: ignore[attr-defined]

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._running or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                self._hand_out()
            finished, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_SECONDS)
            for ref in finished:
                self._collect(ref)

    def _hand_out(self) -> None:
        load = {id(reader): 0 for reader in self._readers}
        for _, reader in self._running.values():
            load[id(reader)] += 1
        while self._queue:
            reader = min(self._readers, key=lambda reader: load[id(reader)])
            if load[id(reader)] >= _PENDING_PER_READER:
                return
            task = self._queue.popleft()
            task.attempts += 1
            load[id(reader)] += 1
            shard = self._manifest.shards[task.chunk.shard]
            ref = reader.crop.remote(shard, task.chunk, task.epoch)
            self._running[ref] = (task, reader)

    def _collect(self, ref: Any) -> None:
        task, reader = self._running.pop(ref)
        try:
            result: ChunkCrops = ray.get(ref)
        except RayActorError:
            self._replace(reader)
            self._retry(task)
        except RayTaskError as error:
            cause = error.cause
            task.future.set_exception(cause if isinstance(cause, StreamSSLError) else error)
        except RayError:  # the object was lost with its node: make it again
            self._retry(task)
        else:
            self._on_crops(result)
            task.future.set_result(result)

    def _retry(self, task: _Task) -> None:
        if task.attempts >= _ATTEMPTS_PER_CHUNK:
            place = f"bytes {task.chunk.start}-{task.chunk.stop} of shard {task.chunk.shard}"
            task.future.set_exception(
                ReadersLost(
                    f"{task.attempts} readers died one after the other on {place}; "
                    "look at the shard with `streamssl shards verify`, and at the nodes' memory"
                )
            )
            return
        with self._changed:
            self._queue.appendleft(task)

    def _replace(self, reader: Any) -> None:
        """Put a new reader in the place of a dead one, once for each death."""
        if reader in self._readers:
            self._on_lost()
            self._readers[self._readers.index(reader)] = self._new_reader()

    def __enter__(self) -> "RayReaders":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for reader in self._readers:
            ray.kill(reader)
