"""The one order: chunks that come in any order become samples in theirs, with the place of each.

What the chunks hold is not looked at: crops for a trainer (`stream`), or samples as they lie in the
tar. Here rejects are counted and paid for, passes over the data are judged, and the cursor moves.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Generic, NamedTuple

import numpy as np

from shards.errors import CursorMismatch
from shards.records import Cursor, Reject, Turn
from shards.samples.admission import AdmissionConfig, check_budget
from shards.stream.empty_pass import Passes
from shards.stream.journal import Journal
from shards.stream.lookahead import Block, Bounds, Forget, Lookahead, R, Stop, Submit, ignore, never
from shards.stream.order import Order


class Taken(NamedTuple, Generic[R]):
    """A sample whose turn it is: row `row` of what was kept of the chunk that `result` is."""

    result: R
    row: int
    offset: int


class Ahead(NamedTuple):
    """Samples, kept or not, of complete blocks that wait for their turn; bytes of all results."""

    num_slots: int
    num_bytes: int


class Decided(NamedTuple):
    """What was decided against since it was asked for last."""

    rejects: tuple[Reject, ...]
    num_unselected: int


class OrderedSlots(Generic[R]):
    """Every sample that is kept, in canonical order from a cursor on, without end.

    Iterate it; `cursor()` is the place behind the sample that came last. `submit(turn)` must return
    a future of what the chunk gives; it may be called from one thread only and must not block long.
    `forget(futures)` is told of those whose samples were all decided on. Raises BudgetExceeded,
    ShardUnreadable, ConfigError (a pass smaller than `batch_size`), and StreamStopped if `stop()`
    says so while it waits.
    """

    def __init__(
        self,
        order: Order,
        submit: Submit[R],
        bounds: Bounds,
        admission: AdmissionConfig,
        *,
        batch_size: int = 1,
        cursor: Cursor | None = None,
        journal: Journal | None = None,
        stop: Stop = never,
        forget: Forget[R] = ignore,
    ) -> None:
        start = cursor or Cursor(manifest=order.manifest, order=order.digest)
        check_cursor(order, start)
        self._order, self._admission = order, admission
        self._journal = journal or Journal(order.manifest, order.digest)
        self._journal.check(start)
        self._lookahead = Lookahead(self._plan, submit, bounds, start.block, stop, forget)
        self._passes = Passes(order, batch_size)
        self._block, self._slot = start.block, start.slot
        self._num_samples = start.num_samples
        self._num_unselected = start.num_unselected
        self._reasons = Counter(start.reject_reasons)
        self._rejects: list[Reject] = []
        self._told_unselected = start.num_unselected

    def __iter__(self) -> Iterator[Taken[R]]:
        while True:
            yield from self._kept(self._lookahead.wait())
            self._lookahead.leave()
            self._passes.judge(self._reasons)

    def _kept(self, block: Block[R]) -> Iterator[Taken[R]]:
        """Decide slot by slot; what is held for that goes with this generator."""
        entries, num_unselected = self._enter(block)
        places = self._order.mix(block.number, len(entries))
        for slot in range(self._slot, len(entries)):
            self._slot = slot + 1
            if self._slot == len(entries):
                self._go_on(num_unselected)
            entry = entries[places[slot]]
            if isinstance(entry, Reject):
                self._reasons[entry.reason] += 1
                self._rejects.append(entry)
                check_budget(self._admission, self._num_samples, self._reasons)
            else:
                self._num_samples += 1
                yield entry
        if self._block == block.number:  # there was no slot, or none behind the cursor
            self._go_on(num_unselected)

    def cursor(self) -> Cursor:
        """The place behind the sample that came last."""
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

    def decided(self) -> Decided:
        """What was decided against since the last call."""
        found = Decided(tuple(self._rejects), self._num_unselected - self._told_unselected)
        self._rejects, self._told_unselected = [], self._num_unselected
        return found

    @property
    def ahead(self) -> Ahead:
        """What is held for later."""
        return Ahead(max(0, self._lookahead.num_slots - self._slot), self._lookahead.num_bytes)

    def extend(self) -> None:
        """Ask for more chunks, if there is room by now."""
        self._lookahead.extend()

    def _plan(self, block: int) -> list[Turn]:
        return self._journal.amend(block, self._order.block(block))

    def _learn(self, block: Block[R], results: list[R]) -> None:
        """Write down what this block taught about the blocks behind it."""
        news = False
        for turn, result in zip(block.turns, results, strict=True):
            if result.leaps and not turn.chunk.walked:
                news |= self._journal.add_irregular(turn.chunk.shard, block.number + 1)
            for image in result.killers:
                news |= self._journal.add_quarantine(image, block.number)
        if news:
            self._lookahead.revise()

    def _enter(self, block: Block[R]) -> tuple[list[Reject | Taken[R]], int]:
        """The samples of a block before they are mixed, and how many a subset left out."""
        results = [future.result() for future in block.futures]
        self._learn(block, results)
        entries: list[Reject | Taken[R]] = []
        num_unselected = 0
        for result in results:
            self._passes.add(result)
            num_unselected += result.num_unselected
            reasons = {reject.offset: reject for reject in result.rejects}
            rows = np.cumsum(result.kept) - 1
            for place, offset in enumerate(result.offsets.tolist()):
                if result.kept[place]:
                    entries.append(Taken(result, int(rows[place]), offset))
                else:
                    entries.append(reasons[offset])
        if self._slot > len(entries):
            raise CursorMismatch(
                f"the checkpoint's place is slot {self._slot} of block {block.number}, which has "
                f"{len(entries)}; remove this checkpoint to go on from the one before it"
            )
        return entries, num_unselected

    def _go_on(self, num_unselected: int) -> None:
        """The place behind the last slot of a block is the start of the next one."""
        self._block, self._slot = self._block + 1, 0
        self._num_unselected += num_unselected


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
            f"{order.digest}); keep seed, chunk_bytes, chunks_per_block and --subset "
            "as they were, or give a new --out"
        )
    if cursor.block < 0 or cursor.slot < 0:
        raise CursorMismatch(
            f"the checkpoint's place is block {cursor.block}, slot {cursor.slot}; both are at "
            "least 0, so the file is damaged: remove this checkpoint to go on from the one before"
        )
