"""Slots: samples of chunks in canonical order, with the cursor after each.

The content of a chunk does not matter here: crops for a trainer, or encoded samples. This module
counts rejects against the budget, detects empty epochs, and moves the cursor.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple

import numpy as np

from shards.errors import CursorMismatch
from shards.records import Cursor, Reject, Turn
from shards.redaction import redact
from shards.samples.admission_config import AdmissionConfig, check_budget
from shards.stream.empty_pass import EmptyPassGuard
from shards.stream.journal import Journal
from shards.stream.lookahead import (
    Block,
    Forget,
    Lookahead,
    LookaheadBounds,
    R,
    Stop,
    Submit,
    ignore,
    never,
)
from shards.stream.order import Order


class KeptSample(NamedTuple, Generic[R]):
    """A sample that fills a slot: row `row` among the kept samples of the chunk of `result`."""

    result: R
    row: int
    offset: int


class BufferLevel(NamedTuple):
    """Samples, kept or not, of complete blocks that wait for their slot; bytes of all results."""

    num_slots: int
    num_bytes: int


class LeftOut(NamedTuple):
    """Rejects, and the number of samples outside the subset, since the previous batch."""

    rejects: tuple[Reject, ...]
    num_unselected: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotSpec:
    """Definition and start of a sequence of slots.

    `cursor` None is the beginning of the data. A pass must hold at least `batch_size` samples.
    Without a `journal`, discoveries are kept in memory.
    """

    order: Order
    admission: AdmissionConfig
    bounds: LookaheadBounds
    batch_size: int = 1
    cursor: Cursor | None = None
    journal: Journal | None = None


class OrderedSlots(Generic[R]):
    """Endless iterable of the kept samples in canonical order.

    `cursor()` is the position after the latest sample. `submit(turn)` must return a future of the
    result of a chunk; it is called from one thread and must not block long. `forget(futures)` is
    called with futures that are not needed any more. Iteration raises BudgetExceeded,
    ShardUnreadable, ConfigError (a pass smaller than `batch_size`), and StreamStopped if `stop()`
    returns True during a wait.
    """

    def __init__(
        self,
        spec: SlotSpec,
        submit: Submit[R],
        *,
        stop: Stop = never,
        forget: Forget[R] = ignore,
    ) -> None:
        order = spec.order
        start = spec.cursor or Cursor(manifest=order.manifest, order=order.digest)
        check_cursor(order, start)
        self._order, self._admission = order, spec.admission
        self._journal = spec.journal or Journal(order.manifest, order.digest)
        self._journal.check(start)
        self._lookahead = Lookahead(self._plan, submit, spec.bounds, start.block, stop, forget)
        self._guard = EmptyPassGuard(order, spec.batch_size)
        self._block, self._slot = start.block, start.slot
        self._num_samples = start.num_samples
        self._num_unselected = start.num_unselected
        self._reasons = Counter(start.reject_reasons)
        self._first: dict[str, str] = {}  # the first reject of each reason since the start
        self._rejects: list[Reject] = []  # since the last `take_left_out`
        self._num_unselected_taken = start.num_unselected

    def __iter__(self) -> Iterator[KeptSample[R]]:
        while True:
            yield from self._kept(self._lookahead.wait())
            self._lookahead.leave()
            self._guard.check(self._reasons, self._first)

    def _kept(self, block: Block[R]) -> Iterator[KeptSample[R]]:
        entries, num_unselected = self._enter(block)
        places = self._order.mix(block.number, len(entries))
        for slot in range(self._slot, len(entries)):
            self._slot = slot + 1
            if self._slot == len(entries):
                self._start_next_block(num_unselected)
            entry = entries[places[slot]]
            if isinstance(entry, Reject):
                self._reasons[entry.reason] += 1
                self._rejects.append(entry)
                self._first.setdefault(entry.reason, self._describe(entry))
                check_budget(self._admission, self._num_samples, self._reasons, self._first)
            else:
                self._num_samples += 1
                yield entry
        if self._block == block.number:  # the block has no slot after the cursor
            self._start_next_block(num_unselected)

    def cursor(self) -> Cursor:
        """Return the position after the latest sample."""
        return Cursor(
            manifest=self._order.manifest,
            order=self._order.digest,
            block=self._block,
            slot=self._slot,
            journal=self._journal.count(self._block, self._slot),
            num_samples=self._num_samples,
            num_rejects=self._reasons.total(),
            num_unselected=self._num_unselected,
            reject_reasons=dict(self._reasons),
        )

    def take_left_out(self) -> LeftOut:
        """Return the samples that were left out since the previous call."""
        num_unselected = self._num_unselected - self._num_unselected_taken
        left_out = LeftOut(tuple(self._rejects), num_unselected)
        self._rejects, self._num_unselected_taken = [], self._num_unselected
        return left_out

    @property
    def buffered(self) -> BufferLevel:
        """Samples and bytes that are held for later."""
        num_slots = max(0, self._lookahead.num_slots - self._slot)
        return BufferLevel(num_slots, self._lookahead.num_bytes)

    def extend(self) -> None:
        """Request more chunks, if the bounds allow."""
        self._lookahead.extend()

    def _plan(self, block: int) -> list[Turn]:
        return self._journal.amend(block, self._order.block(block))

    def _record(self, block: Block[R], results: list[R]) -> None:
        """Write irregular shards and crashing images of `block` to the journal."""
        added = False
        for turn, result in zip(block.turns, results, strict=True):
            if result.needs_walk and not turn.chunk.walked:
                added |= self._journal.add_irregular(turn.chunk.shard, block.number + 1)
            for image in result.crashed_images:
                added |= self._journal.add_quarantine(image, block.number)
        if added:
            self._lookahead.revise()

    def _enter(self, block: Block[R]) -> tuple[list[Reject | KeptSample[R]], int]:
        """Return the samples of a block before mixing, and how many are outside the subset."""
        results = [future.result() for future in block.futures]
        self._record(block, results)
        entries: list[Reject | KeptSample[R]] = []
        num_unselected = 0
        for result in results:
            self._guard.add(result)
            num_unselected += result.num_unselected
            rejects = {reject.offset: reject for reject in result.rejects}
            rows = np.cumsum(result.kept) - 1
            for place, offset in enumerate(result.offsets.tolist()):
                if result.kept[place]:
                    entries.append(KeptSample(result, int(rows[place]), offset))
                else:
                    entries.append(rejects[offset])
        if self._slot > len(entries):
            raise CursorMismatch(
                f"the checkpoint is at slot {self._slot} of block {block.number}, which has "
                f"{len(entries)} slots; remove this checkpoint to resume from the one before it"
            )
        return entries, num_unselected

    def _describe(self, reject: Reject) -> str:
        uri = redact(self._order.shards[reject.shard].uri)
        return f"{uri}, {reject.place}: {reject.detail}"

    def _start_next_block(self, num_unselected: int) -> None:
        # The position after the last slot of a block is the start of the next block.
        self._block, self._slot = self._block + 1, 0
        self._num_unselected += num_unselected


def check_cursor(order: Order, cursor: Cursor) -> None:
    """Raise CursorMismatch unless `cursor` is a position in `order`."""
    if cursor.manifest != order.manifest:
        raise CursorMismatch(
            f"the checkpoint belongs to other data (manifest {cursor.manifest}, now "
            f"{order.manifest}); resume with the --data and --keys it was started with, or give a "
            "new --out"
        )
    if cursor.order != order.digest:
        raise CursorMismatch(
            f"the checkpoint belongs to another order (digest {cursor.order}, now "
            f"{order.digest}); keep seed, chunk_bytes, chunks_per_block and --subset "
            "as they were, or give a new --out"
        )
    if cursor.block < 0 or cursor.slot < 0:
        raise CursorMismatch(
            f"the checkpoint is at block {cursor.block}, slot {cursor.slot}; both must be at "
            "least 0, so the file is damaged: remove this checkpoint to resume from the one before"
        )
