"""Readers as threads of this process: what a laptop needs, and what tests compare others with."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from shards.chunks import ChunkCropper, CropJob
from shards.manifest import Manifest
from shards.records import ChunkCrops, Turn
from shards.sources import RangeReader


class ThreadReaders:
    """Readers as threads of this process. Use as a context; `submit` is what a stream needs."""

    def __init__(
        self,
        manifest: Manifest,
        job: CropJob,
        num_readers: int = 2,
        on_crops: Callable[[ChunkCrops], None] = lambda _: None,
    ) -> None:
        self._manifest, self._job, self._on_crops = manifest, job, on_crops
        self._source = RangeReader()
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(num_readers, thread_name_prefix="reader")

    def submit(self, turn: Turn) -> Future[ChunkCrops]:
        """A future of the crops of this chunk in this epoch."""
        return self._pool.submit(self._crop, turn)

    def _crop(self, turn: Turn) -> ChunkCrops:
        cropper: ChunkCropper | None = getattr(self._local, "cropper", None)
        if cropper is None:
            cropper = self._local.cropper = ChunkCropper(self._job, self._source)
        result = cropper.crop(self._manifest.shards[turn.chunk.shard], turn)
        self._on_crops(result)
        return result

    def __enter__(self) -> "ThreadReaders":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
