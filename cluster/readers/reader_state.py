"""State of a reader: leases, results that Control does not know, and crops.

Pure: no thread, no clock, no Ray; one thread calls at a time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cluster.protocol.messages import (
    ChunkHeader,
    FinishedLease,
    GroupRows,
    Lease,
    LentRows,
    ReaderOrders,
    ReaderReport,
    Rows,
)
from shards.metric import Key, Readings
from shards.records import ChunkCrops
from shards.shared_file import SharedFile

Arrays = tuple[NDArray[np.uint8], ...]
# A smaller row is copied sooner than it is described as a part of a message.
_MIN_VIEW_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class _HeldCrops:
    crops: Arrays
    num_bytes: int


@dataclass(slots=True)
class ReaderWork:
    """Time and results of a reader since it started."""

    busy_seconds: float = 0.0
    lease_wait_seconds: float = 0.0
    bucket_wait_seconds: float = 0.0
    counts: dict[Key, float] = field(default_factory=dict)

    def count(self, key: Key, number: float) -> None:
        self.counts[key] = self.counts.get(key, 0) + number

    def count_chunk(self, result: ChunkCrops) -> None:
        self.count(("samples", "read"), len(result.offsets) + result.num_unselected)
        self.count(("samples", "unselected"), result.num_unselected)
        self.count(("samples", "cropped"), int(np.count_nonzero(result.kept)))
        self.count(("reader_busy_seconds", "read"), result.read_seconds)
        self.count(("reader_busy_seconds", "crop"), result.crop_seconds)
        self.count(("crop_bytes",), result.num_bytes)

    def readings(self) -> Readings:
        """Return all counters, for /metrics."""
        return {
            **self.counts,
            ("reader_blocked_seconds", "lease"): self.lease_wait_seconds,
            ("reader_blocked_seconds", "bucket"): self.bucket_wait_seconds,
        }


class ReaderState:
    """Reader side of the leases. The reader wants `num_leases` leases at once.

    Orders of an older Control are ignored; on orders of a newer one, everything of the old one is
    dropped.
    """

    def __init__(self, reader: str, num_leases: int, empty: Arrays) -> None:
        self.work = ReaderWork()
        self._reader, self._num_leases = reader, num_leases
        self._empty = empty
        self._term = 0
        self._leaving = False
        self._waiting: dict[int, Lease] = {}
        self._current: Lease | None = None
        self._finished: dict[int, FinishedLease] = {}
        self._held: dict[int, _HeldCrops] = {}

    @property
    def has_results(self) -> bool:
        """True if Control does not know all results."""
        return bool(self._finished)

    @property
    def runs_out(self) -> bool:
        """True if there are results, and less than half of the leases wait."""
        return self.has_results and 2 * len(self._waiting) < self._num_leases

    @property
    def is_done(self) -> bool:
        """True if the reader was told to leave, and no trainer needs its crops."""
        return self._leaving and not (self._current or self._finished or self._held)

    def report(self, memory_bytes: int = 0, counts: Readings | None = None) -> ReaderReport:
        """Return a complete report; `counts` come along from time to time."""
        current = self._current
        room = self._num_leases - len(self._waiting) - (current is not None)
        return ReaderReport(
            reader=self._reader,
            term=self._term,
            finished=tuple(self._finished.values()),
            current_task=current.task if current else None,
            waiting=tuple(self._waiting),
            wanted=0 if self._leaving else max(0, room),
            held=tuple(task for task in self._held if task not in self._finished),
            held_bytes=sum(held.num_bytes for held in self._held.values()),
            memory_bytes=memory_bytes,
            busy_seconds=self.work.busy_seconds,
            counts=counts or {},
        )

    def apply_orders(self, report: ReaderReport, orders: ReaderOrders) -> None:
        """Apply the answer of Control to this report."""
        if orders.term < self._term:
            return
        if orders.term > self._term:
            self._begin_term(orders.term)
        else:
            for finished in report.finished:
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
        """Return the leases that were not begun, in their order."""
        return tuple(self._waiting.values())

    def begin(self, lease: Lease) -> bool:
        """Make a waiting lease the current one; False if it is no longer valid."""
        if self._waiting.get(lease.task) is not lease:
            return False
        del self._waiting[lease.task]
        self._current = lease
        return True

    def finish(self, lease: Lease, result: ChunkCrops | BaseException) -> None:
        """Add the result of the current lease, or of one that could not be begun."""
        if self._waiting.get(lease.task) is lease:
            del self._waiting[lease.task]
        elif self._current is lease:
            self._current = None
        else:
            return  # it was taken back meanwhile
        if isinstance(result, BaseException):
            self._finished[lease.task] = FinishedLease(lease.task, lease.epoch, None, result)
            return
        header = ChunkHeader.of(result)
        self._held[lease.task] = _HeldCrops(result.crops, result.num_bytes)
        self._finished[lease.task] = FinishedLease(lease.task, lease.epoch, header)
        self.work.count_chunk(result)

    def find(self, term: int, tasks: Sequence[int]) -> list[Arrays | None]:
        """Return the crops of these tasks; None if they are not held."""
        if term != self._term:
            return [None] * len(tasks)
        found = [self._held.get(task) for task in tasks]
        return [None if held is None else held.crops for held in found]

    def gather(
        self,
        parts: Sequence[Arrays | None],
        wanted: Sequence[tuple[int, NDArray[np.int64]]],
        file: SharedFile | None = None,
    ) -> Rows:
        """Return the wanted rows of `find`'s result, or their places in `file`. Needs no lock."""
        there = [(part, rows) for part, (_, rows) in zip(parts, wanted, strict=True) if part]
        groups = [
            ([(part[group], rows) for part, rows in there], empty)
            for group, empty in enumerate(self._empty)
        ]
        crops = tuple(
            (file and _places_of(found, empty, file)) or _rows_of(found, empty)
            for found, empty in groups
        )
        missing = tuple(t for part, (t, _) in zip(parts, wanted, strict=True) if part is None)
        return Rows(crops, missing)

    def _add(self, lease: Lease) -> None:
        current = self._current
        if current and (current.task, current.epoch) == (lease.task, lease.epoch):
            return
        known = self._finished.get(lease.task)
        if known is not None and known.epoch == lease.epoch:
            return
        old = self._waiting.get(lease.task)
        if old is None or old.epoch < lease.epoch:
            self._waiting[lease.task] = lease

    def _drop(self, task: int, epoch: int) -> None:
        """Drop the leases of a task up to this epoch."""
        lease = self._waiting.get(task)
        if lease is not None and lease.epoch <= epoch:
            del self._waiting[task]
        current = self._current
        if current is not None and current.task == task and current.epoch <= epoch:
            self._current = None  # cropping cannot be interrupted; its result is not kept

    def _begin_term(self, term: int) -> None:
        self._term = term
        self._waiting.clear()
        self._finished.clear()
        self._held.clear()
        self._current = None


def _places_of(
    wanted: Sequence[tuple[NDArray[np.uint8], NDArray[np.int64]]],
    empty: NDArray[np.uint8],
    file: SharedFile,
) -> LentRows | None:
    """Return where the wanted rows lie in a file; None if some of them lie elsewhere."""
    places: list[NDArray[np.int64]] = []
    for array, rows in wanted:
        first = None if array.dtype == object else file.place_of(array)
        if first is None:
            return None
        places.append(first + array.strides[0] * rows)
    return LentRows(np.concatenate(places), empty.shape[1:]) if places else None


def _rows_of(
    wanted: Sequence[tuple[NDArray[np.uint8], NDArray[np.int64]]], empty: NDArray[np.uint8]
) -> GroupRows:
    """Return the wanted rows of the arrays of one view group, `empty` being one without a row.

    Large rows stay where they are: the object store takes each of them from there.
    """
    if empty.dtype != object and math.prod(empty.shape[1:]) >= _MIN_VIEW_BYTES:
        return tuple(array[row] for array, rows in wanted for row in rows.tolist())
    num_rows = sum(len(rows) for _, rows in wanted)
    gathered = np.empty((num_rows, *empty.shape[1:]), empty.dtype)
    start = 0
    for array, rows in wanted:
        # The sequencer has checked the rows; mode "raise" would copy once more.
        np.take(array, rows, axis=0, out=gathered[start : start + len(rows)], mode="clip")
        start += len(rows)
    return gathered
