"""Chunks of crops become batches, in the one order that they have, resumably.

    order ──chunks──> readers (threads here, actors in `cluster`) ──ChunkCrops──> blocks ──> batches

Readers work out of order; what comes next is decided here, in order. A block can be mixed once all
its chunks are there. While the next batch cannot be formed, further blocks are asked for, so that
small blocks or many rejects cannot stop the stream; the bytes held and under way are bounded.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shards.admission import AdmissionConfig, check_budget
from shards.chunks import ChunkCropper, CropJob
from shards.errors import BudgetExceeded, ConfigError, CursorMismatch
from shards.manifest import Manifest
from shards.order import Order, OrderConfig
from shards.records import Chunk, ChunkCrops, CropBatch, Cursor, Reject
from shards.sources import RangeReader

Submit = Callable[[Chunk, int], "Future[ChunkCrops]"]


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


@dataclass(slots=True)
class _Block:
    """A block under way: its chunks in canonical order, and what became of each."""

    epoch: int
    block: int
    futures: list["Future[ChunkCrops]"] = field(default_factory=list)
    num_chunks: int = 0

    @property
    def complete(self) -> bool:
        return len(self.futures) == self.num_chunks and all(f.done() for f in self.futures)


class BatchStream:
    """Global batches in canonical order from a cursor on, without end.

    Iterate it; every batch carries the cursor that follows it. `submit(chunk, epoch)` must return
    a future of that chunk's crops; it may be called from one thread only and must not block long.
    Raises BudgetExceeded, ShardUnreadable, ConfigError (an epoch smaller than a batch).
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
        self._submit = submit
        self._epoch, self._block, self._slot = start.epoch, start.block, start.slot
        self._num_samples = start.num_samples
        self._reasons = Counter(start.reject_reasons)
        self._blocks: deque[_Block] = deque()
        self._next_chunks: deque[Chunk] = deque()
        self._next_block = (self._epoch, self._block)
        self._chunk_bytes = 0.0  # the largest chunk of crops seen: what one under way may bring
        self._samples_this_epoch: int | None = None if start.block or start.slot else 0

    def __iter__(self) -> Iterator[CropBatch]:
        batch = _Forming(self._config.batch_size)
        while True:
            block = self._wait_for_block()
            for slot, entry in self._mixed(block):
                if isinstance(entry, Reject):
                    self._reasons[entry.reason] += 1
                    batch.rejects.append(entry)
                    check_budget(self._admission, self._num_samples, self._reasons)
                    continue
                chunk, row, offset = entry
                batch.add(chunk, row, offset)
                self._num_samples += 1
                if batch.full:
                    yield batch.gather(self._cursor(block.epoch, block.block, slot + 1))
                    batch = _Forming(self._config.batch_size)
                    self._extend()
            self._leave(block)

    def _mixed(
        self, block: _Block
    ) -> Iterator[tuple[int, "Reject | tuple[ChunkCrops, int, int]"]]:
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
        places = self._order.mix(block.epoch, block.block, len(entries))
        for slot in range(self._slot, len(entries)):
            yield slot, entries[places[slot]]
        self._slot = 0

    def _wait_for_block(self) -> _Block:
        self._extend()
        block = self._blocks[0]
        while not block.complete:
            self._extend()
            for future in list(block.futures):
                if not future.done():
                    future.exception()  # waits; what it raises is raised by `_mixed`
                    break
        for future in block.futures:
            self._chunk_bytes = max(self._chunk_bytes, future.result().num_bytes)
        return block

    def _extend(self) -> None:
        """Ask for chunks ahead, in canonical order, as far as blocks and bytes allow."""
        while self._may_ask():
            if not self._next_chunks:
                self._start_block()
            block = self._blocks[-1]
            block.futures.append(self._submit(self._next_chunks.popleft(), block.epoch))

    def _start_block(self) -> None:
        epoch, number = self._next_block
        chunks = self._order.block(epoch, number)
        self._blocks.append(_Block(epoch, number, num_chunks=len(chunks)))
        self._next_chunks.extend(chunks)
        last = number + 1 == self._order.num_blocks
        self._next_block = (epoch + 1, 0) if last else (epoch, number + 1)

    def _may_ask(self) -> bool:
        """Whether one more chunk fits. The block that the next batch needs always does."""
        if not self._blocks or (len(self._blocks) == 1 and self._next_chunks):
            return True
        incomplete = sum(not block.complete for block in self._blocks)
        if not self._next_chunks and incomplete >= self._config.num_lookahead_blocks:
            return False
        held = 0.0
        for block in self._blocks:
            for future in block.futures:
                done = future.done() and future.exception() is None
                held += future.result().num_bytes if done else self._chunk_bytes
        return held + self._chunk_bytes <= self._config.max_bytes

    def _leave(self, block: _Block) -> None:
        """Forget a block that was used up, and look at the epoch that it may have ended."""
        self._blocks.popleft()
        if block.block + 1 < self._order.num_blocks:
            return
        found, self._samples_this_epoch = self._samples_this_epoch, 0
        if found == 0:
            raise BudgetExceeded(
                "every sample of the data was rejected; look at the reasons:", self._reasons
            )
        if found is not None and found < self._config.batch_size:
            raise ConfigError(
                f"batch_size={self._config.batch_size}, but a pass over the data holds only "
                f"{found} pictures; give more data, or --stream.batch-size of at most {found}"
            )

    def _cursor(self, epoch: int, block: int, slot: int) -> Cursor:
        return Cursor(
            manifest=self._order.manifest,
            order=self._order.digest,
            epoch=epoch,
            block=block,
            slot=slot,
            num_samples=self._num_samples,
            num_rejects=sum(self._reasons.values()),
            reject_reasons=dict(self._reasons),
        )


class _Forming:
    """A batch being filled with (chunk, row) places; crops are copied once, when it is full."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: list[tuple[ChunkCrops, int]] = []
        self._ids: list[tuple[int, int, int]] = []
        self.rejects: list[Reject] = []

    @property
    def full(self) -> bool:
        return len(self._rows) == self._size

    def add(self, chunk: ChunkCrops, row: int, offset: int) -> None:
        self._rows.append((chunk, row))
        self._ids.append((chunk.epoch, chunk.chunk.shard, offset))

    def gather(self, cursor: Cursor) -> CropBatch:
        places = np.array(self._ids, dtype=np.int64)
        groups: list[NDArray[np.uint8]] = []
        for group in range(len(self._rows[0][0].crops)):
            sample_shape = self._rows[0][0].crops[group].shape[1:]
            out = np.empty((self._size, *sample_shape), dtype=np.uint8)
            for place, (chunk, row) in enumerate(self._rows):
                out[place] = chunk.crops[group][row]
            groups.append(out)
        return CropBatch(tuple(groups), places[:, 1:], places[:, 0], cursor, tuple(self.rejects))


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

    def submit(self, chunk: Chunk, epoch: int) -> "Future[ChunkCrops]":
        """A future of this chunk's crops."""
        return self._pool.submit(self._crop, chunk, epoch)

    def _crop(self, chunk: Chunk, epoch: int) -> ChunkCrops:
        cropper: ChunkCropper | None = getattr(self._local, "cropper", None)
        if cropper is None:
            cropper = self._local.cropper = ChunkCropper(self._job, self._source)
        result = cropper.crop(self._manifest.shards[chunk.shard], chunk, epoch)
        self._on_crops(result)
        return result

    def __enter__(self) -> "ThreadReaders":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
