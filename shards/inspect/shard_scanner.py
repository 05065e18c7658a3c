"""Looks through shards without training: `verify` finds what is wrong, `stats` counts.

Each shard is read by one thread, from its beginning to its end; others decode what it finds. What
is kept grows with the number of shards, not with that of images.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from shards.crops.engine import use_one_core
from shards.crops.isolated_process import IsolatedProcess
from shards.crops.opencv import OpenCVEngine
from shards.crops.sample_cropper import CropJob, SampleCropper
from shards.errors import ShardUnreadable
from shards.images.decode import decode
from shards.images.image_header import ImageError, ImageHeader
from shards.inspect.sample_stats import SampleStats
from shards.inspect.labelled_images import central_square
from shards.inspect.shard_check import Found, ShardReport, new_report, walk_shard
from shards.records import Chunk, Reject, Sample
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.stream.order import Order, OrderConfig
from shards.tars.chunk_reader import read_chunk

Depth = Literal["headers", "pixels"]

# Whole images need not be looked at closely to know that they can be decoded.
_PROBE_SIDE = 16
# So many images are decoded at full size to know how long it takes: some of every chunk.
_MAX_TIMED, _TIMED_AT_ONCE = 512, 8
# A store that gives none of so many shards will not give the others.
_MAX_UNREADABLE = 8


@dataclass(slots=True)
class ScanResult:
    """What was found. `shards` has a report on every shard, or is empty where only some chunks were
    looked at: those hold `looked_bytes` of the `num_bytes` of all shards."""

    num_shards: int
    num_bytes: int
    num_chunks: int
    chunk_bytes: int
    looked_bytes: int = 0
    looked_chunks: int = 0
    read_seconds: float = 0.0
    found: SampleStats = field(default_factory=SampleStats)
    shards: list[ShardReport] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong with what was looked at."""
        return not self.found.rejects and all(report.is_good for report in self.shards)


class ShardScanner:
    """Looks at the shards of one manifest. Call one of its methods, once.

    With depth "pixels" every admitted image is decoded, in threads of this process, or with
    `isolated` in processes that may die of it. `progress` is told of bytes as they are passed.
    """

    def __init__(
        self,
        manifest: Manifest,
        reader: RangeReader,
        admission: AdmissionConfig,
        *,
        depth: Depth = "pixels",
        isolated: bool = False,
        num_threads: int = 2,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._manifest, self._reader, self._admission = manifest, reader, admission
        self._depth, self._isolated = depth, isolated
        self._num_threads, self._progress = num_threads, progress
        chunk_bytes = manifest.suggest_chunk_bytes()
        config = OrderConfig(seed=0, chunk_bytes=chunk_bytes, chunks_per_block=1)
        self._order = Order(manifest.shards, manifest.digest, config)
        self._survey = ScanResult(
            len(manifest.shards), manifest.num_bytes, self._order.num_chunks, chunk_bytes
        )
        self._timed = threading.Semaphore(_MAX_TIMED)
        self._stop = threading.Event()
        self._local = threading.local()
        self._children: list[IsolatedProcess] = []

    def scan_all(self) -> ScanResult:
        """Every byte of every shard, with a report on each; a shard that cannot be read is told in
        its report. Raises ShardUnreadable when that is so of all the first ones."""
        survey = self._survey
        with self._pools() as (readers, looks):
            rows = range(len(self._manifest.shards))
            for report, found, seconds in readers.map(lambda row: self._shard(row, looks), rows):
                survey.found.merge(found)
                survey.shards.append(report)
                survey.read_seconds += seconds
                survey.looked_bytes += report.num_bytes
                failed = [report.unreadable for report in survey.shards[:_MAX_UNREADABLE]]
                if len(failed) == len(survey.shards) == _MAX_UNREADABLE and all(failed):
                    raise ShardUnreadable(f"the first {len(failed)} shards: {failed[0]}")
        survey.looked_chunks = survey.num_chunks
        return survey

    def scan_some(self, num_chunks: int) -> ScanResult:
        """About so many chunks, spread evenly over the data. Raises ShardUnreadable."""
        survey, total = self._survey, self._order.num_chunks
        indices = sorted({(2 * i + 1) * total // (2 * num_chunks) for i in range(num_chunks)})
        with self._pools() as (readers, _):
            chunks = [self._order.chunk(index) for index in indices]
            for chunk, found, seconds in readers.map(self._chunk, chunks):
                survey.found.merge(found)
                survey.read_seconds += seconds
                survey.looked_bytes += chunk.stop - chunk.start
                survey.looked_chunks += 1
                self._progress(chunk.stop - chunk.start)
        return survey

    @contextmanager
    def _pools(self) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
        readers = ThreadPoolExecutor(self._num_threads, "reader", use_one_core)
        looks = ThreadPoolExecutor(self._num_threads, "look", use_one_core)
        try:
            yield readers, looks
        finally:
            self._stop.set()
            readers.shutdown(cancel_futures=True)
            looks.shutdown(cancel_futures=True)
            for child in self._children:
                child.__exit__()

    def _shard(self, row: int, looks: ThreadPoolExecutor) -> tuple[ShardReport, SampleStats, float]:
        """ScanOptions at one shard, on a thread of the readers."""
        shard = self._manifest.shards[row]
        report, total, seconds = new_report(row, shard), SampleStats(), 0.0
        pending: deque[Future[SampleStats]] = deque()
        parts = walk_shard(self._reader, shard, report, self._survey.chunk_bytes)
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                num_bytes, found = next(parts, (0, None))
                seconds += time.monotonic() - began
                if found is None:
                    break
                pending.append(looks.submit(self._look, found))
                if len(pending) > 2:
                    total.merge(pending.popleft().result())
                self._progress(num_bytes)
        except ShardUnreadable as error:
            report.unreadable = str(error)
        for future in pending:
            total.merge(future.result())
        report.num_samples = total.num_samples
        report.rejects, report.examples = dict(total.rejects), total.examples
        return report, total, seconds

    def _chunk(self, chunk: Chunk) -> tuple[Chunk, SampleStats, float]:
        """ScanOptions at one chunk, as a run would cut it."""
        began = time.monotonic()
        found = read_chunk(self._reader, self._manifest.shards[chunk.shard], chunk).found
        seconds = time.monotonic() - began
        return chunk, self._look(found), seconds

    def _look(self, found: Found) -> SampleStats:
        part = SampleStats(num_samples=len(found))
        admitted: list[tuple[Sample, ImageHeader]] = []
        for item in found:
            if isinstance(item, Sample):
                part.extensions.update(item.fields.keys())
            image = item if isinstance(item, Reject) else admit(item, self._admission)
            if isinstance(image, Reject):
                part.refuse(image)
            elif isinstance(item, Sample):
                admitted.append((item, image))
        refused: set[int] = set()
        if self._depth == "pixels":
            outcome = self._cropper().crop([sample for sample, _ in admitted], 0)
            for reject in outcome.rejects:
                part.refuse(reject)
                refused.add(reject.offset)
        images = [image for sample, image in admitted if sample.offset not in refused]
        for image in images:
            part.admit(image)
        self._time(part, images[:_TIMED_AT_ONCE])
        return part

    def _cropper(self) -> SampleCropper | IsolatedProcess:
        """That of this thread."""
        cropper: SampleCropper | IsolatedProcess | None = getattr(self._local, "cropper", None)
        if cropper is None:
            recipe = central_square(_PROBE_SIDE)
            engine = partial(OpenCVEngine, recipe)
            job = CropJob(recipe=recipe, seed=0, admission=self._admission, build_engine=engine)
            if self._isolated:
                cropper = IsolatedProcess(job)
                self._children.append(cropper)
            else:
                cropper = SampleCropper(job)
            self._local.cropper = cropper
        return cropper

    def _time(self, part: SampleStats, images: list[ImageHeader]) -> None:
        """Decode a few images at full size, to know how long it takes."""
        for image in () if self._isolated else images:
            if not self._timed.acquire(blocking=False):
                return
            began = time.thread_time()
            try:
                decode(image)
            except ImageError:
                continue  # it is no image: what is wrong with it, "pixels" says
            part.decode_seconds += time.thread_time() - began
            part.num_decoded += 1
