"""Chunks of crops become batches, in the one order that they have, resumably.

    order ──turns──> readers (threads here, actors in `cluster`) ──ChunkCrops──> slots ──> batches

Readers work out of order; what comes next is decided in `slots`, in order. How far ahead they work
is decided by `lookahead`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError
from shards.records import ChunkCrops, CropBatch, Cursor
from shards.samples.admission import AdmissionConfig
from shards.stream.journal import Journal
from shards.stream.lookahead import Bounds, Stop, never
from shards.stream.lookahead import Submit as Submit
from shards.stream.manifest import Manifest
from shards.stream.mixture import Weights
from shards.stream.order import Order, OrderConfig
from shards.stream.sample_slots import Ahead, Decided, OrderedSlots, Taken
from shards.stream.sample_slots import check_cursor as check_cursor
from shards.stream.thread_readers import ThreadReaders as ThreadReaders

# More ready than this helps no trainer: small crops would fill `max_bytes` with later epochs, and
# rejects, which take no bytes, would never fill it.
_MAX_BATCHES_AHEAD = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """How the stream is ordered, batched and bounded.

    `chunk_bytes` and `chunks_per_block` are worked out from the data where they are None.
    `max_bytes` bounds the crops that are held or under way. `num_lookahead_blocks` is how many
    blocks that are not complete yet may be under way at once.
    """

    batch_size: int = 256
    chunk_bytes: int | None = None
    chunks_per_block: int | None = None
    max_bytes: int = 2 << 30
    num_lookahead_blocks: int = 2

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}; it must be at least 1")
        if self.num_lookahead_blocks < 1:
            raise ConfigError(
                f"num_lookahead_blocks={self.num_lookahead_blocks}; it must be at least 1"
            )


def build_order(
    manifest: Manifest,
    config: StreamConfig,
    seed: int,
    *,
    subset: str = "",
    weights: Sequence[tuple[int, Weights]] = (),
) -> Order:
    """The order of `manifest`, with what `config` leaves open worked out from the data.

    `subset` is the digest of a list of samples, `weights` those of several sources (see `Order`).
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
    """Refuse a `max_bytes` that not even one block fits in, before any work starts.

    `sample_bytes` is what the crops of one sample take.
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
    """Global batches in canonical order from a cursor on, without end.

    Iterate it; every batch carries the cursor that follows it. `submit(turn)` must return a future
    of that chunk's crops; it may be called from one thread only and must not block long. What the
    shards teach on the way is written into `journal`, and found there when they are read again.
    Raises BudgetExceeded, ShardUnreadable, ConfigError (an epoch smaller than a batch), and
    StreamStopped if `stop()` says so while it waits.
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
        self._slots: OrderedSlots[ChunkCrops] = OrderedSlots(
            order,
            submit,
            bounds_of(config),
            admission,
            batch_size=config.batch_size,
            cursor=cursor,
            journal=journal,
            stop=stop,
        )

    @property
    def ahead(self) -> Ahead:
        """What is held for batches to come. May be asked from any thread."""
        return self._slots.ahead

    def __iter__(self) -> Iterator[CropBatch]:
        forming = _Forming(self._batch_size)
        for taken in self._slots:
            forming.add(taken)
            del taken  # or its chunk would be held while the next block is waited for
            if forming.full:
                yield forming.batch(self._slots.cursor(), self._slots.decided())
                forming = _Forming(self._batch_size)
                self._slots.extend()


def bounds_of(config: StreamConfig) -> Bounds:
    """How far ahead a stream with these settings may read."""
    return Bounds(
        max_bytes=config.max_bytes,
        max_slots=_MAX_BATCHES_AHEAD * config.batch_size,
        num_blocks=config.num_lookahead_blocks,
    )


class _Forming:
    """A batch being filled. Crops are copied once, at once, so that no chunk is kept for a few."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._crops: tuple[NDArray[np.uint8], ...] = ()
        self._ids: list[tuple[int, int, int]] = []
        self._labels: list[int] = []

    @property
    def full(self) -> bool:
        return len(self._ids) == self._size

    def add(self, taken: Taken[ChunkCrops]) -> None:
        chunk = taken.result
        if not self._ids:
            shapes = [(self._size, *group.shape[1:]) for group in chunk.crops]
            self._crops = tuple(np.empty(shape, dtype=np.uint8) for shape in shapes)
        for out, group in zip(self._crops, chunk.crops, strict=True):
            out[len(self._ids)] = group[taken.row]
        self._ids.append((chunk.epoch, chunk.chunk.shard, taken.offset))
        if chunk.labels is not None:
            self._labels.append(int(chunk.labels[taken.row]))

    def batch(self, cursor: Cursor, decided: Decided) -> CropBatch:
        places = np.array(self._ids, dtype=np.int64)
        labels = np.array(self._labels, dtype=np.int64) if self._labels else None
        return CropBatch(self._crops, places[:, 1:], places[:, 0], cursor, *decided, labels)
