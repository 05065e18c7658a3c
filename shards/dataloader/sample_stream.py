"""Encoded samples in the one order, with the place of each: the data plane for other people's code.

What is admitted comes out as it lies in the tar; it is not decoded, so what a decoder then refuses
is the caller's to handle. Order, rejects, subset lists and quarantine are those of a run with the
same settings: a place in the one is a place in the other.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from webdataset.utils import pytorch_worker_info

from shards.crops.chunk_cropper import select
from shards.crops.sample_cropper import image_digest
from shards.dataloader.open_data import OpenData, ReadConfig, StreamPosition
from shards.errors import ConfigError
from shards.records import Chunk, Reject, Sample, Turn
from shards.redaction import redact
from shards.samples.admission import reject
from shards.samples.sample_check import SampleCheck
from shards.stores.range_reader import RangeReader
from shards.stream.sample_slots import OrderedSlots, SlotSpec
from shards.tars.chunk_reader import read_chunk
from shards.tars.sample_starts import SampleStartCache


@dataclass(frozen=True, slots=True)
class ChunkSamples:
    """All that one chunk gives: as `records.ChunkCrops`, with samples in the place of crops."""

    chunk: Chunk
    epoch: int
    offsets: NDArray[np.int64]
    kept: NDArray[np.bool_]
    samples: tuple[Sample, ...]
    rejects: tuple[Reject, ...]
    num_unselected: int
    needs_walk: bool
    killers: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(len(data) for sample in self.samples for data in sample.fields.values())


@dataclass(frozen=True, slots=True)
class StreamSample:
    """A sample, the shard and epoch that it comes from, and the place that follows it."""

    sample: Sample
    uri: str
    epoch: int
    place: StreamPosition

    def to_dict(self) -> dict[str, Any]:
        """As `webdataset` has samples: members by extension, all else under names with "__"."""
        return {
            "__key__": self.sample.key,
            "__url__": redact(self.uri),
            "__epoch__": self.epoch,
            "__place__": self.place,
            **self.sample.fields,
        }


class SampleStream:
    """The samples of `patterns` in canonical order, without end, read by threads of its own.

    Iterate it for `StreamSample` samples. Called, it gives them as plain dicts, which makes it the first
    stage of a `webdataset.DataPipeline`. Every iteration begins behind the sample whose
    `place.state()` is given as `state`. Raises UserError, ShardUnreadable.
    """

    def __init__(
        self,
        patterns: str | Sequence[str],
        config: ReadConfig | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._data = OpenData(patterns, config or ReadConfig())
        self._start = self._data.beginning() if state is None else self._data.place(state)

    def __iter__(self) -> Iterator[StreamSample]:
        _check_alone()
        config, shards = self._data.config, self._data.manifest.shards
        read = _SampleReader(self._data)
        journal = self._data.journal(self._start)
        with ThreadPoolExecutor(config.num_readers, thread_name_prefix="reader") as pool:

            def submit(turn: Turn) -> Future[ChunkSamples]:
                return pool.submit(read, turn)

            slots = OrderedSlots(
                SlotSpec(
                    order=self._data.order,
                    admission=config.admission,
                    bounds=config.stream.lookahead_bounds,
                    cursor=self._start.cursor,
                    journal=journal,
                ),
                submit,
            )
            try:
                for result, row, _ in slots:
                    place = StreamPosition(slots.cursor(), journal.entries)
                    uri = shards[result.chunk.shard].uri
                    yield StreamSample(result.samples[row], uri, result.epoch, place)
                    slots.extend()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def __call__(self) -> Iterator[dict[str, Any]]:
        """The samples as plain dicts."""
        return (placed.to_dict() for placed in self)


class _SampleReader:
    """A chunk becomes samples and rejects: what `chunks.ChunkCropper` does before it crops."""

    def __init__(self, data: OpenData) -> None:
        self._shards, self._config = data.manifest.shards, data.config
        self._admit = SampleCheck(data.config.admission)
        self._reader, self._walks = RangeReader(data.config.sources), SampleStartCache()

    def __call__(self, turn: Turn) -> ChunkSamples:
        shard = self._shards[turn.chunk.shard]
        found = read_chunk(self._reader, shard, turn.chunk, self._walks)
        items, num_unselected = select(found.found, self._config.subset)
        judged = [item if isinstance(item, Reject) else self._judge(item, turn) for item in items]
        return ChunkSamples(
            turn.chunk,
            turn.epoch,
            np.array([item.offset for item in judged], dtype=np.int64),
            np.array([isinstance(item, Sample) for item in judged], dtype=np.bool_),
            tuple(item for item in judged if isinstance(item, Sample)),
            tuple(item for item in judged if isinstance(item, Reject)),
            num_unselected,
            found.needs_walk,
        )

    def _judge(self, sample: Sample, turn: Turn) -> Sample | Reject:
        if turn.quarantine and image_digest(sample) in turn.quarantine:
            detail = "a process died while it decoded this image"
            return reject(sample, "kills_decoder", detail)
        image = self._admit(sample)
        return image if isinstance(image, Reject) else sample


def _check_alone() -> None:
    """Raise ConfigError in one of several workers, which would all give the same samples."""
    _, _, _, num_workers = pytorch_worker_info()
    if num_workers > 1:
        raise ConfigError(
            f"num_workers={num_workers}, but the samples are in one order, and every worker would "
            "give all of them; give the loader num_workers=0 or 1, and raise num_readers, which "
            "are threads"
        )
