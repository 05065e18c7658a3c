"""Batches that are being put together on a trainer: which rows are here, and which to ask for.

No threads, no clock, no Ray. Rows are named by their place in the global batch, which a change of
generation does not touch: what was received, or is under way, stays good for the ranks after it.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cluster.protocol.messages import BatchPlan, Plans, Rows
from shards.records import CropBatch, bytes_of

Places = NDArray[np.int64]
Crops = tuple[NDArray[np.uint8], ...]
# How much a row takes is seen when the first ones are there.
_GUESSED_ROW_BYTES = 1 << 19


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows of one task that belong to one batch, and their places in it.

    `ids` (N, 2) and `epochs` (N,) of their samples are as in the plan.
    """

    step: int
    term: int
    task: int
    rows: NDArray[np.int64]
    places: Places
    ids: NDArray[np.int64]
    epochs: NDArray[np.int64]


class _Step:
    """A batch under way: rows [start, stop) of it."""

    def __init__(self, plans: Plans, plan: BatchPlan, start: int, stop: int) -> None:
        self.crops: Crops = ()
        self.opened = False
        self.start, self.stop = start, stop
        self.wanted = np.ones(stop - start, np.bool_)
        self.asked = np.zeros(stop - start, np.bool_)
        self.renew(plans, plan)

    @property
    def complete(self) -> bool:
        return not self.wanted.any()

    def renew(self, plans: Plans, plan: BatchPlan) -> None:
        """The same batch, as it is planned now: its crops may lie elsewhere."""
        self.term, self.holders, self.plan = plans.term, plans.holders, plan
        self.stale = False

    def move(self, start: int, stop: int) -> None:
        """Be other rows of the same batch; what is here already stays."""
        if (start, stop) == (self.start, self.stop):
            return
        first, last = max(start, self.start), min(stop, self.stop)
        old, was_wanted = self.crops, self.wanted
        theirs = slice(first - self.start, max(first, last) - self.start)
        ours = slice(first - start, max(first, last) - start)
        self.start, self.stop = start, stop
        self.wanted = np.ones(stop - start, np.bool_)
        self.asked = np.zeros(stop - start, np.bool_)
        self.wanted[ours] = was_wanted[theirs]
        self.crops = Crops()
        if not self.wanted.all():
            self._allocate([group.shape[1:] for group in old])
            for group, before in zip(self.crops, old, strict=True):
                group[ours] = before[theirs]

    def unasked(self) -> Iterator[tuple[str, Piece]]:
        """What to ask for, and of whom; stale afterwards if nobody has some of it."""
        left = np.flatnonzero(self.wanted & ~self.asked)
        if self.stale or not len(left):
            return
        places = left + self.start
        tasks = self.plan.tasks[places]
        order = np.argsort(tasks, kind="stable")
        borders = np.flatnonzero(np.diff(tasks[order])) + 1
        for part in np.split(places[order], borders):
            plan, task = self.plan, int(self.plan.tasks[part[0]])
            holder = self.holders.get(task)
            if holder is None:
                self.stale = True
                continue
            self.asked[part - self.start] = True
            rows, ids, epochs = plan.rows[part], plan.ids[part], plan.epochs[part]
            yield holder, Piece(plan.step, self.term, task, rows, part, ids, epochs)

    def mark(self, places: Places, *, asked: bool) -> None:
        """Whether these places are under way."""
        mine = places[(places >= self.start) & (places < self.stop)]
        self.asked[mine - self.start] = asked

    def put(self, places: Places, crops: Sequence[NDArray[np.uint8]]) -> None:
        """Lay rows where they belong, if they still do and are not here yet."""
        ours = (places >= self.start) & (places < self.stop)
        ours[ours] = self.wanted[places[ours] - self.start]
        if not ours.any():
            return
        if not self.crops:
            self._allocate([group.shape[1:] for group in crops])
        mine = places[ours] - self.start
        for group, arrived in zip(self.crops, crops, strict=True):
            group[mine] = arrived if ours.all() else arrived[ours]
        self.wanted[mine] = False

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
        num_rows = self.stop - self.start
        self.crops = tuple(np.empty((num_rows, *shape), np.uint8) for shape in shapes)


class Arriving:
    """All batches under way of one rank. `max_bytes` may be held or under way beyond the next."""

    def __init__(self, max_bytes: int, call_bytes: int) -> None:
        self._max_bytes, self._call_bytes = max_bytes, call_bytes
        self._row_bytes = self._sent_row_bytes = 0
        self._rank, self._world = 0, 0
        self._next = 0
        self._term = 0
        self._steps: dict[int, _Step] = {}
        self._queues: dict[str, list[tuple[int, int, Piece]]] = {}  # heaps: early steps first
        self._num_queued = 0
        self._under_way: set[Piece] = set()

    def enter(self, rank: int, world: int, step: int) -> None:
        """From now on it is the rows of `rank` of `world`, from batch `step` on."""
        self._rank, self._world, self._next = rank, world, step
        for number in [number for number in self._steps if number < step]:
            del self._steps[number]
        for found in self._steps.values():
            found.move(*self._range(len(found.plan.ids)))
        self._ask_anew()

    @property
    def is_ready(self) -> bool:
        """Whether the next batch is complete."""
        step = self._steps.get(self._next)
        return step is not None and step.complete

    @property
    def num_ready(self) -> int:
        return sum(step.complete for number, step in self._steps.items() if number >= self._next)

    @property
    def held_bytes(self) -> int:
        """Held or under way, beyond the batch that was given last."""
        steps = [step for number, step in self._steps.items() if number >= self._next]
        return sum(self._bytes(step) for step in steps if step.opened)

    def pop(self) -> CropBatch:
        """The next batch, which is ready. It is kept until the one behind it is asked for."""
        batch = self._steps[self._next].batch()
        self._steps.pop(self._next - 1, None)
        self._next += 1
        return batch

    def first_unplanned(self, num_plans: int) -> int | None:
        """The first batch to ask plans for; None if enough are known.

        That is half of `num_plans`, or every step of every rank would cost Control a call.
        """
        stale = [number for number, step in self._steps.items() if step.stale]
        first = self._next
        while first in self._steps:
            first += 1
        known = first - self._next
        return min([*stale, *([first] if 2 * known < num_plans else [])], default=None)

    def plan(self, plans: Plans) -> bool:
        """Take over plans; False if they were of no use, and shall be asked for again later."""
        if plans.term < self._term:
            return False
        if plans.term > self._term:
            self._term = plans.term
            for step in self._steps.values():
                step.stale = not step.complete
            self._ask_anew()
        for plan in plans.plans:
            known = self._steps.get(plan.step)
            if known is not None:
                known.renew(plans, plan)
            elif plan.step >= self._next:
                start, stop = self._range(len(plan.ids))
                self._steps[plan.step] = _Step(plans, plan, start, stop)
        self._queue()
        return bool(plans.plans) and not any(step.stale for step in self._steps.values())

    def pop_call(self, reader: str) -> list[Piece]:
        """What to ask this reader for in one call; nothing if there is nothing."""
        queue = self._queues.get(reader, [])
        room = max(1, self._call_bytes // (self._sent_row_bytes or _GUESSED_ROW_BYTES))
        pieces: list[Piece] = []
        while queue and room > 0 and (not pieces or queue[0][2].term == pieces[0].term):
            piece = heapq.heappop(queue)[2]
            if len(piece.rows) > room:
                rest = _part(piece, slice(room, None))
                piece = _part(piece, slice(room))
                self._push(reader, rest)
            room -= len(piece.rows)
            pieces.append(piece)
        self._under_way.update(pieces)
        return pieces

    def readers(self) -> list[str]:
        """Of whom there is something to ask for."""
        self._queue()
        return [reader for reader, queue in self._queues.items() if queue]

    def put(self, pieces: Sequence[Piece], rows: Rows, sent_bytes: int) -> None:
        """Take over what came of a call, for which a reader sent so many bytes."""
        self._under_way.difference_update(pieces)
        start = 0
        for piece in pieces:
            step = self._steps.get(piece.step)
            if piece.task in rows.missing:
                self._again(step, piece)
                continue
            part = slice(start, start + len(piece.rows))
            start = part.stop
            if step is not None:
                step.put(piece.places, [group[part] for group in rows.crops])
        if start:
            self._sent_row_bytes = -(-sent_bytes // start)
            # Until an image is cropped, it is what lies here.
            self._row_bytes = max(self._sent_row_bytes, bytes_of(rows.crops) // start)

    def lost(self, pieces: Sequence[Piece]) -> None:
        """A call gave nothing: ask who holds these by now."""
        self._under_way.difference_update(pieces)
        for piece in pieces:
            self._again(self._steps.get(piece.step), piece)

    def _again(self, step: _Step | None, piece: Piece) -> None:
        if step is not None and not step.complete:
            step.mark(piece.places, asked=False)
            step.stale = True

    def _queue(self) -> None:
        """Queue what may be asked for: the next batch, and later ones as far as there is room."""
        held = 0
        number = self._next
        while (step := self._steps.get(number)) is not None:
            held += self._bytes(step)
            fits = bool(self._row_bytes) and held <= self._max_bytes
            if number > self._next and not step.opened and not fits:
                return
            step.opened = True
            for reader, piece in step.unasked():
                self._push(reader, piece)
            number += 1

    def _push(self, reader: str, piece: Piece) -> None:
        self._num_queued += 1
        entry = piece.step, self._num_queued, piece
        heapq.heappush(self._queues.setdefault(reader, []), entry)

    def _ask_anew(self) -> None:
        """Forget what was queued; what is under way stays so."""
        self._queues.clear()
        for step in self._steps.values():
            step.asked[:] = False
        for piece in self._under_way:
            if piece.step in self._steps:
                self._steps[piece.step].mark(piece.places, asked=True)

    def _bytes(self, step: _Step) -> int:
        return (step.stop - step.start) * self._row_bytes

    def _range(self, num_rows: int) -> tuple[int, int]:
        """This rank's rows of a batch."""
        return self._rank * num_rows // self._world, (self._rank + 1) * num_rows // self._world


def _part(piece: Piece, part: slice) -> Piece:
    return replace(
        piece,
        rows=piece.rows[part],
        places=piece.places[part],
        ids=piece.ids[part],
        epochs=piece.epochs[part],
    )
