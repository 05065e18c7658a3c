"""Totals over all readers of a run; each result counts once, whichever readers died since."""

from dataclasses import dataclass

import numpy as np

from cluster.protocol.messages import ReaderReport
from cluster.protocol.process_counts import ProcessCounts
from shards.metric import Readings


@dataclass(slots=True)
class _LastReport:
    finished: frozenset[tuple[int, int]] = frozenset()
    busy_seconds: float = 0.0
    held_bytes: int = 0
    memory_bytes: int = 0


class ReaderTotals:
    """Sums of what readers report; their reports are cumulative since they started."""

    def __init__(self) -> None:
        self.num_made = 0  # samples that were cropped
        self.busy_seconds = 0.0
        self._reports: dict[str, _LastReport] = {}
        self._counts: dict[str, Readings] = {}

    def add(self, report: ReaderReport) -> None:
        """Count the new part of a report; a repeated report adds nothing."""
        last = self._reports.setdefault(report.reader, _LastReport())
        for finished in report.finished:
            if finished.header is not None and (finished.task, finished.epoch) not in last.finished:
                self.num_made += int(np.count_nonzero(finished.header.kept))
        last.finished = frozenset((one.task, one.epoch) for one in report.finished)
        self.busy_seconds += report.busy_seconds - last.busy_seconds
        last.busy_seconds, last.held_bytes = report.busy_seconds, report.held_bytes
        last.memory_bytes = report.memory_bytes
        if report.counts:
            self._counts[report.reader] = report.counts

    def take_counts(self) -> tuple[ProcessCounts, ...]:
        """Return the counts of readers that reported any since the last call."""
        counts, self._counts = self._counts, {}
        return tuple(ProcessCounts(name, found) for name, found in counts.items())

    @property
    def held_bytes(self) -> int:
        """Bytes of crops in the memory of readers."""
        return sum(last.held_bytes for last in self._reports.values())

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the largest reader."""
        return max((last.memory_bytes for last in self._reports.values()), default=0)

    def forget(self, reader: str) -> None:
        """Drop the memory of a dead reader; its work stays counted."""
        self._reports.pop(reader, None)
