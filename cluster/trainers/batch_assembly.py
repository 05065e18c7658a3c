"""BatchAssembly: the batches that a trainer puts together, and the rows that it still needs.

No threads, no clock, no Ray. A row is named by its position in the global batch, which a change of
generation does not touch: received and requested rows stay valid for the ranks of the next one.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from cluster.protocol.messages import BatchPlan, GroupRows, Plans
from shards.crops.batch_arrays import batch_arrays
from shards.records import CropBatch

Positions = NDArray[np.int64]
Crops = tuple[NDArray[np.uint8], ...]
# The size of a row is known when the first ones have arrived.
_GUESSED_ROW_BYTES = 1 << 19


@dataclass(frozen=True, slots=True, eq=False)
class TaskRows:
    """Rows of one task that belong to one batch, and their positions in it.

    `ids` (N, 2) and `epochs` (N,) of their samples are as in the plan.
    """

    step: int
    term: int
    task: int
    rows: NDArray[np.int64]
    positions: Positions
    ids: NDArray[np.int64]
    epochs: NDArray[np.int64]


class _PartialBatch:
    """Rows [start, stop) of one batch, some of which have not arrived."""

    def __init__(self, plans: Plans, plan: BatchPlan, start: int, stop: int) -> None:
        self.crops: Crops = ()
        self.opened = False
        self.start, self.stop = start, stop
        self.missing = np.ones(stop - start, np.bool_)
        self.requested = np.zeros(stop - start, np.bool_)
        self.renew(plans, plan)

    @property
    def complete(self) -> bool:
        return not self.missing.any()

    def renew(self, plans: Plans, plan: BatchPlan) -> None:
        """Replace the plan of the same batch: other readers may hold its crops now."""
        self.term, self.holders, self.plan = plans.term, plans.holders, plan
        self.stale = False

    def move(self, start: int, stop: int) -> None:
        """Change the range of rows, and keep those that have arrived."""
        if (start, stop) == (self.start, self.stop):
            return
        first, last = max(start, self.start), min(stop, self.stop)
        old, was_missing = self.crops, self.missing
        theirs = slice(first - self.start, max(first, last) - self.start)
        ours = slice(first - start, max(first, last) - start)
        self.start, self.stop = start, stop
        self.missing = np.ones(stop - start, np.bool_)
        self.requested = np.zeros(stop - start, np.bool_)
        self.missing[ours] = was_missing[theirs]
        self.crops = Crops()
        if not self.missing.all():
            self._allocate([group.shape[1:] for group in old])
            for group, before in zip(self.crops, old, strict=True):
                group[ours] = before[theirs]

    def requests(self) -> Iterator[tuple[str, TaskRows]]:
        """Yield a reader and the rows to request from it; become stale if a task has no holder."""
        left = np.flatnonzero(self.missing & ~self.requested)
        if self.stale or not len(left):
            return
        positions, plan = left + self.start, self.plan
        tasks = plan.tasks[positions]
        order = np.argsort(tasks, kind="stable")
        borders = np.flatnonzero(np.diff(tasks[order])) + 1
        for part in np.split(positions[order], borders):
            task = int(plan.tasks[part[0]])
            holder = self.holders.get(task)
            if holder is None:
                self.stale = True
                continue
            self.requested[part - self.start] = True
            rows, ids, epochs = plan.rows[part], plan.ids[part], plan.epochs[part]
            yield holder, TaskRows(plan.step, self.term, task, rows, part, ids, epochs)

    def mark(self, positions: Positions, *, requested: bool) -> None:
        """Note whether these rows are requested."""
        mine = positions[(positions >= self.start) & (positions < self.stop)]
        self.requested[mine - self.start] = requested

    def put(self, positions: Positions, crops: Sequence[GroupRows]) -> None:
        """Copy rows to their positions, unless they are of other ranks or already there."""
        ours = (positions >= self.start) & (positions < self.stop)
        ours[ours] = self.missing[positions[ours] - self.start]
        if not ours.any():
            return
        if not self.crops:
            self._allocate([getattr(group[0], "shape", ()) for group in crops])
        mine = positions[ours] - self.start
        for group, arrived in zip(self.crops, crops, strict=True):
            for place, row in zip(mine.tolist(), compress(arrived, ours.tolist()), strict=True):
                group[place] = row
        self.missing[mine] = False

    def batch(self) -> CropBatch:
        plan = self.plan
        return CropBatch(
            self.crops,
            plan.ids,
            plan.epochs,
            plan.cursor,
            plan.rejects,
            plan.num_unselected,
            plan.labels,
        )

    def _allocate(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.crops = batch_arrays(self.stop - self.start, shapes)


class BatchAssembly:
    """Partial batches of one rank.

    Rows of at most `max_bytes` are held or requested beyond the next batch.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._row_bytes = 0
        self._rank, self._world = 0, 0
        self._next = 0
        self._term = 0
        self._batches: dict[int, _PartialBatch] = {}
        self._queues: dict[str, list[tuple[int, int, TaskRows]]] = {}  # heaps: early steps first
        self._queued_rows: Counter[str] = Counter()  # in each of them
        self._num_queued = 0
        self._due = 0  # rows of later batches than this one wait for more of them
        self._in_flight: set[TaskRows] = set()

    def enter(self, rank: int, world: int, step: int) -> None:
        """Assemble rows of `rank` of `world` ranks, beginning with the batch of `step`."""
        self._rank, self._world, self._next = rank, world, step
        for number in [number for number in self._batches if number < step]:
            del self._batches[number]
        for batch in self._batches.values():
            batch.move(*self._range(len(batch.plan.ids)))
        self._requeue()

    @property
    def next_step(self) -> int:
        return self._next

    @property
    def is_ready(self) -> bool:
        """True if the next batch is complete."""
        batch = self._batches.get(self._next)
        return batch is not None and batch.complete

    @property
    def num_ready(self) -> int:
        return sum(batch.complete for batch in self._ahead())

    @property
    def held_bytes(self) -> int:
        """Bytes of rows that are held or requested, without the batch that was returned last."""
        return sum(self._bytes(batch) for batch in self._ahead() if batch.opened)

    def complete_ahead(self, num_batches: int) -> Iterator[tuple[int, range, CropBatch]]:
        """Yield those of the next batches that are complete: their numbers, and the range of rows
        of this rank."""
        for number in range(self._next, self._next + num_batches):
            batch = self._batches.get(number)
            if batch is not None and batch.complete:
                yield number, range(batch.start, batch.stop), batch.batch()

    def peek(self) -> CropBatch:
        """Return the next batch, which must be ready; it stays the next one."""
        return self._batches[self._next].batch()

    def pop(self) -> CropBatch:
        """Return the next batch, which must be ready. It is kept until the one after it."""
        batch = self.peek()
        self._batches.pop(self._next - 1, None)
        self._next += 1
        return batch

    def first_unplanned(self, num_plans: int) -> int | None:
        """Return the first batch to request plans for; None if enough are known.

        Half of `num_plans` is enough: else every step of every rank would cost Control a call.
        """
        stale = [number for number, batch in self._batches.items() if batch.stale]
        first = self._next
        while first in self._batches:
            first += 1
        known = first - self._next
        return min([*stale, *([first] if 2 * known < num_plans else [])], default=None)

    def plan(self, plans: Plans) -> bool:
        """Take plans; return False if they did not help and must be requested again later."""
        if plans.term < self._term:
            return False
        if plans.term > self._term:
            self._term = plans.term
            for batch in self._batches.values():
                batch.stale = not batch.complete
            self._requeue()
        for plan in plans.plans:
            known = self._batches.get(plan.step)
            if known is not None:
                known.renew(plans, plan)
            elif plan.step >= self._next:
                start, stop = self._range(len(plan.ids))
                self._batches[plan.step] = _PartialBatch(plans, plan, start, stop)
        self._queue()
        return bool(plans.plans) and not any(batch.stale for batch in self._batches.values())

    def readers(self) -> list[str]:
        """Return the readers that something can be requested from."""
        self._queue()
        return [reader for reader, queue in self._queues.items() if queue]

    def pop_request(self, reader: str, call_bytes: int) -> list[TaskRows]:
        """Return the rows of the next request to this reader, of about `call_bytes`.

        Empty if there are none, or if they wait for more: a call for a few rows costs as much as
        one for many.
        """
        queue = self._queues.get(reader, [])
        room = max(1, call_bytes // (self._row_bytes or _GUESSED_ROW_BYTES))
        if not queue or (queue[0][0] > self._due and self._queued_rows[reader] < room):
            return []
        parts: list[TaskRows] = []
        while queue and room > 0 and (not parts or queue[0][2].term == parts[0].term):
            part = heapq.heappop(queue)[2]
            self._queued_rows[reader] -= len(part.rows)
            if len(part.rows) > room:
                rest = _slice(part, slice(room, None))
                part = _slice(part, slice(room))
                self._push(reader, rest)
            room -= len(part.rows)
            parts.append(part)
        self._in_flight.update(parts)
        return parts

    def put(
        self,
        parts: Sequence[TaskRows],
        crops: Sequence[GroupRows],
        missing: Collection[int],
        num_bytes: int,
    ) -> None:
        """Copy the rows of an answer, of `num_bytes`: all of the request but the missing tasks."""
        self._in_flight.difference_update(parts)
        start = 0
        for part in parts:
            batch = self._batches.get(part.step)
            if part.task in missing:
                self._retry(batch, part)
                continue
            taken = slice(start, start + len(part.rows))
            start = taken.stop
            if batch is not None:
                batch.put(part.positions, [group[taken] for group in crops])
        if start:
            self._row_bytes = -(-num_bytes // start)

    def lost(self, parts: Sequence[TaskRows]) -> None:
        """Note that a request failed: the holders of these rows must be requested again."""
        self._in_flight.difference_update(parts)
        for part in parts:
            self._retry(self._batches.get(part.step), part)

    def _ahead(self) -> list[_PartialBatch]:
        return [batch for number, batch in self._batches.items() if number >= self._next]

    def _retry(self, batch: _PartialBatch | None, part: TaskRows) -> None:
        if batch is not None and not batch.complete:
            batch.mark(part.positions, requested=False)
            batch.stale = True

    def _queue(self) -> None:
        """Queue requests for the next batch, and for later ones as far as there is room.

        Those of the first half are due at once, and at least those of two batches.
        """
        held = 0
        number = self._next
        while (batch := self._batches.get(number)) is not None:
            held += self._bytes(batch)
            fits = bool(self._row_bytes) and held <= self._max_bytes
            if number > self._next and not batch.opened and not fits:
                break
            batch.opened = True
            for reader, part in batch.requests():
                self._push(reader, part)
            number += 1
        self._due = max(self._next + 1, (self._next + number) // 2)

    def _push(self, reader: str, part: TaskRows) -> None:
        self._num_queued += 1
        self._queued_rows[reader] += len(part.rows)
        entry = part.step, self._num_queued, part
        heapq.heappush(self._queues.setdefault(reader, []), entry)

    def _requeue(self) -> None:
        """Drop the queues; requests in flight stay."""
        self._queues.clear()
        self._queued_rows.clear()
        for batch in self._batches.values():
            batch.requested[:] = False
        for part in self._in_flight:
            if part.step in self._batches:
                self._batches[part.step].mark(part.positions, requested=True)

    def _bytes(self, batch: _PartialBatch) -> int:
        return (batch.stop - batch.start) * self._row_bytes

    def _range(self, num_rows: int) -> tuple[int, int]:
        """Return this rank's range of rows of a batch."""
        return self._rank * num_rows // self._world, (self._rank + 1) * num_rows // self._world


def _slice(part: TaskRows, rows: slice) -> TaskRows:
    return replace(
        part,
        rows=part.rows[rows],
        positions=part.positions[rows],
        ids=part.ids[rows],
        epochs=part.epochs[rows],
    )
