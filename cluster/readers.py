"""Readers as Ray actors: chunks in, crops out, on any node of the cluster.

A reader holds nothing that cannot be lost. It is made with `max_restarts=0`: whoever feeds from
readers (`feed`) notices a death and decides what to do about it.
"""

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import ray

from shards.chunks import ChunkCropper, CropJob
from shards.records import Chunk, ChunkCrops, ShardInfo, Turn
from shards.stores.sources import RangeReader
from shards.tars.cutting import Cut

# Chunks that are read while another one is cropped: a request to a bucket takes about 100 ms, and
# small crops of a chunk take less.
NUM_AHEAD: Final = 3
# What they may take together; a chunk that does not fit is read when its turn comes.
_MOST_BYTES_AHEAD: Final = 64 << 20


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, concurrency_groups={"fetch": 1})
class Reader:
    """One process that crops chunks, one at a time and in the order of the calls, on one core.

    While it crops one, the bytes of the next are read on other threads: `fetch` announces that
    `crop` will be called with the same ticket. Tickets grow; 0 stands for none.
    """

    def __init__(self, job: CropJob) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._newest = 0  # the ticket of the chunk in hand
        self._ahead: dict[int, tuple[int, Future[tuple[Cut, float]]]] = {}
        self._fetchers = ThreadPoolExecutor(NUM_AHEAD, "fetch")

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
