"""What a reader has in its hands: leases, results that Control has not heard of, and crops.

No threads, no clock, no Ray: every call comes from one thread at a time, with the time passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cluster.protocol.messages import ChunkHeader, Finished, Lease, ReaderOrders, ReaderReport, Rows
from cluster.protocol.metric import Key, Readings
from shards.records import ChunkCrops

Arrays = tuple[NDArray[np.uint8], ...]


@dataclass(frozen=True, slots=True)
class _Held:
    """Crops that others may ask for."""

    epoch: int
    crops: Arrays
    num_bytes: int


@dataclass(slots=True)
class _InHand:
    """The lease that is worked on."""

    lease: Lease
    since: float


@dataclass(slots=True)
class Spent:
    """Where a reader's time went, and what came of it, since it started."""

    busy: float = 0.0
    for_lease: float = 0.0
    for_bucket: float = 0.0
    counts: dict[Key, float] = field(default_factory=dict)

    def count(self, key: Key, number: float) -> None:
        self.counts[key] = self.counts.get(key, 0) + number

    def count_chunk(self, result: ChunkCrops) -> None:
        """What came of a chunk."""
        self.count(("samples", "read"), len(result.offsets) + result.num_unselected)
        self.count(("samples", "unselected"), result.num_unselected)
        self.count(("samples", "cropped"), int(np.count_nonzero(result.kept)))
        self.count(("reader_busy_seconds", "read"), result.read_seconds)
        self.count(("reader_busy_seconds", "crop"), result.crop_seconds)
        self.count(("crop_bytes",), result.num_bytes)

    def readings(self) -> Readings:
        """All of it, for /metrics."""
        blocked = {"lease": self.for_lease, "bucket": self.for_bucket}
        waits: Readings = {
            ("reader_blocked_seconds", on): seconds for on, seconds in blocked.items()
        }
        return {**self.counts, **waits}


class Stock:
    """A reader's side of the leases. `num_leases` is how many it wants at once.

    What an older Control says is refused; of what a newer one did not order, nothing is kept.
    """

    def __init__(self, reader: str, num_leases: int, empty: Arrays) -> None:
        self.spent = Spent()
        self._reader, self._num_leases = reader, num_leases
        self._empty = empty
        self._term = 0
        self._leaving = False
        self._waiting: dict[int, Lease] = {}
        self._in_hand: _InHand | None = None
        self._finished: dict[int, Finished] = {}
        self._held: dict[int, _Held] = {}

    @property
    def has_news(self) -> bool:
        """Whether there are results that Control has not heard of."""
        return bool(self._finished)

    @property
    def is_done(self) -> bool:
        """Whether it was told to leave, and holds nothing that somebody may want."""
        return self._leaving and not (self._in_hand or self._finished or self._held)

    def report(
        self, now: float, memory_bytes: int = 0, counts: Readings | None = None
    ) -> ReaderReport:
        """All that Control must know; `counts` where it is time to tell of them, too."""
        hand = self._in_hand
        room = self._num_leases - len(self._waiting) - (hand is not None)
        return ReaderReport(
            reader=self._reader,
            term=self._term,
            finished=tuple(self._finished.values()),
            in_hand=hand.lease.task if hand else None,
            in_hand_seconds=now - hand.since if hand else 0.0,
            waiting=tuple(self._waiting),
            wanted=0 if self._leaving else max(0, room),
            held=tuple(task for task in self._held if task not in self._finished),
            held_bytes=sum(held.num_bytes for held in self._held.values()),
            memory_bytes=memory_bytes,
            busy_seconds=self.spent.busy,
            counts=counts or {},
        )

    def obey(self, report: ReaderReport, orders: ReaderOrders) -> None:
        """Take over what Control answered to this report."""
        if orders.term < self._term:
            return
        if orders.term > self._term:
            self._forget(orders.term)
        else:
            for finished in report.finished:  # they were heard
                if self._finished.get(finished.task) is finished:
                    del self._finished[finished.task]
        for task, epoch in orders.drop:
            self._drop(task, epoch)
        for task in orders.release:
            self._held.pop(task, None)
        self._leaving = orders.leave
        if self._leaving:
            self._waiting.clear()
            return
        for lease in orders.leases:
            self._add(lease)

    def waiting(self) -> Sequence[Lease]:
        """Leases that were not begun, in their order."""
        return tuple(self._waiting.values())

    def begin(self, lease: Lease, now: float) -> bool:
        """Have this one in hand; False if it is no longer wanted."""
        if self._waiting.get(lease.task) is not lease:
            return False
        del self._waiting[lease.task]
        self._in_hand = _InHand(lease, now)
        return True

    def finish(self, lease: Lease, result: ChunkCrops | BaseException) -> None:
        """What came of the lease in hand, or of one that could not be begun."""
        if self._waiting.get(lease.task) is lease:
            del self._waiting[lease.task]
        elif self._in_hand is not None and self._in_hand.lease is lease:
            self._in_hand = None
        else:
            return  # it was taken back meanwhile
        if isinstance(result, BaseException):
            self._finished[lease.task] = Finished(lease.task, lease.epoch, None, result)
            return
        header = ChunkHeader.of(result)
        self._held[lease.task] = _Held(lease.epoch, result.crops, result.num_bytes)
        self._finished[lease.task] = Finished(lease.task, lease.epoch, header)
        self.spent.count_chunk(result)

    def find(self, term: int, tasks: Sequence[int]) -> list[Arrays | None]:
        """The crops of these tasks; None where they are not held."""
        if term != self._term:
            return [None] * len(tasks)
        found = [self._held.get(task) for task in tasks]
        return [None if held is None else held.crops for held in found]

    def gather(
        self, parts: Sequence[Arrays | None], wanted: Sequence[tuple[int, NDArray[np.int64]]]
    ) -> Rows:
        """The wanted rows of what `find` gave, side by side. Reads nothing that changes."""
        there = [(part, rows) for part, (_, rows) in zip(parts, wanted, strict=True) if part]
        num_rows = sum(len(rows) for _, rows in there)
        crops = tuple(np.empty((num_rows, *group.shape[1:]), group.dtype) for group in self._empty)
        start = 0
        for part, rows in there:
            for out, group in zip(crops, part, strict=True):
                # Rows are checked by whoever planned them; "raise" would copy once more.
                np.take(group, rows, axis=0, out=out[start : start + len(rows)], mode="clip")
            start += len(rows)
        missing = tuple(t for part, (t, _) in zip(parts, wanted, strict=True) if part is None)
        return Rows(crops, missing)

    def _add(self, lease: Lease) -> None:
        hand = self._in_hand
        if hand is not None and (hand.lease.task, hand.lease.epoch) == (lease.task, lease.epoch):
            return
        known = self._finished.get(lease.task)
        if known is not None and known.epoch == lease.epoch:
            return
        old = self._waiting.get(lease.task)
        if old is None or old.epoch < lease.epoch:
            self._waiting[lease.task] = lease

    def _drop(self, task: int, epoch: int) -> None:
        """Leases of a task up to this epoch hold no longer."""
        lease = self._waiting.get(task)
        if lease is not None and lease.epoch <= epoch:
            del self._waiting[task]
        hand = self._in_hand
        if hand is not None and hand.lease.task == task and hand.lease.epoch <= epoch:
            self._in_hand = None  # it cannot be broken off; what comes of it is not kept

    def _forget(self, term: int) -> None:
        self._term = term
        self._waiting.clear()
        self._finished.clear()
        self._held.clear()
        self._in_hand = None
