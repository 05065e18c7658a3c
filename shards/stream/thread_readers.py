"""Readers as threads of this process: for one machine, and as the reference of tests."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.crash_marks import CrashMarks
from shards.crops.sample_cropper import CropJob
from shards.records import ChunkCrops, Turn
from shards.stores.range_reader import RangeReader
from shards.stores.request_counters import TransportCounts
from shards.stream.manifest import Manifest

# A chunk that was being cropped in this many crashes is cropped in an isolated process.
_DEATHS_TO_ISOLATE = 2


class ThreadReaders:
    """Reader threads. Use as a context; `submit` is the argument of a stream.

    An image that crashes a decoder crashes this process, at every restart. With `marks`, its chunk
    is isolated after the second crash, and only the image is lost.
    """

    def __init__(
        self,
        manifest: Manifest,
        job: CropJob,
        num_readers: int = 2,
        on_crops: Callable[[ChunkCrops], None] = lambda _: None,
        marks: CrashMarks | None = None,
    ) -> None:
        self._manifest, self._job, self._on_crops = manifest, job, on_crops
        self._marks = marks
        self._source = RangeReader(job.sources)
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(num_readers, thread_name_prefix="reader")

    def submit(self, turn: Turn) -> Future[ChunkCrops]:
        """Return a future of the crops of this turn."""
        return self._pool.submit(self._crop, turn)

    @property
    def transport(self) -> TransportCounts:
        """Counters of the requests to stores."""
        return self._source.counters

    def _crop(self, turn: Turn) -> ChunkCrops:
        cropper: ChunkCropper | None = getattr(self._local, "cropper", None)
        if cropper is None:
            cropper = self._local.cropper = ChunkCropper(self._job, self._source)
        shard = self._manifest.shards[turn.chunk.shard]
        with self._marks.in_hand(turn.chunk) if self._marks else nullcontext(0) as deaths:
            isolated = deaths >= _DEATHS_TO_ISOLATE
            result = (cropper.crop_isolated if isolated else cropper.crop)(shard, turn)
        self._on_crops(result)
        return result

    def __enter__(self) -> "ThreadReaders":
        return self

    def __exit__(self, *_: object) -> None:
        self._source.stores.stop()  # a store that asks for fewer requests would be waited for
        self._pool.shutdown(wait=True, cancel_futures=True)
