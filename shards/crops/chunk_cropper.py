"""Crop one chunk: the unit of work of a reader, on a thread or on another machine.

The result is a pure function of (shard bytes, turn, settings). It is the same for any process,
order and number of attempts, so a stream can compute chunks out of order.
"""

import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from shards.crops.engine import use_one_core
from shards.crops.isolated_process import IsolatedProcess
from shards.crops.sample_cropper import CropJob, CroppedSamples, SampleCropper, image_digest
from shards.errors import ConfigError, NotATar
from shards.records import Chunk, ChunkCrops, Reject, Sample, ShardInfo, Turn
from shards.samples.admission import reject
from shards.samples.subset import Subset
from shards.stores.range_reader import RangeReader
from shards.tars.chunk_reader import read_chunk, read_shard_head
from shards.tars.cutter import CutChunk
from shards.tars.sample_starts import SampleStartCache

_NICENESS = 10
# The bytes of a source that are searched for uids before a run.
_PROBE_BYTES = 1 << 20


class ChunkCropper:
    """Reads, cuts, admits, decodes and crops chunks. Create it in the thread that uses it.

    It limits the thread to one core and lowers its priority, so a trainer on the same machine
    runs first.
    """

    def __init__(self, job: CropJob, reader: RangeReader) -> None:
        lower_thread_priority()
        self._job = job
        self._reader = reader
        self._cropper = SampleCropper(job)
        self._walks = SampleStartCache()

    def crop(self, shard: ShardInfo, turn: Turn) -> ChunkCrops:
        """Return every sample of a chunk as crops or as a reject. Raises ShardUnreadable."""
        began = time.monotonic()
        found = self.read(shard, turn.chunk)
        return self.crop_cut(turn, found, time.monotonic() - began)

    def read(self, shard: ShardInfo, chunk: Chunk) -> CutChunk:
        """Run the first half of `crop`. Callable from another thread than `crop_cut`."""
        return read_chunk(self._reader, shard, chunk, self._walks)

    def crop_cut(self, turn: Turn, found: CutChunk, read_seconds: float) -> ChunkCrops:
        """Run the second half of `crop`, after a `read` that took `read_seconds`."""
        return self._finish(turn, found, read_seconds, self._cropper.crop)

    def crop_isolated(self, shard: ShardInfo, turn: Turn) -> ChunkCrops:
        """Crop in a process that may die: slower, for chunks that crashed a process before.

        Raises DecoderLost if that process cannot run at all.
        """
        began = time.monotonic()
        found = self.read(shard, turn.chunk)
        read_seconds = time.monotonic() - began
        with IsolatedProcess(self._job) as process:
            return self._finish(turn, found, read_seconds, process.crop)

    def _finish(
        self,
        turn: Turn,
        found: CutChunk,
        read_seconds: float,
        crop: Callable[[Sequence[Sample], int], CroppedSamples],
    ) -> ChunkCrops:
        began, admission = time.monotonic(), self._job.admission
        items, num_unselected = select(found.found, self._job.subset)
        rejects = {item.offset: item for item in items if isinstance(item, Reject)}
        samples: list[Sample] = []
        for item in items:
            if isinstance(item, Sample):
                if turn.quarantine and image_digest(item, admission) in turn.quarantine:
                    detail = "a process died while it decoded this image"
                    rejects[item.offset] = reject(item, admission, "kills_decoder", detail)
                else:
                    samples.append(item)
        cropped = crop(samples, turn.epoch)
        rejects |= {item.offset: item for item in cropped.rejects}
        offsets = np.array([item.offset for item in items], dtype=np.int64)
        kept = np.array([int(offset) not in rejects for offset in offsets], dtype=bool)
        return ChunkCrops(
            turn.chunk,
            turn.epoch,
            offsets,
            kept,
            cropped.crops,
            tuple(rejects[offset] for offset in sorted(rejects)),
            read_seconds=read_seconds,
            crop_seconds=time.monotonic() - began,
            num_unselected=num_unselected,
            needs_walk=found.needs_walk,
            crashed_images=cropped.crashed_images,
            labels=cropped.labels,
        )


def lower_thread_priority() -> None:
    """Limit the calling thread to one core, and let other threads and processes run first."""
    use_one_core()
    os.nice(_NICENESS)  # on Linux, of the calling thread only


def select(
    items: list[Sample | Reject], subset: Subset | None
) -> tuple[list[Sample | Reject], int]:
    """Return the items inside the subset, and the number of samples outside.

    Rejects of the tar itself are kept, because their keys are unknown.
    """
    samples = [item for item in items if isinstance(item, Sample)]
    if subset is None or not samples:
        return items, 0
    wanted = subset.select(samples)
    inside = {sample.offset for sample, is_in in zip(samples, wanted, strict=True) if is_in}
    chosen = [item for item in items if isinstance(item, Reject) or item.offset in inside]
    return chosen, len(items) - len(chosen)


def check_subset(subset: Subset, shards: Sequence[ShardInfo], reader: RangeReader) -> None:
    """Refuse a list of uids for samples without uids: it would select nothing.

    Reads the head of the first shard of every source. Raises ConfigError, ShardUnreadable.
    """
    firsts = {shard.source: shard for shard in reversed(shards)}
    for shard in firsts.values():
        try:
            found = read_shard_head(reader, shard, _PROBE_BYTES).found
        except NotATar:
            continue  # the run rejects it
        samples = [item for item in found if isinstance(item, Sample)]
        if samples and not any(subset.identify(sample) for sample in samples):
            members = ", ".join(sorted(samples[0].fields))
            raise ConfigError(
                f"the subset lists uids, but sample {samples[0].key!r} (members: {members}) and "
                f"the {len(samples) - 1} after it have none; each needs 32 hex digits as 'uid' in "
                "its json member: list keys instead, in a column named 'key' if they look like uids"
            )
