"""Batches of crops in canonical order, resumable from any cursor.

    order ──turns──> readers (threads here, actors in `cluster`) ──ChunkCrops──> slots ──> batches

Readers finish chunks in any order. `sample_slots` puts their samples into canonical order;
`lookahead` decides how far ahead readers work.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shards.crops.batch_arrays import batch_arrays
from shards.errors import ConfigError
from shards.records import ChunkCrops, CropBatch, Cursor
from shards.samples.admission_config import AdmissionConfig
from shards.stream.journal import Journal
from shards.stream.lookahead import Stop, Submit, never
from shards.stream.manifest import Manifest
from shards.stream.mixture import Weights
from shards.stream.order import Order, OrderConfig
from shards.stream.sample_slots import BufferLevel, KeptSample, LeftOut, OrderedSlots, SlotSpec
from shards.stream.stream_config import StreamConfig


def build_order(
    manifest: Manifest,
    config: StreamConfig,
    seed: int,
    *,
    subset: str = "",
    weights: Sequence[tuple[int, Weights]] = (),
) -> Order:
    """Return the order of `manifest`; sizes that `config` leaves open come from the data.

    `subset` is the digest of a subset list, `weights` are those of several sources (see `Order`).
    """
    chunk_bytes = config.chunk_bytes or manifest.suggest_chunk_bytes()
    chunks_per_block = config.chunks_per_block or manifest.suggest_chunks_per_block(
        chunk_bytes, config.batch_size
    )
    order = OrderConfig(
        seed=seed, chunk_bytes=chunk_bytes, chunks_per_block=chunks_per_block, subset=subset
    )
    return Order(manifest.shards, manifest.digest, order, weights)


def check_bytes(manifest: Manifest, order: Order, config: StreamConfig, sample_bytes: int) -> None:
    """Raise ConfigError if one block of crops exceeds `max_bytes`.

    `sample_bytes` is the size of the crops of one sample.
    """
    chunks = min(order.config.chunks_per_block, order.num_chunks)
    needed = int(chunks * manifest.samples_per_chunk(order.config.chunk_bytes) * sample_bytes)
    if needed > config.max_bytes:
        raise ConfigError(
            f"max_bytes={config.max_bytes}, but one block of {chunks} chunks holds about "
            f"{needed} bytes of crops; raise --stream.max-bytes, or lower "
            "--stream.chunks-per-block or --stream.batch-size"
        )


class BatchStream:
    """Endless iterable of global batches in canonical order, starting at a cursor.

    Each batch carries the cursor that follows it. `submit(turn)` must return a future of the crops
    of that chunk; it is called from one thread and must not block long. Irregular shards and
    quarantined images are written to `journal`, and read from it on a resume. Iteration raises
    BudgetExceeded, ShardUnreadable, ConfigError (an epoch smaller than a batch), and StreamStopped
    if `stop()` returns True during a wait.
    """

    def __init__(
        self,
        order: Order,
        config: StreamConfig,
        admission: AdmissionConfig,
        submit: Submit[ChunkCrops],
        cursor: Cursor | None = None,
        journal: Journal | None = None,
        stop: Stop = never,
    ) -> None:
        self._batch_size = config.batch_size
        spec = SlotSpec(
            order=order,
            admission=admission,
            bounds=config.lookahead_bounds,
            batch_size=config.batch_size,
            cursor=cursor,
            journal=journal,
        )
        self._slots: OrderedSlots[ChunkCrops] = OrderedSlots(spec, submit, stop=stop)

    @property
    def buffered(self) -> BufferLevel:
        """Samples and bytes held for later batches. Callable from any thread."""
        return self._slots.buffered

    def __iter__(self) -> Iterator[CropBatch]:
        buffer = _BatchBuffer(self._batch_size)
        for sample in self._slots:
            buffer.add(sample)
            del sample  # or its chunk would stay in memory while the next block is awaited
            if buffer.full:
                yield buffer.batch(self._slots.cursor(), self._slots.take_left_out())
                buffer = _BatchBuffer(self._batch_size)
                self._slots.extend()


class _BatchBuffer:
    """A batch being filled. Crops are copied at once, so no chunk is kept for a few rows."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._crops: tuple[NDArray[np.uint8], ...] = ()
        self._ids: list[tuple[int, int, int]] = []
        self._labels: list[int] = []

    @property
    def full(self) -> bool:
        return len(self._ids) == self._size

    def add(self, sample: KeptSample[ChunkCrops]) -> None:
        chunk = sample.result
        if not self._ids:
            self._crops = batch_arrays(self._size, [group.shape[1:] for group in chunk.crops])
        for out, group in zip(self._crops, chunk.crops, strict=True):
            out[len(self._ids)] = group[sample.row]
        self._ids.append((chunk.epoch, chunk.chunk.shard, sample.offset))
        if chunk.labels is not None:
            self._labels.append(int(chunk.labels[sample.row]))

    def batch(self, cursor: Cursor, left_out: LeftOut) -> CropBatch:
        rows = np.array(self._ids, dtype=np.int64)
        labels = np.array(self._labels, dtype=np.int64) if self._labels else None
        return CropBatch(self._crops, rows[:, 1:], rows[:, 0], cursor, *left_out, labels)
