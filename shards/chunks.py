"""One chunk becomes crops: the unit of work of a reader, on a thread or on another machine.

It is a pure function of (shard bytes, turn, settings): done twice, anywhere, in any order,
it gives the same arrays. That is what lets a stream compute out of order and decide in order.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.admission import AdmissionConfig, admit, reject
from shards.crops.engine import Engine, use_one_core
from shards.crops.recipe import CropRecipe, draw
from shards.errors import NotATar
from shards.picture import Picture
from shards.records import Chunk, ChunkCrops, Reject, Sample, ShardInfo, Turn
from shards.sources import RangeReader
from shards.tar import Cut, cut

_NICENESS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class CropJob:
    """Everything a reader must know besides the chunk. Small, and travels by pickle to readers.

    `build_engine` is called once by every reader.
    """

    recipe: CropRecipe
    seed: int
    admission: AdmissionConfig
    build_engine: Callable[[], Engine]


class ChunkCropper:
    """Reads, cuts, admits, decodes and crops chunks. Made in the thread or process that uses it.

    It uses one core, and steps back for whatever else wants that core: a trainer on the same
    machine comes first, and readers get what it leaves while it waits.
    """

    def __init__(self, job: CropJob, reader: RangeReader) -> None:
        use_one_core()
        os.nice(_NICENESS)  # of this thread alone
        self._job = job
        self._reader = reader
        self._engine = job.build_engine()

    def crop(self, shard: ShardInfo, turn: Turn) -> ChunkCrops:
        """All samples of a chunk, as crops or as rejects. Raises ShardUnreadable."""
        began = time.monotonic()
        cut_out = read_chunk(self._reader, shard, turn.chunk)
        found = cut_out.found
        cut_at = time.monotonic()
        rejects: dict[int, Reject] = {
            item.offset: item for item in found if isinstance(item, Reject)
        }
        admitted: list[tuple[Sample, Picture]] = []
        for item in found:
            if isinstance(item, Sample):
                picture = admit(item, self._job.admission)
                if isinstance(picture, Reject):
                    rejects[item.offset] = picture
                else:
                    admitted.append((item, picture))
        crops = self._execute(admitted, turn.epoch, rejects)
        offsets = np.array([item.offset for item in found], dtype=np.int64)
        kept = np.array([int(offset) not in rejects for offset in offsets], dtype=bool)
        return ChunkCrops(
            turn.chunk,
            turn.epoch,
            offsets,
            kept,
            crops,
            tuple(rejects[offset] for offset in sorted(rejects)),
            read_seconds=cut_at - began,
            crop_seconds=time.monotonic() - cut_at,
            leaps=cut_out.leaps,
        )

    def _execute(
        self, admitted: list[tuple[Sample, Picture]], epoch: int, rejects: dict[int, Reject]
    ) -> tuple[NDArray[np.uint8], ...]:
        """Crop what was admitted; what cannot be decoded joins `rejects`."""
        ids = np.array([(s.shard, s.offset) for s, _ in admitted], dtype=np.int64).reshape(-1, 2)
        sizes = np.array([(p.height, p.width) for _, p in admitted], dtype=np.int64).reshape(-1, 2)
        epochs = np.full(len(admitted), epoch, dtype=np.int64)
        parameters = draw(self._job.recipe, self._job.seed, epochs, ids, sizes)
        cropped = self._engine.crop([picture for _, picture in admitted], parameters)
        for row, reason, detail in cropped.failures:
            sample = admitted[row][0]
            rejects[sample.offset] = reject(sample, reason, detail)
        return cropped.crops


def read_chunk(reader: RangeReader, shard: ShardInfo, chunk: Chunk) -> Cut:
    """The samples of a chunk, still encoded. A shard that is no tar is one Reject at byte 0."""

    def read(start: int, stop: int) -> bytes:
        return reader.read(shard, start, stop)

    try:
        return cut(read, shard.num_bytes, chunk)
    except NotATar as error:
        return Cut([Reject(chunk.shard, 0, "", "broken_tar", str(error))])
