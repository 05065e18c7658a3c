"""Scan of shards without training: `verify` reports faults, `stats` counts.

One thread reads each shard from its beginning to its end; other threads decode the samples. Memory
grows with the number of shards, not with the number of images.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from shards.crops.engine import use_one_core
from shards.crops.isolated_process import IsolatedProcess
from shards.crops.recipe import CropRecipe, ViewGroup
from shards.crops.sample_cropper import CropJob, SampleCropper
from shards.crops.verify_engine import VerifyingEngine
from shards.errors import ShardUnreadable
from shards.images.decode import decode
from shards.images.image_header import ImageError, ImageHeader
from shards.images.stored_levels import measure_bits
from shards.inspect.sample_stats import SampleStats
from shards.inspect.shard_check import Found, ShardReport, new_report, walk_shard
from shards.records import Chunk, Reject, Sample
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.stream.order import Order, OrderConfig
from shards.tars.chunk_reader import read_chunk

Depth = Literal["headers", "pixels"]

# The engine only verifies, so this recipe decides nothing.
_RECIPE = CropRecipe((ViewGroup(num_views=1, size=16, scale=(1.0, 1.0)),))
# A few images of every chunk are decoded at full size to measure the time.
_MAX_TIMED, _TIMED_PER_PART = 512, 8
# Some images of more than eight bits are decoded to measure the bits that they use.
_MAX_MEASURED, _MEASURED_PER_PART = 1024, 32
# If so many shards cannot be read at the start, the store is at fault.
_MAX_UNREADABLE = 8


@dataclass(slots=True)
class ScanResult:
    """Result of a scan. `shards` holds a report per shard; it is empty after `scan_some`, which
    reads `scanned_bytes` of the `num_bytes` of all shards."""

    num_shards: int
    num_bytes: int
    num_chunks: int
    chunk_bytes: int
    scanned_bytes: int = 0
    scanned_chunks: int = 0
    read_seconds: float = 0.0
    stats: SampleStats = field(default_factory=SampleStats)
    shards: list[ShardReport] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True if the scan found no fault."""
        return not self.stats.rejects and all(report.is_good for report in self.shards)


class ShardScanner:
    """Scans the shards of one manifest. Call one of its methods, once.

    Depth "pixels" decodes every admitted image: in threads of this process, or with `isolated` in
    child processes, which a hostile image can crash. `progress` receives the bytes that were
    scanned since its last call.
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
        self._result = ScanResult(
            len(manifest.shards), manifest.num_bytes, self._order.num_chunks, chunk_bytes
        )
        self._timed = threading.Semaphore(_MAX_TIMED)
        self._to_measure = threading.Semaphore(_MAX_MEASURED)
        self._stop = threading.Event()
        self._local = threading.local()
        self._children: list[IsolatedProcess] = []

    def scan_all(self) -> ScanResult:
        """Scan every byte of every shard and report on each shard.

        A shard that cannot be read is marked in its report. Raises ShardUnreadable if the first
        shards are all unreadable.
        """
        result = self._result
        with self._pools() as (readers, decoders):
            rows = range(len(self._manifest.shards))
            for report, stats, seconds in readers.map(lambda row: self._shard(row, decoders), rows):
                result.stats.merge(stats)
                result.shards.append(report)
                result.read_seconds += seconds
                result.scanned_bytes += report.num_bytes
                failed = [report.unreadable for report in result.shards[:_MAX_UNREADABLE]]
                if len(failed) == len(result.shards) == _MAX_UNREADABLE and all(failed):
                    raise ShardUnreadable(f"the first {len(failed)} shards: {failed[0]}")
        result.scanned_chunks = result.num_chunks
        return result

    def scan_some(self, num_chunks: int) -> ScanResult:
        """Scan about `num_chunks` chunks, spread evenly over the data. Raises ShardUnreadable."""
        result, total = self._result, self._order.num_chunks
        indices = sorted({(2 * i + 1) * total // (2 * num_chunks) for i in range(num_chunks)})
        with self._pools() as (readers, _):
            chunks = [self._order.chunk(index) for index in indices]
            for chunk, stats, seconds in readers.map(self._chunk, chunks):
                result.stats.merge(stats)
                result.read_seconds += seconds
                result.scanned_bytes += chunk.stop - chunk.start
                result.scanned_chunks += 1
                self._progress(chunk.stop - chunk.start)
        return result

    @contextmanager
    def _pools(self) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
        readers = ThreadPoolExecutor(self._num_threads, "reader", use_one_core)
        decoders = ThreadPoolExecutor(self._num_threads, "decoder", use_one_core)
        try:
            yield readers, decoders
        except KeyboardInterrupt:
            self._reader.stores.stop()  # a store that asks for fewer requests would be waited for
            raise
        finally:
            self._stop.set()
            readers.shutdown(cancel_futures=True)
            decoders.shutdown(cancel_futures=True)
            for child in self._children:
                child.__exit__()

    def _shard(
        self, row: int, decoders: ThreadPoolExecutor
    ) -> tuple[ShardReport, SampleStats, float]:
        """Scan one shard on a reader thread."""
        shard = self._manifest.shards[row]
        report, total, seconds = new_report(row, shard), SampleStats(), 0.0
        pending: deque[Future[SampleStats]] = deque()
        key_before: str | None = None
        parts = walk_shard(self._reader, shard, report, self._result.chunk_bytes)
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                num_bytes, found = next(parts, (0, None))
                seconds += time.monotonic() - began
                if found is None:
                    break
                pending.append(decoders.submit(self._examine, found, key_before))
                key_before = _last_key(found, key_before)
                if len(pending) > 2:
                    total.merge(pending.popleft().result())
                self._progress(num_bytes)
        except ShardUnreadable as error:
            report.unreadable = str(error)
        for future in pending:
            total.merge(future.result())
        layout = total.layout
        layout.num_hidden += report.num_hidden
        layout.num_again += max(0, report.num_repeated - layout.num_repeated)
        layout.num_apart += report.num_scattered
        report.rejects, report.examples = dict(total.rejects), total.examples
        return report, total, seconds

    def _chunk(self, chunk: Chunk) -> tuple[Chunk, SampleStats, float]:
        """Scan one chunk, cut as a run cuts it."""
        began = time.monotonic()
        found = read_chunk(self._reader, self._manifest.shards[chunk.shard], chunk).found
        seconds = time.monotonic() - began
        return chunk, self._examine(found), seconds

    def _examine(self, found: Found, key_before: str | None = None) -> SampleStats:
        stats = SampleStats(num_samples=len(found))
        stats.layout.add(found, label="", key_before=key_before)
        admitted: list[tuple[Sample, ImageHeader]] = []
        for item in found:
            if isinstance(item, Sample):
                stats.extensions.update(item.fields.keys())
            image = item if isinstance(item, Reject) else admit(item, self._admission)
            if isinstance(image, Reject):
                stats.add_reject(image)
            elif isinstance(item, Sample):
                admitted.append((item, image))
        images = [image for _, image in admitted]
        if self._depth == "pixels":
            outcome = self._verifier().crop([sample for sample, _ in admitted], 0)
            for reject in outcome.rejects:
                stats.add_reject(reject)
            images = list(outcome.crops[0])
        else:
            images = self._measured(images)
        for image in images:
            stats.add_image(image)
        self._time_decoding(stats, images[:_TIMED_PER_PART])
        return stats

    def _verifier(self) -> SampleCropper | IsolatedProcess:
        """Return the verifier of this thread."""
        verifier: SampleCropper | IsolatedProcess | None = getattr(self._local, "verifier", None)
        if verifier is None:
            job = CropJob(
                recipe=_RECIPE,
                seed=0,
                admission=self._admission,
                build_engine=partial(VerifyingEngine, _RECIPE),
                only_verify=True,
                with_bits=True,
            )
            if self._isolated:
                verifier = IsolatedProcess(job)
                self._children.append(verifier)
            else:
                verifier = SampleCropper(job)
            self._local.verifier = verifier
        return verifier

    def _measured(self, images: list[ImageHeader]) -> list[ImageHeader]:
        """Measure the bits that some of the images use, which decodes these."""
        deep = [index for index, image in enumerate(images) if image.bits > 8]
        for index in deep[:_MEASURED_PER_PART]:
            if not self._to_measure.acquire(blocking=False):
                break
            images[index] = replace(images[index], bits_in_use=measure_bits(images[index]))
        return images

    def _time_decoding(self, stats: SampleStats, images: list[ImageHeader]) -> None:
        for image in () if self._isolated else images:
            if not self._timed.acquire(blocking=False):
                return
            began = time.thread_time()
            try:
                decode(image)
            except ImageError:
                continue  # with depth "headers", broken images are still among these
            stats.decode_seconds += time.thread_time() - began
            stats.num_decoded += 1


def _last_key(found: Found, before: str | None) -> str | None:
    """Return the key of the last sample; None after a reject, which may be part of any sample."""
    last = found[-1] if found else None
    if last is None:
        return before
    return last.key if isinstance(last, Sample) else None
