"""Chunks of crops become batches, in the one order that they have, resumably.

    order ──chunks──> readers (threads here, actors in `cluster`) ──ChunkCrops──> blocks ──> batches

Readers work out of order; what comes next is decided here, in order. How far ahead they work is
decided by `lookahead`.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.admission import AdmissionConfig, check_budget
from shards.chunks import ChunkCropper, CropJob
from shards.errors import BudgetExceeded, ConfigError, CursorMismatch
from shards.lookahead import Block, Bounds, Lookahead
from shards.lookahead import Submit as Submit
from shards.manifest import Manifest
from shards.order import Order, OrderConfig
from shards.records import ChunkCrops, CropBatch, Cursor, Reject, Turn
from shards.sources import RangeReader

# More ready than this helps no trainer: small crops would fill `max_bytes` with later epochs, and
# rejects, which take no bytes, would never fill it.
_MOST_BATCHES_AHEAD = 64


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


def build_order(manifest: Manifest, config: StreamConfig, seed: int) -> Order:
    """The order of `manifest`, with what `config` leaves open worked out from the data."""
    chunk_bytes = config.chunk_bytes or manifest.suggest_chunk_bytes()
    chunks_per_block = config.chunks_per_block or manifest.suggest_chunks_per_block(
        chunk_bytes, config.batch_size
    )
    order = OrderConfig(seed=seed, chunk_bytes=chunk_bytes, chunks_per_block=chunks_per_block)
    return Order(manifest.shards, manifest.digest, order)


def check_bytes(manifest: Manifest, order: Order, config: StreamConfig, sample_bytes: int) -> None:
    """Refuse a `max_bytes` that not even one block fits in, before any work starts.

    `sample_bytes` is what the crops of one sample take.
    """
    chunks = min(order.config.chunks_per_block, order.num_chunks)
    samples = chunks * order.config.chunk_bytes / manifest.sample_bytes
    needed = int(min(samples, manifest.num_bytes / manifest.sample_bytes) * sample_bytes)
    if needed > config.max_bytes:
        raise ConfigError(
            f"max_bytes={config.max_bytes}, but one block of {chunks} chunks holds about "
            f"{needed} bytes of crops; raise --stream.max-bytes, or lower "
            "--stream.chunks-per-block or --stream.batch-size"
        )


class BatchStream:
    """Global batches in canonical order from a cursor on, without end.

    Iterate it; every batch carries the cursor that follows it. `submit(turn)` must return a future
    of that chunk's crops; it may be called from one thread only and must not block long. Raises
    BudgetExceeded, ShardUnreadable, ConfigError (an epoch smaller than a batch).
    """

    def __init__(
        self,
        order: Order,
        config: StreamConfig,
        admission: AdmissionConfig,
        submit: Submit,
        cursor: Cursor | None = None,
    ) -> None:
        start = cursor or Cursor(manifest=order.manifest, order=order.digest)
        check_cursor(order, start)
        self._order, self._config, self._admission = order, config, admission
        bounds = Bounds(
            max_bytes=config.max_bytes,
            max_slots=_MOST_BATCHES_AHEAD * config.batch_size,
            num_blocks=config.num_lookahead_blocks,
        )
        self._lookahead = Lookahead(order, submit, bounds, start.block)
        self._slot = start.slot
        self._num_samples = start.num_samples
        self._reasons = Counter(start.reject_reasons)
        begins = start.slot == 0 and start.block % order.blocks_per_epoch == 0
        self._samples_this_epoch: int | None = 0 if begins else None

    def __iter__(self) -> Iterator[CropBatch]:
        forming = _Forming(self._config.batch_size)
        while True:
            block = self._lookahead.wait()
            for slot, entry in self._mixed(block):
                if isinstance(entry, Reject):
                    self._reasons[entry.reason] += 1
                    forming.rejects.append(entry)
                    check_budget(self._admission, self._num_samples, self._reasons)
                    continue
                chunk, row, offset = entry
                forming.add(chunk, row, offset)
                self._num_samples += 1
                if forming.full:
                    yield forming.batch(self._cursor(block.number, slot + 1))
                    forming = _Forming(self._config.batch_size)
                    self._lookahead.extend()
            self._leave(block)

    def _mixed(self, block: Block) -> Iterator[tuple[int, "Reject | tuple[ChunkCrops, int, int]"]]:
        """The block's samples in their slots, from the cursor's slot on."""
        entries: list[Reject | tuple[ChunkCrops, int, int]] = []
        for future in block.futures:
            result = future.result()
            reasons = {reject.offset: reject for reject in result.rejects}
            rows = np.cumsum(result.kept) - 1
            for place, offset in enumerate(result.offsets.tolist()):
                if result.kept[place]:
                    entries.append((result, int(rows[place]), offset))
                else:
                    entries.append(reasons[offset])
        if self._samples_this_epoch is not None:
            self._samples_this_epoch += sum(not isinstance(entry, Reject) for entry in entries)
        places = self._order.mix(block.number, len(entries))
        for slot in range(self._slot, len(entries)):
            yield slot, entries[places[slot]]
        self._slot = 0

    def _leave(self, block: Block) -> None:
        """Forget a block that was used up, and look at the epoch that it may have ended."""
        self._lookahead.leave()
        if (block.number + 1) % self._order.blocks_per_epoch:
            return
        found, self._samples_this_epoch = self._samples_this_epoch, 0
        if found == 0:
            raise BudgetExceeded(
                "every sample of the data was rejected; a pass must hold at least one picture; "
                "look at the reasons, and at the shards with `streamssl shards verify`",
                self._reasons,
            )
        if found is not None and found < self._config.batch_size:
            raise ConfigError(
                f"batch_size={self._config.batch_size}, but a pass over the data holds only "
                f"{found} pictures; give more data, or --stream.batch-size of at most {found}"
            )

    def _cursor(self, block: int, slot: int) -> Cursor:
        return Cursor(
            manifest=self._order.manifest,
            order=self._order.digest,
            block=block,
            slot=slot,
            num_samples=self._num_samples,
            num_rejects=sum(self._reasons.values()),
            reject_reasons=dict(self._reasons),
        )


class _Forming:
    """A batch being filled. Crops are copied once, at once, so that no chunk is kept for a few."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._crops: tuple[NDArray[np.uint8], ...] = ()
        self._ids: list[tuple[int, int, int]] = []
        self.rejects: list[Reject] = []

    @property
    def full(self) -> bool:
        return len(self._ids) == self._size

    def add(self, chunk: ChunkCrops, row: int, offset: int) -> None:
        if not self._ids:
            shapes = [(self._size, *group.shape[1:]) for group in chunk.crops]
            self._crops = tuple(np.empty(shape, dtype=np.uint8) for shape in shapes)
        for out, group in zip(self._crops, chunk.crops, strict=True):
            out[len(self._ids)] = group[row]
        self._ids.append((chunk.epoch, chunk.chunk.shard, offset))

    def batch(self, cursor: Cursor) -> CropBatch:
        places = np.array(self._ids, dtype=np.int64)
        return CropBatch(self._crops, places[:, 1:], places[:, 0], cursor, tuple(self.rejects))


def check_cursor(order: Order, cursor: Cursor) -> None:
    """Raise CursorMismatch unless `cursor` is a place in `order`."""
    if cursor.manifest != order.manifest:
        raise CursorMismatch(
            f"the checkpoint belongs to other data (manifest {cursor.manifest}, now "
            f"{order.manifest}); resume with the --data it was started with, or give a new --out"
        )
    if cursor.order != order.digest:
        raise CursorMismatch(
            f"the checkpoint belongs to another order (digest {cursor.order}, now "
            f"{order.digest}); keep seed, chunk_bytes and chunks_per_block as they were, "
            "or give a new --out"
        )
    if cursor.block < 0 or cursor.slot < 0:
        raise CursorMismatch(
            f"the checkpoint's place is block {cursor.block}, slot {cursor.slot}; both are at "
            "least 0, so the file is damaged: remove this checkpoint to go on from the one before"
        )


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

    def submit(self, turn: Turn) -> "Future[ChunkCrops]":
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
