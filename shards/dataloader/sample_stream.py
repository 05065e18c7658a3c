"""Encoded samples in canonical order, with the position after each: for other people's pipelines.

Admitted samples are returned as stored in the tar. They are not decoded, so the caller handles
decoder errors. Order, rejects, subset lists and quarantine equal those of a run with the same
settings, and so do positions.
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
    """The result of one chunk: as `records.ChunkCrops`, with samples in the place of crops."""

    chunk: Chunk
    epoch: int
    offsets: NDArray[np.int64]
    kept: NDArray[np.bool_]
    samples: tuple[Sample, ...]
    rejects: tuple[Reject, ...]
    num_unselected: int
    needs_walk: bool
    crashed_images: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(len(data) for sample in self.samples for data in sample.fields.values())


@dataclass(frozen=True, slots=True)
class StreamSample:
    """A sample, its shard and epoch, and the position after it."""

    sample: Sample
    uri: str
    epoch: int
    position: StreamPosition

    def to_dict(self) -> dict[str, Any]:
        """Return a `webdataset` sample: members by extension, other fields as "__name__"."""
        return {
            "__key__": self.sample.key,
            "__url__": redact(self.uri),
            "__epoch__": self.epoch,
            "__position__": self.position,
            **self.sample.fields,
        }


class SampleStream:
    """Endless iterable of the samples of `patterns` in canonical order, read by its own threads.

    Iteration yields `StreamSample`. A call returns an iterator of plain dicts, so a stream can be
    the first stage of a `webdataset.DataPipeline`. Every iteration begins after the sample whose
    `position.state()` is `state`. Raises UserError, ShardUnreadable.
    """

    def __init__(
        self,
        patterns: str | Sequence[str],
        config: ReadConfig | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._data = OpenData(patterns, config or ReadConfig())
        self._start = self._data.beginning() if state is None else self._data.position(state)

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
                    position = StreamPosition(slots.cursor(), journal.entries)
                    uri = shards[result.chunk.shard].uri
                    yield StreamSample(result.samples[row], uri, result.epoch, position)
                    slots.extend()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def __call__(self) -> Iterator[dict[str, Any]]:
        """Return an iterator of the samples as plain dicts."""
        return (sample.to_dict() for sample in self)


class _SampleReader:
    """Reads the samples and rejects of a chunk, as `ChunkCropper` does before it crops."""

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
        admission = self._config.admission
        if turn.quarantine and image_digest(sample, admission) in turn.quarantine:
            detail = "a process died while it decoded this image"
            return reject(sample, admission, "kills_decoder", detail)
        image = self._admit(sample)
        return image if isinstance(image, Reject) else sample


def _check_alone() -> None:
    """Raise ConfigError in one of several workers, which would all return the same samples."""
    _, _, _, num_workers = pytorch_worker_info()
    if num_workers > 1:
        raise ConfigError(
            f"num_workers={num_workers}, but every worker would return all samples; give the "
            "loader num_workers=0 or 1, and raise num_readers, the number of threads"
        )
